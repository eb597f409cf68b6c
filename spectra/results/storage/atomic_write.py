"""Replaces a file in one step, so that at every instant the old or the new one is complete.

Also appends to a file without changing the bytes that are there.
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

#: Bytes of the trial file, which shows before a long computation that the disk has space for a first record.
ROOM = 256 * 1024


def fingerprint(path: Path) -> tuple[int, int, int] | None:
    """(inode, modification time, size): differs after the file was replaced or written to; None without a file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def check_writable(path: Path, *, shown: str) -> None:
    """Test that a file can be written in the folder of `path` and replace it; the trial file is removed.

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
    """Write a temporary file in the folder of `path`, flush it to the disk, and rename it to `path`.

    Args:
        path: where the file will be.
        content: of the whole file.
        shown: its name for messages, if that is not `path`.

    Raises:
        StorageError: it could not be written; `path` is unchanged, and the temporary file is removed.
    """
    with _writing(shown or str(path)):
        mode = mode_of_regular(path)
        with temporary_file(path) as (temporary, descriptor):
            _write(descriptor, content, mode)
            os.replace(temporary, path)
            _flush_folder(path.parent)


def extend_file(path: Path, start: int, pieces: Sequence[memoryview], *, shown: str) -> None:
    """Keep the first `start` bytes of a file, write after them, and flush it to the disk.

    Args:
        path: the file, created if it does not exist.
        start: number of bytes that are kept; all later bytes are removed.
        pieces: written after them.
        shown: its name for messages.

    Raises:
        StorageError: it could not be written; the first `start` bytes are unchanged.
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
    """Remove the bytes that an interrupted `extend_file` wrote after the first `size`; errors are ignored."""
    with contextlib.suppress(OSError):
        descriptor = open_regular(path, os.O_WRONLY, follow=False)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, int]]:
    """A new file in the folder of `path` with an unpredictable name; removed at the end if it still exists.

    Yields:
        Its path, and its descriptor, which the caller closes.
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
    while rest:  # a nearly full disk accepts a part; the next call raises the reason
        rest = rest[file.write(rest) :]


def _flush_folder(folder: Path) -> None:
    """Make the rename survive a power cut, where folders can be flushed."""
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
    """Remove the temporary files of `path` whose processes, on this machine, were killed."""
    wanted = re.compile(re.escape(_prefix(path)) + r"(\d{1,9})(-[0-9a-f]+)?\.part")
    for leftover in path.parent.iterdir():
        named = wanted.fullmatch(leftover.name)
        if named and not _is_running(int(named[1])):
            with contextlib.suppress(IsADirectoryError, PermissionError):  # a folder is not ours
                leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    import psutil  # only needed if there are such files

    return bool(psutil.pid_exists(process))


@contextlib.contextmanager
def _writing(shown: str) -> Iterator[None]:
    """Turn a system error of a failed write into one line with the name of the file."""
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
