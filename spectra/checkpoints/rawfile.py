"""Reads a checkpoint file into objects without running code that it names, or gives a one-line reason.

``torch.load`` is called with ``weights_only=True``: tensors and plain containers are rebuilt, anything else is refused.
NumPy scalars, NumPy arrays and ``argparse.Namespace``, which training scripts save with the weights, count as plain.
`rebuilding` has the functions that a pickle may call, `bounds` the limits on its size.
"""

from __future__ import annotations

import hashlib
import logging
import pickletools
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from spectra.checkpoints.bounds import check_total, limits_of
from spectra.checkpoints.unpickling import restricted
from spectra.errors import CheckpointError, MissingDependency, escaped
from spectra.runtime.exclusive import one_at_a_time

logger = logging.getLogger(__name__)

MMAP_FROM = 64 * 2**20  # bytes: below this, reading the file is as cheap, and does not hold it open
#: What `zipfile` raises on an archive with damage anywhere in its directory; `UnicodeDecodeError` is a `ValueError`.
_OF_DAMAGED_ARCHIVES = (
    *(zipfile.BadZipFile, NotImplementedError, EOFError, OSError, zlib.error, struct.error),
    *(RuntimeError, ValueError, LookupError, OverflowError),
)
_HARMLESS = re.compile(r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.\w*Storage")


def check_file(path: Path) -> None:
    """Refuse a path that is not a non-empty regular file.

    Raises:
        CheckpointError: missing, a folder, not a regular file, or empty.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"{path}: a folder, not a checkpoint: name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise CheckpointError(f"{path}: an empty file, not a checkpoint")


def read_hashed(path: Path, unsafe: bool, max_size: int | None = None) -> tuple[Any, str]:
    """The content of a file and the SHA-256 of the same bytes.

    Raises:
        CheckpointError: it cannot be read, is damaged, or was modified during reading.
    """
    check_file(path)
    try:
        before = path.stat()
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        content = read_raw(path, unsafe, max_size)
        check_sums(path)
        after = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if (before.st_mtime_ns, before.st_size, before.st_ino) != (after.st_mtime_ns, after.st_size, after.st_ino):
        raise CheckpointError(f"{path}: it was written to while it was read; run again when it is whole")
    return content, sha256


def check_sums(path: Path) -> None:
    """Compare the CRC-32 of every part of a zip archive; torch.load does not, so a flipped bit would change a weight.

    Files without them pass: torch's legacy format, safetensors, and archives that torch wrote with
    ``set_crc32_options(False)``, where all of them are 0.

    Raises:
        CheckpointError: one does not match.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            sums = {part.filename: part.CRC for part in archive.infolist()}
        damaged = _first_that_differs(path, sums) if any(sums.values()) else None
    except _OF_DAMAGED_ARCHIVES as error:
        raise CheckpointError(f"{path}: damaged: {_first_line(error)}; copy the file anew") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: {damaged} does not match its CRC-32; copy the file anew")


def _first_that_differs(path: Path, sums: Mapping[str, int]) -> str | None:
    """The first part whose bytes, as read by torch, do not match its checksum.

    The bytes read by `zipfile` are not sufficient: after a flipped bit in the directory of the archive, torch can take
    a part for a folder, and leave the memory of its tensor uninitialised.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    names = {name.partition("/")[2]: name for name in sums}
    read = set(reader.get_all_records())
    for short, name in names.items():
        if short not in read or zlib.crc32(reader.get_record(short)) != sums[name]:
            return name
    return None


def read_raw(path: Path, unsafe: bool = False, max_size: int | None = None) -> Any:
    """The objects in a checkpoint file, tensors on the CPU (memory-mapped where the file is large).

    Args:
        path: a file by ``torch.save``, or ``.safetensors``.
        unsafe: allow running code that the file names, if it cannot be read otherwise; warns.
        max_size: bytes that the file may take in memory; by default the limit for a file of its size.

    Raises:
        CheckpointError: the file cannot be read; the message is one line and says why.
    """
    check_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, max_size)
    if unsafe:
        logger.warning("%s: unsafe load: code that this file names may be run; only for files you trust", path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    try:
        limits, stored = limits_of(path, head, max_size)
    except CheckpointError:
        raise
    except _OF_DAMAGED_ARCHIVES as error:
        raise CheckpointError(f"{path}: {_reason(path, head, error)}") from error
    mmap = stored and head.startswith(b"PK") and limits.file >= MMAP_FROM
    try:
        with restricted(limits):
            return _torch_load(path, mmap=mmap, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        if not unsafe:
            why = str(error) if isinstance(error, CheckpointError) else _reason(path, head, error)
            raise CheckpointError(f"{path}: {why}") from error
    try:
        return _torch_load(path, mmap=mmap, weights_only=False)
    except MemoryError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {_first_line(error)}"
        if isinstance(error, (ImportError, AttributeError)):
            raise CheckpointError(f"{path}: its code cannot be found: {cause}; run where it can be imported") from error
        raise CheckpointError(f"{path}: {_reason(path, head, error, refused=False)}") from error


def _torch_load(path: Path, *, mmap: bool, weights_only: bool) -> Any:
    with one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols and archives; what fails is reported below
        return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mmap)


def _read_safetensors(path: Path, max_size: int | None) -> dict[str, Any]:
    """The tensors of the file, and the texts of its header under the key ``__metadata__``."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependency(
            f"{path}: the package safetensors is not installed: pip install 'hessian-spectra[safetensors]'"
        ) from error
    check_total(path, path.stat().st_size, max_size)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return {**tensors, "__metadata__": dict(file.metadata() or {})}
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: truncated, or not a .safetensors file: {_first_line(error)}") from error


