"""measure_point: loss, gradient norm and accuracy at the analysed parameters, in one pass over the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spectra.errors import NumericsError, TaskError
from spectra.operators.curvature import CurvatureOperator
from spectra.runtime.ranks import adding_up
from spectra.task.averaging import ignored_class, kind_of
from spectra.task.batches import tensors_of

Facts = dict[str, float | int | None]


def measure_point(operator: CurvatureOperator) -> Facts:
    """Scalar facts at the parameters of an operator, in its BN mode.

    Returns:
        ``loss`` (of the data), ``objective`` (with the l2 term), ``gradient_norm`` (of the objective), ``accuracy``
        (of class targets that are not ignored, else None), ``weight_norm`` (of the parameters that are analysed),
        ``n_parameters``, ``n_samples``, ``total_weight``, ``n_batches``; for the Gauss-Newton and the empirical Fisher
        matrix ``rank_bound_counting``, an upper bound on the number of eigenvalues that differ from ``l2``.

    Raises:
        NumericsError: the loss or its gradient is NaN or infinite.
        TaskError: the loss does not depend on the parameters.
    """
    _ = operator.self_test  # in recalibrated mode this also estimates the statistics
    function, task, survey = operator.function, operator.task, operator.task.survey()
    with function.evaluation():
        slope = torch.zeros(function.n, dtype=torch.float64, device=function.device)
        # The loss, the hits, what they are counted of, the columns, and the batches that depend on the parameters.
        sums = torch.zeros(5, dtype=torch.float64, device=function.device)
        with adding_up([slope, sums]):
            for _, batch, weight in operator.passes.own_batches():
                loss, output = function.evaluate(batch)
                factor = task.total_factor(weight)
                sums[0] += factor * float(loss.detach())
                if loss.requires_grad:
                    pieces = torch.autograd.grad(loss, function.theta, allow_unused=True)
                    sums[4] += any(piece is not None for piece in pieces)
                    slope.add_(function.flatten(pieces), alpha=factor)
                if task.splits:
                    hits, of = _hits(task.criterion, output, task.target_of(batch))
                    columns = _columns(task.criterion, output, task.target_of(batch))
                    sums[1:4] += torch.tensor([hits, of, columns]).to(sums)
        total, (right, counted, columns, depends) = float(sums[0]), map(int, sums[1:].tolist())
        divisor = task.divisor(survey.total_weight)
        weights = function.flatten(function.theta).detach().to(torch.float64)
        slope = slope / divisor + task.l2 * weights
        loss_value, weight_norm, gradient_norm = total / divisor, float(weights.norm()), float(slope.norm())
    if not depends:
        raise TaskError("the loss does not depend on the parameters: nothing in it can be differentiated")
    if not (math.isfinite(loss_value) and math.isfinite(gradient_norm)):
        raise NumericsError(f"the loss is {loss_value} and its gradient has the norm {gradient_norm}")
    bounds = {"ggn": columns, "empirical_fisher": survey.num_samples}
    bound = bounds.get(operator.kind)
    return {
        "loss": loss_value,
        "objective": loss_value + 0.5 * task.l2 * weight_norm**2,
        "accuracy": right / counted if counted else None,
        "gradient_norm": gradient_norm,
        "weight_norm": weight_norm,
        "n_parameters": operator.n,
        "n_samples": survey.num_samples,
        "total_weight": survey.total_weight,
        "n_batches": survey.num_batches,
        **({} if bound is None else {"rank_bound_counting": min(operator.n, bound)}),
    }


def total_gradient(operator: CurvatureOperator) -> torch.Tensor:
    """The gradient of the loss over all data, with its l2 term, at the operator's parameters: ``(n,)`` float64."""
    _ = operator.self_test
    function, task = operator.function, operator.task
    with function.evaluation(twice=False):
        total = torch.zeros(function.n, dtype=torch.float64, device=function.device)
        for batch, weight in operator.batches():
            _, pieces = function.gradient(batch)
            total.add_(function.flatten(pieces), alpha=task.total_factor(weight))
    weights = function.flatten(function.theta).detach().to(torch.float64)
    return total / task.divisor(task.survey().total_weight) + task.l2 * weights


def widths_of(operator: CurvatureOperator) -> tuple[int, int, int] | None:
    """``(d_y, sum of the widths of the layers, d_x)`` of a network of linear and convolutional layers, or None.

    Widths are counted as output channels, the last layer's included, as in the heuristic bound of Granziol (2020).
    """
    layers = [m for m in operator.task.model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    if not layers or not operator.task.splits:
        return None
    widths = [m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in layers]
    with operator.function.evaluation():
        batch = next(operator.task.batches())
    inputs = tensors_of(batch)[0]
    return int(widths[-1]), int(sum(widths)), int(inputs[0].numel() if inputs.ndim else 1)


def _columns(criterion: Any, output: Any, target: Any) -> int:
    """An upper bound on the rank of the criterion's Hessian in the outputs of a batch.

    Softmax cross-entropy does not change when all logits of a target move together, and ignored targets do not count.
    """
    outputs = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]
    entries = sum(tensor.numel() for tensor in outputs)
    if kind_of(criterion) is not nn.CrossEntropyLoss or len(outputs) != 1 or not isinstance(target, torch.Tensor):
        return entries
    classes = outputs[0].shape[1 if outputs[0].ndim > 1 else 0]
    targets = entries // classes
    if not target.is_floating_point():
        targets -= int((target == ignored_class(criterion)).sum())  # type: ignore[attr-defined]
    return targets * (classes - 1)


def _hits(criterion: Any, output: Any, target: Any) -> tuple[int, int]:
    ignored = ignored_class(criterion)
    if ignored is None or not isinstance(output, torch.Tensor) or not isinstance(target, torch.Tensor):
        return 0, 0
    if target.is_floating_point() or output.ndim != target.ndim + 1:
        return 0, 0
    guess = output.argmax(1 if output.ndim > 1 else 0)
    kept = target != ignored
    return int(((guess == target) & kept).sum()), int(kept.sum())
