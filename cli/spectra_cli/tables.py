"""Records as tables: one record in full, or a row for each of several checkpoints. For all commands that print them."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spectra.estimates import Estimate
from spectra.records import Record, Series, Trajectory
from spectra_cli.numbers import in_brackets, in_short, interval, plain, rounded

#: Wider than any table: away from a terminal a table is as wide as it needs to be, and nothing is cut off.
_PIPED_WIDTH = 10_000
_NOTE_WIDTH = 60  # beyond it a note goes on in the next line

FACTS = {  # in this order; what else there is follows
    "loss": "loss of the data",
    "objective": "loss with the l2 term",
    "accuracy": "accuracy",
    "gradient_norm": "gradient norm",
    "weight_norm": "weight norm",
    "n_parameters": "parameters n",
    "n_samples": "samples N",
    "total_weight": "total weight",
    "n_batches": "batches",
    "rank_bound_ff": "4 d_y (sum N_l + d_x), a heuristic for the rank, no bound",
}


def make_console(*, stderr: bool = False) -> Console:
    """A console on which nothing is ever truncated: the width is fixed and large where there is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the report
    width = None if stream.isatty() else _PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_trajectory(trajectory: Trajectory, console: Console, *, title: str | None = None) -> None:
    """The header of a run, then for each operator and batch-norm mode a table, or the one record in full."""
    if title:
        _line(console, title, style="bold")
    _print_pairs(console, header(trajectory))
    for key in trajectory.keys():  # noqa: SIM118 (it iterates over records)
        series = trajectory[key]
        if len(series) == 1:
            print_record(series.records[0], console)
        else:
            print_series(series, console)


def header(trajectory: Trajectory) -> list[tuple[str, str]]:
    """What was analysed, in words: the settings that the records share. What is not known is left out."""
    settings = trajectory.settings or next((record.settings for record in trajectory), {})
    first = next((record for record in trajectory if record.spectrum is not None), None)
    lines = [
        ("task", settings.get("task")),
        ("loss", settings.get("loss")),
        (
            "reduction",
            settings.get("reduction") and f"{settings['reduction']}, l2 = {plain(settings.get('l2') or 0.0)}",
        ),
    ]
    if first is not None and first.spectrum is not None:
        spectrum = first.spectrum
        asked = settings.get("lanczos_steps", spectrum.lanczos_steps)
        fewer = f" (at most {spectrum.lanczos_steps} taken)" if spectrum.lanczos_steps < asked else ""
        probes = f"k = {spectrum.num_probes} probes ({spectrum.distribution}, seed {spectrum.seed})"
        lines += [
            ("data", f"N = {plain(first.facts.get('n_samples'))}{_batches(settings.get('batch_sizes'))}"),
            ("parameters", f"n = {plain(spectrum.n)}{_selection(settings.get('params'))}"),
            ("Lanczos", ", ".join(filter(None, (f"m = {asked} steps{fewer}", probes, settings.get("dtype"))))),
        ]
    return [(name, str(words)) for name, words in lines if words]


def print_series(series: Series, console: Console) -> None:
    """One row per checkpoint; what failed has its reason below the table."""
    with_epochs = any(math.isfinite(epoch) for epoch in series.epochs)
    with_accuracy = any(record.facts.get("accuracy") is not None for record in series)
    table = new_table(
        "epoch" if with_epochs else "step",
        "loss",
        *(["accuracy"] if with_accuracy else []),
        "trace",
        "|H|_F",
        "lambda_max",
        "lambda_min",
        "rank degeneracy",
    )
    remarks: dict[str, list[str]] = {}  # what is starred -> the notes of its rows
    failed = []

    def cell(record: Record, name: str, words: Callable[[Estimate | None], str]) -> str:
        estimate = record.estimates.get(name)
        if estimate is None or estimate.note is None or estimate.resolved is False:  # that is what `words` say then
            return words(estimate)
        remarks.setdefault(name, []).append(estimate.note)
        return f"{words(estimate)} *"

    for record in series:
        moment = record.epoch if with_epochs else record.step
        when = "-" if moment is None else f"{moment:g}"
        if record.status == "failed":
            failed.append(f"{record.where}: failed: {record.reason}")
            table.add_row(when, "failed")
            continue
        table.add_row(
            when,
            plain(record.facts.get("loss")),
            *([plain(record.facts.get("accuracy"), 4)] if with_accuracy else []),
            cell(record, "trace", in_short),
            cell(record, "frobenius_norm", in_short),
            cell(record, "lambda_max", in_brackets),
            cell(record, "lambda_min", in_brackets),
            cell(record, "rank_degeneracy", in_short),
        )
    _heading(console, f"{series.operator}, BN {series.bn_mode}: {len(series)} checkpoints")
    console.print(table)
    _line(console, "+- one standard error over the probes, which all checkpoints share; [95 % interval]", style="dim")
    for note, names in _grouped(remarks).items():
        _line(console, f"* {', '.join(names)}: {note}")
    for words in (*failed, *_notes_of(series)):
        _line(console, f"! {words}")


def print_record(record: Record, console: Console) -> None:
    """Every number of one record: estimates, facts, degeneracy over tau, traces by tensor, origin and notes."""
    _heading(console, f"{record.operator}, BN {record.bn_mode}: {record.where}".removesuffix(": "))
    if record.status == "failed":
        _line(console, f"! failed: {record.reason}")
        return
    console.print(_estimates_table(record))
    console.print()
    _print_pairs(console, facts_of(record))
    for table in (_curve_table(record), _tensor_table(record)):
        if table is not None:
            console.print()
            console.print(table)
    console.print()
    _print_pairs(console, origin_of(record))
    for note in record.notes:
        _line(console, f"! {note}")


