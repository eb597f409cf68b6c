"""The checkpoints of a training in a folder: their names, the last one, and whether it is of the same training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectra.checkpoints.rawfile import read_hashed
from spectra.errors import CheckpointError
from spectra.results.storage.atomic_write import remove_leftovers

_NAME = re.compile(r"epoch_(\d{3,9})\.pt")


class RunFolder:
    """A folder with ``epoch_000.pt``, ``epoch_001.pt``, ...; created if absent, its parent is not."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: the folder cannot be made: {error.strerror}") from error

    def path(self, epoch: int) -> Path:
        """The file of an epoch."""
        return self.folder / f"epoch_{epoch:03d}.pt"

    def found(self) -> dict[int, Path]:
        """Epoch -> file, in the order of training."""
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return dict(sorted((int(match[1]), path) for match, path in named if match))

    def clear(self) -> None:
        """Remove the checkpoints."""
        for path in self.found().values():
            path.unlink()

    def last(self, task: str, args: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """The content of the last checkpoint, if there is one.

        Temporary files of a killed training are removed.

        Args:
            task: name of the built-in task.
            args: its options. The path of the data may differ.
            recipe: the options of training.

        Raises:
            CheckpointError: it cannot be read, or is of another training.
        """
        found = self.found()
        if not found:
            return None
        path = found[max(found)]
        for leftover in self.folder.glob(".epoch_*.part"):
            remove_leftovers(self.folder / f"{leftover.name[1:].split('.pt.')[0]}.pt")
        elsewhere = "name another folder, or train anew (--force)"
        try:
            content, _ = read_hashed(path, unsafe=False)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; it cannot be continued: {elsewhere}") from error
        if not isinstance(content, dict) or not {"spectra", "recipe", "rng", "optimizer"} <= content.keys():
            raise CheckpointError(f"{path}: was not written by `spectra train`: {elsewhere}")
        before = {"task": content["spectra"]["task"], **content["spectra"]["options"], **content["recipe"]}
        now = {"task": task, **args, **recipe}
        other = [name for name in {**now, **before} if name != "data" and before.get(name) != now.get(name)]
        if other:
            words = ", ".join(f"{name}={before.get(name)!r} in place of {now.get(name)!r}" for name in other)
            raise CheckpointError(f"{path}: is of another training ({words}): {elsewhere}")
        return content
