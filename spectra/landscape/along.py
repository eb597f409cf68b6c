"""Along: the loss at ``theta + t d`` as a function of ``t``, with its rounding; each value computed once."""

from __future__ import annotations

import math

import numpy as np
import torch

from spectra.operators.displaced import DisplacedLoss

# A fourth difference of losses that are rounded independently is sqrt(70) rounding errors long.
_FOURTH = (1, -4, 6, -4, 1)
# The spacing of these losses, in units of the radius, is the roundoff to this power: it moves the parameters, while
# smooth terms vanish with its fourth power, and kinks with its square.
_POWER = 0.375


class Along:
    """``t -> L(theta + t d)``, with the l2 term ``l2/2 |theta + t d|^2`` of the task.

    Args:
        displaced: the loss.
        direction: ``d``, ``(n,)`` float64 on the device of the loss.
    """

    def __init__(self, displaced: DisplacedLoss, direction: torch.Tensor) -> None:
        self.displaced, self.direction = displaced, direction
        self._found: dict[float, float] = {}

    @property
    def passes(self) -> int:
        """The number of different steps at which the loss has been computed."""
        return len(self._found)

    def __call__(self, step: float) -> float:
        """The loss at a step; NaN or infinite where it is."""
        if step not in self._found:
            shift = None if step == 0 else step * self.direction
            value, l2 = self.displaced.value(shift), self.displaced.task.l2
            if l2:
                moved = self.displaced.theta if shift is None else self.displaced.theta + shift
                value += 0.5 * l2 * float(moved.square().sum())
            self._found[step] = value
        return self._found[step]

    def at(self, steps: np.ndarray) -> np.ndarray:
        """The losses at steps, (P,)."""
        return np.array([self(float(step)) for step in steps])

    def rounding(self, radius: float) -> float:
        """The rounding error of a loss: from a fourth difference, and at least the unit roundoff of the loss.

        Args:
            radius: the length over which the loss changes smoothly.
        """
        unit = float(torch.finfo(self.displaced.function.carried).eps)
        least = unit * abs(self(0.0))
        losses = [self(place * unit**_POWER * radius) for place in range(-2, 3)]
        difference = abs(math.fsum(weight * loss for weight, loss in zip(_FOURTH, losses))) / math.sqrt(70)
        return max(least, difference) if math.isfinite(difference) else least


def gradient_at(displaced: DisplacedLoss) -> torch.Tensor:
    """The gradient ``(n,)`` at the parameters, with that of the l2 term, in float64."""
    return displaced.gradient()[1] + displaced.task.l2 * displaced.theta
