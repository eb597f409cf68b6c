"""The table of error budgets of a record: the parts of each error, and how to reduce the largest part."""

from __future__ import annotations

from rich.console import Console

from spectra.results.headline_budgets import SHORT as SHORT
from spectra.results.headline_budgets import budgets_of as budgets_of
from spectra.results.headline_budgets import limited_by as limited_by
from spectra.results.record import Record
from spectra.spectrum.error_budget import ADVICE
from spectra_cli.layout import new_table, print_heading, print_line
from spectra_cli.numbers import plain


def print_advice(record: Record, console: Console) -> None:
    """Print a line for each part that is the largest error of some number, with the way to reduce it."""
    causes: dict[str, list[str]] = {}
    for name, budget in budgets_of(record).items():
        if budget.largest is not None:
            causes.setdefault(budget.largest, []).append(name)
    for cause, names in causes.items():
        subject = "all of them" if len(names) == len(record.budgets) else ", ".join(names)
        print_line(console, f"limited by {SHORT[cause]}: {subject}. {ADVICE[cause].capitalize()}", style="dim")


def print_budgets(record: Record, console: Console) -> None:
    """Print the table with the four parts of every error."""
    budgets = budgets_of(record)
    if not budgets:
        return
    print_heading(console, "error budget: half-widths of 95 % intervals")
    table = new_table("quantity", *SHORT.values(), "limited by", left=(0, 5))
    for name, budget in budgets.items():
        cells = [plain(getattr(budget, part), 2) for part in SHORT]
        table.add_row(name, *cells, "" if budget.largest is None else SHORT[budget.largest])
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for name, budget in budgets.items():
        for part, why in budget.unknown.items():
            reasons.setdefault(f"{SHORT[part]} not known: {why}", []).append(name)
    for why, names in reasons.items():
        print_line(console, f"{why} ({', '.join(names)})", style="dim")
    print_line(
        console,
        "data: by how much another sample of data of the same size would change the number; in no interval above",
        style="dim",
    )