def facts_of(record: Record) -> list[tuple[str, str]]:
    """The facts of a record in words, the known ones first."""
    names = [*(name for name in FACTS if name in record.facts), *(name for name in record.facts if name not in FACTS)]
    return [(FACTS.get(name, name.replace("_", " ")), plain(record.facts[name])) for name in names]


def origin_of(record: Record) -> list[tuple[str, str]]:
    """Where the numbers come from, in words."""
    known = record.provenance
    versions = [f"{name} {known[name]}" for name in ("spectra", "torch", "numpy", "python") if name in known]
    sha = record.checkpoint_sha256
    effort = [
        f"{known['products']:,} products" if isinstance(known.get("products"), int) else "",
        f"{known['seconds']:.1f} s" if isinstance(known.get("seconds"), float) else "",
        f"on {known['device']}" if "device" in known else "",
        f"{known['threads']} threads" if "threads" in known else "",
    ]
    quality = [
        f"{name} {known[name]:.1e}"
        for name in ("noise", "asymmetry", "repeatability", "orthogonality")
        if isinstance(known.get(name), float)
    ]
    lines = [
        ("checkpoint", f"{record.checkpoint}  sha256 {sha[:16]}..." if sha else _words(record.checkpoint)),
        ("computed", ", ".join(filter(None, effort))),
        ("arithmetic", ", ".join(quality)),
        ("versions", ", ".join(versions)),
        ("date", _words(known.get("date"))),
        ("command", _words(known.get("command"))),
    ]
    return [(name, words) for name, words in lines if words not in ("", "-")]


def new_table(*columns: str, title: str | None = None) -> Table:
    """A table with numbers to the right, in the one style of the project."""
    table = Table(
        box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, title_justify="left", title_style=""
    )
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _estimates_table(record: Record) -> Table:
    table = new_table("quantity", "value", "+-", "interval", "note")
    table.columns[0].justify = table.columns[4].justify = "left"
    for name, estimate in record.estimates.items():
        # A count that is not resolved has no value: its bracket is the result.
        value, error = ("-", "") if estimate.resolved is False else rounded(estimate.value, estimate.stderr)
        notes = [] if estimate.tau is None else [f"tau = {estimate.tau:.3g}"]
        if estimate.note:
            notes.append(estimate.note)
        table.add_row(
            name,
            value,
            error,
            interval(estimate.lower, estimate.upper),
            textwrap.fill("; ".join(notes), _NOTE_WIDTH, break_long_words=False, break_on_hyphens=False),
        )
    return table


def _curve_table(record: Record) -> Table | None:
    if record.spectrum is None:
        return None
    curve = record.spectrum.degeneracy_curve()
    scale = record.spectrum.spectral_norm().value
    table = new_table("tau", "tau/|H|_2", "fraction within", "+-", "bracket", "", title="rank degeneracy over tau")
    for tau, value, error, low, high, resolved in zip(
        curve.tau, curve.value, curve.stderr, curve.lower, curve.upper, curve.resolved
    ):
        number, deviation = rounded(float(value), float(error) if math.isfinite(error) else None)
        table.add_row(
            f"{tau:.2e}",
            f"{tau / scale:.1e}" if scale > 0 else "-",
            number if resolved else "-",
            deviation if resolved else "",
            f"[{low:.4f}, {high:.4f}]",
            "" if resolved else "not resolved",
        )
    return table


def _tensor_table(record: Record) -> Table | None:
    if record.spectrum is None:
        return None
    traces = record.spectrum.tensor_traces()
    if not traces:
        return None
    sizes = record.spectrum.tensor_sizes or {}
    table = new_table("tensor", "size", "trace", "+-", title="traces by tensor")
    table.columns[0].justify = "left"
    for name, estimate in traces.items():
        size = sizes.get(name)
        table.add_row(name, plain(size), *rounded(estimate.value, estimate.stderr))
    return table


def _grouped(remarks: dict[str, list[str]]) -> dict[str, list[str]]:
    """What quantities are starred for -> the quantities; of several rows the first note stands for all."""
    grouped: dict[str, list[str]] = {}
    for name, notes in remarks.items():
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        grouped.setdefault(notes[0] + more, []).append(name)
    return grouped


def _notes_of(records: Iterable[Record]) -> list[str]:
    """Each note once, with how many records have it."""
    counts: dict[str, int] = {}
    for record in records:
        for note in record.notes:
            counts[note] = counts.get(note, 0) + 1
    return [note if count == 1 else f"{note} ({count} records)" for note, count in counts.items()]


def _print_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in pairs), default=0)
    for name, words in pairs:
        _line(console, f"  {name:<{width}}  {words}")


def _heading(console: Console, words: str) -> None:
    console.print()
    _line(console, words, style="bold")


def _line(console: Console, words: str, style: str = "") -> None:
    console.print(Text(" ".join(words.splitlines()), style=style), soft_wrap=True)


def _words(value: Any) -> str:
    return "-" if value is None else str(value)


def _batches(sizes: Any) -> str:
    """Batch sizes stored as [size, how many in a row]."""
    if not isinstance(sizes, list) or not sizes:
        return ""
    return f" in batches of {', '.join(f'{count} x {size}' for size, count in sizes)}"


def _selection(params: Any) -> str:
    if params is None:
        return ""
    return f" (only {params if isinstance(params, str) else ', '.join(map(str, params))})"
