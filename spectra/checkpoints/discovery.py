"""The checkpoints of a run: found in folders and by patterns, and put in the order of training."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectra.checkpoints.dialects import find_weights, metadata_of, natural_key, position_in_name, position_of
from spectra.checkpoints.rawfile import read_raw
from spectra.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".t7", ".bin", ".safetensors")
# What trainers leave beside the weights.
_OTHER_FILES = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")


def find_checkpoints(paths: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns stand for, each once; those of a folder or pattern in natural order.

    Args:
        paths: files as they are; folders (the files in them with a checkpoint's suffix, not in their subfolders);
            patterns with ``*``, ``?`` or ``[...]``, for shells that leave them alone.

    Raises:
        CheckpointError: no such path, or a folder or pattern without checkpoints.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            files = [file for file in path.iterdir() if _looks_like_one(file)]
            if not files:
                raise CheckpointError(f"{path}: no checkpoints in this folder ({', '.join('*' + s for s in SUFFIXES)})")
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            files = [Path(name) for name in glob.glob(str(path), recursive=True)]
            files = [file for file in files if file.is_file()]
            if not files:
                raise CheckpointError(f"{path}: no file matches this pattern")
        else:
            if not path.exists():
                raise CheckpointError(f"{path}: no such file")
            files = [path]
        found.update(dict.fromkeys(sorted(files, key=lambda file: natural_key(str(file)))))
    return list(found)


@dataclass(frozen=True)
class Found:
    """A checkpoint file, and when in training it is from, as far as that is known."""

    path: Path
    epoch: float | None
    step: int | None


def in_training_order(paths: Sequence[str | Path]) -> list[Found]:
    """Checkpoints in the order of training: by epoch, or by step where not all have an epoch; then by natural name.

    Epoch and step are those that ``load_checkpoint`` reports. If some checkpoints have neither, all are ordered by
    name. No code of a file is run here: one that cannot be read without is placed by its name, and so is one that
    cannot be read at all, whose error belongs to whoever loads it.
    """
    found = [Found(Path(path), *_peek(Path(path))) for path in paths]
    if all(one.epoch is not None for one in found):
        return sorted(found, key=lambda one: (one.epoch or 0, one.step or 0, natural_key(str(one.path))))
    if all(one.step is not None for one in found):
        return sorted(found, key=lambda one: (one.step or 0, natural_key(str(one.path))))
    return sorted(found, key=lambda one: natural_key(str(one.path)))


def order_checkpoints(paths: Sequence[str | Path]) -> list[Path]:
    """The same, the paths alone."""
    return [one.path for one in in_training_order(paths)]


def _peek(path: Path) -> tuple[float | None, int | None]:
    try:
        content = read_raw(path)
    except (CheckpointError, ImportError):
        return position_in_name(path)
    weights = find_weights(content)
    return position_of(metadata_of(content, weights), path) if weights else position_in_name(path)


def _looks_like_one(file: Path) -> bool:
    name = file.name
    return file.suffix.lower() in SUFFIXES and not name.startswith((".", *_OTHER_FILES)) and file.is_file()
