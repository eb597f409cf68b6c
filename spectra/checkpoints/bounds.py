"""Bounds on the memory that a checkpoint file may take, checked from its directory before anything is read.

torch.save does not compress, so a valid file is about as large in memory as on disk. A file that declares more than 20
times its own size, and more than 256 MiB, is refused unless the caller allows more.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from spectra.checkpoints.rebuilding import Limits
from spectra.errors import ArgumentError, CheckpointError

RATIO = 20
FLOOR = 256 * 2**20  # bytes
OPERATIONS = 50_000_000  # of a pickle: 10 million losses in a list are about 20 million
_SIZE = re.compile(r"(\d{1,15})\s*(?:([KMGT])I?)?B?", re.IGNORECASE)


def parse_size(text: str | int | None, name: str = "max_size") -> int | None:
    """Bytes, from a text such as ``8G`` (powers of 1024) or a number; the name is for the message of an error.

    Raises:
        ArgumentError: not a size, or not from 1 to 2**60.

    Example:
        >>> parse_size("2G"), parse_size("512 MiB")
        (2147483648, 536870912)
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(str(text).strip())
    size = 0 if match is None else int(match.group(1)) * 1024 ** (" KMGT".index((match.group(2) or " ").upper()))
    if isinstance(text, bool) or not 1 <= size <= 2**60:
        raise ArgumentError(f"{name}={str(text)[:30]!r}: a size in bytes, or with K, M, G or T, is needed: 8G")
    return size


def limit_of(size: int, max_size: int | None) -> int:
    """The number of bytes that a file of this size may take in memory."""
    return max(RATIO * size, FLOOR) if max_size is None else max_size


def limits_of(path: Path, head: bytes, max_size: int | None) -> tuple[Limits, bool]:
    """The limits for a file written by torch.save, and whether it contains no compressed entry.

    Raises:
        CheckpointError: it expands to more than is allowed, or its directory is inconsistent.
        zipfile.BadZipFile: or another error of `zipfile` for damaged archives.
    """
    size = path.stat().st_size
    limit = limit_of(size, max_size)
    operations = OPERATIONS if max_size is None else max(OPERATIONS, max_size // 64)
    if not head.startswith(b"PK"):
        check_total(path, size, max_size)
        return Limits(None, size, limit, operations), True
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    check_total(path, sum(part.file_size for part in entries), max_size)
    names = [part.filename.partition("/")[2] for part in entries]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path}: damaged: two parts of the archive have the same name")
    if sum(part.compress_size for part in entries) > size:
        raise CheckpointError(f"{path}: damaged: the parts of the archive overlap")
    storages = {
        name.removeprefix("data/"): part.file_size for name, part in zip(names, entries) if name.startswith("data/")
    }
    stored = all(part.compress_type == zipfile.ZIP_STORED for part in entries)
    return Limits(storages, size, limit, operations), stored


def check_total(path: Path, total: int, max_size: int | None) -> None:
    """Refuse a file that takes more bytes in memory than it may.

    Raises:
        CheckpointError: with both sizes, and the option that allows more.
    """
    size = path.stat().st_size
    limit = limit_of(size, max_size)
    if total <= limit:
        return
    more = "" if total > 2**60 else f" --max-size {-(-total // 2**20)}M (max_size={total}) allows it, if you trust it"
    raise CheckpointError(
        f"{path}: expands from {_words(size)} to {_words(total)}, more than the {_words(limit)} allowed;"
        f"{more or ' no checkpoint is that large'}"
    )


def _words(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
