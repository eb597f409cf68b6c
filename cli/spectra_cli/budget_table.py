"""What limits the numbers of a record: the parts of each error side by side, and what to do about the largest."""

from __future__ import annotations

from rich.console import Console

from spectra.budget import ADVICE
from spectra.records import Record
from spectra_cli.layout import new_table, print_heading, print_line
from spectra_cli.numbers import plain

#: How a part is called in a column.
SHORT = {"probes": "probes", "truncation": "steps", "arithmetic": "arithmetic", "data": "data"}


def print_advice(record: Record, console: Console) -> None:
    """A line for each cause that limits a number, with what makes it smaller."""
    causes: dict[str, list[str]] = {}
    for name, budget in record.budgets.items():
        if budget.largest is not None:
            causes.setdefault(budget.largest, []).append(name)
    for cause, names in causes.items():
        subject = "all of them" if len(names) == len(record.budgets) else ", ".join(names)
        print_line(console, f"limited by {SHORT[cause]}: {subject}. {ADVICE[cause].capitalize()}", style="dim")


def print_budgets(record: Record, console: Console) -> None:
    """The four parts of every error."""
    if not record.budgets:
        return
    print_heading(console, "error budget: half-widths of 95 % intervals")
    table = new_table("quantity", *SHORT.values(), "limited by")
    table.columns[0].justify = table.columns[5].justify = "left"
    for name, budget in record.budgets.items():
        cells = [plain(getattr(budget, part), 2) for part in SHORT]
        table.add_row(name, *cells, "" if budget.largest is None else SHORT[budget.largest])
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for name, budget in record.budgets.items():
        for part, why in budget.unknown.items():
            reasons.setdefault(f"{SHORT[part]} not known: {why}", []).append(name)
    for why, names in reasons.items():
        print_line(console, f"{why} ({', '.join(names)})", style="dim")
    print_line(
        console,
        "data: by how much another sample of data of the same size would change the number; in no interval above",
        style="dim",
    )
