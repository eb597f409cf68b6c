"""Ranks that are not counts: how many eigenvalues a spectrum is worth, in three ways that need no tolerance.

They are different quantities and differ by orders of magnitude on a network's spectrum: the stable rank looks at the
largest eigenvalue, the participation rank at the second moment, the entropy rank at all of the mass of ``|lambda|``.
All lie between 1 and ``n`` and do not change when the operator is scaled; of the zero operator none exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt

import numpy as np

from spectra.estimates import (
    CONFIDENCE,
    Estimate,
    dominance,
    frobenius_norm,
    not_computed,
    product_norms,
    spectral_scale,
    t_quantile,
)
from spectra.extremes import spectral_norm
from spectra.tridiagonal import Tridiagonal

_ZERO = "the operator is zero, and 0/0 is no number"


def stable_rank(tridiagonals: Sequence[Tridiagonal], n: int, noise: float, distribution: str) -> Estimate:
    """``|H|_F^2 / |H|_2^2``, from the estimates of both norms.

    The interval is that of the quotient: ``|H|_F`` and the bound beyond the outermost Ritz values each at 97.5 %, so
    that both hold with 95 %. ``stderr`` is the probes' error of ``|H|_F^2`` over ``|H|_2^2``. One product per probe
    gives the numerator, all steps the denominator.

    References:
        M. Rudelson, R. Vershynin, Sampling from large matrices, J. ACM 54 (2007).
    """
    norm = spectral_norm(tridiagonals, n, noise, distribution, _each())
    k = len(tridiagonals)
    if norm.value == 0:
        return _nothing(tridiagonals)
    frobenius = frobenius_norm(tridiagonals, n, noise, _each())
    value = _within((frobenius.value / norm.value) ** 2, n)
    if frobenius.stderr is None or frobenius.lower is None or frobenius.upper is None:
        return Estimate(value, None, None, None, k)
    lower = 1.0 if norm.upper is None else _within((frobenius.lower / norm.upper) ** 2, n)
    upper = _within((frobenius.upper / norm.lower) ** 2, n) if norm.lower else float(n)
    stderr = 2 * frobenius.value * frobenius.stderr / norm.value**2
    notes = [note for note in (frobenius.note, norm.note) if note]
    return Estimate(value, stderr, lower, upper, k, note="; ".join(notes) or None)


def participation_rank(tridiagonals: Sequence[Tridiagonal], n: int, noise: float) -> Estimate:
    """``(sum |lambda|)^2 / sum lambda^2``, estimated by ``n a^2 / b``.

    ``a = mean_i sum_k tau_ik |theta_ik|`` is the Gauss rule of a function with a kink, ``b = mean_i |H q_i|^2`` is
    exact. One eigenvalue of weight 1 gives 1, ``r`` equal ones ``r``, zeros add nothing. The interval is that of the
    logarithm by the delta method (Student's t), widened on both sides by the noise of the products and by the larger
    distance from two other rules, that with a node at 0 and that of one step less. They have errors of the size of the
    quadrature's, so this is an indication of it and no bound.
    """
    scale = spectral_scale(tridiagonals)
    means = _means(tridiagonals, noise, scale) if scale > 0 else None
    if means is None:
        return _nothing(tridiagonals)
    squares = (product_norms(tridiagonals) / scale) ** 2
    a, b = float(means.size.mean()), float(squares.mean())
    moved = 2 * means.size_blur / a + 2 * noise / sqrt(b)
    moved += max(2 * abs(log(a / other)) if other > 0 else inf for other, _ in means.others)
    return _from_logarithm(
        log(n) + 2 * log(a) - log(b), 2 * means.size / a - squares / b, moved, n, dominance(tridiagonals, n)
    )


def entropy_rank(tridiagonals: Sequence[Tridiagonal], n: int, noise: float) -> Estimate:
    """``exp(-sum p log p)`` with ``p = |lambda| / sum |lambda|``: the exponential of the entropy of ``|lambda|``.

    With ``a`` the mean over probes of ``|lambda|`` and ``c`` that of ``|lambda| log |lambda|`` under their Gauss rules
    it is ``n a exp(-c / a)``. The interval is made as that of `participation_rank`.

    References:
        O. Roy, M. Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO (2007).
    """
    scale = spectral_scale(tridiagonals)
    means = _means(tridiagonals, noise, scale) if scale > 0 else None
    if means is None:
        return _nothing(tridiagonals)
    a, c = float(means.size.mean()), float(means.entropy.mean())
    logarithm, slope = log(a) - c / a, 1 / a + c / a**2
    moved = abs(slope) * means.size_blur + means.entropy_blur / a
    moved += max(abs(log(other) - entropy / other - logarithm) if other > 0 else inf for other, entropy in means.others)
    influence = slope * means.size - means.entropy / a
    return _from_logarithm(log(n) + logarithm, influence, moved, n, dominance(tridiagonals, n))


@dataclass(frozen=True)
class _Means:
    """Means of ``|x|`` and ``|x| log |x|`` under the probes' rules, with ``x = theta / scale``."""

    size: np.ndarray  # (k,) of |x|, by the Gauss rule
    entropy: np.ndarray  # (k,) of |x| log |x|
    size_blur: float  # by how much the noise of the products moves the mean over probes of each
    entropy_blur: float
    others: list[
        tuple[float, float]
    ]  # the two means over probes by other rules, close to the Gauss rule where it is good


def _means(tridiagonals: Sequence[Tridiagonal], noise: float, scale: float) -> _Means | None:
    """The means by all rules; None where the Gauss rules have no mass off 0."""
    rows = np.array([[_pair(x / scale, w) for x, w in _rules(t)] for t in tridiagonals])  # (k, 3 rules, 2)
    if rows[:, 0, 0].mean() <= 0:
        return None
    blur = 0.0
    for t in tridiagonals:
        x = t.nodes / scale
        shifts = [np.abs(_entropy(x + shift) - _entropy(x)) for shift in (-noise, noise)]
        blur += float(t.weights @ np.maximum(*shifts)) / len(tridiagonals)
    others = [(float(a), float(c)) for a, c in rows[:, 1:].mean(axis=0)]
    return _Means(rows[:, 0, 0], rows[:, 0, 1], noise, blur, others)


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
    return [gauss, (nodes, weights), (product_norms([t]), np.ones(1))]


def _pair(x: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    return float(weights @ np.abs(x)), float(weights @ _entropy(x))


def _entropy(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    return np.asarray(size * np.log(np.where(size > 0, size, 1.0)))


def _from_logarithm(logarithm: float, influence: np.ndarray, moved: float, n: int, note: str | None) -> Estimate:
    """``exp(logarithm)`` between 1 and ``n``, the logarithm with the scatter of ``influence`` over probes as its error.

    Args:
        influence: (k,), the derivative of the logarithm along each probe's part in the means, but for a constant.
        moved: what is added to the logarithm's interval on both sides.
    """
    k = influence.size
    value = _within(_exp(logarithm), n)
    if k == 1:
        return Estimate(value, None, None, None, 1)
    error = float(influence.std(ddof=1)) / sqrt(k)
    reach = t_quantile(k) * error + moved
    return Estimate(
        value,
        value * error,
        _within(_exp(logarithm - reach), n),
        _within(_exp(logarithm + reach), n),
        k,
        note=note if error > 1e-9 else None,
    )


def _nothing(tridiagonals: Sequence[Tridiagonal]) -> Estimate:
    steps = max(t.steps for t in tridiagonals)
    zero = float(product_norms(tridiagonals).max()) == 0
    reason = _ZERO if zero else f"the rules of m = {steps} steps have no mass off 0: take more steps"
    return not_computed(reason, len(tridiagonals))


def _each() -> float:
    """The confidence of each of two bounds that hold together with 95 %."""
    return 1 - (1 - CONFIDENCE) / 2


def _within(value: float, n: int) -> float:
    return min(max(value, 1.0), float(n))


def _exp(x: float) -> float:
    return exp(min(x, 700.0))
