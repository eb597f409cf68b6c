"""What is checked before the first product: the partition of the data, the averaging, and the second derivative."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from spectra.batches import choose_rows, map_tensors, rows_of
from spectra.errors import DataError, NumericsError, TaskError
from spectra.operators.function import LossFunction
from spectra.operators.modes import batch_norm_layers, couples_samples
from spectra.sharing import remembered
from spectra.survey import Survey
from spectra.task import Task


def check_partition(task: Task, bn_mode: str, survey: Survey) -> str | None:
    """Refuse data that do not define one function in this mode; a note where they do but move.

    Raises:
        DataError: batches that are coupled and shuffled, or a batch of a single sample for batch norm in train mode.
    """
    taken = bn_mode == "train" or (bn_mode == "recalibrated" and task.calibration is None)
    by_batch = taken and bool(batch_norm_layers(task.model))  # statistics of these batches are taken
    if by_batch and 1 in survey.rows:
        which = [index for index, rows in enumerate(survey.rows) if rows == 1]
        raise DataError(
            f"batch {which[0]} of {survey.num_batches} holds a single sample, which batch norm in {bn_mode} mode "
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


def check_loss(function: LossFunction, survey: Survey, *, per_sample: bool = False, twice: bool = True) -> None:
    """Check labels, the averaging and the second derivative of the criterion, on as few batches as tell.

    With ``per_sample``, for what is made of the gradients of single samples: the loss must be a sum over rows even in
    a single batch, and needs no second derivative. Without ``twice``, for what is made of the loss and its gradient
    alone, it needs none either.

    Raises:
        DataError: labels out of range.
        TaskError: the criterion is not additive with the weights that are assumed, or has no second derivative.
        NumericsError: the loss is NaN or infinite.
    """
    task = function.task
    counted = sum(weight > 0 for weight in survey.weights)
    known = task.averaging.known
    split_any = False
    first = True
    with function.evaluation("eval"):  # where the samples of a batch are not coupled and can be split
        for index, batch in enumerate(task.data):
            weight = task.weight_of(batch)
            if weight == 0:
                continue
            placed = function.place(batch)
            if first:
                _check_first(function, placed, survey, index, per_sample, twice)
                first = False
                if (counted == 1 and not per_sample) or couples_samples(task.model, "eval"):
                    return  # one batch needs no weights; coupled batches cannot be split
            split_any = _check_additive(function, placed, weight, index) or split_any
            if known or (split_any and index >= 64):
                return
    if not split_any and task.weight is None:
        raise TaskError(
            "what the loss averages over is not known, and its batches cannot be split to find out: pass weight=, a "
            "function of the batch that returns it (samples, tokens, elements)"
        )


def check_loss_once(function: LossFunction, survey: Survey, **what: bool) -> None:
    """As :func:`check_loss`; in a block of :func:`spectra.sharing.shared_results` once for a network and its loss.

    What the check notes on one function is noted on the next as well.
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


def _check_first(function: LossFunction, batch: Any, survey: Survey, index: int, per_sample: bool, twice: bool) -> None:
    task = function.task
    with torch.no_grad():
        output = function.output(batch) if task.splits else None
    if survey.labels is not None and isinstance(output, torch.Tensor):
        classes = output.shape[1] if output.ndim > 1 else output.shape[0]
        low, high = survey.labels
        if low < 0 or high >= classes:
            raise DataError(
                f"labels reach from {low} to {high}, but the model has {classes} outputs: "
                f"labels from 0 to {classes - 1} are needed"
            )
    loss, gradient = function.gradient(batch, create_graph=twice)
    if not bool(torch.isfinite(loss.detach())):
        raise NumericsError(f"the loss is {float(loss.detach())} (batch {index})")
    pieces = [piece for piece in gradient if piece is not None]
    if not pieces:
        raise TaskError("the loss does not depend on the parameters: nothing in it can be differentiated")
    if not twice:
        return
    if per_sample:
        _check_nodes(pieces)
        return
    if task.splits:
        _check_second_derivative(function, output, task.target_of(batch))
    _check_gradient_graph(pieces)


def _check_gradient_graph(gradient: list[torch.Tensor]) -> None:
    """Refuse a gradient that autograd cannot differentiate again, where it would quietly return zeros instead."""
    if not any(piece.requires_grad for piece in gradient):
        raise TaskError(
            "the gradient of the loss does not depend on the parameters as far as autograd can tell: the loss is "
            "linear in them, or a custom backward computes without a graph"
        )
    _check_nodes(gradient)


