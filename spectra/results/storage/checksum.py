"""The seal of a results file: a line after the HDF5 data with their SHA-256, so that HDF5 never reads damaged data.

HDF5 checks its own structures only in part: a flipped bit can make it loop forever. It ignores all bytes after its
data, so neither the seal nor the records that a run appends after it (``results.storage.appended``) disturb a reader.
A tool that edits the file removes the seal, and with it this protection.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from spectra.errors import StorageError
from spectra.results.storage.safe_open import open_regular

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MARK = b"\nspectra-run sha256 "
_LENGTH = len(_MARK) + 64 + 1


def sealed(image: bytes) -> bytes:
    """The bytes of an HDF5 file, followed by their seal."""
    return image + _MARK + seal_of(image).encode() + b"\n"


def unsealed(content: bytes, shown: str) -> bytes:
    """The bytes before the seal; all bytes if there is no seal.

    Args:
        content: of the file.
        shown: its name, for messages.

    Raises:
        StorageError: the seal does not match the bytes before it.
    """
    start = len(content) - _LENGTH
    return _checked(content, start, shown) if content.startswith(_MARK, max(0, start)) else content


def parted(content: bytes, shown: str) -> tuple[bytes, bytes | None]:
    """The HDF5 data of a file, and the bytes after their seal; None if there is no seal.

    Raises:
        StorageError: the seal does not match the bytes before it.
    """
    for start in (data_end(content), len(content) - _LENGTH):
        if content.startswith(_MARK, max(0, start)) and start + _LENGTH <= len(content):
            return _checked(content, start, shown), content[start + _LENGTH :]
    return content, None


def data_end(content: bytes) -> int:
    """The end of the HDF5 data, from their superblock; the end of the file for superblocks unlike ours."""
    if content[8:10] != b"\x02\x08":  # version 2 of the superblock, with addresses of 8 bytes
        return len(content)
    return int.from_bytes(content[28:36], "little")


def seal_of(image: bytes) -> str:
    """The SHA-256 in the seal of HDF5 data, 64 hexadecimal digits."""
    return hashlib.sha256(image).hexdigest()


def _checked(content: bytes, start: int, shown: str) -> bytes:
    """The bytes before the seal, which begins at `start`."""
    image = content[:start]
    if seal_of(image).encode() + b"\n" != content[start + len(_MARK) : start + _LENGTH]:
        raise StorageError(f"{shown}: is damaged: its content does not match its SHA-256")
    return image


def read_bytes(path: Path, shown: str, *, follow: bool = True) -> bytes:
    """All bytes of a file that begins with the HDF5 signature.

    Args:
        path: the file.
        shown: its name, for messages.
        follow: whether it may be a symbolic link.

    Raises:
        StorageError: missing, not a regular file, empty, not readable, or not HDF5.
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
