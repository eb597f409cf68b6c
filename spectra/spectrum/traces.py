"""Traces of functions of the operator: the trace, the Frobenius norm, moments, and the traces of parameter tensors.

The probes are independent unit vectors with ``n E[q q'] = I``, so ``n q' f(H) q`` has the mean ``Tr f(H)``. Eigenvalues
that have converged in every probe are taken as known (``spectrum.quadrature``). The error is that of the mean over
``k`` probes of the remainder: Student's t with ``k - 1`` degrees of freedom, where the standard error is never below
the one that the Ritz values of the remainder imply. The error of the arithmetic is added: ``noise``, the error of a
product relative to ``|H|_2 |q|``. It moves an eigenvalue by at most ``noise |H|_2`` (Weyl); in a quadratic form with a
random probe it is taken to be spread over the parameters as rounding is, which makes it ``noise |H|_2 / sqrt(n)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, NumericsError
from spectra.spectrum.estimates import CONFIDENCE, Estimate, mean_estimate, scaled
from spectra.spectrum.quadrature import Function, Quadrature

# Where one eigenvalue has more than this fraction of |H|_F^2, the mean over Rademacher probes is too far from normal
# for a t-interval. In the sum of lambda^4 or of a higher power a larger fraction is allowed: the skewness matters.
_DOMINANT = 0.1
_DOMINANT_POWER = 0.2


def trace(q: Quadrature) -> Estimate:
    """``Tr H``: the eigenvalues that have converged in all probes, and ``n - r`` times the mean of the remainder.

    One product per probe determines ``q_i' H q_i``, and where nothing has converged further steps add nothing. Per
    probe the variance is ``2n / (n + 2) (|H|_F^2 - (Tr H)^2 / n)`` of the remainder for sphere probes, and
    ``2 (|H|_F^2 - sum_j H_jj^2)`` for Rademacher ones. The noise of the products widens the interval by
    ``sqrt(n) noise |H|_2``.

    References:
        M. Hutchinson, A stochastic estimator of the trace of the influence matrix, Comm. Stat. 18 (1989); H.
        Avron, S. Toledo, Randomized algorithms for estimating the trace, J. ACM 58 (2011).
    """
    return sum_estimate(q, _identity, q.moments(1), arithmetic=sqrt(q.n) * q.blur, note=dominance(q))


def frobenius_norm(q: Quadrature, confidence: float = CONFIDENCE) -> Estimate:
    """``|H|_F``, the root of the sum of ``lambda^2``: of the converged eigenvalues and of the mean of the remainder.

    Without converged eigenvalues it is ``sqrt(n mean_i |H q_i|^2)`` with ``|H q_i|^2 = alpha_i1^2 + beta_i1^2``. The
    square is unbiased. The standard error of the root is ``se(F) = se(F^2) / 2F``, and its interval is the root of the
    square's. The products have the length ``|H|_F / sqrt(n)``, so their noise is a relative error of the norm of at
    most ``noise |H|_2 sqrt(n) / |H|_F``. The norm of every tridiagonal matrix is a lower bound, since these are
    compressions of ``H``; neither the value nor the interval goes below the largest.
    """
    samples = q.adjusted(q.moments(2), np.square)
    square = sum_estimate(q, np.square, samples, note=dominance(q, 2), confidence=confidence)
    arithmetic = sqrt(q.n) * q.blur
    least = max(0.0, max(float(np.linalg.norm(t.nodes)) for t in q.tridiagonals) * (1 - q.noise))
    value = max(sqrt(max(square.value, 0.0)), least)
    if square.stderr is None or square.lower is None or square.upper is None:
        return Estimate(value, None, None, None, square.num_probes)
    return Estimate(
        value,
        square.stderr / (2 * value) if value > 0 else 0.0,
        max(sqrt(max(square.lower, 0.0)) - arithmetic, least),
        max(sqrt(max(square.upper, 0.0)), value) + arithmetic,
        square.num_probes,
        confidence,
        note=square.note,
    )


def mean_eigenvalue(q: Quadrature) -> Estimate:
    """``(1/n) Tr H``."""
    return scaled(trace(q), 1 / q.n)


def moment(q: Quadrature, p: int) -> Estimate:
    """``(1/n) Tr H^p``, the mean of ``lambda^p``, exact per probe for ``p <= 2m``.

    To first order an error ``noise |H|_2`` of every eigenvalue moves ``lambda^p`` by
    ``p noise |H|_2 |lambda|^(p-1)``.

    Raises:
        ArgumentError: ``p`` is not a whole number of at least 0, or beyond what the shortest recurrence determines.
    """
    if isinstance(p, bool) or not isinstance(p, (int, np.integer)) or p < 0:
        raise ArgumentError(f"p={p!r}: a whole number of at least 0 is needed")
    power = int(p)
    if power == 0:
        return mean_estimate(np.ones(q.num_probes), least=0.0)
    if power == 1:
        return mean_eigenvalue(q)
    slope = float(np.mean([t.weights @ np.abs(t.nodes) ** (power - 1) for t in q.tridiagonals]))

    def f(x: np.ndarray) -> np.ndarray:
        return np.asarray(x**power)

    total = sum_estimate(
        q,
        f,
        q.adjusted(q.moments(power), f),
        arithmetic=q.n * power * q.blur * slope,
        least=0.0 if power % 2 == 0 else -inf,
        note=dominance(q, power),
    )
    return scaled(total, 1 / q.n)


def second_moment(q: Quadrature) -> Estimate:
    """``(1/n) Tr H^2``."""
    return moment(q, 2)


def trace_function(q: Quadrature, f: Function) -> Estimate:
    """``Tr f(H)``: the sum of ``f`` over the converged eigenvalues, and ``n - r`` times its mean over the remainder.

    Exact per probe for polynomials of degree at most ``2m - 1``; otherwise the error of the quadrature is not in the
    interval. Every eigenvalue is known to ``noise |H|_2`` (Weyl); the change of ``f`` over that distance is in it.

    Args:
        q: the quadrature rules of the probes.
        f: takes the eigenvalues as an array and returns as many real numbers.

    Raises:
        ArgumentError: ``f`` returns another shape.
        NumericsError: ``f`` is not finite at a Ritz value.

    References:
        S. Ubaru, J. Chen, Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 38 (2017).
    """

    def g(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return _apply(f, x)

    spreads = []
    for t in q.tridiagonals:
        values = g(t.nodes)
        if not np.isfinite(values).all():
            where = float(t.nodes[np.argmin(np.isfinite(values))])
            raise NumericsError(f"the function is NaN or infinite at the Ritz value {where:g}")
        moved = [np.abs(g(t.nodes + shift) - values) for shift in (-q.blur, q.blur)]
        spreads.append(q.n * float(t.weights @ np.maximum(*moved)))
    found = sum_estimate(q, g, q.adjusted(q.means(g), g), arithmetic=float(np.mean(spreads)), note=dominance(q))
    if found.upper is None or isfinite(found.upper):
        return found
    note = f"the function is not finite within the noise of the products ({q.blur:.1e}) of a Ritz value"
    return Estimate(found.value, found.stderr, None, None, found.num_probes, note=note)


def tensor_traces(
    forms: np.ndarray, sizes: Mapping[str, int], q: Quadrature, known: np.ndarray | None = None
) -> dict[str, Estimate]:
    """The trace of each tensor's diagonal block, estimated by ``n mean_i q_i[t]' (H q_i)[t]``.

    They sum to ``n mean_i q_i' H q_i``, the estimate of the whole trace with no eigenvalue taken as known.

    Args:
        forms: (k, t), the per-tensor quadratic forms of the first product.
        sizes: the tensors' names and sizes, in the order of the columns.
        q: the quadrature rules of the same probes.
        known: (t,), the traces of the parts that deflation removed from the forms.

    Returns:
        One estimate per tensor. The noise of the product meets only the tensor's own part of ``q``, of length about
        ``sqrt(size / n)``.
    """
    return {
        name: mean_estimate(
            q.n * forms[:, column] + (0.0 if known is None else known[column]), arithmetic=sqrt(size) * q.blur
        )
        for column, (name, size) in enumerate(sizes.items())
    }


def power_samples(q: Quadrature, p: int) -> np.ndarray:
    """A sample of ``Tr H^p`` per probe, (k,): their mean is the estimate."""
    samples = q.moments(p) if p == 1 else q.adjusted(q.moments(p), lambda x: x**p)
    return np.asarray(float((q.converged.values**p).sum()) + q.remaining * samples)


def sum_estimate(
    q: Quadrature, f: Function, samples: np.ndarray, *, arithmetic: float = 0.0, **options: Any
) -> Estimate:
    """``Tr f(H)`` from samples of the mean of ``f`` over the remaining eigenvalues, one per probe, (k,).

    Args:
        q: the quadrature rules of the probes.
        f: the function.
        samples: (k,).
        arithmetic: the error of the products; that of the converged eigenvalues is added.
        options: of `mean_estimate`.
    """
    known = float(f(q.converged.values).sum()) if q.converged.count else 0.0
    least_error = q.least_error(f, float(samples.mean()))
    arithmetic += q.error_of_known(f)
    return mean_estimate(known + q.remaining * samples, arithmetic=arithmetic, least_error=least_error, **options)


def dominance(q: Quadrature, power: int = 1) -> str | None:
    """A warning where one eigenvalue dominates the variance, so that a t-interval covers less than its confidence.

    It is for probes that are not uniform on the sphere. For sphere probes such an eigenvalue is known separately, or
    the standard error allows for it (``spectrum.quadrature.Quadrature.least_error``). The variance of ``n q' H^p q``
    follows ``|H^p|_F^2 = sum lambda^2p``, which is known from ``p`` steps; with fewer, ``|H|_F^2`` is used, of which
    the eigenvalue has a smaller fraction.

    Args:
        q: the quadrature rules of the probes.
        power: ``p``, at least 1.
    """
    if q.distribution == "sphere":
        return None
    note = dominance_note(q.scale**2, q.n * float(np.mean(q.product_norms**2)), "|H|_F^2")
    if note is None and power > 1 and all(power <= t.steps or t.exhausted for t in q.tridiagonals):
        total = q.n * float(np.mean([t.moment(2 * power) for t in q.tridiagonals]))
        note = dominance_note(q.scale ** (2 * power), total, f"|H^{power}|_F^2", _DOMINANT_POWER)
    return note


def dominance_note(top: float, total: float, of: str, bound: float = _DOMINANT) -> str | None:
    """A warning where the largest term is more than the fraction ``bound`` of a sum of squares, else None."""
    if total <= 0 or top <= bound * total:
        return None
    share = min(1.0, top / total)
    return f"one eigenvalue carries {share:.0%} of {of}: the 95 % interval is too narrow (it may cover 80 to 90 %)"


def _identity(x: np.ndarray) -> np.ndarray:
    return x


def _apply(f: Function, x: np.ndarray) -> np.ndarray:
    values = np.asarray(f(x), dtype=np.float64)
    if values.shape != x.shape:
        raise ArgumentError(f"the function returned shape {values.shape} for {x.shape}: one number per eigenvalue")
    return values
