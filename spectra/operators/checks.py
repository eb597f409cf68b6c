"""Checks made before the first product: the partition of the data, the averaging and the second derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from spectra.errors import DataError, NumericsError, TaskError
from spectra.operators.additivity import check_additive
from spectra.operators.custom_functions import check_custom_functions
from spectra.operators.finite_differences import check_by_differences
from spectra.operators.function import LossFunction
from spectra.operators.graph import carried_dtype, leaves_of, nodes_of
from spectra.operators.jacobian import why_inseparable
from spectra.operators.modes import batch_norm_layers, couples_samples
from spectra.operators.shapes import NO_BACKWARD, WatchedCalls, check_shapes, make_pairs, shapes_in_words
from spectra.runtime.memo import remembered
from spectra.task.batches import map_tensors
from spectra.task.data_summary import Survey
from spectra.task.task import Task


def check_partition(task: Task, bn_mode: str, survey: Survey) -> str | None:
    """Check that the data and the batch-norm mode define one function.

    Returns:
        A note if the data are shuffled in a way that does not change the loss; else None.

    Raises:
        DataError: the samples of a batch are coupled and the data shuffled, or batch norm in train mode meets a batch
            of a single sample.
    """
    batch_statistics = bn_mode == "train" or (bn_mode == "recalibrated" and task.calibration is None)
    by_batch = batch_statistics and bool(batch_norm_layers(task.model))  # statistics of these batches are taken
    if by_batch and 1 in survey.rows:
        single = [index for index, rows in enumerate(survey.rows) if rows == 1]
        raise DataError(
            f"batch {single[0]} of {survey.num_batches} holds a single sample, which batch norm in {bn_mode} mode "
            "cannot take statistics of: choose another batch size or number of samples"
        )
    if survey.order == "shuffled":
        if by_batch or couples_samples(task.model, bn_mode):
            raise DataError(
                f"the data are shuffled between passes, and batch norm in {bn_mode} mode makes the loss depend on the "
                "partition into batches: use a DataLoader with shuffle=False, or freeze one pass with --snapshot-data"
            )
        return "the data are shuffled between passes: harmless here, since the loss does not depend on their order"
    return None


def check_loss(
    function: LossFunction, survey: Survey, *, per_sample: bool = False, twice: bool = True, split: bool = False
) -> None:
    """Check labels, shapes, the averaging and the second derivative of the loss, on as few batches as possible.

    The check stores two results in the function. ``function.carried`` is the precision that the loss really has: lower
    than the function's dtype if a layer casts. ``function.written_out`` is set for a loss that differentiates the
    network itself; its derivatives by autograd are then compared with finite differences.

    Args:
        function: the loss.
        survey: of the task's data.
        per_sample: the operator uses per-sample gradients: the loss must be a sum over rows even in a single batch, and
            needs no second derivative.
        twice: the loss must have a second derivative. False for quantities of the loss and its gradient only.
        split: the operator treats network and criterion separately: the loss must depend on the output only.

    Raises:
        DataError: labels out of range.
        TaskError: the criterion is not additive with the assumed weights, has no second derivative, gets an output and
            a target of different shapes, or depends on more than the output although ``split`` requires it.
        NumericsError: the loss is NaN or infinite.
    """
    _check_batches(function, survey, per_sample, twice, split)
    if function.written_out:
        check_by_differences(function, twice and not per_sample)


def _check_batches(function: LossFunction, survey: Survey, per_sample: bool, twice: bool, split: bool) -> None:
    task = function.task
    counted = sum(weight > 0 for weight in survey.weights)
    averaging_known = task.averaging.known
    split_any = False
    first = None
    with function.evaluation("eval"):  # where the samples of a batch are not coupled and can be split
        for index, batch in enumerate(task.batches()):
            weight = task.weight_of(batch)
            if weight == 0:
                continue
            placed = function.place(batch)
            if first is None:
                first = _look_at(function, placed, survey, index, twice)
                if split or per_sample:
                    _refuse_inseparable(function)
                if twice:
                    _check_derivatives(function, placed, first, per_sample)
                alone = counted == 1 and not per_sample and not first.broadcast
                if alone or couples_samples(task.model, "eval"):
                    return  # one batch needs no weights; coupled batches cannot be split
            split_any = check_additive(function, placed, weight, index, first.broadcast) or split_any
            if averaging_known or (split_any and index >= 64):
                return
    if not split_any and task.weight is None and (counted > 1 or per_sample):
        raise TaskError(
            "what the loss averages over is not known, and its batches cannot be split to find out: pass weight=, a "
            "function of the batch that returns it (samples, tokens, elements)"
        )


def _refuse_inseparable(function: LossFunction) -> None:
    if function.inseparable:
        raise TaskError(
            f"the loss is not a criterion of the output alone, which this needs: {function.inseparable}. The "
            "Hessian works; the Gauss-Newton and empirical Fisher matrices and exact traces do not"
        )


@dataclass(frozen=True)
class _Look:
    """What the check learned about the loss from the first batch."""

    output: Any  # None for a task from a loss_fn
    gradient: list[torch.Tensor]  # in the parameters that the loss depends on, with a graph
    broadcast: str  # the shapes of output and target in words, where they would broadcast to pairs; else empty
    loss: torch.Tensor  # with its graph


def check_loss_once(function: LossFunction, survey: Survey, *, split: bool = False, **what: bool) -> None:
    """Run :func:`check_loss`, but only once per network and loss within :func:`spectra.runtime.memo.shared_results`.

    Attributes that the check sets on one function are copied to the following functions.
    """
    task = function.task

    def checked() -> dict[str, Any]:
        before = dict(vars(function))
        check_loss(function, survey, **what)
        return {name: value for name, value in vars(function).items() if before.get(name) is not value}

    objects = (task.model, task.criterion, task.loss_fn, task.data, task.forward, task.target, task.weight)
    recalibrated = function.bn_mode == "recalibrated"
    settings = (recalibrated, task.reduction, str(function.dtype), tuple(function.names), *sorted(what.items()))
    vars(function).update(remembered("loss check", objects, settings, checked))
    if split:
        _refuse_inseparable(function)
    elif function.no_hessian:
        raise TaskError(function.no_hessian)


def _look_at(function: LossFunction, batch: Any, survey: Survey, index: int, twice: bool) -> _Look:
    task = function.task
    target: Any = task.target_of(batch) if task.splits else None
    broadcast = ""

    def look(output: Any) -> None:
        nonlocal broadcast
        _check_labels(output, survey)
        check_shapes(task.criterion, output, target)
        broadcast = shapes_in_words(output, target) if make_pairs(output, target) else ""

    with WatchedCalls() as watch:
        loss, output = function.evaluate(batch, look)
    function.written_out, function.checked = watch.differentiates, True
    if any(p.grad is not None for p in function.theta):
        raise TaskError(NO_BACKWARD)
    if not bool(torch.isfinite(loss.detach())):
        raise NumericsError(f"the loss is {float(loss.detach())} (batch {index})")
    _check_leaves(function, loss)
    function.carried = carried_dtype(loss)
    gradients = function.gradient_of(loss, create_graph=twice)
    gradient = [piece for piece in gradients if piece is not None]
    if not gradient:
        raise TaskError("the loss does not depend on the parameters: nothing in it can be differentiated")
    function.inseparable = why_inseparable(function, loss, output, target) if task.splits else None
    return _Look(output, gradient, broadcast, loss)


def _check_labels(output: Any, survey: Survey) -> None:
    if survey.labels is None or not isinstance(output, torch.Tensor):
        return
    classes = output.shape[1] if output.ndim > 1 else output.shape[0]
    low, high = survey.labels
    if low < 0 or high >= classes:
        raise DataError(
            f"labels reach from {low} to {high}, but the model has {classes} outputs: "
            f"labels from 0 to {classes - 1} are needed"
        )


def _check_leaves(function: LossFunction, loss: torch.Tensor) -> None:
    """Refuse a loss that captured parameters of the model from outside: its derivative would miss them."""
    leaves = {id(leaf) for leaf in leaves_of(loss)}
    named = function.task.model.named_parameters()
    captured = [name for name, p in named if id(p) in leaves and name in function.names]
    if captured:
        raise TaskError(
            f"the loss uses {captured[0]} by a reference that was taken outside of it, so part of its derivative would "
            "be missed: take the parameters within the loss, from model.parameters()"
        )


def _check_derivatives(function: LossFunction, batch: Any, first: _Look, per_sample: bool) -> None:
    if per_sample:
        _check_nodes(first.gradient)
        return
    task = function.task
    if task.splits and not function.inseparable:
        _check_second_derivative(function, first.output, task.target_of(batch))
    _check_gradient_graph(first.gradient)
    check_custom_functions(function, batch, first.loss)


def _check_gradient_graph(gradient: list[torch.Tensor]) -> None:
    """Refuse a gradient without a graph: autograd would return zeros as its derivative without an error."""
    if not any(piece.requires_grad for piece in gradient):
        raise TaskError(
            "the gradient of the loss does not depend on the parameters as far as autograd can tell: the loss is "
            "linear in them, or a custom backward computes without a graph"
        )
    _check_nodes(gradient)


def _check_nodes(gradient: list[torch.Tensor]) -> None:
    """Refuse a gradient through a function marked ``once_differentiable``.

    Such a function leaves a node that raises when backward reaches it. Derivatives in selected parameters only may not
    reach the node, so the graph is searched for it.
    """
    if any(node.name().endswith("Error") for node in nodes_of(gradient)):
        raise TaskError(
            "the loss cannot be differentiated twice: a custom autograd function in it is marked once_differentiable; "
            "--product differences computes the Hessian from gradients"
        )


def _check_second_derivative(function: LossFunction, output: Any, target: Any) -> None:
    """Refuse a criterion whose second derivative vanishes at the outputs and at random points.

    Random points are needed because a saturated cross-entropy has a second derivative of 0 to working precision.
    """
    generator = torch.Generator().manual_seed(1)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

    constant = True
    changes: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda t: t,
        lambda t: t + normal(t),
        lambda t: 0 * t,
    )
    for change in changes:
        points: list[torch.Tensor] = []
        value = function.criterion(map_tensors(output, partial(_as_leaf, points, change)), target)
        if not value.requires_grad:
            break
        slopes = torch.autograd.grad(value, points, create_graph=True, allow_unused=True)
        constant &= not any(s is not None and bool((s != 0).any()) for s in slopes)
        slope = [s for s in slopes if s is not None and s.requires_grad]
        if not slope:
            continue
        try:
            products = torch.autograd.grad(slope, points, [normal(s) for s in slope], allow_unused=True)
        except RuntimeError as error:
            raise TaskError(f"the criterion cannot be differentiated twice: {first_line(error)}") from error
        if any(b is not None and bool((b != 0).any()) for b in products):
            return
    if constant:
        raise TaskError(
            "the criterion does not change with the output, so that all its derivatives are 0: a cross-entropy over "
            "one class is always 0; give the model an output for each class, or BCEWithLogitsLoss for one output"
        )
    raise TaskError(
        "the criterion has no second derivative in the output (it is piecewise linear, like an absolute error or a "
        "hinge): the curvature of such a loss lies in its kinks, which derivatives do not see. A loss that is linear "
        "in the output on purpose can be given with Task.from_loss"
    )


def _as_leaf(
    leaves: list[torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor
) -> torch.Tensor:
    """A floating-point tensor, changed, as a new leaf appended to the list of leaves; any other tensor unchanged."""
    if not tensor.is_floating_point():
        return tensor
    leaves.append(change(tensor).detach().requires_grad_())
    return leaves[-1]


def first_line(error: BaseException) -> str:
    """The first line of an error message; torch appends a stack trace below it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
