"""fisher_rao_norm: the Fisher-Rao norm of a network, in the three forms known by this name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from spectra.errors import ArgumentError, TaskError
from spectra.exact.diagonal import ExactDiagonal
from spectra.exact.linearised import Plans, linearise
from spectra.exact.trace import exact_diagonal
from spectra.operators.fisher import EmpiricalFisherOperator
from spectra.operators.jacobian import slope_of
from spectra.operators.modes import check_bn_mode
from spectra.results.measure import Measure
from spectra.runtime.exclusive import exclusively
from spectra.sharpness.refusals import curvature_of, measured_or_refused
from spectra.task.task import Task

FORMS = ("diagonal", "liang", "hessian")


@exclusively
def fisher_rao_norm(
    task: Task,
    form: str = "diagonal",
    bn_mode: str = "eval",
    *,
    dtype: str | None = "float64",
    method: str = "exact",
    draws: int = 32,
    seed: int = 0,
) -> Measure:
    """The Fisher-Rao norm: how strongly the loss changes when the weights are scaled.

    ``"diagonal"``: ``sum_i theta_i^2 mean_n (d l_n / d theta_i)^2``, by the labels of the data, NA (25). ``"liang"``:
    ``mean_n <theta, grad l_n>^2``, the full quadratic form in the empirical Fisher matrix, of which the former is the
    diagonal. ``"hessian"``: ``sum_i theta_i^2 H_ii``, NI (16), with the exact diagonal of the Hessian, or of the
    Gauss-Newton matrix where that is not the Hessian's. No root is taken of any. All three are invariant under
    node-wise rescaling, and differ: never compare one with another.

    Cost: ``"diagonal"`` and ``"liang"`` two to three gradients; ``"hessian"`` that of the exact diagonal.

    Args:
        task: the task; its ``l2`` has no part.
        form: one of the three.
        bn_mode: ``"eval"`` or ``"recalibrated"``; in train mode no sample has a loss of its own.
        dtype: of the computation; None for the parameters' own.
        method: of the diagonal of ``"hessian"``, as in :func:`spectra.exact_diagonal`. For drawn diagonals ``stderr``
            is an upper bound of the error of the sum, for any correlation of the entries.
        draws: number of draws, as in :func:`spectra.exact_diagonal`.
        seed: of the draws.

    Returns:
        The measure; NaN with the reason where samples have no loss of their own.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.

    References:
        Tsuzuku, Sato and Sugiyama, Normalized flat minima, arXiv:1901.04653, equation (25), and ICML 2020, equation
        (16); Liang, Poggio, Rakhlin and Stokes, Fisher-Rao metric, geometry, and complexity of neural networks (2019).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, False), torch.nn.ReLU(), torch.nn.Linear(1, 2, False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.fill_(2.0), model[2].weight.copy_(torch.tensor([[0.5], [-0.5]]))
        >>> task = Task(model, torch.nn.CrossEntropyLoss(), [(torch.ones(1, 1), torch.tensor([0]))])
        >>> [round(float(fisher_rao_norm(task, form)), 5) for form in ("diagonal", "liang", "hessian")]
        [0.08526, 0.22735, 0.62996]
    """
    if form not in FORMS:
        raise ArgumentError(f"form={form!r}: one of {', '.join(map(repr, FORMS))} is needed")
    check_bn_mode(bn_mode)
    curvature = None if form == "hessian" else "empirical_fisher"
    conditions: dict[str, Any] = {"form": form, "bn_mode": bn_mode, "curvature": curvature}

    def measured() -> Measure:
        plain = replace(task, l2=0.0)
        if form == "hessian":
            return _of_curvature(
                plain, exact_diagonal(plain, bn_mode, dtype=dtype, method=method, draws=draws, seed=seed)
            )
        operator = EmpiricalFisherOperator(plain, bn_mode, dtype=dtype)
        _ = operator.self_test  # what cannot be right is refused here
        return Measure(value=_full(operator) if form == "liang" else _diagonal(operator), **conditions)

    return measured_or_refused(measured, **conditions)


def _of_curvature(task: Task, diagonal: ExactDiagonal) -> Measure:
    curvature = curvature_of(diagonal)
    weights = dict(task.model.named_parameters())

    def total(by_tensor: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return {
            name: float((part * weights[name].detach().to(part).square()).sum()) for name, part in by_tensor.items()
        }

    terms = total(diagonal)
    return Measure(
        value=sum(terms.values()),
        stderr=None if diagonal.stderr is None else sum(total(diagonal.stderr).values()),
        form="hessian",
        bn_mode=diagonal.bn_mode,
        curvature=curvature,
        reason="; ".join([*diagonal.how, *diagonal.reasons]) or None,
        details={"by_tensor": terms},
    )


def _full(operator: EmpiricalFisherOperator) -> float:
    theta = operator.function.flatten(operator.function.theta).detach()
    return float(theta.double() @ (operator @ theta).double())


def _diagonal(operator: EmpiricalFisherOperator) -> float:
    """The form ``"diagonal"``: pulls back one column, the criterion's gradient in the outputs of each sample."""
    function, task = operator.function, operator.task
    total, plans = 0.0, Plans()
    squares = [tensor.detach().to(torch.float64).square() for tensor in function.theta]
    with function.evaluation():
        for batch, weight in operator.batches():
            linear = linearise(function, batch, plans)
            target = task.target_of(batch)
            output = function.output(batch)
            _, slopes = slope_of(function, output, target, create_graph=False)
            factors = operator.row_factors(batch, target, output, slopes)
            pieces = [torch.zeros_like(o) if s is None else s for s, o in zip(slopes, linear.outputs, strict=True)]
            flat = linear.layout.flatten([piece.detach() for piece in pieces])
            if len(flat) != len(factors):
                raise TaskError(f"a batch has {len(flat)} samples and its target {len(factors)} rows")
            column = (flat * factors.sqrt()[:, None])[None]
            for index, (_, entries) in linear.squares(column, None, True).items():
                assert entries is not None
                total += task.total_factor(weight) * float((entries.to(squares[index]) * squares[index]).sum())
    return total / task.divisor(task.survey().total_weight)
