"""How far the parabola of a slice holds: found on the grid, and between its points by bisection."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import numpy as np

from spectra.results.slices import TOLERANCE, Line

_HALVINGS, _BISECTIONS = 12, 4
_ROUNDINGS = 3  # of a loss, that its distance from the parabola may have


def how_far(
    loss: Callable[[float], float], line: Line, steps: np.ndarray, rounding: float
) -> tuple[float, float | None]:
    """The bracket of the radius within which the parabola is right to a tenth of the change of the loss.

    At a step the error of the parabola is compared with the largest change of the loss up to there on the same side,
    so that a step at which the loss crosses its first value does not count as a failure. The turn of the parabola is
    a step of its own, since the largest change may lie there, between the others.

    Args:
        loss: of the step.
        line: the parabola.
        steps: positive and rising.
        rounding: of a loss.

    Returns:
        ``(holds, fails)``: it holds at every step tried up to ``holds``, and does not at ``fails``. ``fails`` is None
        if it holds at all; ``holds`` is 0 if it fails as far down as the change of the loss is resolved.
    """
    changes = {1.0: 0.0, -1.0: 0.0}  # the largest up to `holds`, on both sides
    turn = -line.slope / line.curvature if line.curvature else 0.0

    def right(step: float) -> tuple[bool, dict[float, float]]:
        reached = {side: max(changes[side], abs(loss(side * step) - line.loss)) for side in changes}
        for side in (side for side in changes if 0 < side * turn < step):
            reached[side] = max(reached[side], abs(loss(turn) - line.loss))
        errors = {s: abs(loss(s * step) - line.parabola(s * step)) for s in changes}
        good = all(errors[s] <= TOLERANCE * reached[s] + _ROUNDINGS * rounding for s in changes)
        return good and all(map(isfinite, (*errors.values(), *reached.values()))), reached

    holds, fails = 0.0, None
    for step in map(float, steps):
        good, reached = right(step)
        if not good:
            fails = step
            break
        holds, changes = step, reached
    if fails is None:
        return holds, None
    for _ in range(_HALVINGS if holds == 0 else 0):
        good, reached = right(fails / 2)
        if max(reached.values()) < _ROUNDINGS * rounding / TOLERANCE:
            return 0.0, fails
        if good:
            holds, changes = fails / 2, reached
            break
        fails /= 2
    for _ in range(_BISECTIONS if holds else 0):
        middle = 0.5 * (holds + fails)
        good, reached = right(middle)
        holds, fails, changes = (middle, fails, reached) if good else (holds, middle, changes)
    return holds, fails
