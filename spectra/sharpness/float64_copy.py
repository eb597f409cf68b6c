"""A float64 copy of a network in eval mode, and a few samples on which to compare its outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from spectra.errors import DataError, TaskError
from spectra.operators.function import LossFunction
from spectra.operators.graph import carried_dtype
from spectra.operators.modes import exact_arithmetic
from spectra.operators.recalibration import recalibrate
from spectra.runtime.faults import is_limit, refusal_in
from spectra.runtime.rng_state import random_state_kept
from spectra.task.batches import choose_rows, map_tensors, rows_of
from spectra.task.task import Task

SAMPLES = 8  # a statement about the network's function needs few
_ROUNDINGS = 100  # of float32, by which outputs that pass through it may differ


def float64_copy(task: Task, bn_mode: str = "eval") -> nn.Module:
    """A copy of the model in float64 and eval mode, with re-estimated running statistics for ``"recalibrated"``.

    Raises:
        TaskError: the model cannot be copied.
    """
    try:
        model = copy.deepcopy(task.model).double().eval()
    except RuntimeError as error:
        if not is_limit(error):
            raise
        raise TaskError(f"the model cannot be copied: {error}") from error
    if bn_mode == "recalibrated":
        function = LossFunction(task, bn_mode, torch.float64)
        recalibrate(function)
        renewed = function.model_buffers()
        for name, buffer in model.named_buffers():
            buffer.copy_(renewed[name])
    return model


def few_samples(task: Task, model: nn.Module) -> Any:
    """The first rows of the data, in float64 and on the model's device.

    Raises:
        DataError: there is no batch.
    """
    with random_state_kept():
        batch = next((batch for batch in task.batches() if rows_of(batch) != 0), None)
    if batch is None:
        raise DataError("the data are empty: at least one batch is needed")
    rows = rows_of(batch)
    if rows is not None and rows > SAMPLES:
        batch = choose_rows(batch, torch.arange(SAMPLES))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return map_tensors(batch, lambda t: t.to(device, torch.float64) if t.is_floating_point() else t.to(device))


def leaves(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists and dictionaries: the arguments or the result of a call of torch."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for entry in value for t in leaves(entry)] if isinstance(value, (tuple, list)) else []


def outputs(task: Task, model: nn.Module, batch: Any) -> list[torch.Tensor]:
    """The output tensors for a batch, with ``model`` in place of the task's model.

    Raises:
        TaskError: the model fails in float64, for instance because it casts to another dtype on the way.
    """
    with exact_arithmetic(model):
        try:
            return leaves(replace(task, model=model).output_of(batch))
        except TaskError as error:
            raise TaskError(f"the model cannot be evaluated in float64: {refusal_in(error)}") from error


def difference(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest entry; infinite if shapes differ.

    If the network casts to float32, differences within float32 rounding count as 0.

    Raises:
        TaskError: the outputs hold NaN or infinity, or are less precise than float32.
    """
    carried = [torch.finfo(carried_dtype(tensor)) for tensor in before if tensor.is_floating_point()]
    unit = max((about.eps for about in carried), default=0.0)
    if unit > torch.finfo(torch.float32).eps:
        raise TaskError("the network casts to less than float32: what a rescaling does to its function cannot be seen")
    before, after = ([tensor.detach() for tensor in each] for each in (before, after))
    if len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after)):
        return float("inf")
    if not before:
        raise TaskError("the model returns no tensor: what a rescaling does to its function cannot be seen")
    if not all(bool(torch.isfinite(a).all()) for a in before):
        raise TaskError("the outputs of the network hold NaN or infinity")
    size = max(float(a.abs().max()) if a.numel() else 0.0 for a in before)
    gap = max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(before, after))
    relative = gap / size if size > 0 else gap
    return 0.0 if unit > torch.finfo(torch.float64).eps and relative <= _ROUNDINGS * unit else relative
