"""The error budgets of the headline numbers of a record: those of the estimates, adjusted where a number is exact."""

from __future__ import annotations

from spectra.results.headline import is_exact
from spectra.results.record import Record
from spectra.spectrum.error_budget import Budget

#: Part of an error -> its name in a column.
SHORT = {"probes": "probes", "truncation": "steps", "arithmetic": "arithmetic", "data": "data"}


def budgets_of(record: Record) -> dict[str, Budget]:
    """The error budgets of the headline numbers: that of an exact number has no part from probes and steps."""
    return {
        name: _without_probes(budget) if is_exact(record.headlines.get(name)) else budget
        for name, budget in record.budgets.items()
    }


def _without_probes(budget: Budget) -> Budget:
    unknown = dict(budget.unknown) | {"arithmetic": "an exact number is as precise as the gradients it is made of"}
    return Budget(0.0, 0.0, None, budget.data, unknown)


def limited_by(record: Record, name: str) -> str:
    """The name of the largest part of a number's error; empty where no part is known."""
    budget = budgets_of(record).get(name)
    return "" if budget is None or budget.largest is None else SHORT[budget.largest]
