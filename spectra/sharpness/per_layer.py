"""Normalized sharpness of a network: the sum over its weight matrices, from the diagonal of the curvature.

References:
    [NA] Tsuzuku, Sato and Sugiyama, "Normalized flat minima", arXiv:1901.04653 (2019).
    [NI] the same authors and title, ICML 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError
from spectra.results.measure import Measure, not_measured
from spectra.sharpness.layouts import weight_layouts
from spectra.sharpness.normalized import (
    check_options,
    fisher_rao_from_diagonal,
    matrix_normalized,
    normalized_matrix,
    parameter_wise,
)
from spectra.task.task import Task


def normalized_of_diagonals(
    task: Task,
    diagonal: Mapping[str, torch.Tensor],
    curvature: str,
    *,
    errors: Mapping[str, torch.Tensor] | None = None,
    form: str = "arxiv",
    lam: float = 0.5,
    side: str = "output",
    loss: str = "task",
    bn_mode: str = "eval",
) -> Measure:
    """Normalized sharpness: :func:`spectra.sharpness.normalized.normalized_matrix` summed over the weight matrices.

    Negative entries of the diagonal are set to 0. This depends on their sign only, so it does not affect the
    invariance. ``clipped`` is the sum of the removed entries over the sum of the positive ones. Biases and the
    parameters of normalisation layers are left out and listed.

    Args:
        task: the task whose model has the weights.
        diagonal: by trainable tensor, in its shape, without ``l2``.
        curvature: ``"hessian"`` or ``"ggn"``, whose diagonal it is.
        errors: the standard errors of the entries, where they are drawn. ``stderr`` is then the most that they make of
            the sum, to first order, however they go together; None for ``"icml"``.
        form: ``"arxiv"``, ``"pacbayes"`` or ``"icml"``.
        lam: the weight of the noise's entropy.
        side: of ``"icml"``.
        loss: what the diagonal is of: ``"task"`` or ``"normalized"``.
        bn_mode: likewise.

    Raises:
        ArgumentError: an option outside its range, or a matrix without a diagonal.
        NumericsError: an infimum could not be certified.
        TaskError: a tensor whose axes are not known.
    """
    check_options(form, lam, side)
    layouts, excluded = weight_layouts(task.model)
    weights = _weights(task, diagonal, list(layouts))
    by_layer: dict[str, float] = {}
    attained, certificate, parameters, rao, error = True, 0.0, 0.0, 0.0, 0.0
    for name, layout in layouts.items():
        entries, square = diagonal[name].detach().to("cpu", torch.float64).clamp(min=0), weights[name].square()
        flat = entries.numpy().ravel(), square.numpy().ravel()
        parameters, rao = parameters + parameter_wise(*flat), rao + fisher_rao_from_diagonal(*flat)
        total = 0.0
        error_blocks = layout.blocks(
            torch.zeros_like(entries) if errors is None else errors[name].to("cpu", torch.float64)
        )
        for h, u, e in zip(layout.blocks(entries), layout.blocks(square), error_blocks):
            result = normalized_matrix(h.entries, u.entries, form, lam, side)
            error += result.slope(e.entries)
            total += result.value**2 if form == "icml" else result.value  # one radical for the whole matrix
            attained &= result.attained
            certificate = max(certificate, result.certificate)
        by_layer[name] = math.sqrt(total) if form == "icml" else total
    return Measure(
        value=float(sum(by_layer.values())),
        stderr=None if errors is None or form == "icml" else error,
        form=form,
        loss=loss,
        bn_mode=bn_mode,
        curvature=curvature,
        attained=attained,
        certificate=certificate,
        clipped=clipped_share(diagonal[name] for name in layouts),
        details={
            "by_layer": by_layer,
            "excluded": list(excluded),
            "parameter_wise": parameters,
            "fisher_rao_of_diagonal": rao,
            **({"side": side} if form == "icml" else {"lambda": lam}),
        },
    )


def matrix_normalized_of_traces(
    task: Task,
    traces: Mapping[str, float],
    curvature: str,
    *,
    errors: Mapping[str, float] | None = None,
    loss: str = "task",
    bn_mode: str = "eval",
) -> Measure:
    """Matrix-normalized sharpness, ``sum_l sqrt(|W_l|_F^2 T_l)`` over the weight matrices, [NA] (13).

    Args:
        task: the task whose model has the weights.
        traces: of the curvature blocks of its trainable tensors, without ``l2``.
        curvature: ``"hessian"`` or ``"ggn"``, whose blocks they are.
        errors: the standard errors of the traces, where they are drawn: ``stderr`` is then the most that they make of
            the sum, to first order, however they go together.
        loss: what the traces are of: ``"task"`` or ``"normalized"``.
        bn_mode: likewise.

    Returns:
        The measure; NaN with the reason if the trace of a matrix is negative, which is never cut off.

    Raises:
        ArgumentError: a matrix without a trace.
        TaskError: a tensor whose axes are not known.
    """
    layouts, excluded = weight_layouts(task.model)
    weights = _weights(task, traces, list(layouts))
    conditions: dict[str, Any] = {"form": "matrix", "loss": loss, "bn_mode": bn_mode, "curvature": curvature}
    for name in layouts:
        if traces[name] < 0:
            return not_measured(
                f"the trace of the block of {name} is negative ({traces[name]:.6g}): its square root does not exist",
                **conditions,
            )
    by_layer = {name: matrix_normalized(float(traces[name]), float(w.square().sum())) for name, w in weights.items()}
    stderr = None
    if errors is not None:  # the root of a trace has a slope of half the root over the trace
        stderr = sum(value / (2 * traces[name]) * errors[name] for name, value in by_layer.items() if traces[name] > 0)
    details = {"by_layer": by_layer, "excluded": list(excluded)}
    return Measure(value=float(np.sum(list(by_layer.values()))), stderr=stderr, details=details, **conditions)


def _weights(task: Task, given: Mapping[str, object], names: list[str]) -> dict[str, torch.Tensor]:
    missing = [name for name in names if name not in given]
    if missing:
        raise ArgumentError(f"the curvature of {missing[0]} is missing: one entry per weight matrix is needed")
    parameters = dict(task.model.named_parameters())
    return {name: parameters[name].detach().to("cpu", torch.float64) for name in names}


def clipped_share(diagonal: Iterable[torch.Tensor]) -> float:
    """The sum of the negative entries of a diagonal over that of the positive ones, as a number of at least 0."""
    cut = kept = 0.0
    for tensor in diagonal:
        entries = tensor.detach().to("cpu", torch.float64)
        cut += float(-entries.clamp(max=0).sum())
        kept += float(entries.clamp(min=0).sum())
    return cut / kept if kept > 0 else math.inf if cut else 0.0
