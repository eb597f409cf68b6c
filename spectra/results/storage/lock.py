"""One writer of a results file at a time: a lock of the operating system on a small file beside it.

The lock is the system's, so it ends with the process that holds it, whatever ended that; the file `.run.h5.lock` only
says who that is. What a dead process left of it stands in nobody's way. Readers need no lock.

Whatever else has that name is neither written nor removed: a link of either kind, a FIFO, a folder. A lock file that
another user left, and that cannot be written, is locked as it is.

The package `filelock` does not replace this: it also locks a file that has another name (a hard link), and can neither
say who holds a lock nor look without taking it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from spectra.errors import StorageError
from spectra.results.storage.safe_open import open_regular, resolved

_MOST = 4096  # bytes of what a lock file says
_BUSY = (errno.EACCES, errno.EAGAIN)
_UNNAMED = "another process (whose number is not in the lock file, which is another user's)"
_REMOVE = "remove it if no run is writing there, or name another --out"
#: Locks of this kind are the process's own, so a second writer in the same process is noticed here.
_HELD: set[Path] = set()


@contextlib.contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Hold the lock of a results file, or refuse.

    Where the file system has no locks, nothing is held: `RunFile.append` still notices another writer, later.

    Args:
        path: the results file, which need not exist; its folder must.

    Raises:
        StorageError: another process writes the file: its number, its machine and its command.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp()) / "run.h5"
        >>> with only_writer(run):
        ...     [lock.name for lock in run.parent.iterdir()]
        ['.run.h5.lock']
        >>> list(run.parent.iterdir())
        []
    """
    target = resolved(path)
    lock = target.with_name(f".{target.name}.lock")
    if target in _HELD:
        raise StorageError(f"{path}: this process is writing it already; two runs cannot write one file")
    descriptor = _acquire(lock, str(path))
    _HELD.add(target)
    try:
        yield
    finally:
        _HELD.discard(target)
        if descriptor is not None:
            # Removed while it is still held: whoever opened the same file before finds that it has no name any more.
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def refuse_if_written(path: str | Path) -> None:
    """See that nobody writes a results file now. Leaves nothing behind, and needs no right to write beside it.

    Args:
        path: the results file.

    Raises:
        StorageError: a process does: its number, its machine and its command.
    """
    target = resolved(path)
    # To open and close its lock file would let go of a lock that this process holds, so that is asked first.
    if target in _HELD:
        raise StorageError(f"{path}: this process is writing it; the file is not complete yet")
    try:
        import fcntl

        descriptor = open_regular(target.with_name(f".{target.name}.lock"), os.O_RDONLY, follow=False)
    except (ImportError, OSError):  # no such locks, or none of this file
        return
    holder = _holder(descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder = _UNNAMED
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise StorageError(f"{path}: {holder} is writing it; wait for it") from error
    finally:
        os.close(descriptor)


def _acquire(lock: Path, shown: str) -> int | None:
    """The open and locked file; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        return None
    while True:
        descriptor, writable = _opened(lock, shown)
        holder = _holder(descriptor)
        try:
            if writable:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                # One lock shuts out the owner of the file, the other whoever cannot write it either.
                fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                holder = _UNNAMED
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if writable and _only_shared(descriptor):
                holder = _UNNAMED
            os.close(descriptor)
            if error.errno in _BUSY:
                raise StorageError(
                    f"{shown}: {holder} is writing it; wait for it, or write parts with --shard I/N and another --out"
                ) from error
            if error.errno == errno.EBADF:  # a network file system, on which only a writable file can be locked
                raise StorageError(f"{shown}: its lock file {lock.name} is another user's; {_REMOVE}") from error
            return None
        if _is_named(descriptor, lock):
            if writable:
                _sign(descriptor)
            return descriptor
        os.close(descriptor)  # its holder removed it between the two steps: once more, with the new one


def _opened(lock: Path, shown: str) -> tuple[int, bool]:
    """The open lock file, which is made if there is none, and whether it can be written."""
    writable = True
    try:
        try:
            descriptor = open_regular(lock, os.O_RDWR | os.O_CREAT, follow=False)
        except PermissionError:
            if not os.path.lexists(lock):
                raise
            writable = False
            descriptor = open_regular(lock, os.O_RDONLY, follow=False)
    except OSError as error:
        what, remedy = ("used", f"; {_REMOVE}") if os.path.lexists(lock) else ("written", "")
        raise StorageError(f"{shown}: its lock file {lock.name} cannot be {what}: {error.strerror}{remedy}") from error
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise StorageError(f"{shown}: its lock file {lock.name} is a file of another name too (a hard link); {_REMOVE}")
    return descriptor, writable


def _only_shared(descriptor: int) -> bool:
    """Whether those who hold the lock cannot write its file, so that it does not say who they are."""
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_named(descriptor: int, lock: Path) -> bool:
    try:
        found = lock.lstat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _sign(descriptor: int) -> None:
    program, *arguments = sys.argv or [""]
    who = {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "command": shlex.join([Path(program).name, *arguments])[: _MOST // 8],
    }
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its words
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        who = json.loads(os.pread(descriptor, _MOST, 0))
        process, machine, command = int(who["process"]), _plain(who["machine"]), _plain(who["command"])
        return f"process {process} on {machine} ({command})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _plain(words: object) -> str:
    """In one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(words).split()))[: _MOST // 8]
