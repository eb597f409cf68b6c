"""Differences of means over probes: paired where two spectra share their probes, else with Welch's error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import hypot, sqrt
from typing import Any

import numpy as np
from scipy.special import fdtri, stdtrit

from spectra.spectrum.estimates import CONFIDENCE, mean_estimate
from spectra.spectrum.pairing import Difference, SpectrumLike, p_of, welch_dof, why_not_paired
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.traces import moment, power_samples

# The confidence of the F test by which the plain samples are chosen over those with known eigenvalues.
_SURELY_LESS = 0.999


@dataclass(frozen=True)
class Side:
    """A mean over probes of one spectrum: its samples, and errors that the scatter of the samples does not contain."""

    samples: np.ndarray  # (k,), their mean is the number
    arithmetic: float = 0.0  # the error of the products
    least_error: float = 0.0  # a lower bound of the standard error of the mean

    def scaled(self, factor: float) -> Side:
        """This mean times a factor of at least 0."""
        return Side(self.samples * factor, self.arithmetic * factor, self.least_error * factor)


def _side(q: Quadrature, name: str, options: dict[str, Any]) -> Side | None:
    """The samples of a mean over probes; None for a number that is not such a mean."""
    if name in ("trace", "mean_eigenvalue") and not options:
        return _of_power(q, 1).scaled(1 if name == "trace" else 1 / q.n)
    if name in ("second_moment", "moment"):
        power = 2 if name == "second_moment" and not options else options["p"]
        moment(q, power)  # raises where the power is invalid, or beyond the steps
        return _of_power(q, int(power)).scaled(1 / q.n)
    if name in ("frobenius_square", "frobenius_norm") and not options:
        square = _of_power(q, 2)
        norm = sqrt(float(square.samples.mean()))
        square = replace(square, arithmetic=2 * norm * sqrt(q.n) * q.blur + q.error_of_known(np.square))
        if name == "frobenius_square" or norm == 0:
            return square
        root = square.scaled(1 / (2 * norm))  # sum s_i / 2F k = F / 2: the other half is added
        return replace(root, samples=root.samples + norm / 2)
    return None


def _of_power(q: Quadrature, p: int) -> Side:
    """``Tr H^p``."""

    def f(x: np.ndarray) -> np.ndarray:
        return np.asarray(x**p)

    samples = power_samples(q, p)
    slope = float(np.mean([t.weights @ np.abs(t.nodes) ** max(p - 1, 0) for t in q.tridiagonals]))
    arithmetic = sqrt(q.n) * q.blur if p == 1 else q.n * p * q.blur * slope
    centre = (float(samples.mean()) - float(f(q.converged.values).sum())) / max(1, q.remaining)
    return Side(samples, arithmetic + q.error_of_known(f), q.least_error(f, centre))


def sides_of(a: SpectrumLike, b: SpectrumLike, name: str, options: dict[str, Any]) -> tuple[Side, Side] | None:
    """The samples of both spectra; None for a number that is not a mean over probes.

    Where an eigenvalue has converged in one spectrum only, the plain samples are used if their differences scatter
    less: for two nearly equal matrices plain samples cancel, and samples that take an eigenvalue of one side as known
    do not. An F test at 0.1 % decides, so that chance with few probes rarely does.
    """
    first, second = (_side(s.quadrature, name, options) for s in (a, b))
    if first is None or second is None:
        return None
    if a.quadrature.converged.count != b.quadrature.converged.count and why_not_paired(a, b) is None:
        plain = [_side(s.quadrature.with_nothing_known(), name, options) for s in (a, b)]
        if plain[0] is not None and plain[1] is not None and a.num_probes > 1:
            spread = float((plain[0].samples - plain[1].samples).var())
            dof = a.num_probes - 1
            if spread * float(fdtri(dof, dof, _SURELY_LESS)) < float((first.samples - second.samples).var()):
                return plain[0], plain[1]
    return first, second


def mean_difference(a: SpectrumLike, b: SpectrumLike, first: Side, second: Side) -> Difference:
    """The difference of two means: probe by probe where the probes are shared, else with Welch's error."""
    reason = why_not_paired(a, b)
    both = [mean_estimate(side.samples, least_error=side.least_error) for side in (first, second)]
    note = a.trace().note or b.trace().note
    value, k = both[0].value - both[1].value, min(first.samples.size, second.samples.size)
    if both[0].stderr is None or both[1].stderr is None:
        return Difference(value, None, None, None, k, note="one probe has no error", paired=False, why_not=reason)
    unpaired = hypot(both[0].stderr, both[1].stderr)
    if reason is None:
        stderr, dof = float((first.samples - second.samples).std(ddof=1)) / sqrt(k), float(k - 1)
    else:
        sizes = [first.samples.size, second.samples.size]
        stderr, dof = unpaired, welch_dof([both[0].stderr, both[1].stderr], sizes)
    arithmetic = first.arithmetic + second.arithmetic
    reach = float(stdtrit(dof, 0.5 + CONFIDENCE / 2)) * stderr + arithmetic
    return Difference(
        value,
        stderr,
        value - reach,
        value + reach,
        k,
        note=note if stderr > 1e-9 * abs(value) else None,
        paired=reason is None,
        why_not=reason,
        unpaired_stderr=unpaired,
        dof=dof,
        p_value=p_of(max(0.0, abs(value) - arithmetic), stderr, dof),
    )
