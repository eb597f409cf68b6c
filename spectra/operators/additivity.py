"""Checks what the loss averages over: two parts of a batch must add up to the whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.operators.function import LossFunction
from spectra.operators.graph import dtype_name
from spectra.task.batches import choose_rows, map_tensors, rows_of

# Relative tolerance for the sum of two parts of a batch against the whole, by the precision of the loss.
_ADDITIVE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def check_additive(function: LossFunction, batch: Any, weight: float, index: int, broadcast: str) -> bool:
    """Whether a batch could be split into two parts, whose contributions then add up to that of the whole.

    Args:
        function: the loss; called within its evaluation, with ``carried`` and ``inseparable`` set.
        batch: on the device and in the dtype of the function.
        weight: of the batch.
        index: of the batch, for the message.
        broadcast: the shapes of output and target in words, where they would broadcast to pairs; else empty.

    Raises:
        TaskError: the two parts do not add up to the whole, or the loss is random.
    """
    halves = _split(function, batch)
    if halves is None:
        return False
    task = function.task
    parts = [task.total_factor(part) * float(loss().detach()) if part else 0.0 for loss, part in halves]
    whole = task.total_factor(weight) * function.value(batch)
    allowed = _ADDITIVE.get(function.carried, 1e-2) * (abs(whole) + sum(map(abs, parts)))
    if abs(whole - sum(parts)) <= allowed:
        return True
    again = task.total_factor(weight) * function.value(batch)
    if abs(whole - again) > allowed:
        raise TaskError(
            f"the loss of batch {index} is {_told_apart(whole, again)[0]} once and {_told_apart(whole, again)[1]} when "
            "computed again: something in the model is random in eval mode (a functional dropout, say); make it depend "
            "on model.training"
        )
    averaging = task.averaging
    cast = f" (rounding to {dtype_name(function.carried)} within the loss is allowed for)" if function.casts else ""
    in_all, in_parts = _told_apart(whole, sum(parts))
    advice = "Pass weight=, a function of the batch that returns what the criterion averages over"
    raise TaskError(
        f"the loss is not a {averaging.reduction} over {averaging.over}: batch {index} gives {in_all} as a whole and "
        f"{in_parts} in two parts{cast}. {f'It is given {broadcast}' if broadcast else advice}"
    )


def _told_apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers as text, with enough digits (at least six) to show that they differ."""
    digits = next((d for d in range(4, 15) if f"{a:.{d}g}" != f"{b:.{d}g}"), 15) + 2
    return f"{a:.{digits}g}", f"{b:.{digits}g}"


def _split(function: LossFunction, batch: Any) -> list[tuple[Callable[[], torch.Tensor], float]] | None:
    """Two uneven parts of a batch as (loss, weight); None if the batch has no rows to split by.

    A criterion's output and target are split instead of the batch, so that the network runs once only.
    """
    task = function.task
    tree: Any = batch
    split_output = task.splits and not function.inseparable
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
