"""Finds the checkpoints of a run in folders and by patterns, and sorts them in the order of training."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.dialects import find_weights, metadata_of, name_key, position_in_name
from spectra.checkpoints.distributed import plain_values
from spectra.checkpoints.folders import (
    SUFFIXES,
    contents_if_readable,
    contents_of,
    files_of,
    is_beside_weights,
    is_checkpoint_folder,
    position,
    position_without_reading,
    sub_folders,
)
from spectra.checkpoints.rawfile import read_raw
from spectra.checkpoints.shards import index_of
from spectra.checkpoints.sidecars import says_its_moment
from spectra.errors import CheckpointError

Say = Callable[[str], None]


def find_checkpoints(
    paths: Sequence[str | Path], *, taken: Say = lambda words: None, passed: Say = lambda words: None
) -> list[Path]:
    """The checkpoints named by paths, folders and patterns, each once; those of one argument in natural order.

    Args:
        paths: files; folders that are a checkpoint, or that hold checkpoints, as files or as folders of their own (one
            level deep); patterns with ``*``, ``?`` or ``[...]``, for shells that leave them alone.
        taken: called with a line about the selection from a folder that holds both files and folders.
        passed: called with a line about folders that are skipped.

    Returns:
        Files and folders, as :func:`load_checkpoint` takes them. The shards of an index are one checkpoint.

    Raises:
        CheckpointError: no such path, or a folder or pattern without checkpoints.
    """
    checkpoints: dict[Path, None] = {}
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            files = _in_folder(path, taken, passed)
        elif not os.path.lexists(path) and glob.has_magic(str(path)):
            files = [file for file in _matching(str(path)) if _is_one(file)]
            if not files:
                raise CheckpointError(f"{path}: no file matches this pattern")
        else:
            if not path.exists():
                raise CheckpointError(f"{path}: no such file")
            files = [path]
        checkpoints.update(dict.fromkeys(sorted(map(_whole, files), key=name_key)))
    return list(checkpoints)


def _in_folder(folder: Path, taken: Say, passed: Say) -> list[Path]:
    """The checkpoints of a folder: those directly in it, and its sub-folders that are checkpoints."""
    contents = contents_of(folder)
    if is_checkpoint_folder(folder) and says_its_moment(folder):
        return [folder]  # of a run; what its sub-folders hold is of the same moment
    one_alone = contents.usual is not None and not contents.others
    inside, several = sub_folders(folder)
    if several:
        first = contents_of(several[0]).others[0].name
        passed(
            f"{folder}: skipped {_in_short(several)}, with several files of weights: "
            f"a pattern names those that are meant, as in '{folder}/*/{first}'"
        )
    if contents.checkpoints and inside:
        taken(f"{folder}: taken are {_in_short(contents.checkpoints)} in it, and its folders {_in_short(inside)}")
    if not contents.checkpoints and not inside:
        suffixes = ", ".join("*" + suffix for suffix in SUFFIXES)
        raise CheckpointError(f"{folder}: no checkpoints in this folder ({suffixes}){_elsewhere(folder)}")
    return [folder] if one_alone and not inside else [*contents.checkpoints, *inside]


def _elsewhere(folder: Path) -> str:
    """A note in words on checkpoints one level further down; empty if there are none."""
    inside = sorted((path for path in folder.iterdir() if os.path.isdir(path)), key=name_key)
    holding = [path for path in inside if (contents := contents_if_readable(path)) and contents.checkpoints]
    return f"; there are some in {_in_short(holding)}" if holding else ""


def _is_one(path: Path) -> bool:
    """Whether a path that matches a pattern is a checkpoint, judged by names only."""
    if path.is_dir():
        return is_checkpoint_folder(path)
    return path.is_file() and not is_beside_weights(path)


def _whole(path: Path) -> Path:
    """The path, or for a shard the index that lists it."""
    index = index_of(path)
    return index if index is not None and index.is_file() else path


def _matching(pattern: str) -> Iterator[Path]:
    """The paths that match a pattern; ``**`` follows no links, because they may be circular."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))
        return
    first = parts.index("**")
    wanted = (*parts[first:], "*") if parts[-1] == "**" else parts[first:]
    for root in glob.glob(str(Path(*parts[:first]))):
        for folder, inside, names in os.walk(root):
            inside[:] = [name for name in inside if not name.startswith(".")]
            for name in [*inside, *(name for name in names if not name.startswith("."))]:
                path = Path(folder, name)
                if _fits(path.relative_to(root).parts, wanted):
                    yield path


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern, where ``**`` stands for any number of folders."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_fits(parts[skipped:], wanted[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _in_short(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]} ({len(names)})"


@dataclass(frozen=True)
class Found:
    """A checkpoint with its epoch and step, as far as they are known."""

    path: Path
    epoch: float | None
    step: int | None


def in_training_order(paths: Sequence[str | Path], max_size: int | str | None = None) -> list[Found]:
    """Checkpoints in the order of training: by epoch, or by step where not all have an epoch; then by natural name.

    Epoch and step are those that ``load_checkpoint`` reports. If some checkpoints have an epoch and others only a step,
    they are ordered by name; those with neither come last, by name. No code of a file is run here. A file that cannot
    be read is placed by its name; its error appears when it is loaded. `max_size` is that of :func:`load_checkpoint`.
    """
    size = parse_size(max_size)
    entries = [Found(Path(path), *_peek(Path(path), size)) for path in paths]
    placed = [entry for entry in entries if entry.epoch is not None or entry.step is not None]
    by_epoch = all(entry.epoch is not None for entry in placed)
    by_step = all(entry.step is not None for entry in placed)

    def key(entry: Found) -> tuple[bool, float, int, list[list[tuple[int, int | str]]]]:
        epoch = entry.epoch if by_epoch else None
        step = entry.step if by_epoch or by_step else None
        return entry not in placed, epoch or 0, step or 0, name_key(entry.path)

    return sorted(entries, key=key)


def order_checkpoints(paths: Sequence[str | Path]) -> list[Path]:
    """The same, the paths alone."""
    return [entry.path for entry in in_training_order(paths)]


def _peek(path: Path, max_size: int | None) -> tuple[float | None, int | None]:
    try:
        files = files_of(path)
        if (early := position_without_reading(path, files)) is not None:
            return early
        if files.distributed:
            return position(path, files, plain_values(files.entry, max_size))[0]
        content = read_raw(files.entry, max_size=max_size)
        weights = find_weights(content)
        return position(path, files, metadata_of(content, weights) if weights else {})[0]
    except Exception:  # also out of memory: loading the file raises the same error and reports it
        return position_in_name(path / "model" if path.is_dir() else path)
