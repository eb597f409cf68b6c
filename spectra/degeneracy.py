"""Rank degeneracy: which fraction of the eigenvalues is zero, as far as ``m`` Lanczos steps can tell.

The count belongs to a tolerance: ``f(tau)`` is the fraction of eigenvalues with ``|lambda| <= tau``. A probe's measure
of ``[-tau, tau]`` has the mean ``f(tau)``, and the Radau rules at both ends bracket that measure rigorously. A wide
bracket means that ``m`` steps cannot tell what lies inside ``tau`` from what lies outside: the bracket is then the
result, and no number is. The procedure of Granziol (2020), which takes the Ritz values closest to 0, is here too; its
answer depends on ``m`` wherever the spectrum is continuous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt

import numpy as np
from scipy.special import betainc

from spectra.errors import ArgumentError
from spectra.estimates import CONFIDENCE, Estimate, mean_estimate, spectral_scale, t_quantile
from spectra.tridiagonal import Tridiagonal

# A bracket narrower than this counts as resolved.
RESOLUTION = 0.02

# Tolerances this close to the noise of the products say nothing about the operator.
_ABOVE_NOISE = 10.0


@dataclass(frozen=True, eq=False)
class DegeneracyCurve:
    """``f(tau)`` over tolerances, each with its bracket. Fractions of ``n``; ``G`` tolerances, descending."""

    tau: np.ndarray  # (G,) in units of the eigenvalues
    value: np.ndarray  # (G,) mean Ritz mass of [-tau, tau]
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
class Closest:
    """What the Ritz values closest to 0 carry, by the procedure of Granziol (2020)."""

    mass: Estimate  # their summed weight, as a fraction of n
    value: Estimate  # their weighted mean: small also by cancellation of signs, so see reach
    reach: Estimate  # the larger of their absolute values


def default_tolerances(tridiagonals: Sequence[Tridiagonal], noise: float) -> np.ndarray:
    """``|H|_2 10^-1 .. 10^-7``, four to the decade, descending, not below ten times the noise; (G,)."""
    scale = spectral_scale(tridiagonals)
    if scale == 0:
        return np.zeros(1)
    relative = np.logspace(-1, -7, 25)
    return np.asarray(scale * relative[relative >= _ABOVE_NOISE * noise])


def degeneracy_curve(
    tridiagonals: Sequence[Tridiagonal], n: int, noise: float, distribution: str, taus: np.ndarray | None = None
) -> DegeneracyCurve:
    """``f(tau)``, the fraction of eigenvalues in ``[-tau, tau]``, for several tolerances.

    ``value`` is the mean over probes of ``sum_k tau_ik [|theta_ik| <= tau]``. The products' noise ``e = noise |H|_2``
    moves every eigenvalue by at most ``e`` (Weyl): the lower end of a bracket is that of ``[-(tau - e), tau - e]``,
    the upper that of ``[-(tau + e), tau + e]``. ``lower`` and ``upper`` add the error of the probes, which for sphere
    probes needs no sample: the mass of a projector has the law Beta(f n/2, (1-f) n/2), with the standard deviation
    ``sqrt(2 f (1 - f) / (n + 2))``, so they are the fractions for which the means of the brackets' ends lie at the
    2.5 % and 97.5 % quantiles. For other probes they are Student's t over the ends. ``stderr`` is the scatter of the
    Ritz masses, or that standard deviation over ``sqrt(k)`` where it is larger.

    Args:
        taus: (G,) in units of the eigenvalues, at least 0; by default ``|H|_2 10^-1 .. 10^-7``.

    Raises:
        ArgumentError: a tolerance that is negative or not finite.

    References:
        G. Golub, G. Meurant, Matrices, Moments and Quadrature with Applications (2010), section 6.4; L. Lin, Y. Saad,
        C. Yang, Approximating spectral densities of large matrices, SIAM Review 58 (2016).
    """
    if taus is None:
        tolerances = default_tolerances(tridiagonals, noise)
    else:
        tolerances = np.sort(np.atleast_1d(np.asarray(taus, dtype=np.float64)).ravel())[::-1]
    for tau in tolerances:
        if not (isfinite(tau) and tau >= 0):
            raise ArgumentError(f"tau={tau:g}: a finite tolerance of at least 0 is needed, in units of the eigenvalues")
    blur = noise * spectral_scale(tridiagonals)
    points = [_point(tridiagonals, n, blur, distribution, float(tau)) for tau in tolerances]
    columns = [np.array(column) for column in zip(*points)] if points else [np.zeros(0)] * 6
    value, stderr, lower, upper, bracket_lower, bracket_upper = columns
    resolved = (bracket_upper - bracket_lower < RESOLUTION) & ((tolerances > blur) | (blur == 0))
    return DegeneracyCurve(
        tolerances, value, stderr, lower, upper, bracket_lower, bracket_upper, resolved, len(tridiagonals)
    )


def _point(
    tridiagonals: Sequence[Tridiagonal], n: int, blur: float, distribution: str, tau: float
) -> tuple[float, float, float, float, float, float]:
    """value, stderr, lower, upper, bracket_lower, bracket_upper at one tolerance."""
    low, high, inside = np.array([_probe_masses(t, tau, blur) for t in tridiagonals]).T
    k = len(tridiagonals)
    fraction = float(inside.mean())
    law = _deviation(fraction, n, distribution) / sqrt(k)
    stderr = max(float(inside.std(ddof=1)) / sqrt(k), law) if k > 1 else np.nan
    bracket_lower, bracket_upper = float(low.mean()), float(high.mean())
    if distribution == "sphere":
        lower, upper = least_fraction(bracket_lower, n, k), 1 - least_fraction(1 - bracket_upper, n, k)
    else:
        below, above = (
            max(t_quantile(k) * float(ends.std(ddof=1)) / sqrt(k) if k > 1 else 0.0, 1.96 * law) for ends in (low, high)
        )
        lower, upper = max(0.0, bracket_lower - below), min(1.0, bracket_upper + above)
    return fraction, stderr, lower, upper, bracket_lower, bracket_upper


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


def _probe_masses(t: Tridiagonal, tau: float, blur: float) -> tuple[float, float, float]:
    """Bounds of one probe's measure of ``|lambda| <= tau`` and its Ritz mass, which is put between them."""
    margin = blur + t.defect
    inner, outer = tau - margin, tau + margin
    low = t.bracket(-inner, inner)[0] if inner >= 0 else 0.0
    high = t.bracket(-outer, outer)[1]
    return low, high, min(max(t.mass(-tau, tau), low), high)


