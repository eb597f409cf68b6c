"""Finds missing parts of second derivatives by finite differences: of custom autograd functions, and of a whole loss.

A custom autograd function may compute a part of its backward without a graph. Autograd then leaves out a part of the
second derivative, without an error; the products stay symmetric. Each function is tested by itself, on the arguments
of its calls. So neither a kink nor a ``detach`` elsewhere in the loss is mistaken for its defect.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import FunctionCtx

from spectra.errors import TaskError
from spectra.operators.finite_differences import COARSE_STEPS, ROUNDINGS, STEPS, apart
from spectra.operators.function import LossFunction
from spectra.operators.graph import custom_functions, least_precise
from spectra.task.batches import choose_rows, map_tensors, rows_of, tensors_of

_CLOSE, _COARSE_CLOSE = 1e-5, 1e-2  # an error of this size counts; where the loss casts to a lower precision
# The points: their distances in units of the size of each tensor. A unit exactly at its kink (with a zero input, say)
# crosses it with every step, and a unit at a distance with few; a function of probabilities allows small moves only.
MOVES = (1e-3, 3e-2, 1.0)
_STEPS, _COARSE_STEPS = (*STEPS, 1e-8), (*COARSE_STEPS, 1e-3)
_ROWS = 2
_CALLS = 8  # of each function that are tested

Slopes = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor | None]]
Call = tuple[type[torch.autograd.Function], tuple[Any, ...]]


def check_custom_functions(function: LossFunction, batch: Any, loss: torch.Tensor) -> None:
    """Compare the derivatives of the backward of custom autograd functions with finite differences.

    If a part is missing in the criterion, every curvature matrix is wrong and the loss is refused. If a part is missing
    in the network, the Gauss-Newton matrix, which does not need it, is right: ``function.no_hessian`` becomes the
    reason why there is no Hessian.

    Args:
        function: the loss; called within its evaluation.
        batch: on its device.
        loss: of the batch, with its graph.

    Raises:
        TaskError: a part of the criterion's second derivative is missing.
    """
    classes = custom_functions(loss)
    if not classes:
        return
    calls: list[Call] = []
    few = _few_rows(batch)
    with _recorded(classes, calls):
        if not function.task.splits or function.inseparable:
            function.loss(few)
            of_criterion = len(calls)
        else:
            output = function.output(few)
            of_criterion = len(calls)
            function.criterion(output, function.task.target_of(few))
    for part, what in ((calls[of_criterion:], "the criterion"), (calls[:of_criterion], "the loss")):
        wrong = sorted({cls.__name__ for cls in classes if any(map(_misses, _calls_of(cls, part)))})
        if not wrong:
            continue
        words = (
            f"the second derivative of {what} by autograd misses a part (by finite differences): a "
            f"custom autograd function in it ({', '.join(wrong)}) computes a part of its backward without a graph; "
            "write its backward in operations that can be differentiated, or compute the Hessian from gradients with "
            "--product differences"
        )
        if what == "the criterion":
            raise TaskError(words)
        function.no_hessian = words


def _calls_of(cls: type, calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call[0] is cls][:_CALLS]


@contextmanager
def _recorded(classes: Sequence[type[torch.autograd.Function]], calls: list[Call]) -> Iterator[None]:
    """Append the arguments of every call of these functions to a list, within the block."""
    before = {cls: vars(cls).get("forward") for cls in classes}

    def recording(cls: type[torch.autograd.Function]) -> Any:
        forward = cls.forward

        @functools.wraps(forward)
        def record(*arguments: Any) -> Any:
            calls.append((cls, tuple(a for a in arguments if not isinstance(a, FunctionCtx))))
            return forward(*arguments)

        return staticmethod(record)

    try:
        for cls in classes:
            cls.forward = recording(cls)  # type: ignore[method-assign]
        yield
    finally:
        for cls, forward in before.items():
            if forward is None:
                del cls.forward
            else:
                cls.forward = forward  # type: ignore[method-assign]


def _misses(call: Call) -> bool:
    """Whether a part of the derivative of a call's backward, in its inputs and the cotangent, is missing.

    Inputs that need no gradient are constants.
    """
    cls, arguments = call
    given = [map_tensors(a, lambda t: t.detach().double() if t.is_floating_point() else t) for a in arguments]
    moved = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]

    def outputs(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        whole = list(given)
        for i, tensor in zip(moved, inputs):
            whole[i] = tensor
        result = cls.apply(*whole)  # type: ignore[no-untyped-call]
        return [tensor for tensor in tensors_of(result) if tensor.requires_grad]

    def slopes(leaves: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        inputs, cotangents = leaves[: len(moved)], leaves[len(moved) :]
        return torch.autograd.grad(
            outputs(inputs), list(inputs), list(cotangents), create_graph=True, allow_unused=True
        )

    try:
        inputs = [given[i].requires_grad_() for i in moved]
        cotangents = [torch.ones_like(tensor) for tensor in outputs(inputs)]
    except Exception:  # the function does not compute in float64
        return False
    return bool(cotangents) and _misses_a_part(slopes, [*inputs, *cotangents], MOVES)


def hessian_misses_a_part(function: LossFunction, batch: Any, moves: Sequence[float] = MOVES) -> bool:
    """Whether the Hessian of the loss of a few rows, by autograd, is not the derivative of the gradient in float64.

    A part is missing where no derivative flows: behind ``detach`` or rounding, and in the padding row of an embedding.

    Args:
        function: the loss; not modified. Called within its evaluation.
        batch: on its device.
        moves: the distances of the points from the parameters, in units of the size of each tensor.

    Returns:
        False if no difference was found, or if there was no point at which both could be computed.
    """
    copy = LossFunction(function.task, function.bn_mode, torch.float64, function.params)
    copy.adopt(function)
    few = copy.place(_few_rows(batch))

    def slopes(theta: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        copy.theta = list(theta)
        return copy.gradient(few, create_graph=True)[1]

    return _misses_a_part(slopes, copy.theta, moves)


def _few_rows(batch: Any) -> Any:
    return choose_rows(batch, torch.arange(_ROWS)) if (rows_of(batch) or 0) > _ROWS else batch


def _misses_a_part(slopes: Slopes, centre: Sequence[torch.Tensor], moves: Sequence[float]) -> bool:
    """Whether ``slopes`` has other derivatives than by autograd at every point near ``centre``, in random directions.

    Steps go down to 1e-8 of the size of a tensor. A kink lies within the smallest one at hardly any point; it is not
    mistaken for a missing part, because all points must disagree.
    """
    generator = torch.Generator().manual_seed(9)

    def random(like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in like]

    sizes = [float(tensor.detach().square().mean().sqrt()) for tensor in centre]
    scales = [size or max(sizes) or 1.0 for size in sizes]
    disagree = False
    for move in moves:
        point = [c.detach() + move * scale * draw for c, scale, draw in zip(centre, scales, random(centre))]
        direction = [scale * draw for scale, draw in zip(scales, random(centre))]
        try:
            leaves = _leaves(point, direction, 0.0)
            slope = [piece for piece in slopes(leaves) if piece is not None]
            weights = random(slope)
            dtype = least_precise(slope)
            pairs = [(piece, w) for piece, w in zip(slope, weights) if piece.requires_grad]
            pulled = (
                torch.autograd.grad([s for s, _ in pairs], leaves, [w for _, w in pairs], allow_unused=True)
                if pairs
                else ()
            )
            by_autograd = _dot(pulled, direction)
            size = math.sqrt(sum(float((w * s).detach().square().sum()) for w, s in zip(weights, slope)))
            errors = []
            for step in _STEPS if dtype == torch.float64 else _COARSE_STEPS:
                ends = [
                    _dot(
                        [piece for piece in slopes(_leaves(point, direction, sign * step)) if piece is not None],
                        weights,
                    )
                    for sign in (1, -1)
                ]
                allowed = ROUNDINGS * torch.finfo(dtype).eps / step * size
                change, close = (ends[0] - ends[1]) / (2 * step), _CLOSE if dtype == torch.float64 else _COARSE_CLOSE
                ours, theirs, most = torch.tensor([by_autograd, change, allowed], dtype=torch.float64)
                errors.append(apart(theirs, ours, most, close=close))
        except Exception:  # nothing exists here: a logarithm of a number below 0, say
            continue
        if not errors or not math.isfinite(max(errors)):
            continue
        if min(errors) <= 1:
            return False
        disagree = True
    return disagree


def _leaves(point: Sequence[torch.Tensor], direction: Sequence[torch.Tensor], step: float) -> list[torch.Tensor]:
    return [(p + step * v).detach().requires_grad_() for p, v in zip(point, direction)]


def _dot(pieces: Sequence[torch.Tensor | None], others: Sequence[torch.Tensor]) -> float:
    return math.fsum(float((a.detach() * b).sum()) for a, b in zip(pieces, others) if a is not None)
