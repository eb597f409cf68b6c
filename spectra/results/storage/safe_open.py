"""Opens regular files only, and follows symbolic links only where the caller allows it.

The folder of a results file may come from another person, with links, FIFOs and devices under the names that spectra
uses. Opening one of them must neither wait for another process nor change a file elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from spectra.errors import StorageError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # absent on Windows
_ALWAYS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def resolved(path: str | Path) -> Path:
    """The path with symbolic links followed; the file need not exist.

    Raises:
        StorageError: the links form a loop.
    """
    target = Path(os.path.realpath(path))
    try:
        os.stat(target)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(
                f"{path}: its symbolic links form a loop; remove the link, or name another file"
            ) from error
    return target


def open_regular(path: Path, flags: int, *, follow: bool) -> int:
    """The descriptor of a regular file, opened without waiting.

    Args:
        path: the file.
        flags: of `os.open`, such as `os.O_RDONLY`; without `os.O_TRUNC`, because the type of the file is checked after
            it is opened.
        follow: whether the last part of the path may be a symbolic link.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    if not follow and not _NO_FOLLOW and path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link")
    try:
        descriptor = os.open(path, flags | _ALWAYS | (0 if follow else _NO_FOLLOW), 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and not follow and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        if error.errno == errno.ENXIO:  # a socket, a device without a driver, or a FIFO without a reader
            raise OSError(errno.ENXIO, "it is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def mode_of_regular(path: Path) -> int | None:
    """The permission bits of a regular file; None if it does not exist.

    Raises:
        OSError: it is a folder, a FIFO, a device or a socket, or its links form a loop.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return mode & 0o777
