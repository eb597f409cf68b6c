"""Passes: repeated passes over the batches of a task, kept on the device between passes if they fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spectra.errors import DataError
from spectra.operators.function import LossFunction
from spectra.runtime.memory import available_bytes
from spectra.task.batches import tensors_of


class Passes:
    """The batches that a loss function is summed over, placed where it is computed."""

    def __init__(self, function: LossFunction) -> None:
        self.function = function
        self.held: list[tuple[Any, float]] | None = None

    def batches(self) -> Iterator[tuple[Any, float]]:
        """The batches of positive weight, on the device, with their weights; checked against the survey at the end.

        Raises:
            DataError: the total weight is not that of the first pass.
        """
        held = self.held  # another thread may release them
        if held is not None:
            yield from held
            return
        task = self.function.task
        total = 0.0
        for batch in task.batches():
            weight = task.weight_of(batch)
            total += weight
            if weight > 0:
                yield self.function.place(batch), weight
        expected = task.survey().total_weight
        if abs(total - expected) > 1e-9 * expected:
            raise DataError(f"the data changed between passes: total weight {expected:g}, then {total:g}")

    @contextmanager
    def holding(self, memory_budget: int | None = None) -> Iterator[None]:
        """Keep the batches on the device if they fit the budget (bytes; by default a quarter of the free memory)."""
        if self.held is not None:  # an outer caller already holds them
            yield
            return
        budget = available_bytes(self.function.device) // 4 if memory_budget is None else memory_budget
        batches: list[tuple[Any, float]] | None = []
        size = 0
        with self.function.evaluation():
            for batch, weight in self.batches():
                size += sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(batch))
                if size > budget:
                    batches = None
                    break
                assert batches is not None
                batches.append((batch, weight))
        self.held = batches
        try:
            yield
        finally:
            self.held = None
