"""Search: the ascent to the direction of greatest BN-sharpness, on a product of spheres.

References:
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019, equations
    14, 16 and 17. Equation 17 adds the gradient itself, whose length depends on the scale of the loss; here a step is
    relative to the length of the gradient, or has no size at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from spectra.operators.displaced import DisplacedLoss
from spectra.sharpness.blocks import Blocks
from spectra.sharpness.bn_neurons import Neurons
from spectra.sharpness.draws import gaussian
from spectra.sharpness.interval import Interval, direction_slope

_ARMIJO = 0.25  # required share of the gain predicted by the slope; a small share lets steps overshoot
_PARTS = (1 / 2, 1 / 4, 1 / 8)  # fractions tried for a power step without gain
_NO_GAIN = 1e-12  # relative: a step that gains less ends the search


@dataclass
class Point:
    """A direction, the sharpness along it, and the gradient of that in the direction."""

    v: torch.Tensor
    value: float
    slope: torch.Tensor


class Search:
    """The search for the direction of greatest sharpness, from below.

    Args:
        loss: the loss.
        neurons: the blocks that keep the length of their weights.
        interval: the sharpness along a direction.
        gradient: "quadrature" or "two-point".
        seed: of the random directions, for blocks without gradient.
    """

    def __init__(self, loss: DisplacedLoss, neurons: Neurons, interval: Interval, gradient: str, seed: int) -> None:
        self.loss, self.interval, self.gradient = loss, interval, gradient
        self.blocks = Blocks(loss.function.names, loss.function.theta, neurons.channels)
        self.radii = self.blocks.radii(loss.theta)
        self.base, self.centre = loss.gradient()
        self._random = next(gaussian(loss.n, 1, seed))[0].to(loss.device)

    def value(self, v: torch.Tensor, interval: Interval | None = None) -> float:
        """The sharpness along a direction."""
        interval = interval or self.interval
        return interval.value(np.array([self.loss.loss(t * v) - self.base for t in interval.t]))

    def point(self, v: torch.Tensor) -> Point:
        """The sharpness along a direction, and its gradient in the direction."""
        if self.gradient == "two-point":
            p, delta = self.interval.p, self.interval.delta
            slope = direction_slope(lambda t: self.loss.gradient(t * v)[1], float(self.centre @ v), delta, p)
            return Point(v, self.value(v), slope)
        return self._by_quadrature(v)

    def _by_quadrature(self, v: torch.Tensor) -> Point:
        both = [self.loss.gradient(t * v) for t in self.interval.t]
        changes = np.array([loss - self.base for loss, _ in both])
        slope = torch.zeros_like(v)
        for share, t, (_, gradient) in zip(self.interval.shares(changes), self.interval.t, both):
            slope.add_(gradient, alpha=float(share * t))
        return Point(v, self.interval.value(changes), slope)

    def start(self) -> Point:
        """The maximiser for ``delta -> 0``: the gradient of the loss, each block at its radius."""
        norms = self.blocks.norms(self.centre)
        direction = torch.where(self.blocks.spread(norms) > 0, self.centre, self._random)
        return self.point(self.blocks.on_spheres(direction, self.radii))

    def ascend(self, method: str, start: Point, steps: int) -> tuple[Point, int]:
        """The best point found, and the number of steps that led there."""
        take: Callable[[Point, float], tuple[Point | None, float]]
        take = self._power if method == "power" else self._riemannian
        best, size = start, 1.0
        for step in range(steps):
            new, size = take(best, size)
            if new is None or new.value <= best.value * (1 + _NO_GAIN):
                return best, step
            best = new
        return best, steps

    def _power(self, here: Point, size: float) -> tuple[Point | None, float]:
        """Each block at the direction of its gradient; where that does not gain, a part of the way there."""
        norms = self.blocks.norms(here.slope)  # a block without slope stays where it is
        direction = torch.where(self.blocks.spread(norms) > 0, here.slope, here.v)
        aim = self.blocks.on_spheres(direction, self.radii)
        full_step = self.point(aim)
        if full_step.value > here.value * (1 + _NO_GAIN):
            return full_step, size
        for part in _PARTS:
            v = self.blocks.on_spheres(here.v + part * (aim - here.v), self.radii)
            if self.value(v) > here.value * (1 + _NO_GAIN):
                return self.point(v), size
        return None, size

    def _riemannian(self, here: Point, size: float) -> tuple[Point | None, float]:
        """A step along the tangential gradient, each block in units of its radius, halved until it gains enough."""
        across = self.blocks.tangent(here.slope, here.v, self.radii)
        norms = self.blocks.norms(here.slope)
        rates = torch.where(norms > 0, self.radii / norms.clamp_min(torch.finfo(norms.dtype).tiny), norms)
        step = across * self.blocks.spread(rates)
        gain = float(step @ here.slope)
        while size > 1e-10 and gain > 0:
            v = self.blocks.on_spheres(here.v + size * step, self.radii)
            if self.value(v) >= here.value + _ARMIJO * size * gain:
                return self.point(v), 2 * size
            size /= 2
        return None, size

    def violation(self, here: Point) -> float:
        """The norm of the tangential gradient over that of the gradient, each block times its radius; 0 where both are.

        In these units a rescaling of BN neurons does not change it.
        """
        if self.gradient != "quadrature":
            here = self._by_quadrature(here.v)
        across = self.blocks.tangent(here.slope, here.v, self.radii)
        full_norm, tangent_norm = (float((self.blocks.norms(x) * self.radii).norm()) for x in (here.slope, across))
        return tangent_norm / full_norm if full_norm > 0 else 0.0