def _deviation(fraction: float, n: int, distribution: str) -> float:
    """The standard deviation of one probe's mass of a projector that holds ``fraction`` of ``n`` directions.

    Exact for sphere probes. For Rademacher ones an upper bound: the variance ``2 (|P|_F^2 - sum P_jj^2) / n^2`` is at
    most ``2 fraction / n``, and the same for the complement.
    """
    if distribution == "sphere":
        return sqrt(2 * max(0.0, fraction * (1 - fraction)) / (n + 2))
    return sqrt(2 * max(0.0, min(fraction, 1 - fraction)) / n)


def rank_degeneracy(
    tridiagonals: Sequence[Tridiagonal],
    n: int,
    noise: float,
    distribution: str,
    tau: float | None = None,
    curve: DegeneracyCurve | None = None,
) -> Estimate:
    """The fraction of eigenvalues with ``|lambda| <= tau``, or the statement that it is not resolved.

    Without ``tau`` the answer is that of the smallest resolved tolerance of the curve. Where none is resolved, the
    bracket of the tolerance with the narrowest one is the result, ``stderr`` is None and ``value`` means nothing.

    Args:
        tau: in units of the eigenvalues. At or below the noise of the products nothing can be resolved.
        curve: the curve over the default tolerances, if it has been computed already.

    Raises:
        ArgumentError: ``tau`` is negative or not finite.
    """
    steps = max(t.steps for t in tridiagonals)
    blur = noise * spectral_scale(tridiagonals)
    if tau is not None:
        curve = degeneracy_curve(tridiagonals, n, noise, distribution, np.array([tau]))
        if not curve.resolved[0] and blur > 0 and tau <= blur:
            note = f"not resolved: tau={tau:.2g} is within the noise of the products, {blur:.2g}"
        else:
            note = f"not resolved with m = {steps} steps at tau={tau:.2g}"
        return _at(curve, 0, note)
    if curve is None:
        curve = degeneracy_curve(tridiagonals, n, noise, distribution)
    if len(curve) == 0:
        note = f"not resolved: the noise of the products, {noise:.1e} of |H|_2, leaves no tolerance"
        widest = rank_degeneracy(tridiagonals, n, noise, distribution, 0.1 * spectral_scale(tridiagonals))
        return replace(widest, stderr=None, resolved=False, note=note)
    if curve.resolved.any():
        return _at(curve, int(np.flatnonzero(curve.resolved)[-1]), None)
    narrowest = int(np.argmin(curve.bracket_upper - curve.bracket_lower))
    return _at(curve, narrowest, f"not resolved with m = {steps} steps")


