"""Log-scales of noise from a finite set: the best one for each entry, or of the rows and columns of a matrix.

For ``h_ij >= 0`` (the curvature) and ``u_ij = w_ij^2`` they minimise ``sum (h e^t + u e^-t) / 2``: the rise of the
quadratic model under noise of variance ``e^t``, and the divergence from a prior of the same variance around 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from spectra.sharpness.balancing import Array

_SWEEPS, _BALANCED = 500, 1e-8


def noise_cost(h: Array, u: Array, t: Array) -> float:
    """``sum (h e^t + u e^-t) / 2``."""
    s = np.exp(t)
    return float((h * s + u / s).sum()) / 2


def scale_of_each(h: Array, u: Array, log_scales: Array) -> Array:
    """The best ``t`` of a sorted set for each entry."""
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.nan_to_num((np.log(u) - np.log(h)) / 2, nan=0.0, posinf=np.inf, neginf=-np.inf)
    above = np.searchsorted(log_scales, best)
    ends = (log_scales[np.maximum(above - 1, 0)], log_scales[np.minimum(above, len(log_scales) - 1)])
    low, high = (h * np.exp(t) + u * np.exp(-t) for t in ends)
    chosen: Array = np.where(low <= high, *ends)
    return chosen


def one_each(h: Array, u: Array, log_scales: Array) -> float:
    """``sum_i min_{t in B} (h_i e^t + u_i e^-t) / 2``: a scale of its own for each, from a sorted set."""
    return noise_cost(h, u, scale_of_each(h, u, log_scales))


def scales_in_box(h: Array, u: Array, log_scales: Array) -> tuple[Array, Array, float]:
    """``x``, ``y`` of a set for ``t_ij = x_i + y_j``, and a certificate.

    The problem is convex, so that minimising over ``x`` and ``y`` in turn, each in closed form and brought into the
    interval, leads to its least value over the box ``[-R, R]``. The scales are then rounded to the set. The certificate
    is of before: the largest derivative that the box leaves free, relative to the value.
    """
    low, high = math.exp(log_scales[0]), math.exp(log_scales[-1])
    a, b = np.ones(h.shape[0]), np.ones(h.shape[1])

    def best(down: Array, up: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Array = np.clip(np.nan_to_num(np.sqrt(down / up), nan=1.0, posinf=high), low, high)
        return ratio

    def violation(at: Array, up: Array, down: Array) -> float:
        slope = up - down
        slope = np.where(at <= low, np.minimum(slope, 0), np.where(at >= high, np.maximum(slope, 0), slope))
        return float(np.abs(slope).max(initial=0.0))

    certificate = math.inf
    for _ in range(_SWEEPS):
        a = best(u @ (1 / b), h @ b)
        b = best(u.T @ (1 / a), h.T @ a)
        up, down = a * (h @ b), (u @ (1 / b)) / a
        value = float(up.sum() + down.sum())
        certificate = violation(a, up, down) / value if value > 0 else 0.0
        if certificate <= _BALANCED:
            break
    nearest = _nearest(log_scales)
    return nearest(np.log(a)), nearest(np.log(b)), certificate


def in_box(h: Array, u: Array, log_scales: Array) -> tuple[float, float]:
    """The cost at the scales of :func:`scales_in_box`, and their certificate."""
    x, y, certificate = scales_in_box(h, u, log_scales)
    return noise_cost(h, u, x[:, None] + y[None, :]), certificate


def _nearest(log_scales: Array) -> Callable[[Array], Array]:
    """The nearest of an evenly spaced set."""
    step = (log_scales[-1] - log_scales[0]) / max(1, len(log_scales) - 1)

    def nearest(values: Array) -> Array:
        places = np.round((values - log_scales[0]) / step) if step > 0 else np.zeros_like(values)
        rounded: Array = log_scales[np.clip(places.astype(int), 0, len(log_scales) - 1)]
        return rounded

    return nearest
