"""`spectra show`: the numbers of results files, each with its error, as tables, JSON or CSV."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import click

from spectra.errors import ArgumentError
from spectra.jsonable import to_jsonable
from spectra.results.record import Record
from spectra.results.record_text import COLUMNS
from spectra.results.storage.runfile import load_trajectory
from spectra.results.trajectory import Trajectory
from spectra_cli.block_table import print_blocks
from spectra_cli.budget_table import print_budgets
from spectra_cli.edge_table import edge_options, with_optimizer
from spectra_cli.layout import make_console, print_heading
from spectra_cli.on_request import HELP, parse_asks, quantities_at
from spectra_cli.record_table import print_requested
from spectra_cli.tables import print_trajectory
from spectra_cli.terminal import escaped_row, say

Asks = Sequence[tuple[str, float]]


@click.command("show")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--json", "form", flag_value="json", help="Print a list of records as JSON.")
@click.option("--csv", "form", flag_value="csv", help=f"Print one row per record and estimate: {', '.join(COLUMNS)}.")
@click.option("--operator", "operators", multiple=True, metavar="NAME", help="Only this operator; repeatable.")
@click.option("--bn", "bn_modes", multiple=True, metavar="MODE", help="Only this batch-norm mode; repeatable.")
@click.option("--all", "everything", is_flag=True, help="A single record in full, and every note.")
@click.option("--budget", is_flag=True, help="The parts of every error: probes, Lanczos steps, arithmetic and data.")
@click.option("--blocks", is_flag=True, help="The diagonal blocks of every record, as --all prints them for one.")
@click.option("--at", "asks", multiple=True, metavar="KEY=NUMBER", help=f"More quantities; repeatable. {HELP}.")
@click.option("--epoch", "epochs", multiple=True, type=float, metavar="E", help="Only this epoch; repeatable.")
@edge_options
def command(
    files: tuple[str, ...],
    form: str | None,
    operators: tuple[str, ...],
    bn_modes: tuple[str, ...],
    everything: bool,
    budget: bool,
    blocks: bool,
    asks: tuple[str, ...],
    epochs: tuple[float, ...],
    learning_rate: float | None,
    momentum: float | None,
) -> None:
    """Print the numbers in results files, each with its error.

    A single record is a summary on one screen, and --all prints the rest; several checkpoints get a table with a row
    each, per operator and batch-norm mode. Choose one of them with --operator, --bn and --epoch.

    A trace that is known exactly is marked as exact; the estimate by probes is in --json and in the cross-check.
    """
    asked = parse_asks(asks)
    chosen = []
    for file in files:
        trajectory = load_trajectory(file)
        for note in trajectory.notes:
            say(f"spectra: {note}")
        selected = select(trajectory, operators, bn_modes, epochs)
        chosen.append((file, with_optimizer(selected, learning_rate, momentum)))
    if form == "json":
        entries = [
            {"file": file, **record.to_json(), **_requested_json(record, asked)}
            for file, trajectory in chosen
            for record in trajectory
        ]
        click.echo(json.dumps(entries, indent=2, ensure_ascii=True, allow_nan=False))
    elif form == "csv":
        write_csv(chosen, sys.stdout, asked)
    else:
        options = {"--operator": operators, "--bn": bn_modes, "--epoch": [f"{epoch:g}" for epoch in epochs]}
        choice = [word for name, values in options.items() for value in values for word in (name, value)]
        print_report(chosen, choice=choice, everything=everything, budget=budget, blocks=blocks, asks=asked)


def select(
    trajectory: Trajectory, operators: Iterable[str] = (), bn_modes: Iterable[str] = (), epochs: Iterable[float] = ()
) -> Trajectory:
    """The records of a trajectory with these operators, batch-norm modes and epochs; an empty choice is all.

    Raises:
        ArgumentError: there is no such record; the message lists what there is.
    """
    wanted: tuple[set[Any], ...] = (set(operators), set(bn_modes), set(epochs))
    records = [
        record
        for record in trajectory
        if all(
            not choice or value in choice
            for choice, value in zip(wanted, (record.operator, record.bn_mode, record.epoch))
        )
    ]
    if not records:
        there = {
            "operators": trajectory.operators,
            "BN modes": trajectory.bn_modes,
            "epochs": [f"{epoch:g}" for epoch in trajectory.epochs],
        }
        words = "; ".join(f"{name} {', '.join(values) or 'none'}" for name, values in there.items())
        raise ArgumentError(f"{trajectory.path}: no such records; there are {words}")
    return Trajectory(records, settings=trajectory.settings, notes=trajectory.notes, path=trajectory.path)


def _requested_json(record: Record, asks: Asks) -> dict[str, Any]:
    if not asks:
        return {}
    found = quantities_at(record, asks)
    return {"on_request": {name: to_jsonable(estimate.to_json()) for name, estimate in found.items()}}


def print_report(
    chosen: list[tuple[str, Trajectory]],
    *,
    choice: Sequence[str] = (),
    everything: bool = False,
    budget: bool = False,
    blocks: bool = False,
    asks: Asks = (),
) -> None:
    """Print the tables of each file; `choice` is the selection of the records, as command-line options.

    Raises:
        ArgumentError: blocks are asked for, and no record has any.
    """
    if blocks and not any(record.blocks for _, trajectory in chosen for record in trajectory):
        raise ArgumentError("--blocks: no record has spectra of blocks: spectra analyze --blocks layer computes them")
    console = make_console()
    for index, (file, trajectory) in enumerate(chosen):
        if index:
            console.print()
        count = len(trajectory)
        more = shlex.join(["spectra", "show", file, *choice, "--all"])
        title = f"{file}: {count} record{'s' if count > 1 else ''}"
        print_trajectory(trajectory, console, more=more, title=title, budget=budget, everything=everything)
        for record in trajectory:
            if budget and count > 1:
                print_heading(console, record.label)
                print_budgets(record, console)
            if blocks and not (everything and count == 1):  # which has printed them
                print_blocks(record, console, of=record.label)
            if asks:
                print_requested(quantities_at(record, asks), console, of=record.label)


def write_csv(chosen: Iterable[tuple[str, Trajectory]], stream: IO[str], asks: Asks = ()) -> None:
    """One row per record x estimate with all digits; a record that failed is one row with its reason."""
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for file, trajectory in chosen:
        for record in trajectory:
            for row in _rows(record, asks):
                writer.writerow(escaped_row({"file": file} | row))


def _rows(record: Record, asks: Asks) -> Iterator[dict[str, Any]]:
    entry = record.to_json()
    entry["estimates"] |= _requested_json(record, asks).get("on_request", {})
    shared = {name: entry[name] for name in COLUMNS if name in entry and name != "reason"}
    if record.status == "failed":
        yield shared | {"reason": entry["reason"]}
    yield from _estimate_rows(shared, entry["estimates"])
    if test := entry.get("test"):  # of the same record, under names of their own
        there = shared | {name: test[name] for name in ("loss", "n_samples")}
        yield from _estimate_rows(there, {f"test_{name}": estimate for name, estimate in test["estimates"].items()})


def _estimate_rows(shared: dict[str, Any], estimates: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, estimate in estimates.items():
        cells = {column: estimate.get(column) for column in COLUMNS[COLUMNS.index("value") : -1]}
        yield shared | {"estimate": name} | cells | {"reason": estimate.get("reason") or estimate.get("note")}
