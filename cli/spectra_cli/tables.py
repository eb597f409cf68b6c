"""Records as tables: one record in full, several of one checkpoint side by side, several checkpoints in a row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from spectra.estimates import Estimate
from spectra.records import Record, Series, Trajectory
from spectra_cli.findings_table import checks_in_short, exact_in_short, measure_in_short
from spectra_cli.layout import grouped, header, new_table, notes_of, print_heading, print_line, print_pairs
from spectra_cli.numbers import as_range, in_short, plain
from spectra_cli.preset_table import print_preset
from spectra_cli.record_table import FACTS, print_record

_ENDS = ("spectral_norm", "lambda_max", "lambda_min")
_LEGEND = "+- one standard error over the probes; a to b: from the Ritz value to the 95 % bound beyond it"


def print_trajectory(
    trajectory: Trajectory, console: Console, *, title: str | None = None, budget: bool = False
) -> None:
    """The header of a run; then its one record in full, or a table that fits what there is.

    Records of one checkpoint stand side by side; several checkpoints have a row each, in a table per operator and
    batch-norm mode.
    """
    if title:
        print_line(console, title, style="bold")
    print_pairs(console, header(trajectory))
    every = [trajectory[key] for key in trajectory.keys()]  # noqa: SIM118 (it iterates over records)
    if len(trajectory) == 1:
        print_record(trajectory[0], console, budget=budget)
    elif all(len(series) == 1 for series in every):
        print_side_by_side([series.records[0] for series in every], console)
    else:
        for series in every:
            print_series(series, console)


def print_side_by_side(records: Sequence[Record], console: Console) -> None:
    """The records of one checkpoint: a row per number, a column per operator and batch-norm mode."""
    complete = [record for record in records if record.status == "complete"]
    print_heading(console, ", ".join(dict.fromkeys(record.where for record in records if record.where)) or "records")
    remarks: dict[str, list[str]] = {}
    # A record with held-out data has two columns, so that one is read beside the other.
    table = new_table(
        "quantity", *(f"{r.operator}, BN {r.bn_mode}{', test data' * test}" for r, test in _columns(complete))
    )
    table.columns[0].justify = "left"
    for name in ("loss", "accuracy", "gradient_norm"):
        if any(record.facts.get(name) is not None for record in complete):
            cells = (plain(record.facts.get("test_" * test + name)) for record, test in _columns(complete))
            table.add_row(FACTS[name], *cells)
    for name in dict.fromkeys(name for record in complete for name in record.estimates):
        words = as_range if name in _ENDS else in_short
        cells = (_cell(record, name, words, remarks, test=test) for record, test in _columns(complete))
        table.add_row(name, *cells)
    if any(record.exact is not None and record.exact.total is not None for record in complete):
        table.add_row("exact trace", *(exact_in_short(record) for record in complete))
        table.add_row("cross-check", *(checks_in_short(record) for record in complete))
    for name in dict.fromkeys(name for record in complete for name in record.sharpness):
        table.add_row(name, *(measure_in_short(record.sharpness.get(name)) for record in complete))
    console.print(table)
    print_line(console, _LEGEND, style="dim")
    _print_remarks(console, remarks, records)
    print_preset(complete, console)
    print_line(console, "for all of one record, name it: spectra show FILE --operator NAME --bn MODE", style="dim")


def _columns(records: Iterable[Record]) -> list[tuple[Record, bool]]:
    """Each record, and behind it the same for its test data, if it has any."""
    return [(record, test) for record in records for test in (False, True) if not test or record.test_spectrum]


def print_series(series: Series, console: Console) -> None:
    """One row per checkpoint; what failed has its reason below the table."""
    with_epochs = any(math.isfinite(epoch) for epoch in series.epochs)
    with_steps = any(record.step is not None for record in series)
    with_accuracy = any(record.facts.get("accuracy") is not None for record in series)
    with_test = any(record.test_spectrum is not None for record in series)
    with_exact = any(record.exact is not None and record.exact.total is not None for record in series)
    table = new_table(
        "epoch" if with_epochs else "step" if with_steps else "checkpoint",
        "loss",
        *(["accuracy"] if with_accuracy else []),
        *(["test loss", "test accuracy"] if with_test else []),
        "trace",
        *(["exact trace"] if with_exact else []),
        "|H|_F",
        "lambda_max",
        "lambda_min",
        "rank degeneracy",
    )
    remarks: dict[str, list[str]] = {}  # what is starred -> the notes of its rows
    for record in series:
        moment = record.epoch if with_epochs else record.step
        name = "-" if record.checkpoint is None or with_epochs or with_steps else Path(record.checkpoint).name
        when = name if moment is None else f"{moment:g}"
        if record.status == "failed":
            table.add_row(when, "failed")
            continue
        table.add_row(
            when,
            plain(record.facts.get("loss")),
            *([plain(record.facts.get("accuracy"), 4)] if with_accuracy else []),
            *([plain(record.facts.get(name), 4) for name in ("test_loss", "test_accuracy")] if with_test else []),
            _cell(record, "trace", in_short, remarks),
            *([exact_in_short(record)] if with_exact else []),
            _cell(record, "frobenius_norm", in_short, remarks),
            _cell(record, "lambda_max", as_range, remarks),
            _cell(record, "lambda_min", as_range, remarks),
            _cell(record, "rank_degeneracy", in_short, remarks),
        )
    print_heading(console, f"{series.operator}, BN {series.bn_mode}: {len(series)} checkpoints")
    console.print(table)
    print_line(console, f"{_LEGEND}; all checkpoints share the probes", style="dim")
    _print_remarks(console, remarks, series)


def _cell(
    record: Record,
    name: str,
    words: Callable[[Estimate | None], str],
    remarks: dict[str, list[str]],
    *,
    test: bool = False,
) -> str:
    """The words for an estimate, with a star where it has a note, which is kept for below the table."""
    estimate = (record.test_estimates if test else record.estimates).get(name)
    if estimate is None or estimate.note is None or estimate.resolved is False:  # that is what `words` say then
        return words(estimate)
    remarks.setdefault(name, []).append(estimate.note)
    return f"{words(estimate)} *"


def _print_remarks(console: Console, remarks: dict[str, list[str]], records: Iterable[Record]) -> None:
    """What the stars stand for, what failed and why, and the notes of the records."""
    for note, names in grouped(remarks).items():
        print_line(console, f"* {', '.join(names)}: {note}")
    for record in records:
        if record.status == "failed":
            print_line(console, f"! {record.where} {record.operator}, BN {record.bn_mode}: failed: {record.reason}")
    for words in notes_of(records):
        print_line(console, f"! {words}")
