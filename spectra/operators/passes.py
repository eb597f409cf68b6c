"""Passes: repeated passes over the batches of a task, kept on the device between passes if they fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spectra.errors import DataError
from spectra.operators.function import LossFunction
from spectra.runtime.memory import available_bytes
from spectra.runtime.ranks import Ranks, ranks
from spectra.task.batches import tensors_of


class Passes:
    """The batches that a loss function is summed over, placed where it is computed."""

    def __init__(self, function: LossFunction) -> None:
        self.function = function
        self.held: list[tuple[int, Any, float]] | None = None
        self._held_for: Ranks | None = None  # those among whom the held batches are shared

    def batches(self) -> Iterator[tuple[Any, float]]:
        """The batches of positive weight, on the device, with their weights; checked against the survey at the end.

        Raises:
            DataError: the total weight is not that of the first pass.
        """
        for _, batch, weight in self._read(None):
            yield batch, weight

    def own_batches(self) -> Iterator[tuple[int, Any, float]]:
        """The batches of :meth:`batches` that this process computes, with their numbers; the others have the rest.

        Raises:
            DataError: the total weight is not that of the first pass.
        """
        return self._read(ranks())

    def _read(self, sharing: Ranks | None) -> Iterator[tuple[int, Any, float]]:
        held = self.held  # another thread may release them
        if held is not None and self._held_for == sharing:
            yield from held
            return
        task = self.function.task
        total, number = 0.0, 0
        for batch in task.batches():
            weight = task.weight_of(batch)
            total += weight
            if weight > 0:
                if sharing is None or number % sharing.size == sharing.rank:
                    yield number, self.function.place(batch), weight
                number += 1
        expected = task.survey().total_weight
        if abs(total - expected) > 1e-9 * expected:
            raise DataError(f"the data changed between passes: total weight {expected:g}, then {total:g}")

    @contextmanager
    def holding(self, memory_budget: int | None = None) -> Iterator[None]:
        """Keep the batches of this process on the device if they fit the budget.

        Args:
            memory_budget: in bytes; by default a quarter of the free memory.
        """
        if self.held is not None:  # an outer caller already holds them
            yield
            return
        budget = available_bytes(self.function.device) // 4 if memory_budget is None else memory_budget
        batches: list[tuple[int, Any, float]] | None = []
        size = 0
        with self.function.evaluation():
            for number, batch, weight in self.own_batches():
                size += sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(batch))
                if size > budget:
                    batches = None
                    break
                assert batches is not None
                batches.append((number, batch, weight))
        self.held, self._held_for = batches, ranks()
        try:
            yield
        finally:
            self.held = None
