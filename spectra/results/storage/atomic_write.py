"""Putting a whole new file in the place of an old one: at every instant there is one or the other, never a part.

And adding to the end of a file, which leaves all that was in it as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spectra.errors import StorageError
from spectra.results.storage.safe_open import mode_of_regular, open_regular

#: Bytes written and flushed to see that there is room for a first record, before hours are spent on it.
ROOM = 256 * 1024


def fingerprint(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file is replaced or written to; None where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def check_writable(path: Path, *, shown: str) -> None:
    """See by a trial that a file can be written beside `path` and take its place. Leaves nothing behind.

    Args:
        path: where the file will be.
        shown: its name as the user gave it, for messages.

    Raises:
        StorageError: the folder is missing or cannot be written, `path` is a folder or read-only, the disk is full.
    """
    folder = path.parent
    if path.is_dir():
        raise StorageError(f"{shown}: is a folder; name a file in it, such as {Path(shown) / 'run.h5'}")
    if not folder.exists():
        raise StorageError(f"{shown}: the folder {Path(shown).parent} does not exist; create it first")
    if not folder.is_dir():
        raise StorageError(f"{shown}: {Path(shown).parent} is not a folder")
    with _writing(shown):
        if path.exists():
            mode_of_regular(path)
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "the file is read-only")
        remove_leftovers(path)
        with temporary_file(path) as (_, descriptor):
            _write(descriptor, bytes(ROOM), None)


def replace_file(path: Path, content: bytes, *, shown: str | None = None) -> None:
    """Write `content` beside `path`, flush it to the disk, and rename it to `path`: all of it, or nothing.

    Args:
        path: where the file will be.
        content: all of it.
        shown: its name for messages, if that is not `path`.

    Raises:
        StorageError: it could not be written; `path` is what it was, and nothing is left beside it.
    """
    with _writing(shown or str(path)):
        mode = mode_of_regular(path)
        with temporary_file(path) as (temporary, descriptor):
            _write(descriptor, content, mode)
            os.replace(temporary, path)
            _flush_folder(path.parent)


def extend_file(path: Path, start: int, pieces: Sequence[memoryview], *, shown: str) -> None:
    """Write behind the first `start` bytes of a file, and flush it to the disk. These bytes stay as they are.

    Args:
        path: of the file, which is made where there is none.
        start: how much of it is kept; what is behind that goes.
        pieces: what comes after it.
        shown: its name for messages.

    Raises:
        StorageError: it could not be written; the first `start` bytes are what they were.
    """
    with _writing(shown):
        descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT, follow=False)
        with open(descriptor, "wb", buffering=0) as file:
            os.ftruncate(descriptor, start)
            os.lseek(descriptor, start, os.SEEK_SET)
            for piece in pieces:
                _write_whole(file, piece)
            os.fsync(file.fileno())


def cut_back(path: Path, size: int) -> None:
    """Remove what an interrupted `extend_file` left behind the first `size` bytes, as far as that is possible."""
    with contextlib.suppress(OSError):
        descriptor = open_regular(path, os.O_WRONLY, follow=False)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, int]]:
    """A new file beside `path` under a name that nobody can know before; removed at the end if it is still there.

    Returns:
        Its name, and its descriptor, which the caller closes.
    """
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}-{secrets.token_hex(8)}.part")
    try:
        yield temporary, open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False)
    finally:
        temporary.unlink(missing_ok=True)


def _write(descriptor: int, content: bytes, mode: int | None) -> None:
    with open(descriptor, "wb", buffering=0) as file:
        _write_whole(file, memoryview(content))
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def _write_whole(file: Any, rest: memoryview) -> None:
    while rest:  # a disk that is nearly full takes a part; the next call says why
        rest = rest[file.write(rest) :]


def _flush_folder(folder: Path) -> None:
    """Make the rename last through a power cut, where folders can be flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems refuse this for folders; the file itself is on the disk, and the rename is done.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(path: Path) -> str:
    return f".{path.name}.{socket.gethostname()}-"


def remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine that were killed while writing `path` left beside it."""
    wanted = re.compile(re.escape(_prefix(path)) + r"(\d{1,9})(-[0-9a-f]+)?\.part")
    for leftover in path.parent.iterdir():
        named = wanted.fullmatch(leftover.name)
        if named and not _is_running(int(named[1])):
            with contextlib.suppress(IsADirectoryError, PermissionError):  # a folder is none of ours
                leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    import psutil  # only needed when something was left behind

    return bool(psutil.pid_exists(process))


@contextlib.contextmanager
def _writing(shown: str) -> Iterator[None]:
    """Turn what the system says about a failed write into one line with the name of the file."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = {
            errno.EACCES: "choose a folder that can be written to",
            errno.EPERM: "choose a folder that can be written to",
            errno.EROFS: "choose a folder that can be written to",
            errno.ENOSPC: "free some space and run the same command again",
            errno.EDQUOT: "free some space and run the same command again",
        }.get(error.errno or 0, "nothing was changed")
        words = (error.strerror or str(error)).lower()
        raise StorageError(f"{shown}: cannot be written: {words}; {remedy}") from error
