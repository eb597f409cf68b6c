"""Counts: the fraction of the eigenvalues in a region, with a bracket that contains the error of the Lanczos steps.

A probe's measure of a region has the fraction as its mean, and the Radau rules at the region's ends bracket that
measure rigorously. This module combines the error of the probes with the bracket, for every count: eigenvalues near
zero (`degeneracy`), below a point or below zero (`cumulative`). A count belongs to a tolerance ``tau``. A wide bracket
means that ``m`` steps do not separate the eigenvalues inside from those outside: the result is then the bracket and no
single number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import TypeAlias

import numpy as np
from scipy.special import betainc

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import CONFIDENCE, Estimate, t_quantile
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal

# A bracket narrower than this counts as resolved.
RESOLUTION = 0.02

# Tolerances this close to the noise of the products say nothing about the operator.
_ABOVE_NOISE = 10.0

# The rounding error of a sum of weights.
_ROUNDING = 1e-14

# One probe, tau, and the error of the products -> bounds of the probe's measure of the region, and its Ritz mass.
Masses: TypeAlias = Callable[[Tridiagonal, float, float], tuple[float, float, float]]


@dataclass(frozen=True, eq=False)
class CountCurve:
    """A count at ``G`` tolerances, descending, each with its bracket; as fractions of ``n``."""

    tau: np.ndarray  # (G,) in units of the eigenvalues
    value: np.ndarray  # (G,) mean Ritz mass of the region
    stderr: np.ndarray  # (G,) over probes; NaN with one probe
    lower: np.ndarray  # (G,) the bracket with the error of the probes
    upper: np.ndarray  # (G,)
    bracket_lower: np.ndarray  # (G,) mean over probes of the rigorous bracket of each probe's measure
    bracket_upper: np.ndarray  # (G,)
    resolved: np.ndarray  # (G,) bool: the bracket is narrower than 0.02
    num_probes: int

    def __len__(self) -> int:
        return int(self.tau.size)


@dataclass(frozen=True)
class Fraction:
    """A fraction of the eigenvalues: the mean Ritz mass of a region, with its standard error and brackets."""

    value: float
    stderr: float  # over probes; NaN with one probe
    lower: float  # the bracket with the error of the probes
    upper: float
    bracket_lower: float  # mean over probes of the rigorous bracket of each probe's measure
    bracket_upper: float


def default_tolerances(q: Quadrature) -> np.ndarray:
    """``|H|_2 10^-1 .. 10^-7``, four to the decade, descending, not below ten times the noise; (G,)."""
    if q.scale == 0:
        return np.zeros(1)
    relative = np.logspace(-1, -7, 25)
    return np.asarray(q.scale * relative[relative >= _ABOVE_NOISE * q.noise])


def count_curve(q: Quadrature, masses: Masses, taus: np.ndarray | None = None) -> CountCurve:
    """The fraction of eigenvalues in a region for several tolerances.

    A tolerance is resolved where its bracket is narrower than 0.02 and it is above the noise of the products,
    ``noise |H|_2``. Within the noise, rounding decides which eigenvalues are in the region. (The products of a zero
    operator are exact.)

    Args:
        q: the quadrature rules of the probes.
        masses: of one probe at one tolerance, for products with that error: bounds of its measure, its Ritz mass.
        taus: (G,) in units of the eigenvalues, at least 0; by default ``|H|_2 10^-1 .. 10^-7``, computed once.

    Raises:
        ArgumentError: a tolerance that is negative or not finite.
    """
    if taus is None:
        known = q.memory.get(masses)
        if not isinstance(known, CountCurve):
            known = q.memory[masses] = count_curve(q, masses, default_tolerances(q))
        return known
    tolerances = np.sort(np.atleast_1d(np.asarray(taus, dtype=np.float64)).ravel())[::-1]
    for tau in tolerances:
        if not (isfinite(tau) and tau >= 0):
            raise ArgumentError(f"tau={tau:g}: a finite tolerance of at least 0 is needed, in units of the eigenvalues")
    found = [
        fraction([masses(t, float(tau), q.blur) for t in q.tridiagonals], q.n, q.distribution) for tau in tolerances
    ]

    def column(name: str) -> np.ndarray:
        return np.array([getattr(point, name) for point in found], dtype=np.float64)

    narrow = column("bracket_upper") - column("bracket_lower") < RESOLUTION
    return CountCurve(
        tolerances,
        column("value"),
        column("stderr"),
        column("lower"),
        column("upper"),
        column("bracket_lower"),
        column("bracket_upper"),
        narrow & ((tolerances > q.blur) | (q.scale == 0)),
        q.num_probes,
    )


def fraction(masses: Sequence[tuple[float, float, float]], n: int, distribution: str) -> Fraction:
    """The mean of the probes' masses, and its bracket widened by the error of the probes.

    For sphere probes that error needs no sample: the mass of a projector has the law Beta(f n/2, (1-f) n/2), with the
    standard deviation ``sqrt(2 f (1 - f) / (n + 2))``, so ``lower`` and ``upper`` are the fractions for which the
    means of the brackets' ends lie at the 2.5 % and 97.5 % quantiles. For other probes they are Student's t over the
    ends. ``stderr`` is the scatter of the Ritz masses, or that standard deviation over ``sqrt(k)`` where it is larger.

    Args:
        masses: for each probe a lower bound, an upper bound and the Ritz mass, which is clipped to them.
        n: the number of rows.
        distribution: of the probes, ``"sphere"`` or ``"rademacher"``.

    References:
        L. Lin, Y. Saad, C. Yang, Approximating spectral densities of large matrices, SIAM Review 58 (2016).
    """
    low, high, ritz = np.array(masses, dtype=np.float64).T
    # A mass of 0 or 1 is certain; rounding must not change it.
    low, high = np.where(low < _ROUNDING, 0.0, low), np.where(high > 1 - _ROUNDING, 1.0, high)
    inside = np.minimum(np.maximum(ritz, low), high)
    k = inside.size
    value = float(inside.mean())
    law = _deviation(value, n, distribution) / sqrt(k)
    stderr = max(float(inside.std(ddof=1)) / sqrt(k), law) if k > 1 else np.nan
    bracket_lower, bracket_upper = float(low.mean()), float(high.mean())
    if distribution == "sphere":
        lower, upper = least_fraction(bracket_lower, n, k), 1 - least_fraction(1 - bracket_upper, n, k)
    else:
        below, above = (
            max(t_quantile(k) * float(ends.std(ddof=1)) / sqrt(k) if k > 1 else 0.0, 1.96 * law) for ends in (low, high)
        )
        lower, upper = max(0.0, bracket_lower - below), min(1.0, bracket_upper + above)
    return Fraction(value, stderr, lower, upper, bracket_lower, bracket_upper)


def least_fraction(mass: float, n: int, num_probes: int) -> float:
    """The smallest ``f`` for which a mean mass of at least ``mass`` over ``k`` sphere probes has probability 2.5 %.

    One probe's mass of a projector on ``f n`` of ``n`` dimensions has the law Beta(f n/2, (1-f) n/2). The mean over
    ``k`` of them is given the Beta law with its mean and variance, ``nu = k (n/2 + 1) - 1`` in place of ``n/2``.
    """
    nu = num_probes * (n / 2 + 1) - 1
    if mass <= 0 or mass >= 1:
        return min(max(mass, 0.0), 1.0)  # a mass of 0 or 1 is certain: any other part would have been seen
    low, high = 0.0, mass
    for _ in range(50):
        f = (low + high) / 2
        reached = float(betainc((1 - f) * nu, f * nu, 1 - mass))  # the probability of a mean of at least mass
        low, high = (f, high) if reached < (1 - CONFIDENCE) / 2 else (low, f)
    return low


def _deviation(value: float, n: int, distribution: str) -> float:
    """The standard deviation of one probe's mass of a projector that holds the fraction ``value`` of ``n`` directions.

    Exact for sphere probes. For Rademacher ones an upper bound: the variance ``2 (|P|_F^2 - sum P_jj^2) / n^2`` is at
    most ``2 value / n``, and the same for the complement.
    """
    if distribution == "sphere":
        return sqrt(2 * max(0.0, value * (1 - value)) / (n + 2))
    return sqrt(2 * max(0.0, min(value, 1 - value)) / n)


def count(q: Quadrature, masses: Masses, tau: float | None = None) -> Estimate:
    """The fraction of eigenvalues in a region, or the statement that it is not resolved.

    Without ``tau`` the answer is that of the smallest resolved tolerance of the curve. Where none is resolved, the
    bracket of the tolerance with the narrowest one is the result, ``stderr`` is None and ``value`` means nothing.

    Args:
        q: the quadrature rules of the probes.
        masses: as in `count_curve`.
        tau: in units of the eigenvalues. At or below the noise of the products nothing can be resolved.

    Raises:
        ArgumentError: ``tau`` is negative or not finite.
    """
    steps = max(t.steps for t in q.tridiagonals)
    if tau is not None:
        curve = count_curve(q, masses, np.array([tau]))
        note = f"not resolved with m = {steps} steps at tau={tau:.2g}"
        if tau <= q.blur and not curve.resolved[0]:
            note = f"not resolved: tau={tau:.2g} is within the noise of the products, {q.blur:.2g}"
        return _at(curve, 0, note)
    curve = count_curve(q, masses)
    if len(curve) == 0:
        note = f"not resolved: the noise of the products, {q.noise:.1e} of |H|_2, leaves no tolerance"
        widest = count(q, masses, 0.1 * q.scale)
        return replace(widest, stderr=None, resolved=False, note=note)
    if curve.resolved.any():
        return _at(curve, int(np.flatnonzero(curve.resolved)[-1]), None)
    narrowest = int(np.argmin(curve.bracket_upper - curve.bracket_lower))
    return _at(curve, narrowest, f"not resolved with m = {steps} steps")


def _at(curve: CountCurve, index: int, note: str | None) -> Estimate:
    resolved = bool(curve.resolved[index])
    stderr = float(curve.stderr[index])
    return Estimate(
        float(curve.value[index]),
        stderr if resolved and curve.num_probes > 1 else None,
        float(curve.lower[index]),
        float(curve.upper[index]),
        curve.num_probes,
        tau=float(curve.tau[index]),
        resolved=resolved,
        note=None if resolved else note,
    )