def _at(curve: DegeneracyCurve, index: int, note: str | None) -> Estimate:
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


def closest(tridiagonals: Sequence[Tridiagonal], count: int) -> Closest:
    """The ``count`` Ritz values closest to 0: their mass, weighted mean and reach, per probe, then averaged.

    Never pooled before choosing, since pooling multiplies the nodes and shrinks each weight. Granziol takes one for
    the generalised Gauss-Newton matrix and two for the Hessian, at ``m = 100``. The mass depends on ``m`` unless 0 is
    an isolated eigenvalue: it is a comparison with published numbers, and ``rank_degeneracy`` is the measurement.

    Args:
        count: 1 or 2.

    Raises:
        ArgumentError: another ``count``.

    References:
        D. Granziol, Flatness is a False Friend, arXiv:2006.09091 (2020), section 3.2 and appendix D (closest in
        absolute value).
    """
    if count not in (1, 2):
        raise ArgumentError(f"count={count}: 1 (as for the Gauss-Newton matrix) or 2 (as for the Hessian) is needed")
    rows = []
    for t in tridiagonals:
        chosen = np.argsort(np.abs(t.nodes), kind="stable")[:count]
        mass = float(t.weights[chosen].sum())
        mean = float(t.weights[chosen] @ t.nodes[chosen]) / mass if mass > 0 else float(t.nodes[chosen].mean())
        rows.append((min(1.0, mass), mean, float(np.abs(t.nodes[chosen]).max())))
    masses, means, reaches = np.array(rows).T
    return Closest(
        mean_estimate(masses, least=0.0, greatest=1.0), mean_estimate(means), mean_estimate(reaches, least=0.0)
    )


def rank_bound_ff(d_y: int, units: int, d_x: int) -> int:
    """``4 d_y (sum_l N_l + d_x)``, which Granziol (2020) gives as a bound on the rank of the Hessian.

    A heuristic, to be printed beside a degeneracy and never asserted: its argument takes the rank of a product as the
    minimum of the ranks and counts second derivatives of products as rank one. A 16-48-2 ReLU network has a
    Gauss-Newton matrix of rank 768 where it says 528.

    Args:
        d_y: outputs.
        units: ``sum_l N_l`` over all layers, the outputs among them; a channel of a convolution counts as one unit.
        d_x: inputs.

    References:
        D. Granziol, Flatness is a False Friend, arXiv:2006.09091 (2020), section 3.2.

    Example:
        >>> rank_bound_ff(10, 13_416, 1_024)
        577600
    """
    for name, value in (("d_y", d_y), ("units", units), ("d_x", d_x)):
        if value < 0:
            raise ArgumentError(f"{name}={value}: a count of at least 0 is needed")
    return 4 * d_y * (units + d_x)
