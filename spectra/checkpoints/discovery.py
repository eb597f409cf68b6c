"""The checkpoints of a run: found in folders and by patterns, and put in the order of training."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
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


def order_checkpoints(paths: Sequence[str | Path]) -> list[Path]:
    """Checkpoints in the order of training: by epoch, or by step where not all have an epoch; then by natural name.

    Epoch and step are those that ``load_checkpoint`` reports. If some checkpoints have neither, all are ordered by
    name. No code of a file is run here: one that cannot be read without is placed by its name, and so is one that
    cannot be read at all, whose error belongs to whoever loads it.
    """
    files = [Path(path) for path in paths]
    positions = [_peek(file) for file in files]
    epochs = [epoch for epoch, _ in positions]
    steps = [step for _, step in positions]
    names = [natural_key(str(file)) for file in files]
    if None not in epochs:
        keys = [(epoch or 0, step or 0, name) for epoch, step, name in zip(epochs, steps, names)]
    elif None not in steps:
        keys = [(step or 0, 0, name) for step, name in zip(steps, names)]
    else:
        keys = [(0, 0, name) for name in names]
    return [files[i] for i in sorted(range(len(files)), key=keys.__getitem__)]


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
