"""Sharpness along one direction: a mean of the p-th power of the change of the loss over a short interval.

For a direction ``v`` and ``dL(t) = L(theta + t v) - L(theta)``::

    V = [ (1/delta) int_{-delta}^{delta} |dL(t) / delta|^p dt ]^{1/p},    p = inf: max_{|t| <= delta} |dL(t)| / delta

References:
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019,
    equations 5, 15 and 16. Equation 15 is printed with a plus sign, ``g(theta + c delta v) + g(theta - c delta v) -
    2 g(theta)``, which is of the wrong order in ``delta``; the difference of the two displaced gradients is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError

Gradient = Callable[[float], torch.Tensor]  # t -> the gradient of the loss at theta + t v
FORMS = ("corrected", "printed")


@dataclass(frozen=True)
class Interval:
    """The quadrature rule of the interval, and the sharpness from the changes of the loss at its nodes.

    Gauss-Legendre with ``nodes`` nodes; for odd ``p``, where ``|dL|^p`` has a kink at 0, half of them on each side. For
    infinite ``p`` the maximum is taken over Chebyshev nodes with both ends, so it is a lower bound.

    Args:
        delta: half the length of the interval, relative to the radius of each block.
        p: an integer of at least 1, or ``math.inf``.
        nodes: an even number of at least 2.

    Raises:
        ArgumentError: one of them outside its range.
    """

    delta: float
    p: float = 2
    nodes: int = 8
    t: np.ndarray[Any, Any] = field(init=False, repr=False)  # (nodes,)
    weights: np.ndarray[Any, Any] = field(init=False, repr=False)  # (nodes,), of (1/delta) int dt: their sum is 2

    def __post_init__(self) -> None:
        check_delta_and_p(self.delta, self.p)
        if self.nodes < 2 or self.nodes % 2:
            raise ArgumentError(f"nodes={self.nodes}: an even number of at least 2 is needed; 8 is the default")
        if self.p == math.inf:
            x, weights = np.cos(np.pi * np.arange(self.nodes) / (self.nodes - 1)), np.zeros(self.nodes)
        elif self.p % 2 == 0:
            x, weights = np.polynomial.legendre.leggauss(self.nodes)
        else:
            half, share = np.polynomial.legendre.leggauss(self.nodes // 2)
            x = np.concatenate([(half - 1) / 2, (half + 1) / 2])
            weights = np.concatenate([share, share]) / 2
        object.__setattr__(self, "t", self.delta * x)
        object.__setattr__(self, "weights", weights)

    def value(self, changes: np.ndarray[Any, Any]) -> float:
        """``V`` from ``dL`` at the nodes."""
        ratios = np.abs(changes) / self.delta
        largest = float(ratios.max())
        if self.p == math.inf or largest == 0:
            return largest
        return float(largest * (self.weights @ (ratios / largest) ** self.p) ** (1 / self.p))

    def shares(self, changes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """``a_j`` with ``dV = sum_j a_j d(dL_j)``, from ``dL`` at the nodes; zero where ``V`` is.

        The gradients of ``V`` follow, with ``g_j`` the gradient of the loss at node ``j`` and ``g_0`` at ``theta``::

            grad_v V = sum_j a_j t_j g_j,    grad_theta V (v fixed) = sum_j a_j (g_j - g_0)

        and those of ``F = V^p`` are ``p V^{p-1}`` times as long.
        """
        value = self.value(changes)
        if value == 0:
            return np.zeros(self.nodes)
        signs = np.sign(changes) / self.delta
        if self.p == math.inf:
            only: np.ndarray[Any, Any] = np.where(np.arange(self.nodes) == np.abs(changes).argmax(), signs, 0.0)
            return only
        shares: np.ndarray[Any, Any] = self.weights * signs * (np.abs(changes) / self.delta / value) ** (self.p - 1)
        return shares


def theta_slope(
    gradient: Gradient, slope: float, delta: float, p: float, *, form: str = "corrected", centre: torch.Tensor | None
) -> torch.Tensor:
    """``grad_theta V^p`` for a fixed ``v`` from two gradients, to a relative error of order ``delta^2``.

    ``(1/delta) s^{p-1} [g(theta + c delta v) - g(theta - c delta v)]`` with ``c = p/(p+1)`` and ``s = g.v``, where
    ``s^{p-1}`` is ``sign(s) |s|^{p-1}``. It is exactly 0 where ``g.v`` is, as at a stationary point, which the true
    gradient is not.

    Args:
        gradient: ``t`` -> the gradient of the loss at ``theta + t v``.
        slope: ``g.v``.
        delta: half the length of the interval.
        p: the power.
        form: "corrected", or "printed": equation 15 as it stands in the paper, kept for comparison. Where the loss
            is smooth it is ``delta`` times a third derivative, in place of a second one: nearly nothing.
        centre: ``g(theta)``, which the printed form needs.
    """
    reach = p / (p + 1) * delta
    if form == "corrected":
        difference = gradient(reach) - gradient(-reach)
    else:
        assert centre is not None
        difference = gradient(reach) + gradient(-reach) - 2 * centre
    return signed_power(slope, p - 1) / delta * difference


def direction_slope(gradient: Gradient, slope: float, delta: float, p: float) -> torch.Tensor:
    """``grad_v V^p`` from two gradients, equation 16, to a relative error of order ``delta^2``.

    ``p/(p+1) s^{p-1} [g(theta + k delta v) + g(theta - k delta v)]`` with ``k = (p+1)/(p+2)`` and ``s = g.v``.
    """
    reach = (p + 1) / (p + 2) * delta
    return p / (p + 1) * signed_power(slope, p - 1) * (gradient(reach) + gradient(-reach))


def signed_power(number: float, power: float) -> float:
    """``sign(s) |s|^power``, with ``0`` for ``s = 0``."""
    return math.copysign(abs(number) ** power, number) if number else 0.0


def check_delta_and_p(delta: float, p: float, *, finite: bool = False) -> None:
    """Refuse a length that is not positive and a power that is not an integer or infinite.

    Raises:
        ArgumentError: one of them outside its range.
    """
    if not (math.isfinite(delta) and delta > 0):
        raise ArgumentError(f"delta={delta}: a positive number is needed; 1e-3 is the default")
    if not (p >= 1 and (p == math.inf or p == int(p))) or (finite and p == math.inf):
        raise ArgumentError(f"p={p}: an integer of at least 1{'' if finite else ', or inf,'} is needed; 2 is usual")
