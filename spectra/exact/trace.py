"""exact_trace and exact_diagonal: one forward pass and one back-propagation per column, without random draws.

With ``A_n = sum_c sign_nc s_nc s_nc'`` the criterion's Hessian in the outputs of sample ``n``, weighted as the loss
weights it, and ``J_n`` the Jacobian of the outputs::

    diag G = sum_n sum_c sign_nc (J_n' s_nc)^2 + l2,     Tr G = its sum

For softmax cross-entropy this is ``(1/N) sum_n sum_l p_nl (g_nl - gbar_n)^2`` with ``g_nl`` the gradient of logit ``l``
and ``gbar_n = sum_l p_nl g_nl``: squared, where the paper prints norms that are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.exact.certificate import Certificate, certify, passes_of
from spectra.exact.diagonal import ExactDiagonal
from spectra.exact.totals import add_up
from spectra.operators.checks import check_loss_once, check_partition
from spectra.operators.function import LossFunction
from spectra.operators.ggn import GGNOperator
from spectra.operators.modes import check_bn_mode, couples_samples
from spectra.operators.recalibration import recalibrate
from spectra.results.exact_trace import ExactTrace
from spectra.runtime.allowance import FEWEST_DRAWS, OverBudget, cost, spend
from spectra.runtime.exclusive import exclusively
from spectra.runtime.faults import refusal_in
from spectra.runtime.memo import remembered
from spectra.task.task import Task


@exclusively
def exact_trace(
    task: Task,
    bn_mode: str = "eval",
    *,
    params: str | Sequence[str] | None = None,
    dtype: str | torch.dtype | None = None,
    method: str = "auto",
    draws: int = 32,
    seed: int = 0,
) -> ExactTrace:
    """The trace of the Gauss-Newton matrix by parameter tensor, and whether it is also the Hessian's.

    It is the Hessian's if the outputs are affine in each parameter tensor alone: networks of linear layers,
    convolutions, ReLU and similar activations, pooling, residual sums and batch norm in eval mode. This is decided by
    measurement on the given network (:mod:`spectra.exact.certificate`), never by the types of its layers.

    Cost: one forward pass and ``C - 1`` back-propagations over the data for ``C`` classes; no variance. Linear layers
    need no per-sample gradients. Under a budget for optional work (``runtime.allowance``), the number of draws is
    reduced, or draws replace the columns, to stay within the budget.

    Args:
        task: the task. Its ``l2`` is included: ``l2`` times the number of entries.
        bn_mode: ``"eval"`` or ``"recalibrated"``. In ``"train"`` mode batch norm couples samples and there is no exact
            form: refused in the result, unless the network has no batch norm.
        params: which trainable parameters; all by default.
        dtype: ``"float32"`` or ``"float64"``; by default the parameters' own.
        method: ``"exact"``; ``"monte-carlo"``: unbiased, with a standard error; or ``"auto"``: exact up to 50 columns.
        draws: number of Monte-Carlo draws, each one back-propagation over the data.
        seed: of the draws.

    Returns:
        The result. If no exact trace exists, ``total`` is None and ``reasons`` says why.

    Raises:
        ArgumentError: an argument outside its range.
        TaskError: no trainable parameters.
        DataError, NumericsError: unusable data; NaN or infinity.
        OverBudget: within a block that limits the cost, not even the minimum number of draws fits.

    References:
        Ibayashi et al., Minimum sharpness (2021), Proposition 1 and appendices A and H.

    Example:
        >>> model = torch.nn.Linear(2, 3, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([0])
        >>> trace = exact_trace(Task(model, torch.nn.CrossEntropyLoss(), [(x, y)]))
        >>> round(trace.total, 5), trace.kind  # (1 - 1/3) |x|^2
        (16.66667, 'hessian')
    """
    sums = _measure(task, bn_mode, params, dtype, method, draws, seed, diagonal=False)
    if isinstance(sums, _Refused):
        return ExactTrace(total=None, reasons=(sums.reason,), bn_mode=bn_mode, l2=task.l2, method="none")
    by_layer = {name: float(trace.mean()) for name, trace in sums.traces.items()}
    errors = {name: _standard_error(trace) for name, trace in sums.traces.items()}
    return ExactTrace(
        total=math.fsum(by_layer.values()),
        by_layer=by_layer,
        kind=sums.certificate.kind,
        reasons=sums.certificate.reasons,
        certified=sums.certificate.passed,
        stderr=_standard_error(torch.stack(list(sums.traces.values())).sum(0)) if sums.drawn else None,
        stderr_by_layer=errors if sums.drawn else None,
        draws=len(next(iter(sums.traces.values()))) if sums.drawn else None,
        method=sums.method,
        bn_mode=bn_mode,
        l2=task.l2,
    )


@exclusively
def exact_diagonal(
    task: Task,
    bn_mode: str = "eval",
    *,
    params: str | Sequence[str] | None = None,
    dtype: str | torch.dtype | None = None,
    method: str = "auto",
    draws: int = 32,
    seed: int = 0,
) -> ExactDiagonal:
    """The diagonal of the Gauss-Newton matrix by parameter tensor, and whether it is the Hessian's.

    As :func:`exact_trace`, entry by entry, in float64 on the CPU or the model's device. The gradients of single samples
    are formed for convolutions and for several tokens per sample, in chunks, and never for a linear layer on vectors.

    Returns:
        ``{name: tensor of its shape}``; empty, with the reason, if no exact diagonal exists.

    Raises:
        ArgumentError: an argument outside its range.
        TaskError: no trainable parameters.
        DataError, NumericsError: data that no operator can be made of; NaN or infinity.

    References:
        Ibayashi et al., Minimum sharpness (2021), appendix A.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([0])
        >>> exact_diagonal(Task(model, torch.nn.CrossEntropyLoss(), [(x, y)]))["weight"]  # (1/C)(1 - 1/C) x_j^2
        tensor([[2.2500, 4.0000],
                [2.2500, 4.0000]], dtype=torch.float64)
    """
    sums = _measure(task, bn_mode, params, dtype, method, draws, seed, diagonal=True)
    if isinstance(sums, _Refused):
        nothing: dict[str, bool] = {}
        return ExactDiagonal(
            {},
            kind=None,
            reasons=(sums.reason,),
            certified=nothing,
            stderr=None,
            method="none",
            bn_mode=bn_mode,
            l2=task.l2,
        )
    return ExactDiagonal(
        sums.entries,
        kind=sums.certificate.kind,
        reasons=sums.certificate.reasons,
        certified=sums.certificate.passed,
        stderr=sums.errors if sums.drawn else None,
        method=sums.method,
        bn_mode=bn_mode,
        l2=task.l2,
    )


@dataclass(frozen=True)
class _Found:
    """The traces and diagonals of the loss, by name of the tensor."""

    certificate: Certificate
    traces: dict[str, torch.Tensor]  # (1,), or (draws,) where they are drawn
    entries: dict[str, torch.Tensor]  # empty where only traces are wanted
    errors: dict[str, torch.Tensor]  # standard errors of drawn entries
    drawn: bool
    method: str


@dataclass(frozen=True)
class _Refused:
    """Why there is no exact trace."""

    reason: str


def _measure(
    task: Task,
    bn_mode: str,
    params: str | Sequence[str] | None,
    dtype: str | torch.dtype | None,
    method: str,
    draws: int,
    seed: int,
    *,
    diagonal: bool,
) -> _Found | _Refused:
    """The sums over the data, or the reason why there are none."""
    if method not in ("auto", "exact", "monte-carlo"):
        raise ArgumentError(f"method={method!r}: 'auto', 'exact' or 'monte-carlo' is needed")
    if draws < 2:
        raise ArgumentError(f"draws={draws}: at least 2 are needed for a standard error; 32 is the default")
    check_bn_mode(bn_mode)
    if not task.splits:
        return _Refused(
            "the exact trace needs the loss split into network and criterion, and a task made with Task.from_loss has "
            "no such split: use Task(model, criterion, data, forward=..., target=...)"
        )
    if couples_samples(task.model, bn_mode):
        return _Refused(
            f"batch norm with bn_mode={bn_mode!r} makes the outputs of a sample depend on the others of its batch, so "
            "there is no exact form: use bn_mode='eval', or estimate the trace of the coupled Gauss-Newton matrix with "
            "slq(GGNOperator(task, bn_mode='train'))"
        )
    operator = GGNOperator(task, bn_mode, dtype=dtype, params=params)
    function, survey = operator.function, task.survey()
    function.check_finite()
    check_partition(task, bn_mode, survey)
    if bn_mode == "recalibrated":
        recalibrate(function)
    objects = (task.model, task.criterion, task.data, task.forward, task.target, task.weight)
    chosen = params if params is None or isinstance(params, str) else tuple(params)
    settings = (bn_mode, task.reduction, str(function.dtype), chosen)
    try:
        check_loss_once(function, survey, split=True)
        with function.evaluation(twice=False):
            certificate = _certificate(function, params, objects, settings)
            totals = remembered(
                "squares",
                objects,
                (*settings, method, draws, seed, diagonal),
                lambda: add_up(operator, method, draws, seed, diagonal),
            )
    except TaskError as error:  # no second derivative, no sample with a curvature of its own, or too many outputs
        return _Refused(refusal_in(error))
    if not totals.drawn:  # whoever asks for "exact" next is answered by "auto"
        remembered("squares", objects, (*settings, "exact", draws, seed, diagonal), lambda: totals)
    names, divisor = function.names, task.divisor(survey.total_weight)
    pieces = list(zip(names, function.theta, totals.entries, totals.variances)) if diagonal else []
    found = _Found(
        certificate=certificate.with_traces({n: float(trace.abs().sum()) for n, trace in zip(names, totals.traces)}),
        traces={n: trace / divisor + task.l2 * size for n, trace, size in zip(names, totals.traces, function.sizes)},
        entries={n: (_or_zeros(entries, p) / divisor).add_(task.l2) for n, p, entries, _ in pieces},
        errors={n: _or_zeros(variance, p).sqrt() / divisor for n, p, _, variance in pieces if totals.drawn},
        drawn=totals.drawn,
        method=totals.method,
    )
    if not all(bool(torch.isfinite(trace).all()) for trace in found.traces.values()):
        raise NumericsError("the exact trace is NaN or infinite: the gradients overflow in this dtype")
    return found


def _or_zeros(piece: torch.Tensor | None, p: torch.Tensor) -> torch.Tensor:
    return torch.zeros(p.shape, dtype=torch.float64, device=p.device) if piece is None else piece


def _certificate(function: LossFunction, params: Any, objects: Sequence[Any], settings: Sequence[Any]) -> Certificate:
    """The certificate, measured once; if it would cost too much, no tensor is certified."""

    def measured() -> Certificate:
        fewest = cost(FEWEST_DRAWS, function.dtype)  # a number without a certificate before a certificate without one
        spend(cost(passes_of(function), torch.float64) + fewest, what="left out, with the fewest draws")
        spend(-fewest)
        return certify(function, params)

    try:
        return remembered("certificate", objects, settings, measured)
    except OverBudget as error:
        why = (
            f"Whether it is the Hessian's was not measured ({error}), so this is said to be the Gauss-Newton matrix's."
        )
        return Certificate(dict.fromkeys(function.names, False), (why,))


def _standard_error(draws: torch.Tensor) -> float:
    return float(draws.std()) / math.sqrt(len(draws)) if len(draws) > 1 else math.nan
