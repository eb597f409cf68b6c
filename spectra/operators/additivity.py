"""Evaluates the loss on a whole batch and on two parts of it, to check what the loss averages over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from spectra.operators.function import LossFunction
from spectra.task.batches import choose_rows, map_tensors, rows_of


def whole_and_parts(
    function: LossFunction, batch: Any, weight: float, *, split_output: bool
) -> tuple[float, list[float]] | None:
    """The contributions of a batch, and of two uneven parts of it, to the sum of the loss over all data.

    Args:
        function: the loss; called within its evaluation.
        batch: on the device and in the dtype of the function.
        weight: of the batch.
        split_output: split the output and the target instead of the batch, so that the network runs once only.

    Returns:
        The value of the batch and the values of its two parts; None if the batch has no rows to split by.
    """
    halves = _split(function, batch, split_output)
    if halves is None:
        return None
    task = function.task
    part_values = [task.total_factor(part) * float(loss().detach()) if part else 0.0 for loss, part in halves]
    return task.total_factor(weight) * function.value(batch), part_values


def _split(
    function: LossFunction, batch: Any, split_output: bool
) -> list[tuple[Callable[[], torch.Tensor], float]] | None:
    """Two uneven parts of a batch as (loss, weight)."""
    task = function.task
    tree: Any = batch
    if split_output:
        tree = [map_tensors(function.output(batch), torch.Tensor.detach), task.target_of(batch)]
    rows = rows_of([tree, batch] if task.weight is not None else tree)
    if rows is None or rows < 2:
        return None
    halves: list[tuple[Callable[[], torch.Tensor], float]] = []
    cut, order = max(1, rows // 3), torch.arange(rows)
    for chosen in (order[:cut], order[cut:]):
        part = choose_rows(tree, chosen)
        if task.weight is not None or not split_output:
            weight = task.weight_of(choose_rows(batch, chosen))
        else:
            weight = float(task.averaging.weight(part[1]))
        halves.append((partial(function.criterion, *part) if split_output else partial(function.loss, part), weight))
    return halves
