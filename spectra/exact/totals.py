"""Totals: the sums over the data behind an exact trace or diagonal, from all columns or from random draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.exact.layers import Sums
from spectra.exact.linearised import Linearised, Plans, linearise
from spectra.operators.ggn import GGNOperator
from spectra.runtime.allowance import FEWEST_DRAWS, affordable, cost, spend
from spectra.runtime.phases import phase
from spectra.runtime.ranks import adding_up, ranks

# With more columns than this the trace is estimated from random draws, unless method="exact".
MANY_COLUMNS = 50


@dataclass
class Totals:
    """Sums over the data, by parameter tensor in order. Not yet divided by what the loss averages over."""

    traces: list[torch.Tensor]  # (1,), or (draws,) where they are drawn
    entries: list[torch.Tensor | None]  # the diagonals; None where nothing was added, or only traces are wanted
    variances: list[torch.Tensor | None]  # of the drawn diagonals, over draws
    drawn: bool
    method: str  # in words

    def add(
        self, index: int, factor: float, entries: torch.Tensor | None, variances: torch.Tensor | None = None
    ) -> None:
        """Add a batch to the diagonal of a tensor. The tensors given are overwritten."""
        for total, piece, weight in ((self.entries, entries, factor), (self.variances, variances, factor**2)):
            if piece is not None:
                before = total[index]
                total[index] = piece.mul_(weight) if before is None else before.add_(piece, alpha=weight)


def add_up(operator: GGNOperator, method: str, draws: int, seed: int, diagonal: bool) -> Totals:
    """The sums over all batches, by the requested method within the budget.

    Raises:
        TaskError: no batch has a positive weight, or a batch has no exact form.
        OverBudget: neither all columns nor the fewest draws fit in the budget.
    """
    function, task = operator.function, operator.task
    generator = torch.Generator().manual_seed(seed)
    totals: Totals | None = None
    plans: Plans = {}
    name, batches = "exact diagonal" if diagonal else "exact trace", task.survey().num_batches

    def add_batch(place: int, batch: Any, weight: float) -> None:
        nonlocal totals
        phase(name, place, batches)
        linear = linearise(function, batch, plans)
        totals = totals or _empty(linear, _choose_method(linear, method, draws))
        add = _draw if totals.drawn else _all_columns
        report = lambda share: phase(name, place + share, batches)  # noqa: E731
        add(totals, linear, task.total_factor(weight), generator, diagonal, report)

    if ranks() is not None:  # all need the method, also those without data
        for batch, _ in islice(operator.batches(), 1):
            linear = linearise(function, batch, plans)
            totals = _empty(linear, _choose_method(linear, method, draws), filled=diagonal)
    if totals is not None and not totals.drawn:
        with adding_up([*totals.traces, *(entries for entries in totals.entries if entries is not None)]):
            for number, batch, weight in operator.passes.own_batches():
                add_batch(number, batch, weight)
    else:  # random draws follow one another from batch to batch
        for number, (batch, weight) in enumerate(operator.batches()):
            add_batch(number, batch, weight)
    if totals is None:
        raise TaskError("no batch has a positive weight: there is nothing to take a trace of")
    return totals


@dataclass(frozen=True)
class _Method:
    """How the sums over the columns are computed: all columns, or random draws."""

    drawn: bool
    draws: int  # 1 where they are not drawn
    words: str


def _choose_method(linear: Linearised, method: str, draws: int) -> _Method:
    """Choose all columns or draws, by the requested method and the budget, and charge the cost to the budget.

    Raises:
        OverBudget: neither fits in the budget.
    """
    columns = linear.factor.columns
    # A back-propagation of all data for each column; a few more where gradients of single samples have to be formed.
    cost_per_pass = cost(3.0 if linear.others else 1.0, linear.function.dtype)
    few = columns <= MANY_COLUMNS
    if method == "exact" or (method == "auto" and few and columns <= affordable(cost_per_pass)):
        spend(columns * cost_per_pass, what="all columns")
        return _Method(False, 1, f"exact: {columns} columns")
    cost_per_pass *= 1 if linear.factor.signs is None else 2
    count = int(min(draws, max(FEWEST_DRAWS, affordable(cost_per_pass))))
    spend(count * cost_per_pass, what=f"{count} draws")
    why = ", as many as the budget allows" if count < draws else ""
    why += ", since all of them would cost more than the budget" if method == "auto" and few else ""
    return _Method(True, count, f"Monte-Carlo: {count} draws for {columns} columns{why}")


def _empty(linear: Linearised, how: _Method, *, filled: bool = False) -> Totals:
    """Sums of nothing; `filled`: the diagonals are zeros."""
    function = linear.function
    words = how.words
    if linear.others:
        words += f"; gradients of single samples formed for {len(linear.others)} of {len(function.theta)} tensors"
    nothing: list[torch.Tensor | None] = [None] * len(function.theta)
    traces = [torch.zeros(how.draws, dtype=torch.float64, device=function.device) for _ in function.theta]
    zeros = [torch.zeros(p.shape, dtype=torch.float64, device=p.device) for p in function.theta] if filled else nothing
    return Totals(traces, list(zeros), list(nothing), how.drawn, words)


def _all_columns(
    totals: Totals,
    linear: Linearised,
    factor: float,
    _: torch.Generator,
    diagonal: bool,
    report: Callable[[float], None],
) -> None:
    """Add a batch, by all its columns."""
    signs = linear.factor.signs
    for group in linear.groups(range(linear.factor.columns)):
        report(group.start / linear.factor.columns)
        columns = torch.stack([linear.factor.column(index) for index in group])
        sums = linear.squares(columns, None if signs is None else signs[group.start : group.stop], diagonal)
        for index, (trace, entries) in sums.items():
            totals.traces[index] += factor * trace
            totals.add(index, factor, entries)


def _draw(
    totals: Totals,
    linear: Linearised,
    factor: float,
    generator: torch.Generator,
    diagonal: bool,
    report: Callable[[float], None],
) -> None:
    """Add a batch, draw by draw: the scatter over draws gives the standard errors. Batches are independent."""
    first: dict[int, torch.Tensor] = {}
    second: dict[int, torch.Tensor] = {}
    draws = len(totals.traces[0])
    for draw in range(draws):
        report(draw / draws)
        pairs = linear.factor.drawn(generator)
        columns = torch.stack([column for _, column in pairs])
        signs = torch.tensor([sign for sign, _ in pairs]).to(columns)[:, None].expand(-1, columns.shape[1])
        sums: Sums = linear.squares(columns, signs if len(pairs) > 1 else None, diagonal)
        for index, (trace, entries) in sums.items():
            totals.traces[index][draw] += factor * trace
            if entries is not None:
                first[index] = entries + first.get(index, 0)
                second[index] = entries**2 + second.get(index, 0)
    for index, total in first.items():
        mean = total / draws
        variance = ((second[index] - draws * mean**2) / (draws - 1)).clamp(min=0)
        totals.add(index, factor, mean, variance / draws)
