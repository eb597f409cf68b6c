"""One writer of a results file at a time: a lock of the operating system on a small file beside it.

The lock is the system's, so it ends with the process that holds it, whatever ended that; the file `.run.h5.lock` only
says who that is. What a dead process left of it stands in nobody's way. Readers need no lock.
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

_MOST = 4096  # bytes of what a lock file says
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
    target = Path(path).resolve()
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
    target = Path(path).resolve()
    # To open and close its lock file would let go of a lock that this process holds, so that is asked first.
    if target in _HELD:
        raise StorageError(f"{path}: this process is writing it; what it has is not all of it yet")
    try:
        import fcntl

        descriptor = os.open(target.with_name(f".{target.name}.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):  # no such locks, or none of this file
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise StorageError(f"{path}: {_holder(descriptor)} is writing it; wait for it") from error
    finally:
        os.close(descriptor)


def _acquire(lock: Path, shown: str) -> int | None:
    """The open and locked file; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        return None
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(f"{shown}: its lock file {lock.name} cannot be written: {error.strerror}") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise StorageError(
                    f"{shown}: {holder} is writing it; wait for it, or write parts with --shard I/N and another --out"
                ) from error
            return None
        if _is_named(descriptor, lock):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)  # its holder removed it between the two steps: once more, with the new one


def _is_named(descriptor: int, lock: Path) -> bool:
    try:
        found = lock.stat()
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
        command = " ".join(str(who["command"]).split())
        return f"process {int(who['process'])} on {who['machine']} ({command})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
