"""Reads a checkpoint in several files: the shards that an index lists, as one state dict."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from spectra.checkpoints.dialects import find_weights
from spectra.checkpoints.rawfile import read_hashed
from spectra.checkpoints.sidecars import read_json
from spectra.errors import CheckpointError

_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.safetensors|\.bin)")
_INDEX = re.compile(r".+\.(?:safetensors|bin)\.index\.json")


def is_index(path: Path) -> bool:
    """Whether a file is, by its name, the index of shards: `model.safetensors.index.json`."""
    return _INDEX.fullmatch(path.name) is not None


def index_of(path: Path) -> Path | None:
    """The path of the index that belongs to a shard; None if the name of the file is not that of a shard.

    Example:
        >>> index_of(Path("run/model-00001-of-00004.safetensors"))
        PosixPath('run/model.safetensors.index.json')
    """
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match.group(3)) < 2:
        return None
    return path.with_name(f"{match.group(1)}{match.group(4)}.index.json")


def shards_of(index: Path) -> dict[Path, list[str]]:
    """The shards that an index lists, each with the keys that it says are in it.

    Raises:
        CheckpointError: it cannot be read, is not of the form that transformers writes, or names a file that is not in
            its own folder.
    """
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{index}: no weight_map in it: keys of tensors, each with the name of its file")
    keys_by_shard: dict[Path, list[str]] = {}
    for key, name in mapping.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{index}: the file of {key!r} is a {type(name).__name__}, not a text")
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
            raise CheckpointError(
                f"{index}: the file of {key!r} is {name!r}: the name of a file in the same folder is needed"
            )
        keys_by_shard.setdefault(index.with_name(name), []).append(key)
    return keys_by_shard


def read_shards(index: Path, unsafe: bool, max_size: int | None = None) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of all shards, and the SHA-256 of the lines `NAME SHA256` of the index and the shards, by name.

    Raises:
        CheckpointError: a shard is missing, cannot be read, or differs from the index; or a file was modified during
            reading.
    """
    listed = shards_of(index)
    if absent := [path.name for path in listed if not path.exists()]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise CheckpointError(f"{index}: its shard {absent[0]!r}{more} is not there: {len(absent)} of {len(listed)}")
    before = _marks([index, *listed])
    sums = {index.name: hashlib.sha256(index.read_bytes()).hexdigest()}
    tensors: dict[str, torch.Tensor] = {}
    for path, keys in sorted(listed.items()):
        content, sums[path.name] = read_hashed(path, unsafe, max_size)
        tensors |= _of_shard(content, keys, path, index)
    if _marks([index, *listed]) != before:
        raise CheckpointError(f"{index}: a shard was written to while they were read; run again when they are whole")
    lines = "".join(f"{name} {sums[name]}\n" for name in sorted(sums))
    return tensors, hashlib.sha256(lines.encode()).hexdigest()


def _of_shard(content: Any, keys: list[str], path: Path, index: Path) -> dict[str, torch.Tensor]:
    """The tensors of one shard; they must be exactly those that the index lists for it."""
    weights = find_weights(content)
    tensors = {} if weights is None else {k: v for k, v in weights.tensors.items() if isinstance(v, torch.Tensor)}
    if absent := sorted(set(keys) - tensors.keys()):
        raise CheckpointError(
            f"{path}: {index.name} puts {absent[0]!r} in it, and it is not there: {len(absent)} such keys"
        )
    if others := sorted(tensors.keys() - set(keys)):
        raise CheckpointError(
            f"{path}: holds {others[0]!r}, which {index.name} does not put in it: {len(others)} such keys"
        )
    return tensors


def _marks(paths: list[Path]) -> list[tuple[int, int, int]]:
    try:
        stats = [path.stat() for path in paths]
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror or error}") from error
    return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats]
