"""The optimizer of records and its edge of stability: lines for tables, and the options that give an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import click

from spectra.errors import ArgumentError
from spectra.results.optimizer import OptimizerSettings
from spectra.results.record import Record
from spectra.results.trajectory import Trajectory
from spectra_cli.numbers import as_range, plain
from spectra_cli.terminal import say

_Command = TypeVar("_Command", bound=Callable[..., Any])
RATIO = "lambda_max / edge"


def edge_options(command: _Command) -> _Command:
    """The options with the settings of an optimizer, for checkpoints that hold none."""
    momentum = click.option("--momentum", type=float, metavar="B", help="Momentum (heavy ball) of that optimizer.")
    rate = click.option(
        "--learning-rate",
        type=float,
        metavar="LR",
        help="Compare lambda_max with the edge of stability of SGD, where a checkpoint holds no optimizer.",
    )
    return rate(momentum(command))


def with_optimizer(trajectory: Trajectory, learning_rate: float | None, momentum: float | None) -> Trajectory:
    """The records with SGD of these settings where their checkpoint holds no optimizer; unchanged without a rate.

    Raises:
        ArgumentError: a momentum without a learning rate, or a value out of its range.
    """
    if learning_rate is None:
        if momentum is not None:
            raise ArgumentError("--momentum without --learning-rate: give both")
        return trajectory
    if not 0 < learning_rate < float("inf"):
        raise ArgumentError(f"--learning-rate {learning_rate:g}: a number above 0 is needed")
    if momentum is not None and not 0 <= momentum < 1:
        raise ArgumentError(f"--momentum {momentum:g}: a number from 0 on and below 1 is needed")
    group = {"lr": learning_rate} | ({} if momentum is None else {"momentum": momentum})
    given = OptimizerSettings("sgd", (group,))
    lacking = {id(record) for record in trajectory if record.status != "failed" and record.optimizer is None}
    if not lacking:
        say("spectra: --learning-rate is not used: every checkpoint holds the settings of its optimizer")
        return trajectory
    records = [replace(record, optimizer=given) if id(record) in lacking else record for record in trajectory]
    return Trajectory(records, settings=trajectory.settings, notes=trajectory.notes, path=trajectory.path)


def edge_lines(record: Record) -> list[tuple[str, str]]:
    """(name, words) of the optimizer of a record and of its edge; none where the optimizer is not known."""
    if record.optimizer is None or record.edge is None:
        return []
    edge = record.edge
    if edge.value is None:
        return [("optimizer", record.optimizer.words), ("edge of stability", f"none: {edge.words}")]
    words = f"{plain(edge.value)} = {edge.words}, of full-batch training"
    return [
        ("optimizer", record.optimizer.words),
        ("edge of stability", f"{words}; {RATIO} {as_range(record.over_edge)}"),
    ]


def edge_words(records: Iterable[Record]) -> str:
    """The optimizer of several records and its edge, in a line; empty where none is known."""
    known = [record for record in records if record.optimizer is not None and record.edge is not None]
    if not known:
        return ""
    settings = [replace(record.optimizer, steps=None) for record in known if record.optimizer is not None]
    words = list(dict.fromkeys(one.words for one in settings))
    of = words[0] if len(words) == 1 else f"{words[0]}, at the last: {words[-1]}"
    edge = known[-1].edge
    assert edge is not None
    return f"optimizer: {of}; edge of stability: {'none, ' if edge.value is None else ''}{edge.words}"
