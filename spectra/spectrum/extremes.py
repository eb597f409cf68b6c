"""The largest and smallest eigenvalue and the spectral norm, with intervals at a stated confidence.

A Ritz value lies within the range of the eigenvalues, so the outermost one is a bound from inside, up to the
arithmetic. A bound from outside follows from the random start. Let ``R = lambda_1 - lambda_n`` and suppose that all
Ritz values of ``m`` steps lie at or below ``c = lambda_1 - eps R``. The Gauss rule is exact for the square of the
Chebyshev polynomial ``T_{m-1}`` scaled to ``[lambda_n, c]``, which is at most 1 at every node, while the probe's
measure gives it at least ``w_1 T_{m-1}(gamma)^2`` with ``gamma = (1 + eps) / (1 - eps)`` and ``w_1`` the weight of
the top eigenvector:

    w_1 <= 1 / T_{m-1}(gamma)^2,    T_{m-1}(gamma) = cosh(2 (m - 1) artanh(sqrt(eps))).

For a start uniform on the sphere ``w_1`` has the law Beta(1/2, (n-1)/2), so the event has a known probability, and for
independent probes the product of theirs. This is the bound of Kuczynski and Wozniakowski in another form; theirs is
``1.648 sqrt(n) exp(-(2m - 1) sqrt(eps))``, of the same order.

A single probe has a sharper bound, which uses the recurrence itself. With its orthonormal polynomials ``pi_j`` the
Gauss rule is exact for the square of every polynomial of degree ``m - 1``, so that for each eigenvalue ``lambda`` above
all Ritz values

    w <= 1 / K(lambda),    K(lambda) = sum_{j < m} pi_j(lambda)^2    (the Christoffel function),

and ``K`` increases there. The upper bound is the ``lambda`` at which ``1 / K`` is the quantile of ``w_1``: a larger
``lambda_1`` would need a weight below it. Once the largest Ritz value has converged, ``K`` is very steep above it, and
the bound lies close to it. Where the largest Ritz value itself has a smaller weight than the quantile, the start has
met the event that the bound excludes; the interval then reaches as far as the residual. For several probes the product
of their weights would have to be bounded, which gains less; it is used only where a recurrence has ended in the noise
of the products.

References:
    J. Kuczynski, H. Wozniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms with a random
    start, SIAM J. Matrix Anal. Appl. 13 (1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atanh, exp, log, sqrt

import numpy as np
from scipy.special import betainc, gammainccinv

from spectra.spectrum.estimates import CONFIDENCE, Estimate
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal

# A Ritz value with a residual above this fraction of |H|_2 has not converged.
_CONVERGED = 1e-2


def lambda_max(q: Quadrature, confidence: float = CONFIDENCE) -> Estimate:
    """The largest eigenvalue: the largest Ritz value of all probes.

    ``lower`` is that value less the error of the arithmetic; ``upper`` is the bound from the random start, None where
    the steps give none. The bounds of both ends hold together with the confidence, 95 % by default.
    """
    return _end(q, +1, confidence)


def lambda_min(q: Quadrature, confidence: float = CONFIDENCE) -> Estimate:
    """The smallest eigenvalue: the smallest Ritz value of all probes, with the interval of ``lambda_max`` mirrored."""
    return _end(q, -1, confidence)


def spectral_norm(q: Quadrature, confidence: float = CONFIDENCE) -> Estimate:
    """``|H|_2 = max |lambda|``, from both ends of the spectrum; their bounds hold together, with 95 % by default."""
    top = lambda_max(q, confidence)
    bottom = lambda_min(q, confidence)
    leading, value = (top, top.value) if top.value >= -bottom.value else (bottom, -bottom.value)
    upper = None if top.upper is None or bottom.lower is None else max(top.upper, -bottom.lower, 0.0)
    margin = _margin(q)
    return Estimate(value, None, max(0.0, value - margin), upper, q.num_probes, confidence, note=leading.note)


def missed_fraction(steps: Sequence[int], n: int, failure: float) -> float | None:
    """A relative bound ``eps`` of the distance from an end of the spectrum to the outermost Ritz value.

    With probability ``1 - failure`` the distance is at most ``eps (lambda_1 - lambda_n)``. It is the
    solution of ``prod_i F(1 / T_{m_i - 1}(gamma)^2) = failure`` with ``F`` the distribution function of
    Beta(1/2, (n-1)/2), by bisection in ``log eps``.

    Args:
        steps: the Lanczos steps of each probe, from independent starts uniform on the sphere of R^n.
        n: the number of rows.
        failure: the probability that the bound does not hold.

    Returns:
        ``eps``, or None where it is not below 1/2: the bound is then of no use.

    Example:
        >>> round(missed_fraction([40] * 5, 10**6, 0.025), 4)
        0.0106
    """
    if n == 1:
        return 0.0
    target = log(failure)

    def log_probability(eps: float) -> float:
        angle = 2 * atanh(sqrt(eps))
        return sum(_log_below(1 / np.cosh(min((m - 1) * angle, 300.0)) ** 2, n) for m in steps)

    low, high = log(1e-30), log(0.5)
    if log_probability(exp(high)) >= target:
        return None
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if log_probability(exp(middle)) > target else (low, middle)
    return exp(high)


def distance_beyond(alphas: np.ndarray, betas: np.ndarray, n: int, failure: float) -> float | None:
    """A bound of ``lambda_1`` less the largest Ritz value of one probe, from its recurrence.

    With probability ``1 - failure`` over starts uniform on the sphere of R^n it holds.

    Args:
        alphas: (m,) of the tridiagonal matrix; negated, for the lower end.
        betas: (m,), of which the last is not used.
        n: the number of rows.
        failure: the probability that the bound does not hold.

    Returns:
        The distance, or None where it is larger than the range of the Ritz values: the bound is then of no use.
    """
    ritz = Tridiagonal(alphas, betas).nodes
    return _distance([(alphas, betas)], float(ritz[-1]), float(ritz[-1] - ritz[0]), n, failure)


def _distance(
    recurrences: Sequence[tuple[np.ndarray, np.ndarray]], top: float, limit: float, n: int, failure: float
) -> float | None:
    """The bound of :func:`distance_beyond` from independent probes, above `top`; None where it exceeds `limit`.

    A statistic of the weights of all probes, ``prod_i F(w_i)``, has the law of a product of uniform variables (Fisher).
    """
    target = -float(gammainccinv(len(recurrences), failure))
    least = 1e-16 * max(limit, abs(top))

    def enough(x: float) -> bool:
        logs = [_log_christoffel(alphas, betas, x, least) for alphas, betas in recurrences]
        return sum(_log_below(exp(-value), n) for value in logs) <= target

    if all(alphas.size < 2 for alphas, _ in recurrences) or not limit > 0 or not enough(top + limit):
        return None
    low, high = log(least), log(limit)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(top + exp(middle)) else (middle, high)
    return exp(high)


def _beyond_exhausted(q: Quadrature, sign: int, failure: float) -> float | None:
    """A bound of the distance from an end to the outermost Ritz value, where a recurrence is exhausted to the noise.

    An eigenvector of small weight can couple to the Krylov space by less than the noise, and is then not in it. The
    last residual is at most ``rho = beta_m + noise |H|_2``. So ``K`` has one term more, ``pi_m^2``, with ``rho`` in
    place of ``beta_m``.
    """
    recurrences = []
    for t in q.tridiagonals:
        alphas, betas = sign * t.alphas, t.betas
        if t.exhausted:
            rho = t.defect + q.blur
            if rho == 0:
                return 0.0
            alphas, betas = np.append(alphas, 0.0), np.append(betas[:-1], [rho, 0.0])
        recurrences.append((alphas, betas))
    top = max(float((sign * t.nodes).max()) for t in q.tridiagonals)
    return _distance(recurrences, top, 2 * q.scale, q.n, failure)


def _log_christoffel(alphas: np.ndarray, betas: np.ndarray, x: float, least: float) -> float:
    """``log sum_{j < m} pi_j(x)^2`` at an ``x`` above the Ritz values, where ``pi_{j+1} / pi_j`` is positive.

    Differences below `least` are rounding and count as it.
    """
    logs, remaining = [0.0], x - float(alphas[0])
    for alpha, beta in zip(alphas[1:].tolist(), betas[:-1].tolist()):
        ratio = max(remaining, least) / beta
        logs.append(logs[-1] + 2 * log(ratio))
        remaining = x - alpha - beta / ratio
    return float(np.logaddexp.reduce(logs))


def _log_below(w: float, n: int) -> float:
    return log(max(float(betainc(0.5, (n - 1) / 2, min(w, 1.0))), 1e-300))


def _end(q: Quadrature, sign: int, confidence: float) -> Estimate:
    index = -1 if sign > 0 else 0
    ritz = np.array([t.nodes[index] for t in q.tridiagonals])
    first = int(np.argmax(sign * ritz))
    value = float(ritz[first])
    residual = float(q.tridiagonals[first].residuals[index])
    margin = _margin(q)
    beyond, missing = _beyond(q, confidence, sign)

    notes = []
    scale = q.scale
    if residual > _CONVERGED * scale:
        share = f", {residual / scale:.0%} of |H|_2" if scale > 0 else ""
        notes.append(f"not converged: residual {residual:.2g}{share}; take more steps")
    if missing is not None:
        notes.append(missing)
    inner = value - sign * margin
    outer = None if beyond is None else value + sign * (beyond + margin)
    lower, upper = (inner, outer) if sign > 0 else (outer, inner)
    return Estimate(value, None, lower, upper, q.num_probes, confidence, note="; ".join(notes) or None)


def _beyond(q: Quadrature, confidence: float, sign: int) -> tuple[float | None, str | None]:
    """A bound of the distance from an end to the outermost Ritz value, for both ends together; else None, and why."""
    if any(t.exhausted and t.steps == q.n for t in q.tridiagonals):
        return 0.0, None
    if q.distribution != "sphere":
        return None, f"no bound beyond the Ritz values is known for {q.distribution} probes; sphere probes have one"
    if any(t.exhausted for t in q.tridiagonals):
        beyond = _beyond_exhausted(q, sign, (1 - confidence) / 2)
        return beyond, None if beyond is not None else "no bound beyond the Ritz values: the noise is too large"
    if q.num_probes == 1:
        t = q.tridiagonals[0]
        failure = (1 - confidence) / 2
        beyond = distance_beyond(sign * t.alphas, t.betas, q.n, failure)
        index = -1 if sign > 0 else 0
        if beyond is not None and _log_below(float(t.weights[index]), q.n) < log(failure):
            beyond = max(beyond, float(t.residuals[index]))  # the start has met that event: the bound says nothing
        return (
            beyond,
            None if beyond is not None else f"{t.steps} steps of 1 probe give no bound beyond the Ritz values",
        )
    eps = missed_fraction([t.steps for t in q.tridiagonals], q.n, (1 - confidence) / 2)
    if eps is None:
        steps = max(t.steps for t in q.tridiagonals)
        return None, f"{steps} steps of {q.num_probes} probes give no bound beyond the Ritz values"
    # R itself is unknown, but R <= r + 2 eps R where both ends hold, r being the range of the Ritz values.
    seen = max(float(t.nodes[-1]) for t in q.tridiagonals) - min(float(t.nodes[0]) for t in q.tridiagonals)
    return eps * seen / (1 - 2 * eps), None


def _margin(q: Quadrature) -> float:
    """``noise |H|_2`` plus the smallest coupling that was neglected where a recurrence was declared exhausted."""
    return q.blur + min((t.defect for t in q.tridiagonals if t.exhausted), default=0.0)
