"""Compares autograd with finite differences, for losses that differentiate the network themselves.

The Hessian of such a loss needs third derivatives of every layer, its gradient second derivatives; libraries rarely
test these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spectra.errors import TaskError
from spectra.operators.function import LossFunction
from spectra.runtime.faults import is_limit, is_refusal
from spectra.task.batches import choose_rows, rows_of

_CLOSE = 1e-3  # relative; truncation of the difference included
ROUNDINGS = 10  # rounding errors of the loss or its gradient allowed in a difference
# Steps relative to the size of each tensor. One step that agrees is enough: longer ones may cross a kink, and shorter
# ones suffer from rounding.
STEPS, COARSE_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), (1e-1, 1e-2)
_ROWS = 16  # a few rows are enough to test a layer, and every further row adds kinks


def check_by_differences(function: LossFunction, twice: bool) -> None:
    """Compare the gradient on a few rows, and a Hessian product, with central differences in float64.

    Args:
        function: the loss; not modified. If it cannot be computed in float64, nothing is checked.
        twice: check a Hessian product too.

    Raises:
        TaskError: autograd and the differences disagree.
    """
    task = function.task
    float64_copy = LossFunction(task, function.bn_mode, torch.float64, function.params)
    float64_copy.adopt(function)
    with float64_copy.evaluation():
        batch = float64_copy.place(next(batch for batch in task.batches() if task.weight_of(batch) > 0))
        if (rows_of(batch) or 0) > _ROWS:
            batch = choose_rows(batch, torch.arange(_ROWS))
        try:
            loss, gradient = float64_copy.gradient(batch, create_graph=twice)
        except (RuntimeError, TypeError, TaskError) as error:
            if not (is_limit(error) or is_refusal(error)):
                raise
            # a model with float32 tensors that are neither parameter nor buffer
            return
        centre = float64_copy.flatten(float64_copy.theta).detach().clone()
        generator = torch.Generator().manual_seed(8)
        direction = (
            torch.randn(float64_copy.n, generator=generator, dtype=torch.float64).to(centre) * float64_copy.scale()
        )
        slope = float64_copy.flatten(gradient)
        along = slope.detach() @ direction
        hessian_product = (
            float64_copy.flatten(derivative(gradient, float64_copy.theta, float64_copy.unflatten(direction)))
            if twice
            else None
        )
        first, second = [], []  # (difference, how far it is from autograd's in units of what is allowed)
        coarse = torch.finfo(function.carried).eps > torch.finfo(torch.float64).eps
        for step in COARSE_STEPS if coarse else STEPS:
            above, below = (
                _loss_and_gradient_at(float64_copy, batch, centre + sign * step * direction) for sign in (1, -1)
            )
            float64_copy.move_to(centre)
            rounding = ROUNDINGS * torch.finfo(function.carried).eps / step
            size = torch.stack([loss.detach(), above[0], below[0]]).abs().max()
            first.append(apart((above[0] - below[0]) / (2 * step), along, rounding * size))
            if hessian_product is not None:
                change = (above[1] - below[1]) / (2 * step)
                second.append(apart(change, hessian_product, rounding * slope.detach().norm()))
    for errors, what, of in ((first, "gradient", "loss"), (second, "product with the Hessian", "gradient")):
        if errors and not min(errors) <= 1:
            raise TaskError(
                f"the {what} by autograd is not the change of the {of} between two points: a derivative that the loss "
                "takes of some layer cannot be differentiated further in this torch; write the layer out in plain "
                "operations"
            )


def _loss_and_gradient_at(
    float64_copy: LossFunction, batch: object, theta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    float64_copy.move_to(theta)
    loss, gradient = float64_copy.gradient(batch)
    return loss.detach(), float64_copy.flatten(gradient).detach()


def derivative(
    gradient: Sequence[torch.Tensor | None], theta: Sequence[torch.Tensor], direction: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """The product of the Hessian with a direction from a gradient with a graph; None for zeros."""
    pairs = [(g, v) for g, v in zip(gradient, direction) if g is not None and g.requires_grad]
    if not pairs:
        return [None] * len(theta)
    return list(torch.autograd.grad([g for g, _ in pairs], theta, [v for _, v in pairs], allow_unused=True))


def apart(difference: torch.Tensor, expected: torch.Tensor, rounding: torch.Tensor, close: float = _CLOSE) -> float:
    """The distance of two vectors or numbers in units of the allowed error; infinite for NaN."""
    allowed = close * (difference.norm() + expected.norm()) + rounding
    ratio = float((difference - expected).norm()) / max(float(allowed), torch.finfo(torch.float64).tiny)
    return ratio if ratio == ratio else float("inf")
