"""One writer of a results file at a time: a lock of the operating system on a small file in the same folder.

The system releases the lock when its process ends, for any reason. The file `.run.h5.lock` only names the process; the
lock file of a dead process blocks nobody. Readers need no lock.

Anything else of that name (a link of either kind, a FIFO, a folder) is neither written nor removed. A lock file of
another user that cannot be written is locked without writing to it.

The package `filelock` does not replace this: it also locks a file that has a second name (a hard link), it cannot name
the holder of a lock, and it cannot test a lock without acquiring it.
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

_MOST = 4096  # bytes read from a lock file
_BUSY = (errno.EACCES, errno.EAGAIN)
_UNNAMED = "another process (whose number is not in the lock file, which is another user's)"
_REMOVE = "remove it if no run is writing there, or name another --out"
#: These locks belong to a process, so a second writer in the same process is detected by this set.
_HELD: set[Path] = set()


@contextlib.contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Hold the lock of a results file, or refuse.

    Where the file system has no locks, none is held; `RunFile.append` still detects another writer, later.

    Args:
        path: the results file, which need not exist; its folder must.

    Raises:
        StorageError: another process writes the file; the message has its number, machine and command.

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
            # Removed while it is held: a process that opened the same file before finds it without a name (_is_named).
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def refuse_if_written(path: str | Path) -> None:
    """Refuse a results file that is being written. Creates no file, and needs no permission to write in the folder.

    Args:
        path: the results file.

    Raises:
        StorageError: a process writes it; the message has its number, machine and command.
    """
    target = resolved(path)
    # Opening and closing the lock file would release a lock that this process holds, so that is tested first.
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
    """The descriptor of the locked file; None on a system without locks."""
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
                # The first lock excludes the owner of the file, the second other users who cannot write it.
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
        os.close(descriptor)  # its holder removed it after it was opened: try again with a new one


def _opened(lock: Path, shown: str) -> tuple[int, bool]:
    """The descriptor of the lock file, created if needed, and whether it can be written."""
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
    """Whether the lock is shared: its holders cannot write the file, so it does not name them."""
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
    with contextlib.suppress(OSError):  # on a full disk the lock file stays empty
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
    """Text in one line, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(words).split()))[: _MOST // 8]
