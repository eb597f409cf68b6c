"""critical_step: the smallest step along an update at which the loss exceeds its value before the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from spectra.errors import ArgumentError
from spectra.results.slices import CriticalSharpness

MOST_PASSES = 9  # over the data; the paper needs fewer than ten
_SLIGHTLY = 1.1  # how far beyond an expected crossing the next step is
_MOST = 100.0  # the largest change of the step at once


def critical_step(
    loss: Callable[[float], float],
    *,
    guess: float = 1.0,
    slope: float | None = None,
    of: str = "",
    most: int = MOST_PASSES,
) -> CriticalSharpness:
    """Bracket the critical step, then halve the bracket.

    While an end is not known, the next step is a tenth beyond the one at which a parabola through the last loss returns
    to the loss at 0, and further by a growing factor at least. So is the first step within a wide bracket.

    Args:
        loss: of the step; a loss that is not finite exceeds every other.
        guess: where the search starts, above 0.
        slope: the derivative of the loss at step 0. Unless it is negative, the loss exceeds at once, which is stated.
        of: whose loss, along which update; for the result.
        most: passes over the data, the one at step 0 included.

    Returns:
        The bracket. A ``reason`` and no value where there is none.

    Raises:
        ArgumentError: the guess is not a positive number.

    References:
        D. Kalra et al., A scalable measure of loss landscape curvature for analyzing the training dynamics of LLMs
        (arXiv 2601.16979): ``lambda_c = 2 / eta_c``.

    Example:
        >>> found = critical_step(lambda eta: (1 - 3 * eta) ** 2, slope=-6.0)  # back at its first value at eta = 2/3
        >>> abs(found.value - 3) < 0.02, found.lower <= 3 <= found.upper, found.passes
        (True, True, 9)
    """
    if not (guess > 0 and math.isfinite(guess)):
        raise ArgumentError(f"guess={guess}: a positive number is needed")
    if slope is not None and slope >= 0:
        words = f"the loss does not fall along the update (slope {slope:.3g}): there is no largest step"
        return CriticalSharpness(0.0, math.inf, 0, of, words)
    before, passes, holds, exceeds = loss(0.0), 1, 0.0, math.inf
    step, power, guided = guess, 1, False
    while passes < most:
        value = loss(step)
        passes += 1
        larger = not value <= before  # NaN counts as larger
        holds, exceeds = (holds, step) if larger else (step, exceeds)
        crossing = _crossing(step, value - before, slope)
        bracketed = bool(holds) and math.isfinite(exceeds)
        if bracketed and (guided or crossing is None or exceeds <= 1.5 * holds):
            step = 0.5 * (holds + exceeds) if exceeds <= 4 * holds else math.sqrt(holds * exceeds)
            continue
        factor = (_SLIGHTLY if crossing is not None else 2.0) ** power
        expected = step if crossing is None else crossing
        if larger:
            step = min(max(expected / _SLIGHTLY, step / _MOST), step / factor)
        else:
            step = max(min(expected * _SLIGHTLY, step * _MOST), step * factor)
        if bracketed:
            guided, step = True, step if holds < step < exceeds else math.sqrt(holds * exceeds)
        power *= 2
    reason = None
    if not holds:
        reason = f"the loss exceeds its value before the step at every step tried, down to {exceeds:.3g}"
    elif not math.isfinite(exceeds):
        reason = f"the loss does not exceed its value before the step up to {holds:.3g}"
    return CriticalSharpness(holds, exceeds, passes, of, reason)


def _crossing(step: float, change: float, slope: float | None) -> float | None:
    """Where the parabola of this slope through the change at a step returns to 0; None where it does not."""
    if slope is None or not math.isfinite(change) or change <= slope * step:
        return None
    return -slope * step**2 / (change - slope * step)
