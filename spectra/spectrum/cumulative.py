"""The cumulative distribution of the eigenvalues with rigorous bounds, and the fraction of negative eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import CONFIDENCE, Estimate
from spectra.spectrum.fractions import CountCurve, count, count_curve, fraction
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal


@dataclass(frozen=True, eq=False)
class Cumulative:
    """``F(x)``, the fraction of eigenvalues at or below ``x``, with bounds at every point. All of the shape of ``x``.

    The bounds are pointwise: each holds at its own ``x`` with the stated confidence.
    """

    x: np.ndarray  # in units of the eigenvalues
    value: np.ndarray  # mean Ritz mass at or below x, each probe's clipped to its own bounds
    stderr: np.ndarray | None  # over probes; None with one probe
    lower: np.ndarray  # the Chebyshev-Markov-Stieltjes bounds with the error of the probes
    upper: np.ndarray
    bracket_lower: np.ndarray  # the same bounds averaged over the probes, without their error
    bracket_upper: np.ndarray
    num_probes: int
    confidence: float = CONFIDENCE


def cdf(q: Quadrature, x: np.ndarray) -> np.ndarray:
    """The Ritz mass at or below each ``x``, averaged over probes: ``(1/k) sum_i sum_k tau_ik [theta_ik <= x]``.

    An eigenvalue that has converged in every probe has the weight ``1/n`` in all of them.
    """
    at = np.asarray(x, dtype=np.float64)
    total = np.zeros(at.shape)
    for nodes, weights in q.rules:
        order = np.argsort(nodes, kind="stable")
        below = np.concatenate([[0.0], np.cumsum(weights[order])])
        total += below[np.searchsorted(nodes[order], at, side="right")]
    return np.asarray(np.minimum(np.where(total > q.num_probes * (1 - 1e-13), q.num_probes, total) / q.num_probes, 1.0))


def cumulative(q: Quadrature, x: np.ndarray | float) -> Cumulative:
    """``F(x)``, with bounds that hold whatever the spectrum between the Ritz values is.

    For each probe the Radau rule with a node at ``x`` bounds the mass below ``x`` and up to ``x`` (Chebyshev, Markov,
    Stieltjes); the products' noise ``e = noise |H|_2`` moves an eigenvalue by at most ``e`` (Weyl), so the lower bound
    is that at ``x - e`` and the upper that at ``x + e``. The bounds are averaged, and the error of the probes is added
    as in `fractions.fraction`. The cost is two Radau rules for every point and probe.

    Args:
        q: the quadrature rules of the probes.
        x: finite numbers, of any shape.

    Raises:
        ArgumentError: NaN or infinity among them.

    References:
        G. Golub, G. Meurant, Matrices, Moments and Quadrature with Applications (2010), section 6.4.
    """
    points = np.array(x, dtype=np.float64)
    if not np.isfinite(points).all():
        raise ArgumentError(f"x={points[~np.isfinite(points)].flat[0]:g}: finite numbers are needed")
    found = [
        fraction([_up_to(t, float(at), q.blur) for t in q.tridiagonals], q.n, q.distribution) for at in points.ravel()
    ]

    def column(name: str) -> np.ndarray:
        return np.array([getattr(point, name) for point in found], dtype=np.float64).reshape(points.shape)

    k = q.num_probes
    return Cumulative(
        points,
        column("value"),
        column("stderr") if k > 1 else None,
        column("lower"),
        column("upper"),
        column("bracket_lower"),
        column("bracket_upper"),
        k,
    )


def _up_to(t: Tridiagonal, x: float, blur: float) -> tuple[float, float, float]:
    """Lower and upper bound of one probe's measure of ``lambda <= x``, and its Ritz mass."""
    margin = blur + t.defect
    return t.distribution_bounds(x - margin)[0], t.distribution_bounds(x + margin)[1], t.mass(-inf, x)


def negative_curve(q: Quadrature, taus: np.ndarray | None = None) -> CountCurve:
    """The fraction of eigenvalues with ``lambda < -tau``, for several tolerances; see `fractions.count_curve`.

    Args:
        q: the quadrature rules of the probes.
        taus: (G,) in units of the eigenvalues, at least 0; by default ``|H|_2 10^-1 .. 10^-7``.

    Raises:
        ArgumentError: a tolerance that is negative or not finite.
    """
    return count_curve(q, _below, taus)


def negative_mass(q: Quadrature, tau: float | None = None) -> Estimate:
    """The fraction of eigenvalues with ``lambda < -tau``, or the statement that it is not resolved.

    At ``tau = 0`` it is never resolved, unless the operator is zero: rounding moves the many zero eigenvalues of a
    network to either side of 0. By default ``tau`` is the smallest tolerance that the steps resolve, and it is part of
    the answer: the eigenvalues between ``-tau`` and 0 are not counted.

    Args:
        q: the quadrature rules of the probes.
        tau: in units of the eigenvalues.

    Raises:
        ArgumentError: ``tau`` is negative or not finite.
    """
    return count(q, _below, tau)


def _below(t: Tridiagonal, tau: float, blur: float) -> tuple[float, float, float]:
    """Lower and upper bound of one probe's measure of ``lambda < -tau``, and its Ritz mass."""
    margin = blur + t.defect
    low, high = t.distribution_bounds(-tau - margin)[0], t.distribution_bounds(-tau + margin)[1]
    if margin == 0 and t.exhausted:  # all is exact, and an atom at -tau itself does not lie below it
        high = low
    return low, high, float(t.weights[t.nodes < -tau].sum())
