"""train_mode_part: the curvature of filters before batch norm in train mode, where no minimum over scales exists.

In train mode (``eps -> 0``) the loss does not depend on the norm of a filter ``w_i`` before batch norm. So its scale is
free, and the smallest trace over the scale is 0. The trace of the filter's block at unit norm does not depend on the
scale::

    sum_i T_i |w_i|^2

with ``T_i`` the trace of its block of the Gauss-Newton matrix in train mode (the Hessian's block can be negative). It
is estimated from random products, because batch norm in train mode has no exact form. It is reported separately from
minimum sharpness and never added to it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, SpectraError
from spectra.operators.ggn import GGNOperator
from spectra.runtime.faults import is_limit, refusal_in
from spectra.sharpness.folding import Folded
from spectra.sharpness.layouts import weight_layouts
from spectra.task.task import Task


def train_mode_part(task: Task, folded: Folded, draws: int = 8, seed: int = 0) -> dict[str, Any]:
    """``sum_i T_i |w_i|^2`` over the filters that are followed by batch norm, with its standard error.

    ``T_i`` is estimated by ``sum_j v_j (G v)_j`` over the entries of the filter, ``v`` of random signs: unbiased. One
    product with the Gauss-Newton matrix over the data per draw, on the task's own batches, which are part of the
    number.

    Args:
        task: the task; its ``l2`` has no part.
        folded: which layers are followed by batch norm (:func:`spectra.sharpness.folding.fold_batch_norm`).
        draws: how many, at least 2.
        seed: of the draws.

    Returns:
        ``value``, ``stderr``, ``draws`` and ``by_layer``, for the details of a measure.

    Raises:
        ArgumentError: fewer than two draws.
        TaskError: the Gauss-Newton matrix in train mode does not exist.
    """
    if draws < 2:
        raise ArgumentError(f"train_draws={draws}: at least 2 are needed for a standard error, or 0 for none")
    layouts, _ = weight_layouts(task.model)
    names = [f"{layer}.weight" for _, layer in folded.folded if f"{layer}.weight" in layouts]
    parameters = dict(task.model.named_parameters())
    norms = {name: layouts[name].matrix(parameters[name].detach().double().square()).sum(1) for name in names}
    operator = GGNOperator(replace(task, l2=0.0), bn_mode="train")
    generator = torch.Generator().manual_seed(seed)
    function, traces_by_draw = operator.function, np.zeros((draws, len(names)))
    for draw in range(draws):
        signs = torch.randint(0, 2, (function.n,), generator=generator).mul_(2).sub_(1)
        v = signs.to(function.device, function.dtype)
        pieces = dict(zip(function.names, function.unflatten(v * (operator @ v))))
        for column, name in enumerate(names):
            traces = layouts[name].matrix(pieces[name]).sum(1)  # (filters,)
            traces_by_draw[draw, column] = float(traces @ norms[name])
    totals = traces_by_draw.sum(axis=1)
    return {
        "value": float(totals.mean()),
        "stderr": float(totals.std(ddof=1)) / math.sqrt(draws),
        "draws": draws,
        "by_layer": dict(zip(names, traces_by_draw.mean(axis=0).tolist())),
    }


def train_mode_part_or_reason(task: Task, folded: Folded, draws: int, seed: int) -> dict[str, Any]:
    """:func:`train_mode_part`; if it is refused, ``value`` is None and ``reason`` says why."""
    try:
        return train_mode_part(task, folded, draws, seed)
    except ArgumentError:
        raise
    except SpectraError as error:
        return {"value": None, "reason": refusal_in(error)}
    except ValueError as error:
        if not is_limit(error):  # more than one value per channel is needed
            raise
        return {"value": None, "reason": str(error)}
