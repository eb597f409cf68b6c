"""Effective ranks that need no tolerance: the stable rank, the participation rank and the entropy rank.

They are different quantities and differ by orders of magnitude on a network's spectrum. The stable rank depends on the
largest eigenvalue, the participation rank on the second moment, the entropy rank on the whole distribution of
``|lambda|``. All lie between 1 and ``n`` and do not change when the operator is scaled. The zero operator has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, frexp, inf, ldexp, log, sqrt

import numpy as np

from spectra.spectrum.estimates import CONFIDENCE, Estimate, mean_estimate, not_computed
from spectra.spectrum.extremes import spectral_norm
from spectra.spectrum.quadrature import Function, Quadrature
from spectra.spectrum.traces import dominance, frobenius_norm
from spectra.spectrum.tridiagonal import Tridiagonal

_USUAL = 2.0**128  # between this and its inverse no fourth power of an eigenvalue leaves the range of float64
_ZERO = "the operator is zero, and 0/0 is no number"


def stable_rank(q: Quadrature) -> Estimate:
    """``|H|_F^2 / |H|_2^2``, from the estimates of both norms.

    The interval is that of the quotient: ``|H|_F`` and the bound beyond the outermost Ritz values each at 97.5 %, so
    that both hold with 95 %. ``stderr`` is the probes' error of ``|H|_F^2`` over ``|H|_2^2``.

    References:
        M. Rudelson, R. Vershynin, Sampling from large matrices, J. ACM 54 (2007).
    """
    q = _of_usual_size(q)
    norm = spectral_norm(q, _each())
    if norm.value == 0:
        return _nothing(q)
    frobenius = frobenius_norm(q, _each())
    value = _within((frobenius.value / norm.value) ** 2, q.n)
    if frobenius.stderr is None or frobenius.lower is None or frobenius.upper is None:
        return Estimate(value, None, None, None, q.num_probes)
    lower = 1.0 if norm.upper is None else _within((frobenius.lower / norm.upper) ** 2, q.n)
    upper = _within((frobenius.upper / norm.lower) ** 2, q.n) if norm.lower else float(q.n)
    stderr = 2 * frobenius.value * frobenius.stderr / norm.value**2
    notes = [note for note in (frobenius.note, norm.note) if note]
    return Estimate(value, stderr, lower, upper, q.num_probes, note="; ".join(notes) or None)


def participation_rank(q: Quadrature) -> Estimate:
    """``(sum |lambda|)^2 / sum lambda^2``.

    The first sum is that of the Gauss rules of a function with a kink, the second is exact per probe. One eigenvalue of
    weight 1 gives 1, ``r`` equal ones ``r``, zeros add nothing. The interval is that of the logarithm by the delta
    method (Student's t). It is widened on both sides by the noise of the products and by the larger difference from two
    other rules: that with a node at 0 and that of one step less. The differences are of the size of the quadrature
    error, so they indicate it and do not bound it.
    """
    q = _of_usual_size(q)
    sums = _sums(q)
    if sums is None:
        return _nothing(q)
    squares = q.adjusted(q.moments(2), np.square) / q.scale**2
    known = q.converged.values / q.scale
    a, b = sums.size, float((known**2).sum() + q.remaining * squares.mean())
    influence = q.remaining * (2 * sums.size_samples / a - squares / b)
    moved = 2 * sums.size_blur / a + 2 * q.n * q.noise / sqrt(q.n * b)
    moved += max(2 * abs(log(a / other)) if other > 0 else inf for other, _ in sums.others)

    def along(x: np.ndarray) -> np.ndarray:
        return np.asarray(2 * np.abs(x) / (q.scale * a) - x**2 / (q.scale**2 * b))

    return _from_logarithm(q, 2 * log(a) - log(b), influence, moved, along)


def entropy_rank(q: Quadrature) -> Estimate:
    """``exp(-sum p log p)`` with ``p = |lambda| / sum |lambda|``: the exponential of the entropy of ``|lambda|``.

    With ``a = sum |lambda|`` and ``c = sum |lambda| log |lambda|``, from the Gauss rules, it is ``a exp(-c / a)``. The
    interval is made as that of `participation_rank`.

    References:
        O. Roy, M. Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO (2007).
    """
    q = _of_usual_size(q)
    sums = _sums(q)
    if sums is None:
        return _nothing(q)
    a, c = sums.size, sums.entropy
    logarithm, slope = log(a) - c / a, 1 / a + c / a**2
    moved = abs(slope) * sums.size_blur + sums.entropy_blur / a
    moved += max(abs(log(other) - entropy / other - logarithm) if other > 0 else inf for other, entropy in sums.others)
    influence = q.remaining * (slope * sums.size_samples - sums.entropy_samples / a)

    def along(x: np.ndarray) -> np.ndarray:
        return np.asarray(slope * np.abs(x) / q.scale - _entropy(x / q.scale) / a)

    return _from_logarithm(q, logarithm, influence, moved, along)


def _of_usual_size(q: Quadrature) -> Quadrature:
    """The rules of the operator times a power of 2 where powers of its norm would overflow or underflow.

    No rank changes with the factor, and the scaling is exact.
    """
    if q.scale == 0 or 1 / _USUAL <= q.scale <= _USUAL:
        return q
    shift = -frexp(q.scale)[1]
    scaled = replace(
        q,
        tridiagonals=tuple(
            replace(t, alphas=np.ldexp(t.alphas, shift), betas=np.ldexp(t.betas, shift)) for t in q.tridiagonals
        ),
        exact_trace=None if q.exact_trace is None else ldexp(q.exact_trace, shift),
    )
    return scaled if q.converged.count else scaled.with_nothing_known()


@dataclass(frozen=True)
class _Sums:
    """``a = sum |x|`` and ``c = sum |x| log |x|`` over all eigenvalues, with ``x = lambda / scale``."""

    size: float  # a, by the Gauss rules
    entropy: float  # c
    size_samples: np.ndarray  # (k,) the probes' means of |x| over the eigenvalues that are not known
    entropy_samples: np.ndarray  # (k,) and of |x| log |x|
    size_blur: float  # the largest change of each sum by the noise of the products
    entropy_blur: float
    others: list[tuple[float, float]]  # both sums by other rules, which indicate the quadrature error


def _sums(q: Quadrature) -> _Sums | None:
    """The sums by all rules; None where the Gauss rules have no mass off 0."""
    if q.scale == 0:
        return None
    known = np.array(_pair(q.converged.values / q.scale, np.ones(q.converged.count)))
    rows = np.zeros((q.num_probes, 3, 2))  # probes, rules, functions: means over the remaining eigenvalues
    if q.remaining:
        for row, (t, places, share) in enumerate(zip(q.tridiagonals, q.converged.places, q.shares)):
            own = np.array(_pair(t.nodes[places] / q.scale, t.weights[places]))
            rows[row] = (np.array([_pair(x / q.scale, w) for x, w in _rules(t)]) - own) / share
    sizes = q.adjusted(rows[:, 0, 0], lambda x: np.abs(x / q.scale))
    entropies = q.adjusted(rows[:, 0, 1], lambda x: _entropy(x / q.scale))
    totals = known + q.remaining * np.array([sizes.mean(), entropies.mean()])
    if totals[0] <= 0:
        return None
    blur = 0.0
    for t in q.tridiagonals:
        x = t.nodes / q.scale
        shifts = [np.abs(_entropy(x + shift) - _entropy(x)) for shift in (-q.noise, q.noise)]
        blur += float(t.weights @ np.maximum(*shifts)) / q.num_probes
    # The difference between another rule and the Gauss rule does not depend on the control variate.
    means = rows.mean(axis=0)
    others = [totals + q.remaining * (means[rule] - means[0]) for rule in (1, 2)]
    pairs = [(float(size), float(entropy)) for size, entropy in others]
    return _Sums(float(totals[0]), float(totals[1]), sizes, entropies, q.n * q.noise, q.n * blur, pairs)


def _rules(t: Tridiagonal) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nodes and weights: the Gauss rule, the Radau rule with a node at 0, and the Gauss rule of one step less.

    ``|x|`` has its kink at 0, where a rule of even ``m`` tends to have a gap and one of odd ``m`` a node: the errors of
    the last two have opposite signs as a rule. In place of the rule of no steps stands ``|x| = |H q|``. Where exhausted
    the Gauss rule is exact and stands for all.
    """
    gauss = t.nodes, t.weights
    if t.exhausted:
        return [gauss] * 3
    nodes, weights, index = t.radau(0.0)
    nodes[index] = 0.0
    if t.steps > 1:
        shorter = Tridiagonal(t.alphas[:-1], t.betas[:-1])
        return [gauss, (nodes, weights), (shorter.nodes, shorter.weights)]
    return [gauss, (nodes, weights), (np.array([np.hypot(t.alphas[0], t.last_beta)]), np.ones(1))]


def _pair(x: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    return float(weights @ np.abs(x)), float(weights @ _entropy(x))


def _entropy(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    return np.asarray(size * np.log(np.where(size > 0, size, 1.0)))


def _from_logarithm(q: Quadrature, logarithm: float, influence: np.ndarray, moved: float, along: Function) -> Estimate:
    """``exp(logarithm)`` between 1 and ``n``, the logarithm with the scatter of ``influence`` over probes as its error.

    Args:
        q: the quadrature rules.
        logarithm: of the value.
        influence: (k,), the derivative of the logarithm by each probe's term in the sums, up to a constant.
        moved: the amount by which the logarithm's interval is widened on both sides.
        along: the derivative of the logarithm by a single eigenvalue's term in the sums.
    """
    value = _within(_exp(logarithm), q.n)
    least_error = q.least_error(along, float(q.means(along).mean()))
    spread = mean_estimate(influence, arithmetic=moved, least_error=least_error, note=dominance(q))
    if spread.stderr is None or spread.lower is None or spread.upper is None:
        return Estimate(value, None, None, None, 1)
    low, high = (_within(_exp(logarithm + end - spread.value), q.n) for end in (spread.lower, spread.upper))
    return Estimate(value, value * spread.stderr, low, high, q.num_probes, note=spread.note)


def _nothing(q: Quadrature) -> Estimate:
    steps = max(t.steps for t in q.tridiagonals)
    zero = float(q.product_norms.max()) == 0
    reason = _ZERO if zero else f"the rules of m = {steps} steps have no mass off 0: take more steps"
    return not_computed(reason, q.num_probes)


def _each() -> float:
    """The confidence of each of two bounds that hold together with 95 %."""
    return 1 - (1 - CONFIDENCE) / 2


def _within(value: float, n: int) -> float:
    return min(max(value, 1.0), float(n))


def _exp(x: float) -> float:
    return exp(min(x, 700.0))
