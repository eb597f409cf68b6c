"""The last line of a results file: the SHA-256 of all before it, so that HDF5 never sees a file that is damaged.

HDF5 checks its own structures in part only: a flipped bit can make it loop for ever. It does not look behind its data,
so a line there disturbs no reader. A tool that edits the file removes the line, and with it this protection.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from spectra.errors import StorageError
from spectra.storage.regular import open_regular

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MARK = b"\nspectra-run sha256 "
_LENGTH = len(_MARK) + 64 + 1


def sealed(image: bytes) -> bytes:
    """The bytes of an HDF5 file with the seal behind them."""
    return image + _MARK + hashlib.sha256(image).hexdigest().encode() + b"\n"


def unsealed(content: bytes, shown: str) -> bytes:
    """What stands before the seal; all of it where there is none.

    Args:
        content: of the file.
        shown: its name, for messages.

    Raises:
        StorageError: the seal does not fit what stands before it.
    """
    start = len(content) - _LENGTH
    if not content.startswith(_MARK, max(0, start)):
        return content
    image = content[:start]
    if hashlib.sha256(image).hexdigest().encode() != content[start + len(_MARK) : -1]:
        raise StorageError(f"{shown}: is damaged: its content does not match its SHA-256")
    return image


def read_bytes(path: Path, shown: str, *, follow: bool = True) -> bytes:
    """The whole of a file, if it begins as HDF5 does.

    Args:
        path: the file.
        shown: its name, for messages.
        follow: whether it may be a symbolic link.

    Raises:
        StorageError: missing, not a regular file, empty, not to be read, or not HDF5.
    """
    try:
        if path.is_dir():
            raise StorageError(f"{shown}: is a folder, not a results file; name the file in it")
        with open(open_regular(path, os.O_RDONLY, follow=follow), "rb") as file:
            start = file.read(len(_SIGNATURE))
            if not start:
                raise StorageError(f"{shown}: is an empty file, not a results file of spectra")
            if start != _SIGNATURE:
                raise StorageError(f"{shown}: is not an HDF5 file, so not a results file of spectra")
            return start + file.read()
    except FileNotFoundError as error:
        raise StorageError(f"{shown}: no such file") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{shown}: cannot be read: {error.strerror or error}") from error
