"""Log-determinants and the effective dimension of ``H + g I``, with lower and upper bounds from quadrature.

``log(1 + x/g)`` and ``x / (x + g)`` have negative even and positive odd derivatives above ``-g``. So for each probe the
Gauss rule gives an upper bound, and the Gauss-Radau rule with a node at or below the smallest eigenvalue a lower one:
the bracket contains the error of the quadrature, whatever the spectrum between the Ritz values.

Every eigenvalue must be above ``-g``. A Ritz value at or below ``-g`` proves that the number does not exist. The
absence of such a Ritz value proves its existence only for an operator that is positive semidefinite by construction.

References:
    Z. Bai, G. Golub, Bounds for the trace of the inverse and the determinant of symmetric positive definite matrices,
    Annals of Numerical Mathematics 4 (1997); G. Golub, G. Meurant, Matrices, Moments and Quadrature with Applications
    (2010), section 6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite, log
from typing import Any

import numpy as np

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import CONFIDENCE, Estimate, mean_estimate, not_computed
from spectra.spectrum.extremes import lambda_min
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.traces import dominance
from spectra.spectrum.tridiagonal import Tridiagonal


@dataclass(frozen=True)
class _Floor:
    """A lower bound of the smallest eigenvalue, or None, and a warning about it."""

    node: float | None
    confidence: float  # of the interval over probes; larger where the floor holds only with a probability
    note: str | None


def evidence(q: Quadrature, g: float, semidefinite: bool = False) -> Estimate:
    """``sum_i log((lambda_i + g) / g) = log det(I + H/g)``, the curvature's part in a Laplace evidence.

    ``value`` is the middle of the bracket, averaged over probes; ``lower`` and ``upper`` are the averages of its ends
    with Student's t over the probes and what the noise of the products changes.

    Args:
        q: the quadrature rules of the probes.
        g: above 0, in units of the eigenvalues: the precision of a Gaussian prior (over N for a mean loss).
        semidefinite: whether the operator is positive semidefinite by its construction (Gauss-Newton, Fisher). If not,
            the smallest eigenvalue is bounded at 97.5 % from the random start; where that bound is not above ``-g``
            the result has no lower end. Either way its note says 'positivity not certified'.

    Returns:
        The estimate; NaN with the reason where a Ritz value is at or below ``-g``, or, with ``semidefinite``, below 0
        by more than the noise.

    Raises:
        ArgumentError: ``g`` is not a finite number above 0.
    """
    _check(g, q)
    least = 0.0 if semidefinite else -inf
    return _two_sided(q, g, semidefinite, _log_ratio, least, inf)


def log_determinant(q: Quadrature, g: float, semidefinite: bool = False) -> Estimate:
    """``log det(H + g I) = n log g + sum_i log((lambda_i + g) / g)``; arguments and bracket as in `evidence`."""
    found = evidence(q, g, semidefinite)
    shift = q.n * log(g)
    lower, upper = (None if end is None else end + shift for end in (found.lower, found.upper))
    return replace(found, value=found.value + shift, lower=lower, upper=upper)


def effective_dimension(q: Quadrature, g: float, semidefinite: bool = False) -> Estimate:
    """``sum_i lambda_i / (lambda_i + g)``, how many directions the data determine against a prior of precision ``g``.

    It is defined for positive semidefinite operators only: where a Ritz value is below 0 by more than the noise, the
    result is NaN with the reason. Arguments and bracket are those of `evidence`.

    References:
        D. MacKay, Bayesian interpolation, Neural Computation 4 (1992).
    """
    _check(g, q)
    lowest, blur = _lowest(q), _blur(q)
    if lowest < -blur:
        return not_computed(
            f"the Ritz value {lowest:.3g} is below 0 by more than the noise of the products, {blur:.1g}: "
            "the effective dimension is defined for positive semidefinite operators",
            q.num_probes,
        )
    least = 0.0 if semidefinite else -inf
    return _two_sided(q, g, semidefinite, _shrinkage, least, float(q.n))


def _two_sided(
    q: Quadrature,
    g: float,
    semidefinite: bool,
    f: Callable[[np.ndarray], np.ndarray],
    least: float,
    greatest: float,
) -> Estimate:
    """``sum f(lambda / g)`` from the averages of the probes' upper and lower bounds."""
    k = q.num_probes
    lowest, blur = _lowest(q), _blur(q)
    if lowest <= -g:
        return not_computed(f"the Ritz value {lowest:.3g} is not above -g = {-g:.3g}: H + g I is not positive", k)
    if semidefinite and lowest < -blur:
        return not_computed(
            f"the Ritz value {lowest:.3g} is below 0 by more than the noise of the products, {blur:.1g}: "
            "the operator is not positive semidefinite",
            k,
        )
    floor = _floor(q, g, semidefinite)
    known = f(q.converged.values / g) if q.converged.count else np.zeros(0)
    gauss = [(t.nodes, t.weights) for t in q.tridiagonals]

    def sums(rules: list[tuple[np.ndarray, np.ndarray]], shift: float = 0.0) -> np.ndarray:
        """The trace from each probe's rule, (k,); eigenvalues that have converged in every probe are counted once."""
        each = np.array([float(weights @ f((nodes + shift) / g)) for nodes, weights in rules])
        pairs = zip(q.tridiagonals, q.converged.places)
        own = np.array([float(t.weights[places] @ f((t.nodes[places] + shift) / g)) for t, places in pairs])
        return np.asarray(float(known.sum()) + (q.remaining * (each - own) / q.shares if q.remaining else 0.0 * each))

    def of_ratio(x: np.ndarray) -> np.ndarray:
        return f(x / g)

    high, raised = sums(gauss), sums(gauss, blur)
    centre = (float(high.mean()) - float(known.sum())) / max(1, q.remaining)
    options: dict[str, Any] = {"confidence": floor.confidence, "least_error": q.least_error(of_ratio, centre)}
    notes = [note for note in (floor.note, dominance(q)) if note]
    off = q.error_of_known(of_ratio)
    upper = mean_estimate(high, arithmetic=float((raised - high).mean()) + off, greatest=greatest, **options)
    if floor.node is None:
        note = "; ".join([*notes, "the value is the upper bound of the quadrature"])
        return Estimate(upper.value, upper.stderr, None, upper.upper, k, note=note)
    rules = [_lower_rule(t, floor.node) for t in q.tridiagonals]
    low, lowered = sums(rules), sums(rules, -blur)
    lower = mean_estimate(low, arithmetic=float((low - lowered).mean()) + off, least=least, **options)
    middle = mean_estimate((high + low) / 2, **options)
    return Estimate(max(least, middle.value), middle.stderr, lower.lower, upper.upper, k, note="; ".join(notes) or None)