def _reason(path: Path, head: bytes, error: Exception, refused: bool = True) -> str:
    """Why the file could not be loaded, with advice."""
    if isinstance(error, PermissionError):
        return error.strerror or str(error)
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                pickles = [name for name in names if name.rsplit("/", 1)[-1] == "data.pkl"]
                if any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in names):
                    return "a TorchScript archive: load it with torch.jit.load and save its state_dict()"
                if not pickles:
                    return "a zip archive, but not a checkpoint: torch.save did not write it"
                with archive.open(pickles[0]) as file:
                    globals_named, _ = _scan(file)
        except zipfile.BadZipFile:
            return "truncated or damaged: the end of the file is missing"
        except _OF_DAMAGED_ARCHIVES as damage:
            return f"damaged: {_first_line(damage)}"
        return _wants_code(error, globals_named) if refused else f"damaged: {_first_line(error)}"
    if head.startswith(b"\x80"):
        with path.open("rb") as file:
            globals_named, complete = _scan(file)
        if not complete or isinstance(error, EOFError) or "EOF" in str(error):
            return "truncated: the file ends too early"
        if refused and globals_named:
            return _wants_code(error, globals_named)
        return "a pickle, but not a checkpoint: torch.save did not write it"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run git lfs pull"
    return "not a checkpoint: neither torch.save nor safetensors wrote it"


def _wants_code(error: Exception, globals_named: list[str]) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    name = named.group(1) if named else globals_named[0] if globals_named else None
    if name is None:
        return f"damaged: {_first_line(error)}"
    name = escaped(name)[:100]
    return f"its pickle asks to run {name}, which was not done; --unsafe-load runs its code, if you trust the file"


def _scan(file: IO[bytes]) -> tuple[list[str], bool]:
    """The globals named by the pickles at the start of a file, without harmless ones; whether all are complete."""
    globals_named: list[str] = []
    for _ in range(5):  # torch's legacy format: a magic number, a version, the system, the object, the storages' keys
        if not file.read(1):
            break
        file.seek(-1, 1)
        texts: list[str] = []  # STACK_GLOBAL takes its module and name from the two texts before it
        memo: list[str] = []
        try:
            for operation, argument, _position in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    globals_named.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    globals_named.append(".".join(texts[-2:]))
                elif "UNICODE" in operation.name or "STRING" in operation.name:
                    texts.append(str(argument))
                elif operation.name == "MEMOIZE":
                    memo.append(texts[-1] if texts else "")
                elif operation.name in ("BINGET", "LONG_BINGET") and int(argument or 0) < len(memo):
                    texts.append(memo[int(argument or 0)])
        except Exception:  # genops raises whatever a torn file makes it stumble over
            return [name for name in globals_named if not _HARMLESS.fullmatch(name)], False
    return [name for name in globals_named if not _HARMLESS.fullmatch(name)], True


def _first_line(error: Exception) -> str:
    return next((escaped(line.strip()) for line in str(error).splitlines() if line.strip()), type(error).__name__)
