"""Reads the folders of torch.distributed.checkpoint: pieces of tensors in several files, described by `.metadata`.

The description is a pickle. It is read by an unpickler that knows the few classes which torch writes there, each as a
plain object, and that runs no code. Every piece is a file of torch.save within a larger file, and is read like one.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from spectra.checkpoints.bounds import limit_of
from spectra.checkpoints.rawfile import check_sums, read_raw
from spectra.errors import CheckpointError

METADATA = ".metadata"
_SUFFIX = ".distcp"
_LARGEST_METADATA = 256 * 2**20  # bytes
_DEEPEST = 100  # entries within each other
_OPCODES = (
    *("MARK", "STOP", "PROTO", "FRAME", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE"),
    *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "MEMOIZE"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL", "STACK_GLOBAL"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS"),
)


def is_distributed(path: Path) -> bool:
    """Whether a path is the description of such a checkpoint, or a folder with one."""
    return path.name == METADATA or (path / METADATA).is_file()


def files_with_pieces(metadata: Path) -> list[Path]:
    """The files with the pieces, by name."""
    return sorted(metadata.parent.glob(f"*{_SUFFIX}"))


def is_whole(metadata: Path) -> bool:
    """Whether the files hold all pieces that the description lists.

    Raises:
        CheckpointError: the description cannot be read.
    """
    sizes = {file.name: _size(file) for file in files_with_pieces(metadata)}
    return all(where.offset + where.length <= sizes.get(where.relative_path, -1) for where in _read(metadata).places)


def plain_values(metadata: Path, max_size: int | None = None) -> dict[str, Any]:
    """What was saved at the top level, without tensors and what is within other entries: epoch, step, ...

    Raises:
        CheckpointError: as of :func:`read_distributed`.
    """
    described = _read(metadata)
    sizes = {file.name: _size(file) for file in files_with_pieces(metadata)}
    found = {}
    with tempfile.TemporaryDirectory() as home:
        for (name, _), where in described.pieces.items():
            if name not in described.tensors and len(described.paths[name]) == 1:
                found[name] = _piece(metadata, where, sizes, Path(home, "piece.pt"), max_size)
    return found


def read_distributed(metadata: Path, unsafe: bool, max_size: int | None = None) -> tuple[dict[str, Any], str]:
    """The nested content that was saved, and the SHA-256 of the lines ``NAME SHA256`` of all files, by name.

    Args:
        metadata: the description.
        unsafe: has no effect: nothing in such a folder needs code.
        max_size: bytes that all tensors may take; by default the limit for files of their size.

    Raises:
        CheckpointError: a file is missing or damaged, or does not have what the description says.
    """
    files = files_with_pieces(metadata)
    sizes = {file.name: _size(file) for file in files}
    described = _read(metadata)
    total = sum(_bytes_of(one) for one in described.tensors.values())
    if total > (limit := limit_of(sum(sizes.values()), max_size)):
        raise CheckpointError(
            f"{metadata}: declares tensors of {total} bytes, more than the {limit} allowed; --max-size allows more"
        )
    lines = [f"{file.name} {_hash(file)}\n" for file in sorted([metadata, *files], key=lambda file: file.name)]
    values: dict[str, Any] = {
        name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in described.tensors.items()
    }
    filled = dict.fromkeys(described.tensors, 0)
    with tempfile.TemporaryDirectory() as home:
        for (name, offset), where in described.pieces.items():
            piece = _piece(metadata, where, sizes, Path(home, "piece.pt"), max_size)
            if name in described.tensors:
                filled[name] += _put(metadata, name, values[name], offset, piece, described.tensors[name])
            else:
                values[name] = piece
    for name, one in described.tensors.items():
        if filled[name] != math.prod(one.size):
            raise CheckpointError(f"{metadata}: pieces of {name!r} are missing")
    if {file.name: _size(file) for file in files_with_pieces(metadata)} != sizes:
        raise CheckpointError(f"{metadata}: was written to while it was read; run again when it is whole")
    return _nested(values, described.paths), hashlib.sha256("".join(lines).encode()).hexdigest()


def _put(metadata: Path, name: str, whole: torch.Tensor, offset: tuple[int, ...], piece: Any, described: Any) -> int:
    """Copy a piece to its place in its tensor; returns the number of its entries."""
    listed = [tuple(chunk.sizes) for chunk in described.chunks if tuple(chunk.offsets) == offset]
    fits = isinstance(piece, torch.Tensor) and listed == [tuple(piece.shape)] and piece.dtype == whole.dtype
    ends = [start + length for start, length in zip(offset, piece.shape)] if fits else []
    if not fits or len(offset) != whole.ndim or any(end > size for end, size in zip(ends, whole.shape)):
        raise CheckpointError(f"{metadata}: a piece of {name!r} is not what the description says")
    whole[tuple(slice(start, end) for start, end in zip(offset, ends))] = piece
    return int(piece.numel())  # overlapping pieces would fill more entries than there are, or leave some out


def _piece(metadata: Path, where: Any, sizes: Mapping[str, int], at: Path, max_size: int | None) -> Any:
    """The object in one piece of a file, which is copied to a file of its own for that."""
    name, start, length = where.relative_path, where.offset, where.length
    if name not in sizes:
        raise CheckpointError(f"{metadata}: its file {str(name)[:80]!r} is not there")
    if vars(where).get("transform_descriptors"):
        raise CheckpointError(f"{metadata}: its files are compressed, which is not supported: save them without")
    if not (start >= 0 and length > 0 and start + length <= sizes[name]):
        raise CheckpointError(f"{metadata}: {name} is shorter than the description says")
    with metadata.with_name(name).open("rb") as file:
        file.seek(start)
        at.write_bytes(file.read(length))
    try:
        content = read_raw(at, False, max_size)
        check_sums(at)
    except CheckpointError as error:
        raise CheckpointError(f"{metadata}: a piece of {name}: {str(error).removeprefix(f'{at}: ')}") from error
    return content


class _Description:
    """What `.metadata` says: the tensors, the path of each entry in the nested content, and where the pieces are."""

    def __init__(self, read: Any) -> None:
        entries = read.state_dict_metadata
        self.tensors = {name: one for name, one in entries.items() if one.kind == "TensorStorageMetadata"}
        paths = vars(read).get("planner_data") or {}
        self.paths = {name: tuple(paths.get(name, (name,))) for name in entries}
        if not all(
            len(path) <= _DEEPEST and all(type(key) in (str, int) for key in path) for path in self.paths.values()
        ):
            raise CheckpointError("describes entries at places that no checkpoint has")
        self.pieces = {
            (index.fqn, tuple(vars(index).get("offset") or ())): where for index, where in read.storage_data.items()
        }
        self.places = list(self.pieces.values())
        names = {name for name, _ in self.pieces}
        if not names <= set(entries):
            raise CheckpointError("describes pieces of entries that it does not list")
        for one in self.tensors.values():
            if not isinstance(one.properties.dtype, torch.dtype) or any(size < 0 for size in one.size):
                raise CheckpointError("describes a tensor without type or size")


def _read(metadata: Path) -> _Description:
    if _size(metadata) > _LARGEST_METADATA:
        raise CheckpointError(f"{metadata}: larger than the description of any checkpoint")
    try:
        with metadata.open("rb") as file:
            return _Description(_Unpickler(file).load())
    except CheckpointError as error:
        raise CheckpointError(f"{metadata}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{metadata}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle leads to errors of many types
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{metadata}: damaged, or not of torch.distributed.checkpoint: {words}") from error


def _nested(values: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The entries at their paths; numbers in a path are places in a list."""
    content: dict[Any, Any] = {}
    for name, value in values.items():
        inside = content
        *outer, last = paths[name]
        for key in outer:
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict):
                raise CheckpointError(f"damaged: {name!r} lies within another entry")
        if last in inside:
            raise CheckpointError(f"damaged: {name!r} lies within another entry")
        inside[last] = value
    return {str(key): _listed(value) for key, value in content.items()}


