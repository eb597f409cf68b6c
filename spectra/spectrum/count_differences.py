"""Differences of counts of eigenvalues at one tolerance, from the rigorous brackets of each probe."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, sqrt

import numpy as np
from scipy.special import stdtrit

from spectra.spectrum.estimates import CONFIDENCE
from spectra.spectrum.estimators import COUNTS
from spectra.spectrum.fractions import default_tolerances
from spectra.spectrum.pairing import Difference, SpectrumLike, interval_difference, p_of, why_not_paired
from spectra.spectrum.quadrature import Quadrature

# The rounding error of a sum of weights: equal masses must not differ by more.
_ROUNDING = 1e-13


def common_tolerance(spectra: Sequence[SpectrumLike], name: str = "rank_degeneracy") -> float | None:
    """The smallest tolerance that all spectra resolve, in units of the eigenvalues; None where there is none.

    Tried are four tolerances to the decade, from a tenth of the largest spectral norm down by six decades, and none
    below ten times the noise of any spectrum.
    """
    widest = max(spectra, key=lambda s: s.quadrature.scale)
    least = 10 * max(s.quadrature.blur for s in spectra)
    waiting = list(spectra)
    for tau in default_tolerances(widest.quadrature.without_noise())[::-1]:
        if tau < least:
            continue
        # The first that does not resolve it ends the search there, and is asked first the next time.
        failed = next((s for s in waiting if not getattr(s, name)(float(tau)).resolved), None)
        if failed is None:
            return float(tau)
        waiting = [failed, *(s for s in waiting if s is not failed)]
    return None


def count_difference(a: SpectrumLike, b: SpectrumLike, name: str, tau: float | None = None) -> Difference:
    """The difference ``f(a) - f(b)`` of a count at one tolerance.

    The brackets are subtracted, each end from the opposite one: probe by probe where the probes are shared, else those
    of the two estimates. Where no tolerance is resolved in both, the interval is [-1, 1].

    Args:
        a: the first spectrum.
        b: the second spectrum, of the same kind of matrix.
        name: ``"rank_degeneracy"`` or ``"negative_mass"``.
        tau: the tolerance in units of the eigenvalues; by default that of :func:`common_tolerance`.

    Raises:
        ArgumentError: ``tau`` is negative or not finite.
    """
    if tau is None:
        tau = common_tolerance([a, b], name)
    if tau is None:
        first, second = (getattr(s, name)() for s in (a, b))
        k = min(a.num_probes, b.num_probes)
        unknown = "no tolerance is resolved in both"
        return Difference(first.value - second.value, None, -1.0, 1.0, k, resolved=False, note=unknown)
    first, second = (getattr(s, name)(tau) for s in (a, b))
    reason = why_not_paired(a, b)
    resolved = bool(first.resolved and second.resolved)
    note: str | None = None if resolved else first.note or second.note
    if reason is not None or a.num_probes == 1:
        confidence = 1 - (1 - first.confidence) - (1 - second.confidence)
        return interval_difference(first, second, confidence, tau=tau, resolved=resolved, why_not=reason, note=note)
    (low_a, value_a, high_a), (low_b, value_b, high_b) = (_masses(s, name, tau) for s in (a, b))
    k, dof = a.num_probes, float(a.num_probes - 1)
    errors = [float(d.std(ddof=1)) / sqrt(k) for d in (low_a - high_b, value_a - value_b, high_a - low_b)]
    t = float(stdtrit(dof, 0.5 + CONFIDENCE / 2))
    value = first.value - second.value
    lower = max(-1.0, float((low_a - high_b).mean()) - t * errors[0] - _ROUNDING)
    upper = min(1.0, float((high_a - low_b).mean()) + t * errors[2] + _ROUNDING)
    # The width of the brackets is no scatter over probes: only the difference beyond it is tested against the probes.
    surely = max(0.0, float((low_a - high_b).mean()) - _ROUNDING, float((low_b - high_a).mean()) - _ROUNDING)
    return Difference(
        value,
        errors[1] if resolved else None,
        lower,
        upper,
        k,
        tau=tau,
        resolved=resolved,
        note=note,
        paired=True,
        unpaired_stderr=hypot(first.stderr, second.stderr) if first.stderr is not None and second.stderr else None,
        dof=dof,
        p_value=p_of(surely, max(errors), dof) if resolved else None,
    )


def _masses(s: SpectrumLike, name: str, tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three arrays (k,), an entry per probe: the lower bound, the Ritz mass within the bounds, and the upper bound."""
    found = []
    for t in s.tridiagonals:
        noise = s.quadrature.blur / t.scale if t.scale > 0 else 0.0  # relative to the probe's own scale
        curve = COUNTS[name](Quadrature((t,), s.n, noise, s.distribution), np.array([tau]))
        found.append((curve.bracket_lower[0], curve.value[0], curve.bracket_upper[0]))
    low, value, high = np.array(found).T
    return low, value, high
