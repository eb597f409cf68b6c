"""Tables of records: one record, several records of one checkpoint as columns, or several checkpoints as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from spectra.results.record import Record
from spectra.results.series import Series
from spectra.results.trajectory import Trajectory
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.estimators import ENDS
from spectra_cli.edge_table import RATIO, edge_words
from spectra_cli.findings_table import checks_in_short, measure_in_short, second_trace
from spectra_cli.identity_lines import print_identities
from spectra_cli.layout import FEW_NOTES, header, new_table, print_heading, print_line, print_notes, print_pairs
from spectra_cli.numbers import as_range, in_short, plain
from spectra_cli.preset_table import print_preset
from spectra_cli.record_table import FACTS, print_record
from spectra_cli.summary_table import print_summary

_LEGEND = "+- one standard error over the probes; a to b: from the Ritz value to the 95 % bound beyond it"


def print_trajectory(
    trajectory: Trajectory,
    console: Console,
    *,
    title: str | None = None,
    more: str | None = None,
    budget: bool = False,
    everything: bool = False,
) -> None:
    """The header of a run; then its one record, or a table that fits what there is.

    Records of one checkpoint stand side by side; several checkpoints have a row each, in a table per operator and
    batch-norm mode.

    Args:
        trajectory: the records.
        console: where to.
        title: a line above.
        more: the command that prints all of it; by default that for the whole file.
        budget: also the parts of every error, of a single record.
        everything: a single record in full, and every note; else a single record as a summary, and the first notes.
    """
    more = more or f"spectra show {trajectory.path or 'FILE'} --all"
    if title:
        print_line(console, title, style="bold")
    if len(trajectory) == 1 and not everything:
        print_summary(trajectory[0], console, header=header(trajectory), more=more, budget=budget)
        return
    print_pairs(console, header(trajectory))
    if len(trajectory) == 1:
        print_record(trajectory[0], console, budget=budget)
        return
    every = [trajectory[key] for key in trajectory.keys()]  # noqa: SIM118 (it iterates over records)
    most = None if everything else FEW_NOTES
    if all(len(series) == 1 for series in every):
        hidden = print_side_by_side([series.records[0] for series in every], console, most)
    else:
        hidden = sum(print_series(series, console, most) for series in every)
    print_identities(trajectory, console)
    notes = f"; {hidden} more note{'' if hidden == 1 else 's'}: {more}" if hidden else ""
    options = {"--operator": "NAME", "--bn": "MODE"}
    options |= {"--epoch": "E"} if any(len(series) > 1 for series in every) else {}
    choice = " ".join(f"{option} {value}" for option, value in options.items() if f" {option} " not in more)
    print_line(console, f"for all of one record: {more.removesuffix('--all')}{choice} --all{notes}", style="dim")


def print_side_by_side(records: Sequence[Record], console: Console, most: int | None = None) -> int:
    """The records of one checkpoint: a row per number, a column per operator and batch-norm mode.

    Returns:
        How many notes beyond so many were not printed.
    """
    complete = [record for record in records if record.status != "failed"]
    print_heading(console, ", ".join(dict.fromkeys(record.where for record in records if record.where)) or "records")
    remarks: dict[str, list[str]] = {}
    # A record with held-out data has two columns, one for each data set.
    table = new_table(
        "quantity",
        *(f"{r.operator}, BN {r.bn_mode}{', test data' * test}" for r, test in _columns(complete)),
        left=(0,),
    )
    for name in ("loss", "accuracy", "gradient_norm"):
        if any(record.facts.get(name) is not None for record in complete):
            cells = (plain(record.facts.get("test_" * test + name)) for record, test in _columns(complete))
            table.add_row(FACTS[name], *cells)
    for name in dict.fromkeys(name for record in complete for name in record.estimates):
        words = as_range if name in ENDS else in_short
        cells = (_cell(record, name, words, remarks, test=test) for record, test in _columns(complete))
        table.add_row(name, *cells)
    if any(record.over_edge is not None for record in complete):
        cells = (as_range(record.over_edge) if not test else "-" for record, test in _columns(complete))
        table.add_row(RATIO, *cells)
    seconds = [second_trace(record) for record in complete]
    for name in _names(seconds):
        cells = (_named(name, second_trace(record)) if not test else "-" for record, test in _columns(complete))
        table.add_row(name, *cells)
    if any(record.checks for record in complete):
        cells = (checks_in_short(record) if not test else "-" for record, test in _columns(complete))
        table.add_row("cross-check", *cells)
    for name in dict.fromkeys(name for record in complete for name in record.sharpness):
        cells = (
            measure_in_short(record.sharpness.get(name)) if not test else "-" for record, test in _columns(complete)
        )
        table.add_row(name, *cells)
    console.print(table)
    print_line(console, _LEGEND, style="dim")
    hidden = _print_remarks(console, remarks, records, most)
    print_preset(complete, console)
    return hidden


def _columns(records: Iterable[Record]) -> list[tuple[Record, bool]]:
    """(record, whether for the test data): each record, followed by one for its test data if it has any."""
    return [(record, test) for record in records for test in (False, True) if not test or record.test_spectrum]


def print_series(series: Series, console: Console, most: int | None = None) -> int:
    """One row per checkpoint; what failed has its reason below the table.

    Returns:
        How many notes beyond so many were not printed.
    """
    with_epochs = any(math.isfinite(epoch) for epoch in series.epochs)
    with_steps = any(record.step is not None for record in series)
    with_accuracy = any(record.facts.get("accuracy") is not None for record in series)
    with_test = any(record.test_spectrum is not None for record in series)
    with_edge = any(record.over_edge is not None for record in series)
    seconds = _names(second_trace(record) for record in series)
    table = new_table(
        "epoch" if with_epochs else "step" if with_steps else "checkpoint",
        "loss",
        *(["accuracy"] if with_accuracy else []),
        *(["test loss", "test accuracy"] if with_test else []),
        "trace",
        *seconds,
        "|H|_F",
        "lambda_max",
        *([RATIO] if with_edge else []),
        "lambda_min",
        "rank degeneracy",
    )
    remarks: dict[str, list[str]] = {}  # what is starred -> the notes of its rows
    for record in series:
        moment = record.epoch if with_epochs else record.step
        name = "-" if record.checkpoint is None or with_epochs or with_steps else Path(record.checkpoint).name
        when = name if moment is None else f"{moment:g}"
        when += " (unverified)" * (record.status == "unverified")
        if record.status == "failed":
            table.add_row(when, "failed")
            continue
        table.add_row(
            when,
            plain(record.facts.get("loss")),
            *([plain(record.facts.get("accuracy"), 4)] if with_accuracy else []),
            *([plain(record.facts.get(name), 4) for name in ("test_loss", "test_accuracy")] if with_test else []),
            _cell(record, "trace", in_short, remarks),
            *(_named(name, second_trace(record)) for name in seconds),
            _cell(record, "frobenius_norm", in_short, remarks),
            _cell(record, "lambda_max", as_range, remarks),
            *([as_range(record.over_edge)] if with_edge else []),
            _cell(record, "lambda_min", as_range, remarks),
            _cell(record, "rank_degeneracy", in_short, remarks),
        )
    print_heading(console, f"{series.operator}, BN {series.bn_mode}: {len(series)} checkpoints")
    console.print(table)
    print_line(console, f"{_LEGEND}; all checkpoints share the probes", style="dim")
    if words := edge_words(series):
        print_line(console, words, style="dim")
    return _print_remarks(console, remarks, series, most)


def _names(seconds: Iterable[tuple[str, str] | None]) -> list[str]:
    """The distinct names of traces that are not headline numbers."""
    return list(dict.fromkeys(second[0] for second in seconds if second is not None))


def _named(name: str, second: tuple[str, str] | None) -> str:
    return second[1] if second is not None and second[0] == name else "-"


def _cell(
    record: Record,
    name: str,
    words: Callable[[Estimate | None], str],
    remarks: dict[str, list[str]],
    *,
    test: bool = False,
) -> str:
    """The words for an estimate, with a star if it has a note; the note is added to the remarks."""
    estimate: Estimate | None = record.test_estimates.get(name) if test else record.headlines.get(name)
    if estimate is None or estimate.note is None or estimate.resolved is False:  # that is what `words` say then
        return words(estimate)
    remarks.setdefault(name, []).append(estimate.note)
    return f"{words(estimate)} *"


def _print_remarks(console: Console, remarks: dict[str, list[str]], records: Iterable[Record], most: int | None) -> int:
    """What failed and why, all of it; then what the stars stand for and the notes of the records, at most so many."""
    shown = list(records)
    for record in shown:
        if record.status == "failed":
            print_line(console, f"! {record.where} {record.operator}, BN {record.bn_mode}: failed: {record.reason}")
    return print_notes(console, remarks, shown, most)
