"""A comparison as tables: the quantities of each arm, the differences from the first, and the distances."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, isnan

from rich.console import Console

from spectra.results.comparison import Cell, Comparison, Contrast
from spectra.results.headline import EXACT
from spectra.results.run_comparison import FACTS
from spectra.spectrum.estimators import ENDS
from spectra_cli.layout import new_table, print_heading, print_line
from spectra_cli.numbers import as_range, in_short, interval, plain, rounded, with_error


def print_comparison(found: Comparison, console: Console) -> None:
    """Print the arms, their quantities, their differences from the first, the distances, and notes on conclusions."""
    first = found.arms[0].records[0]
    print_line(console, f"{first.operator}: {len(found.arms)} runs or arms side by side", style="bold")
    for arm in found.arms:
        files = ", ".join(f"{file} ({record.where})" for file, record in zip(arm.sources, arm.records))
        print_line(console, f"  {arm.label}: {files}")
    print_heading(console, "values")
    table = new_table("quantity", *(arm.label for arm in found.arms), left=(0,))
    cells = {(cell.quantity, cell.arm): cell for cell in found.cells}
    for name in dict.fromkeys(cell.quantity for cell in found.cells):
        table.add_row(_words(name, found), *(_cell(cells[name, arm.label]) for arm in found.arms))
    console.print(table)
    several = "" if found.single else "; of several runs: mean (standard deviation over the runs)"
    print_line(console, f"+- one standard error over the probes; a to b: an interval{several}", style="dim")
    for arm in found.arms[1:]:
        _print_contrasts(found, [c for c in found.contrasts if c.arm == arm.label], console)
    _print_gaps(found, console)
    _print_basis(found, console)


def _print_contrasts(found: Comparison, contrasts: Iterable[Contrast], console: Console) -> None:
    rows = [contrast for contrast in contrasts if not isnan(contrast.value)]
    if not rows:
        return
    print_heading(console, f"{rows[0].arm} less {rows[0].against}")
    table = new_table("quantity", "difference", "+-", "interval", "p", "error of", left=(0, 5))
    for row in rows:
        value, error = rounded(row.value, row.stderr)
        if row.basis == EXACT:
            error = EXACT
        if row.stderr is None and row.lower is not None:
            value = plain(row.value, 4)
        p = "" if row.p_value is None else "< 0.0001" if row.p_value < 1e-4 else f"{row.p_value:.2g}"
        table.add_row(
            _words(row.quantity, found),
            value,
            error,
            "" if error == EXACT else interval(row.lower, row.upper),
            p,
            _basis(row),
        )
    console.print(table)


def _basis(row: Contrast) -> str:
    if row.basis == "none":
        return row.note or "none"
    if row.quantity in FACTS and row.basis == "probes":
        return "exact for the data"
    if row.basis == "runs":
        return "runs (Welch)" if row.quantity in FACTS or row.exact else "runs (Welch) and probes"
    if row.basis == EXACT:
        return "exact numbers"
    words = "shared probes, paired" if row.paired else "probes"
    return words if row.stderr is not None or row.lower is None else f"both intervals ({row.confidence:.0%})"


def _print_gaps(found: Comparison, console: Console) -> None:
    print_heading(console, "Wasserstein distance of the densities, in units of the eigenvalues")
    table = new_table(
        "arm", "against", "distance", "noise floor of the probes", "within arms", "steps leave open", "", left=(0, 1, 6)
    )
    for gap in found.gaps:
        d = gap.distance
        verdict = {True: "above the floor", False: "within the floor", None: "one probe has no floor"}[d.above_floor]
        within = "" if gap.within is None else plain(gap.within, 3)
        floor = plain(d.floor, 2) if isfinite(d.floor) else "-"
        table.add_row(gap.arm, gap.against, plain(d.value, 3), floor, within, f"< {plain(d.truncation, 2)}", verdict)
    console.print(table)


def _print_basis(found: Comparison, console: Console) -> None:
    if found.single:
        print_line(console, "! one run each: the difference of these two runs, not of the optimizers")
    elif any(len(arm.records) == 1 for arm in found.arms):
        print_line(console, "! an arm of one run has no spread: its difference is no evidence about the optimizers")
    for name, tau in found.tolerances.items():
        if tau is None:
            print_line(console, f"! {name}: no tolerance is resolved in every run")
    if any(contrast.p_value is not None for contrast in found.contrasts):
        print_line(console, "p: two-sided, of each row by itself; of 20 rows one is below 0.05 by chance", style="dim")


def _words(name: str, found: Comparison) -> str:
    tau = found.tolerances.get(name)
    return name if tau is None else f"{name} (tau {tau:.2g})"


def _cell(cell: Cell) -> str:
    if len(cell.runs) == 1:
        (run,) = cell.runs
        if cell.quantity in FACTS:
            return plain(run.value) if isfinite(run.value) else "-"
        return as_range(run) if cell.quantity in ENDS else in_short(run).partition(" (tau")[0]
    if isnan(cell.value):
        return "-"
    return f"{with_error(cell.value, None)} ({plain(cell.spread, 2)})"
