"""The options that choose among the checkpoints of a command, and the checkpoints that they choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from spectra.checkpoints.discovery import find_checkpoints, in_training_order
from spectra.checkpoints.selection import select, shard
from spectra_cli.grouped_help import grouped_option

_GROUP = "Which checkpoints"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def checkpoint_choice(command: _Command) -> _Command:
    """The argument with the checkpoints, and the options that choose among them, as the parameters of a `Choice`."""
    options = (
        click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT..."),
        grouped_option(_GROUP, "--every", type=int, metavar="K", help="The first, and each K-th after it."),
        grouped_option(
            _GROUP,
            "--epochs",
            metavar="LIST",
            help="Those of these epochs: single ones and FIRST:LAST:STEP, ends included: 0,5,10:100:10.",
        ),
        grouped_option(
            _GROUP,
            "--last",
            is_flag=True,
            help="The last one; in addition to those of --every or --epochs, if given.",
        ),
        grouped_option(
            _GROUP,
            "--shard",
            "shard_text",
            metavar="I/N",
            help="Part I of N, for one of N jobs, into a separate file next to --out; spectra merge joins the files.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Choice:
    """The checkpoints that were asked for."""

    checkpoints: Sequence[Path]  # files, folders or patterns
    every: int | None
    epochs: str | None
    last: bool
    shard_text: str | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Choice:
        """The choice in the options of a command, which are removed from them."""
        return cls(**{name: options.pop(name) for name in cls.__dataclass_fields__})

    def paths(
        self, max_size: int | str | None, note: Callable[[str], None]
    ) -> tuple[list[Path], tuple[int, int] | None]:
        """The checkpoints in the order of training, and the number of the shard and of all shards.

        Args:
            max_size: bytes that a checkpoint may take in memory.
            note: called with a line about each file that was chosen or skipped by its name.

        Raises:
            SpectraError: there are no such checkpoints.
        """
        there = find_checkpoints(self.checkpoints, taken=note, passed=note)
        found = select(in_training_order(there, max_size), every=self.every, epochs=self.epochs, last=self.last)
        if self.shard_text is None:
            return [one.path for one in found], None
        found, number, shards = shard(found, self.shard_text)
        return [one.path for one in found], (number, shards)