def _floor(q: Quadrature, g: float, semidefinite: bool) -> _Floor:
    blur = _blur(q)
    if semidefinite:
        # The products are those of a matrix whose eigenvalues are off by as much as blur, and count for as much again.
        if 2 * blur < g:
            return _Floor(-blur, CONFIDENCE, None)
        return _Floor(None, CONFIDENCE, f"no lower bound: g = {g:.2g} is within the noise of the products, {blur:.1g}")
    half = 1 - (1 - CONFIDENCE) / 2
    end = lambda_min(q, half).lower
    if end is not None and end - blur > -g:
        return _Floor(end, half, f"positivity not certified: no eigenvalue below {end:.3g} at {half:.1%}")
    return _Floor(None, CONFIDENCE, f"positivity not certified: an eigenvalue below -g = {-g:.3g} is not excluded")


def _lower_rule(t: Tridiagonal, node: float) -> tuple[np.ndarray, np.ndarray]:
    """The Radau rule with a node at or below the spectrum; where exhausted the Gauss rule, which is exact."""
    if t.exhausted:
        return t.nodes, t.weights
    nodes, weights, _ = t.radau(node)
    return nodes, weights


def _log_ratio(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(x))


def _shrinkage(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / (1 + x))


def _lowest(q: Quadrature) -> float:
    return min(float(t.nodes[0]) for t in q.tridiagonals)


def _blur(q: Quadrature) -> float:
    """``noise |H|_2`` plus the largest coupling that was neglected where a recurrence was declared exhausted."""
    return q.blur + max(t.defect for t in q.tridiagonals)


def _check(g: float, q: Quadrature) -> None:
    if not (isfinite(g) and g > 0):
        raise ArgumentError(f"g={g:g}: a finite number above 0 is needed, in units of the eigenvalues")
    scale = q.scale
    if not isfinite(2 * scale / g):
        raise ArgumentError(f"g={g:g}: too small for |H|_2 = {scale:.2g}, their quotient is beyond float64")