def _listed(value: Any, key: Any = None) -> Any:
    """Dictionaries of places as lists; the numbers of an optimizer's parameters, which torch writes as texts."""
    if not isinstance(value, dict):
        return value
    if key == "state" and all(isinstance(number, str) and number.isdigit() for number in value):
        value = {int(number): one for number, one in value.items()}
        return {number: _listed(one) for number, one in value.items()}
    inner = {name: _listed(one, name) for name, one in value.items()}
    if inner and all(type(key) is int for key in inner) and sorted(inner) == list(range(len(inner))):
        return [inner[index] for index in range(len(inner))]
    return inner


def _bytes_of(described: Any) -> int:
    return int(math.prod(described.size) * described.properties.dtype.itemsize)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Object:
    """An object of a class that torch writes, with its fields; the places of pieces are keys, as different objects."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        raise CheckpointError(f"its {vars(self)['kind']} has no {name}")


_OBJECTS = {
    f"torch.distributed.checkpoint.{name}"
    for name in (
        *("metadata.Metadata", "metadata.TensorStorageMetadata", "metadata.BytesStorageMetadata"),
        *("metadata.TensorProperties", "metadata.ChunkStorageMetadata", "metadata.MetadataIndex"),
        *("metadata.StorageMeta", "filesystem._StorageInfo"),
    )
}


class _Kind:
    """A class that the pickle may name; an object of it is an `_Object`."""

    def __init__(self, name: str) -> None:
        self.name = name


def _sizes(*given: Any) -> tuple[int, ...]:
    sizes = tuple(given[0]) if given else ()
    if len(given) > 1 or not all(type(size) is int for size in sizes):
        raise CheckpointError("a size is not made of numbers")
    return sizes


def _word(*given: Any) -> str:
    return "/".join(str(one)[:200] for one in given[:100])


_CALLS: dict[str, Callable[..., Any]] = {
    "torch.Size": _sizes,
    "torch.serialization._get_layout": _word,
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": _word,
    **dict.fromkeys(("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath"), _word),
    **dict.fromkeys(("pathlib._local.PosixPath", "pathlib._local.WindowsPath"), _word),
}
_Base: Any = pickle._Unpickler  # in Python, so that each opcode can be replaced


class _Unpickler(_Base):  # type: ignore[misc]
    """Builds plain containers and `_Object`s; refuses every other opcode, name and call."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _OBJECTS:
            return _Kind(name)
        if full in _CALLS:
            return _CALLS[full]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise CheckpointError(f"its pickle asks for {full[:100]}, which no such file needs")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        called = self.stack[-1]
        if not any(called is one for one in _CALLS.values()) or type(arguments) is not tuple:
            raise CheckpointError("a call of what cannot be called")
        self.stack[-1] = called(*arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if not isinstance(kind, _Kind) or arguments != ():
            raise CheckpointError("an object of no class")
        self.append(_Object(kind.name))

    def load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if isinstance(built, _Object) and built.kind == "TensorProperties" and type(state) is tuple and state:
            state = {"dtype": state[0]}
        if not isinstance(built, _Object) or type(state) is not dict or "kind" in state:
            raise CheckpointError("an object is given no fields")
        vars(built).update({str(name): value for name, value in state.items()})

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{getattr(pickle, name)[0]: _Base.dispatch[getattr(pickle, name)[0]] for name in _OPCODES},
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
    }
