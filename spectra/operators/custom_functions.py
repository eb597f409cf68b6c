"""Finds custom autograd functions whose second derivative is not that of what they compute, by finite differences.

A custom autograd function may compute a part of its backward without a graph. Autograd then leaves out a part of the
second derivative, without an error; the products stay symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.operators.finite_differences import COARSE_STEPS, ROUNDINGS, STEPS, apart, derivative
from spectra.operators.function import LossFunction
from spectra.operators.graph import carried_dtype, custom_functions
from spectra.task.batches import choose_rows, map_tensors, rows_of, tensors_of

_CLOSE, _COARSE_CLOSE = 1e-5, 1e-2  # an error of this size counts; where the loss casts to a lower precision
# The points: their distances in units of the size of each tensor. A unit exactly at its kink (with a zero input, say)
# crosses it with every step, and a unit at a distance with few; a criterion of probabilities allows small moves only.
MOVES = (1e-3, 3e-2, 1.0)
_STEPS, _COARSE_STEPS = (*STEPS, 1e-8), (*COARSE_STEPS, 1e-3)
_ROWS = 2


def check_custom_functions(function: LossFunction, batch: Any, loss: torch.Tensor, output: Any) -> None:
    """Compare second derivatives through custom autograd functions with finite differences.

    If a part is missing in the criterion, every curvature matrix is wrong and the loss is refused. If a part is missing
    in the network, the Gauss-Newton matrix, which does not need it, is right: ``function.no_hessian`` becomes the
    reason why there is no Hessian.

    Args:
        function: the loss; called within its evaluation.
        batch: on its device.
        loss: of the batch, with its graph.
        output: of the model, None for a loss_fn.

    Raises:
        TaskError: a part of the criterion's second derivative is missing.
    """
    task = function.task

    def words(what: str, names: list[str]) -> str:
        return (
            f"the second derivative of {what} by autograd is not the change of its gradient between two points: a "
            f"custom autograd function in it ({', '.join(names)}) has a backward that is wrong or partly "
            "computed without a graph; write its backward in operations that can be differentiated"
        )

    outputs = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
    names = custom_functions(loss, outputs) if task.splits and not function.inseparable else []
    if names and _criterion_misses_a_part(function, output, task.target_of(batch)):
        raise TaskError(words("the criterion", names))
    names = custom_functions(loss)
    if names and hessian_misses_a_part(function, batch):
        function.no_hessian = words("the loss", names)


def hessian_misses_a_part(function: LossFunction, batch: Any, moves: Sequence[float] = MOVES) -> bool:
    """Whether the Hessian of the loss of a few rows, by autograd, is not the derivative of the gradient in float64.

    Three points are tested, along a random direction each, with steps down to 1e-8 of the size of a tensor. A kink of a
    piecewise linear unit lies within the smallest step at hardly any point. It is not mistaken for a missing part,
    because all points must disagree.

    Args:
        function: the loss; not modified. Called within its evaluation.
        batch: on its device.
        moves: the distances of the points from the parameters, in units of the size of each tensor.

    Returns:
        False if no difference was found, or if there was no point at which both could be computed.
    """
    if (rows_of(batch) or 0) > _ROWS:
        batch = choose_rows(batch, torch.arange(_ROWS))
    copy = LossFunction(function.task, function.bn_mode, torch.float64, function.params)
    copy.adopt(function)
    batch = copy.place(batch)

    def value(theta: Sequence[torch.Tensor]) -> torch.Tensor:
        copy.theta = list(theta)
        return copy.loss(batch)

    return _misses_a_part(value, copy.theta, moves)


def _criterion_misses_a_part(function: LossFunction, output: Any, target: Any) -> bool:
    """As :func:`hessian_misses_a_part`, for the criterion as a function of the model's output."""
    rows = rows_of([output, target]) or 0
    if rows > _ROWS:
        output, target = choose_rows([output, target], torch.arange(_ROWS))
    copy = LossFunction(function.task, function.bn_mode, torch.float64, function.params)
    output, target = (copy.place(map_tensors(tree, torch.Tensor.detach)) for tree in (output, target))
    entries = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]

    def value(moved: Sequence[torch.Tensor]) -> torch.Tensor:
        pieces = iter(moved)
        whole = map_tensors(output, lambda tensor: next(pieces) if tensor.is_floating_point() else tensor)
        return copy.criterion(whole, target)

    return _misses_a_part(value, entries)


def _misses_a_part(
    value: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    centre: Sequence[torch.Tensor],
    moves: Sequence[float] = MOVES,
) -> bool:
    """Whether the second derivative of a function of float64 tensors is wrong at every point near ``centre``."""
    generator = torch.Generator().manual_seed(9)
    sizes = [float(tensor.detach().square().mean().sqrt()) for tensor in centre]
    scales = [size or max(sizes) or 1.0 for size in sizes]

    def random() -> list[torch.Tensor]:
        draws = (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in centre)
        return [scale * draw for scale, draw in zip(scales, draws)]

    def gradient(at: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor | None]]:
        leaves = [tensor.detach().requires_grad_() for tensor in at]
        result = value(leaves)
        return leaves, result, list(torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True))

    def flat(pieces: Sequence[torch.Tensor | None]) -> torch.Tensor:
        whole = (torch.zeros_like(t) if piece is None else piece.detach() for piece, t in zip(pieces, centre))
        return torch.cat([piece.reshape(-1) for piece in whole])

    disagree = False
    for move in moves:
        point, direction = [c.detach() + move * m for c, m in zip(centre, random())], random()
        try:
            leaves, result, slope = gradient(point)
            product = flat(derivative(slope, leaves, direction))
            dtype = carried_dtype(result)
            eps, errors = torch.finfo(dtype).eps, []
            fine = dtype == torch.float64
            for step in _STEPS if fine else _COARSE_STEPS:
                above, below = (
                    flat(gradient([p + sign * step * v for p, v in zip(point, direction)])[2]) for sign in (1, -1)
                )
                allowed = ROUNDINGS * eps / step * flat(slope).norm()
                errors.append(
                    apart((above - below) / (2 * step), product, allowed, close=_CLOSE if fine else _COARSE_CLOSE)
                )
        except Exception:  # the function does not exist here: a logarithm of an output below 0, say
            continue
        if not math.isfinite(max(errors)):
            continue
        if min(errors) <= 1:
            return False
        disagree = True
    return disagree
