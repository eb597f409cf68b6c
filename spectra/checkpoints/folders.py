"""Decides which files make up a checkpoint: one file, the shards of an index, or a trainer's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectra.checkpoints import distributed
from spectra.checkpoints.dialects import name_key, position_in_name, position_of
from spectra.checkpoints.shards import index_of, is_index, shards_of
from spectra.checkpoints.sidecars import Position, says_its_moment, trainer_position
from spectra.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".t7", ".bin", ".safetensors")
#: The file names under which transformers, accelerate and peft save weights; the first that exists is used.
USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# Other files that trainers write next to the weights.
_NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|rng_state|training_args|scaler).*"
    r"|(lr_scheduler|sampler|dl_state_dict|random_states|custom_checkpoint)(_\d+)*\.\w+"
    r"|.*_optim_states\.\w+",
    re.IGNORECASE,
)
_FURTHER_MODEL = re.compile(r"(model|pytorch_model)_\d+\.(safetensors|bin)")  # of several, in a state of accelerate
_STATE_OF_ACCELERATE = "random_states_"
_UNFINISHED = ("tmp-", ".")  # folders that a trainer renames when they are whole, and hidden ones


@dataclass(frozen=True)
class Contents:
    """The checkpoint files directly in a folder, in natural order."""

    usual: Path | None  # the file, or the index of shards, that makes the folder a checkpoint
    others: tuple[Path, ...]  # further files with the suffix of a checkpoint
    unused: tuple[Path, ...]  # the same weights in another format, weights of another model, an adapter beside a model

    @property
    def checkpoints(self) -> list[Path]:
        return [*([] if self.usual is None else [self.usual]), *self.others]


@dataclass(frozen=True)
class Files:
    """The files of one checkpoint."""

    entry: Path  # the weights, or the index of their shards
    folder: Path | None  # that is the checkpoint, with what the trainer left beside the weights
    unused: tuple[Path, ...] = ()  # weights that are there too, if the folder was named and not the file

    @property
    def weights(self) -> list[Path]:
        """The files with the weights: one, or the index and its shards.

        Raises:
            CheckpointError: the index cannot be read.
        """
        if self.distributed:
            return [self.entry, *distributed.files_with_pieces(self.entry)]
        return [self.entry, *sorted(shards_of(self.entry))] if is_index(self.entry) else [self.entry]

    @property
    def distributed(self) -> bool:
        """Whether it was written by torch.distributed.checkpoint."""
        return self.entry.name == distributed.METADATA

    @property
    def is_adapter(self) -> bool:
        return self.entry.name.startswith("adapter_model.")


def contents_of(folder: Path) -> Contents:
    """The checkpoints directly in a folder, without the other files that trainers write next to the weights.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    if distributed.is_distributed(folder):
        return Contents(folder / distributed.METADATA, (), ())
    try:
        files_by_name = {file.name: file for file in folder.iterdir() if _concerns(file) and file.is_file()}
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror or error}") from error
    files = [files_by_name[name] for name in sorted(files_by_name, key=lambda name: name_key(Path(name)))]
    indices = [file for file in files if is_index(file)]
    weights = [file for file in files if file.suffix.lower() in SUFFIXES and not is_beside_weights(file)]
    loose: dict[Path, Path] = {}  # the first shard of each checkpoint whose index is not there
    for file in weights:
        if (index := index_of(file)) is not None and index not in indices:
            loose.setdefault(index, file)
    unsharded = [file for file in weights if index_of(file) is None]
    usual = [files_by_name[name] for name in USUAL if name in files_by_name]
    unused = usual[1:]
    if usual and any(name.startswith(_STATE_OF_ACCELERATE) for name in files_by_name):
        unused += [file for file in unsharded if _FURTHER_MODEL.fullmatch(file.name)]
    others = [*(file for file in [*unsharded, *indices] if file not in usual and file not in unused), *loose.values()]
    return Contents(usual[0] if usual else None, tuple(others), tuple(unused))


def _concerns(file: Path) -> bool:
    """Whether the name of a file can belong to a checkpoint; a folder may also hold other data."""
    if file.name.startswith("."):
        return False
    return file.suffix.lower() in SUFFIXES or is_index(file) or file.name.startswith(_STATE_OF_ACCELERATE)


def files_of(path: Path) -> Files:
    """The files of the checkpoint that a path names.

    Args:
        path: a file, an index of shards, or a folder that is a checkpoint.

    Raises:
        CheckpointError: a folder without weights, or with several of which none has a usual name.
    """
    if not path.is_dir():
        whole = path.name in (*USUAL, distributed.METADATA) or is_index(path)
        return Files(path, path.parent if whole else None)
    contents = contents_of(path)
    if not contents.checkpoints:
        raise CheckpointError(f"{path}: a folder without the weights of a model: {', '.join(USUAL[::2])}, ...")
    if contents.usual is None and len(contents.others) > 1:
        names = ", ".join(file.name for file in contents.others[:3])
        raise CheckpointError(f"{path}: a folder with {len(contents.others)} checkpoints ({names}, ...): name the file")
    entry, *others = contents.checkpoints
    return Files(entry, path, (*contents.unused, *others))


def sub_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """The sub-folders that are checkpoints, and those that are ambiguous because they hold several files, by name.

    A folder is a checkpoint if it holds weights under a usual name, or if its name states an epoch or step and it holds
    exactly one file of weights. Each folder is listed once, even if several links lead to it.

    Raises:
        CheckpointError: a folder with such a name cannot be read.
    """
    visited = {folder.resolve()}
    checkpoints, several = [], []
    inside = [path for path in folder.iterdir() if not path.name.startswith(_UNFINISHED) and os.path.isdir(path)]
    for path in sorted(inside, key=lambda path: (path.is_symlink(), name_key(path))):
        if (real := path.resolve()) in visited:
            continue
        visited.add(real)
        if is_checkpoint_folder(path):
            checkpoints.append(path)
        elif says_its_moment(path) and len(contents_of(path).others) > 1:
            several.append(path)
    return sorted(checkpoints, key=name_key), several


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder is one checkpoint, by the rule of :func:`sub_folders`."""
    named = says_its_moment(path)
    usual = (*USUAL, distributed.METADATA)
    if not named and not any(os.path.isfile(path / name) for name in usual):  # other folders are not searched
        return False
    contents = contents_of(path) if named else contents_if_readable(path)
    return contents is not None and (contents.usual is not None or (named and len(contents.others) == 1))


def contents_if_readable(folder: Path) -> Contents | None:
    """As :func:`contents_of`, but None for a folder that cannot be read."""
    try:
        return contents_of(folder)
    except CheckpointError:
        return None


def is_beside_weights(file: Path) -> bool:
    """Whether a file, judged by its name, is a trainer's other state: an optimizer, a scheduler, ..."""
    return _NOT_WEIGHTS.fullmatch(file.name) is not None


def position(path: Path, files: Files, metadata: Mapping[str, Any]) -> tuple[Position, str]:
    """Epoch and step, from the trainer's file, else from the checkpoint, else from its name; and a note."""
    trainer, note = (None, "") if files.folder is None else trainer_position(files.folder)
    return trainer or position_of(metadata, path if path == files.entry else _named(path) / files.entry.name), note


def _named(folder: Path) -> Path:
    return folder if folder.name else folder.resolve()


def position_without_reading(path: Path, files: Files) -> Position | None:
    """Epoch and step if they are available without reading weights: from the trainer's file, or for shards by name."""
    trainer = None if files.folder is None else trainer_position(files.folder)[0]
    return trainer or (position_in_name(files.entry) if is_index(files.entry) else None)
