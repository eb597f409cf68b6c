"""Opening files beside a results file: regular files only, and through symbolic links only where that is wanted.

A folder may come from somebody else, with links, FIFOs and devices under the names that are going to be used. To open
one must neither wait for another process nor touch a file elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from spectra.errors import StorageError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none of these
_ALWAYS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def resolved(path: str | Path) -> Path:
    """The file that a path leads to, which need not exist; symbolic links are followed.

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
        flags: of `os.open`, such as `os.O_RDONLY`. The file must not be emptied by them: it may be any file until it
            has been looked at.
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
        if error.errno == errno.ENXIO:  # a socket, a device without a driver, or a FIFO that nobody reads
            raise OSError(errno.ENXIO, "it is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def mode_of_regular(path: Path) -> int | None:
    """The permission bits of the file that is to be replaced; None where there is none.

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
