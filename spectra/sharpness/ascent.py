"""Projected gradient ascent over a ball: a lower bound of a maximum, and the first-order gap at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from spectra.errors import ArgumentError

_SMALLEST_STEP = 1e-8  # in units of the radius


@dataclass(frozen=True)
class Ball:
    """``|u|_p <= radius``, for ``p`` 2 or infinity."""

    radius: float
    p: float = 2

    def project(self, u: torch.Tensor) -> torch.Tensor:
        """The nearest point of the ball."""
        if self.p != 2:
            return u.clamp(-self.radius, self.radius)
        norm = float(u.norm())
        return u if norm <= self.radius else u * (self.radius / norm)

    def farthest(self, slope: torch.Tensor) -> torch.Tensor:
        """The point of the ball at which ``<slope, u>`` is greatest; zero for a slope of zero."""
        if self.p != 2:
            return self.radius * slope.sign()
        norm = float(slope.norm())
        return slope * (self.radius / norm) if norm > 0 else torch.zeros_like(slope)

    def gap(self, slope: torch.Tensor, u: torch.Tensor) -> float:
        """``1 - <slope, u> / max_{|u'| <= radius} <slope, u'>``: 0 at a stationary point, at most 2; 0 for no slope."""
        most = float(slope @ self.farthest(slope))
        return max(0.0, 1 - float(slope @ u) / most) if most > 0 else 0.0


@dataclass(frozen=True)
class Summit:
    """Where an ascent ended."""

    u: torch.Tensor
    value: float
    gap: float
    steps: int


def climb(
    value: Callable[[torch.Tensor], float],
    slope: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    ball: Ball,
    start: torch.Tensor,
    steps: int,
) -> Summit:
    """The greatest value found by projected ascent from a point of the ball.

    A step goes to the projection of ``u + size * farthest(slope)``, with the size halved until the value grows.

    Args:
        value: the function at a point.
        slope: the value at a point and its gradient.
        ball: the domain.
        start: a point of the ball.
        steps: at most.
    """
    u, size, steps_taken = start, 1.0, 0
    best, direction = slope(u)
    while steps_taken < steps:
        aim = ball.farthest(direction)
        while size > _SMALLEST_STEP:
            new = ball.project(u + size * aim)
            if value(new) > best:
                break
            size /= 2
        else:
            break
        u, steps_taken, size = new, steps_taken + 1, min(1.0, 2 * size)
        best, direction = slope(u)
    return Summit(u, best, ball.gap(direction, u), steps_taken)


def check_counts(draws: int, steps: int, seed: int) -> None:
    """Refuse numbers of draws, steps and seeds outside their range.

    Raises:
        ArgumentError: one of them outside its range.
    """
    if draws < 2:
        raise ArgumentError(f"draws={draws}: at least 2 are needed for a standard error")
    if steps < 0:
        raise ArgumentError(f"steps={steps}: at least 0 is needed; 20 is the default")
    if seed < 0:
        raise ArgumentError(f"seed={seed}: at least 0 is needed")