def _check_nodes(gradient: list[torch.Tensor]) -> None:
    """Refuse a gradient through a function marked ``once_differentiable``.

    It leaves a node that raises when it is reached, but nothing reaches it when derivatives are asked for in chosen
    parameters only.
    """
    seen, todo = set(), [piece.grad_fn for piece in gradient if piece.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name().endswith("Error"):
            raise TaskError(
                "the loss cannot be differentiated twice: a custom autograd function in it is marked "
                "once_differentiable"
            )
        todo.extend(following for following, _ in node.next_functions if following is not None)


def _check_second_derivative(function: LossFunction, output: Any, target: Any) -> None:
    """Refuse a criterion whose second derivative vanishes wherever it is looked at.

    It is looked at in the outputs and at random points, since a saturated cross-entropy has none to working precision.
    """
    generator = torch.Generator().manual_seed(1)

    def random(scale: float) -> Any:
        return map_tensors(
            output,
            lambda t: (
                t + scale * torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device)
                if t.is_floating_point()
                else t
            ),
        )

    for place in (output, random(1.0), map_tensors(random(1.0), lambda t: 0 * t if t.is_floating_point() else t)):
        points: list[torch.Tensor] = []
        value = function.criterion(map_tensors(place, partial(_as_leaf, points)), target)
        if not value.requires_grad:
            break
        slope = [
            s
            for s in torch.autograd.grad(value, points, create_graph=True, allow_unused=True)
            if s is not None and s.requires_grad
        ]
        if not slope:
            continue
        directions = [torch.randn(s.shape, generator=generator, dtype=s.dtype).to(s.device) for s in slope]
        try:
            bent = torch.autograd.grad(slope, points, directions, allow_unused=True)
        except RuntimeError as error:
            raise TaskError(f"the criterion cannot be differentiated twice: {first_line(error)}") from error
        if any(b is not None and bool((b != 0).any()) for b in bent):
            return
    raise TaskError(
        "the criterion has no second derivative in the output (it is piecewise linear, like an absolute error or a "
        "hinge): the curvature of such a loss lies in its kinks, which derivatives do not see. A loss that is linear "
        "in the output on purpose can be given with Task.from_loss"
    )


def _as_leaf(leaves: list[torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a leaf to differentiate in, kept in the list of leaves; what is no real number stays as it is."""
    if not tensor.is_floating_point():
        return tensor
    leaves.append(tensor.detach().requires_grad_())
    return leaves[-1]


def _check_additive(function: LossFunction, batch: Any, weight: float, index: int) -> bool:
    """Whether a batch could be split; a split that does not add up to the whole is refused."""
    pieces = _split(function, batch)
    if pieces is None:
        return False
    task = function.task
    with torch.no_grad():
        parts = []
        for loss, piece_weight in pieces:
            factor = task.total_factor(piece_weight)
            parts.append(0.0 if piece_weight == 0 else factor * float(loss()))
        whole = task.total_factor(weight) * float(function.loss(batch))
    tolerance = 1e-4 if function.dtype == torch.float32 else 1e-9
    if abs(whole - sum(parts)) <= tolerance * (abs(whole) + sum(map(abs, parts))):
        return True
    raise TaskError(
        f"the loss is not a {task.averaging.reduction} over {task.averaging.over}: batch {index} gives {whole:.6g} as "
        f"a whole and {sum(parts):.6g} in two parts. Pass weight=, a function of the batch that returns what the "
        "criterion averages over"
    )


def _split(function: LossFunction, batch: Any) -> list[tuple[Any, float]] | None:
    """Two uneven parts of a batch as (loss, weight), or None where it has no rows to split by."""
    task = function.task
    whole: Any = batch
    if task.splits:  # the criterion alone, on parts of the output: the network need not run again
        with torch.no_grad():
            output = function.output(batch)
        whole = [output, task.target_of(batch)]
    rows = rows_of([whole, batch] if task.weight is not None else whole)
    if rows is None or rows < 2:
        return None
    pieces = []
    for chosen in _uneven(rows):
        part = choose_rows(whole, chosen)
        if task.weight is not None or not task.splits:
            weight = task.weight_of(choose_rows(batch, chosen))
        else:
            weight = float(task.averaging.weight(part[1]))
        loss = partial(function.criterion, *part) if task.splits else partial(function.loss, part)
        pieces.append((loss, weight))
    return pieces


def _uneven(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    cut = max(1, rows // 3)
    order = torch.arange(rows)
    return order[:cut], order[cut:]


def first_line(error: BaseException) -> str:
    """What an error says, without what torch adds below."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
