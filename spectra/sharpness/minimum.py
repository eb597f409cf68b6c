"""Minimum sharpness: the smallest trace of the Hessian over rescalings that preserve the network's function.

The computation has three steps, in eval mode. Batch norm is folded into the layer before it, or becomes a diagonal
linear layer (:mod:`spectra.sharpness.folding`). The free scales of the tensors are found from one forward pass
(:mod:`spectra.sharpness.scale_groups`). The traces of the curvature blocks then define a convex problem
(:mod:`spectra.sharpness.rescaling`).

References:
    Ibayashi et al., "Minimum sharpness: scale-invariant parameter-robustness of neural networks", 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, TaskError
from spectra.operators.modes import batch_norm_layers, check_bn_mode
from spectra.results.measure import Measure, not_measured
from spectra.runtime.memo import remembered
from spectra.sharpness.folding import Folded, fold_batch_norm
from spectra.sharpness.rescaling import minimise_rescaled
from spectra.sharpness.scale_groups import ScaleGroups, check_scale_groups, find_scale_groups, given_scale_groups
from spectra.task.task import Task

TRAIN_MODE = (
    "in train mode every filter before batch norm has a free scale of its own, along which the smallest trace over "
    "rescalings tends to 0: measure it with bn_mode='eval' or 'recalibrated'"
)


@dataclass(frozen=True)
class Homogeneous:
    """A task whose network has no batch norm, with its free scales. Its ``l2`` is 0."""

    task: Task  # the model without batch norm, in the dtype of the model that was given
    groups: ScaleGroups
    folded: Folded  # the same in float64


def prepare_rescaling(
    task: Task, bn_mode: str = "eval", scale_groups: Mapping[str, Sequence[float] | float] | None = None
) -> Homogeneous:
    """The network without batch norm and its free scales, verified to preserve its function.

    Args:
        task: the task.
        bn_mode: ``"eval"`` or ``"recalibrated"``; ``"train"`` where there is no batch norm.
        scale_groups: ``{parameter tensor: exponents}`` in place of those found, by the names in the network without
            batch norm: a layer that a batch norm was folded into has a bias, and the batch norm has no parameters.

    Raises:
        ArgumentError: another mode, or scale groups that name no parameter.
        TaskError: batch norm in train mode; a network that is not positively homogeneous; scale groups that change the
            function.
    """
    objects = (task.model, task.criterion, task.data, task.forward, task.target, task.weight, scale_groups)
    settings = (check_bn_mode(bn_mode), task.reduction)
    return remembered("rescaling", objects, settings, lambda: _prepare(task, bn_mode, scale_groups))


def _prepare(task: Task, bn_mode: str, scale_groups: Mapping[str, Sequence[float] | float] | None) -> Homogeneous:
    if bn_mode == "train" and batch_norm_layers(task.model):
        raise TaskError(TRAIN_MODE)
    if not task.splits:
        raise TaskError(
            "the task has a loss_fn, so which outputs a rescaling must leave alone is unknown: pass a criterion"
        )
    folded = fold_batch_norm(task, bn_mode)
    if scale_groups is None:
        groups = find_scale_groups(task, folded.model)
    else:
        groups = given_scale_groups(folded.model, scale_groups)
        check_scale_groups(task, folded.model, groups)
    dtype = next(p.dtype for p in task.model.parameters() if p.requires_grad)
    if not (folded.folded or folded.diagonal):
        return Homogeneous(replace(task, l2=0.0), groups, folded)
    return Homogeneous(replace(task, model=copy.deepcopy(folded.model).to(dtype), l2=0.0), groups, folded)


def minimum_of_traces(
    network: Homogeneous,
    traces: Mapping[str, float],
    curvature: str,
    bn_mode: str = "eval",
    zero_tolerance: float = 0.0,
    errors: Mapping[str, float] | None = None,
) -> Measure:
    """``inf_u sum_g T_g exp(-2 a_g . u)`` over the free scales of a network, from the traces of its tensors.

    Args:
        network: what :func:`prepare_rescaling` made of the task.
        traces: the trace of the curvature block of every trainable tensor of ``network.task``, without ``l2``.
        curvature: ``"hessian"`` or ``"ggn"``, whose blocks they are.
        bn_mode: as given to :func:`prepare_rescaling`.
        zero_tolerance: as in :func:`spectra.sharpness.rescaling.minimise_rescaled`.
        errors: the standard errors of the traces, where they are drawn: ``stderr`` is then the most that they make of
            the minimum, to first order, however they go together.

    Returns:
        The measure, with ``form`` "bias-free" or "with biases"; NaN with the reason if a block is negative.

    Raises:
        ArgumentError: a tensor without a trace.
        NumericsError: the minimum could not be certified.
    """
    groups = network.groups
    missing = [name for name in groups.names if name not in traces]
    if missing:
        raise ArgumentError(f"traces: {missing[0]} has none; the tensors are those of the network without batch norm")
    parameters = dict(network.folded.model.named_parameters())
    form = "with biases" if any(parameters[name].dim() == 1 for name in groups.names) else "bias-free"
    conditions: dict[str, Any] = {"form": form, "bn_mode": bn_mode, "curvature": curvature}
    blocks = np.array([traces[name] for name in groups.names], float)
    for name, block in zip(groups.names, blocks):
        if block < 0:
            return not_measured(
                f"the trace of the block of {name} is negative ({block:.6g}), so that rescaling makes the total as "
                "negative as one likes: the Gauss-Newton matrix has none that are",
                **conditions,
            )
    minimum = minimise_rescaled(blocks, groups.exponents, groups.names, zero_tolerance)
    factors = np.exp(groups.exponents @ minimum.log_scales)
    stderr = None
    if errors is not None:  # the scales are at their best, so that to first order they do not change
        stderr = sum(
            after / before * errors[name]
            for name, before, after in zip(groups.names, blocks, minimum.blocks)
            if before > 0
        )
    return Measure(
        value=minimum.value,
        stderr=stderr,
        attained=minimum.attained,
        certificate=minimum.certificate,
        reason=minimum.note,
        details={
            "trace": float(blocks.sum()),
            "free_scales": groups.free,
            "traces": dict(zip(groups.names, blocks.tolist())),
            "rescaled_traces": dict(zip(groups.names, minimum.blocks.tolist())),
            "factors": dict(zip(groups.names, factors.tolist())),
            "dropped": [groups.names[i] for i in minimum.dropped],
            **described(network),
        },
        **conditions,
    )


def described(network: Homogeneous) -> dict[str, object]:
    """The treatment of batch norm, for the details of a measure."""
    if not (network.folded.folded or network.folded.diagonal):
        return {}
    return {
        "batch_norm": "folded into the layer before it, or a scale and a shift per channel where that cannot be",
        "folded": dict(network.folded.folded),
        "diagonal": list(network.folded.diagonal),
    }
