"""Sharpness measures from the exact diagonal of the curvature: minimum and normalized sharpness of a task.

The diagonal (or the traces by tensor) is exact. It is the Hessian's if the certificate of :mod:`spectra.exact.trace`
holds; otherwise it is the Gauss-Newton matrix's, and the measure says so. Normalized sharpness also accepts diagonals
from draws; their noise biases a square root or a minimum. No measure includes ``l2``.

The cost of each is that of the exact trace or diagonal, ``C - 1`` back-propagations over the data for ``C`` outputs;
the minimisation is cheap in comparison. A measure that does not exist for a network is NaN with the reason, never an
exception.

References:
    Ibayashi et al., "Minimum sharpness: scale-invariant parameter-robustness of neural networks", 2021.
    Tsuzuku, Sato and Sugiyama, "Normalized flat minima", arXiv:1901.04653 (2019) and ICML 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from spectra.errors import ArgumentError
from spectra.exact.diagonal import ExactDiagonal
from spectra.exact.trace import exact_diagonal, exact_trace
from spectra.operators.modes import check_bn_mode
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure, remarked
from spectra.runtime.exclusive import exclusively
from spectra.sharpness.drawn_diagonals import METHODS, PRINTED, drawn_diagonal
from spectra.sharpness.minimum import minimum_of_traces, prepare_rescaling
from spectra.sharpness.node_wise import FORM as NODE_WISE
from spectra.sharpness.node_wise import chain_of, minimum_of_diagonals
from spectra.sharpness.normalized import check_options
from spectra.sharpness.normalized_loss import LossChoice, checked_loss
from spectra.sharpness.per_layer import matrix_normalized_of_traces, normalized_of_diagonals
from spectra.sharpness.refusals import curvature_of, measured_or_refused
from spectra.sharpness.train_part import train_mode_part_or_reason
from spectra.task.task import Task

_SUMS = ("exact", "monte-carlo")  # ways of having a diagonal from the criterion's Hessian in the outputs


@exclusively
def minimum_sharpness(
    task: Task,
    bn_mode: str = "eval",
    *,
    scale_groups: Mapping[str, Sequence[float] | float] | None = None,
    zero_tolerance: float = 0.0,
    train_draws: int = 0,
    method: str = "exact",
    draws: int = 32,
    seed: int = 0,
) -> Measure:
    """Minimum sharpness: the smallest trace of the Hessian over rescalings that leave the network's function alone.

    ``inf_u sum_g T_g exp(-2 a_g . u)`` with ``T_g`` the trace of the block of tensor ``g`` and ``a_g`` its exponents in
    the free scales ``u``. For a chain of ``D`` layers without biases it is ``D (T_1 ... T_D)^(1/D)``. Invariant under
    layer-wise rescaling, not under a rescaling of single units (:func:`node_minimum_sharpness` is) nor of the logits.

    The scales are found from the network. Batch norm is folded into the layer before it, or made a scale and a shift
    per channel where it does not follow one; ``details`` says which, and has the traces and the factors at the
    minimum.

    Args:
        task: the task.
        bn_mode: ``"eval"`` or ``"recalibrated"``; there is none in train mode, where every filter before a batch norm
            has a free scale and the infimum says nothing.
        scale_groups: ``{parameter tensor: its exponents}`` of a network whose scales cannot be found, by the names in
            the network without batch norm. Tensors left out do not scale. They are held against its function.
        zero_tolerance: tensors whose trace is at or below this times the total are taken for 0, with a note. Nothing is
            by default; 1e-14 is the usual choice where a layer is dead.
        train_draws: random products for ``details["train_mode_part"]``, what filters before batch norm have in train
            mode (:mod:`spectra.sharpness.train_part`), which is never added to the value. None by default.
        method: of the traces: ``"exact"``, or ``"monte-carlo"`` with a standard error, see :func:`spectra.exact_trace`.
        draws: number of draws for ``"monte-carlo"``.
        seed: of all random draws.

    Returns:
        The measure: ``form`` "bias-free" or "with biases", ``attained``, ``certificate`` (the gradient at the minimum
        over the value). NaN with the reason if the network is not positively homogeneous.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, False), torch.nn.ReLU(), torch.nn.Linear(1, 2, False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.fill_(2.0), model[2].weight.copy_(torch.tensor([[0.5], [-0.5]]))
        >>> task = Task(model, torch.nn.CrossEntropyLoss(), [(torch.ones(1, 1), torch.tensor([0]))])
        >>> found = minimum_sharpness(task)
        >>> round(found.value, 5), found.form, found.curvature, round(found.details["trace"], 5)
        (0.59393, 'bias-free', 'hessian', 0.94494)
    """
    conditions = {"form": "minimum", "bn_mode": check_bn_mode(bn_mode)}

    def measured() -> Measure:
        network = prepare_rescaling(task, bn_mode, scale_groups)
        trace = exact_trace(network.task, method=method, draws=draws, seed=seed)
        curvature, errors = curvature_of(trace), trace.stderr_by_layer
        measure = minimum_of_traces(network, trace.by_layer, curvature, bn_mode, zero_tolerance, errors)
        if train_draws and network.folded.folded:
            part = train_mode_part_or_reason(task, network.folded, train_draws, seed)
            measure = replace(measure, details={**measure.details, "train_mode_part": part})
        return _with_reasons(measure, trace)

    return measured_or_refused(measured, **conditions)


@exclusively
def node_minimum_sharpness(task: Task, bn_mode: str = "eval") -> Measure:
    """Minimum sharpness with one free scale per hidden unit or channel in place of one per layer.

    For chains of linear layers and convolutions (with ReLU, pooling, batch norm that can be folded). Invariant under
    node-wise rescaling and never above :func:`minimum_sharpness`, which ``details["over_layers"]`` has. An extension of
    this package: the paper has layers only.

    Args:
        task: the task.
        bn_mode: ``"eval"`` or ``"recalibrated"``.

    Returns:
        The measure; NaN with the reason if the network is no chain or not positively homogeneous.

    Raises:
        ArgumentError: another mode.
        DataError: the data cannot be used.
    """
    conditions = {"form": NODE_WISE, "bn_mode": check_bn_mode(bn_mode)}

    def measured() -> Measure:
        network = prepare_rescaling(task, bn_mode)
        chain_of(network)  # refused before anything is paid for
        diagonal = exact_diagonal(network.task, method="exact")
        return _with_reasons(minimum_of_diagonals(network, diagonal, curvature_of(diagonal), bn_mode), diagonal)

    return measured_or_refused(measured, **conditions)


@exclusively
def normalized_sharpness(
    task: Task,
    form: str = "arxiv",
    *,
    lam: float = 0.5,
    side: str = "output",
    loss: str = "task",
    bn_mode: str = "eval",
    diagonal: str = "exact",
    draws: int = 32,
    radius: float = 1e-3,
    eps: float = 0.0,
    seed: int = 0,
) -> Measure:
    """Normalized sharpness: the sum over weight matrices of the least noise-weighted curvature over scales of units.

    ``S = (2 lam)^(-1/2) min_{x,y} sum_ij H_ij e^(x_i+y_j) + W_ij^2 e^-(x_i+y_j)`` per matrix, with ``H_ij`` the
    diagonal of the curvature, negative entries taken for 0 (``clipped`` says how much that is). Invariant under
    node-wise rescaling; with ``loss="normalized"`` also under a rescaling of the logits.

    Args:
        task: the task.
        form: ``"arxiv"`` (the above), ``"pacbayes"`` (half of it) or ``"icml"`` (the printed equation (35), which is
            another number): :func:`spectra.sharpness.normalized.normalized_matrix`. Never mix them in one table.
        lam: the weight of the noise's entropy: 1/2 in the paper's body, 1 in its appendix C. No part of ``"icml"``.
        side: whether the scales of ``"icml"`` belong to outputs or to inputs.
        loss: ``"task"``, or ``"normalized"`` for the cross-entropy of the logits over their standard deviation (three
            classes and more), with the task's targets but without class weights or label smoothing. Samples whose
            logits are all equal have no such loss: they are left out, and ``details["left_out"]`` counts them.
        bn_mode: ``"eval"`` or ``"recalibrated"``; in train mode there is no exact diagonal.
        diagonal: ``"exact"``: of the Hessian where it is its, else of the Gauss-Newton matrix, labelled;
            ``"monte-carlo"``: the same from draws, with a standard error; or of the Hessian from draws, whose scatter
            biases the measure: ``"probes"``, ``"na"``, ``"ni"``, ``"ni-printed"``, see
            :func:`spectra.sharpness.drawn_diagonals.drawn_diagonal`.
        draws: number of random draws.
        radius: of the finite differences of ``"na"`` and ``"ni"``, relative to the weights.
        eps: of ``"ni"`` and ``"ni-printed"``.
        seed: of the draws.

    Returns:
        The measure, with the values by tensor, and what was left out, in ``details``; so are the sums over single
        parameters of the same tensors, ``sum sqrt(H_ii) |w_i|`` and ``sum H_ii w_i^2``.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.
    """
    check_options(form, lam, side)
    if diagonal not in (*_SUMS, *METHODS, PRINTED):
        raise ArgumentError(f"diagonal={diagonal!r}: {', '.join(map(repr, (*_SUMS, *METHODS, PRINTED)))} is needed")
    conditions = {"form": form, "loss": checked_loss(loss), "bn_mode": check_bn_mode(bn_mode)}

    def measured() -> Measure:
        choice = LossChoice(task, loss, bn_mode)
        plain = choice.task
        summed = partial(normalized_of_diagonals, task, form=form, lam=lam, side=side, loss=loss, bn_mode=bn_mode)
        if diagonal in _SUMS:
            exact = exact_diagonal(plain, bn_mode, method=diagonal, draws=draws, seed=seed)
            return choice.noted(_with_reasons(summed(exact, curvature_of(exact), errors=exact.stderr), exact))
        drawn = drawn_diagonal(plain, diagonal, draws=draws, radius=radius, eps=eps, seed=seed, bn_mode=bn_mode)
        words = (
            f"the diagonal is from {draws} draws ({diagonal}): what is negative in it is set to 0, so the value is "
            f"biased; its standard error is {drawn.relative_error:.0%} of it in the root mean square"
        )
        return choice.noted(remarked(summed(drawn.values, "hessian"), words))

    return measured_or_refused(measured, **conditions)


@exclusively
def matrix_normalized_sharpness(
    task: Task, *, loss: str = "task", bn_mode: str = "eval", method: str = "exact", draws: int = 32, seed: int = 0
) -> Measure:
    """Matrix-normalized sharpness, ``sum_l sqrt(|W_l|_F^2 Tr H_l)`` over the weight matrices.

    Invariant under layer-wise rescaling only. An upper bound of half the normalized sharpness.

    Args:
        task: the task.
        loss: ``"task"`` or ``"normalized"``.
        bn_mode: ``"eval"`` or ``"recalibrated"``.
        method: of the traces: ``"exact"``, or ``"monte-carlo"`` with a standard error, see :func:`spectra.exact_trace`.
        draws: number of draws for ``"monte-carlo"``.
        seed: of the draws.

    Returns:
        The measure; NaN with the reason if the trace of a matrix is negative: it is never cut off.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.
    """
    conditions = {"form": "matrix", "loss": checked_loss(loss), "bn_mode": check_bn_mode(bn_mode)}

    def measured() -> Measure:
        choice = LossChoice(task, loss, bn_mode)
        trace = exact_trace(choice.task, bn_mode, method=method, draws=draws, seed=seed)
        curvature, errors = curvature_of(trace), trace.stderr_by_layer
        measure = matrix_normalized_of_traces(
            task, trace.by_layer, curvature, errors=errors, loss=loss, bn_mode=bn_mode
        )
        return choice.noted(_with_reasons(measure, trace))

    return measured_or_refused(measured, **conditions)


def _with_reasons(measure: Measure, exact: ExactTrace | ExactDiagonal) -> Measure:
    """The measure with how its curvature was computed, and why it is the Gauss-Newton matrix's, if it is."""
    return remarked(measure, "; ".join([*exact.how, *exact.reasons]))
