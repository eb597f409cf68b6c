"""The difference of two spectra, number by number, with the error that probes which both share leave of it.

The probes of a run are the same at every checkpoint, so what they happen to see is seen twice and cancels. For sphere
probes, to first order in ``1/n``, one probe's trace has the variance ``2 |H|_F^2``, and a difference of two traces

    paired:    2 |H_a - H_b|_F^2 = 2 |H_a|_F^2 + 2 |H_b|_F^2 - 4 <H_a, H_b>
    unpaired:  2 |H_a|_F^2 + 2 |H_b|_F^2

(for Rademacher probes with the diagonals left out). The paired one is the right one for shared probes. It is the
smaller one only where ``<H_a, H_b> > 0``, as between neighbouring checkpoints, and is taken whichever it is. For the
same reason the bands of a trajectory are correlated: two of them that overlap may well belong to values that differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, sqrt
from typing import Any, Protocol

import numpy as np
from scipy.special import fdtri, stdtr, stdtrit

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import CONFIDENCE, Estimate, mean_estimate
from spectra.spectrum.estimators import COUNTS, ENDS
from spectra.spectrum.fractions import default_tolerances
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.traces import moment, power_samples
from spectra.spectrum.tridiagonal import Tridiagonal


class SpectrumLike(Protocol):
    """What a difference needs of a :class:`spectra.Spectrum`."""

    seed: int | None
    tensor_forms: np.ndarray | None  # (k, number of tensors)

    @property
    def tensor_sizes(self) -> Mapping[str, int]: ...

    @property
    def n(self) -> int: ...

    @property
    def distribution(self) -> str: ...

    @property
    def num_probes(self) -> int: ...

    @property
    def tridiagonals(self) -> Sequence[Tridiagonal]: ...

    @property
    def quadrature(self) -> Quadrature: ...

    def trace(self) -> Estimate: ...

    def estimates(self) -> dict[str, Estimate]: ...


# Sums of weights are known to this; between equal masses nothing else may be seen.
_ROUNDING = 1e-13

# Where each of two intervals is at this confidence, both hold together with 95 % (Bonferroni).
_EACH = (1 + CONFIDENCE) / 2

# The confidence with which the samples without known eigenvalues must scatter less, to be taken instead.
_SURELY_LESS = 0.999


@dataclass(frozen=True)
class Difference(Estimate):
    """An `Estimate` of ``f(a) - f(b)``, and how its error was found."""

    paired: bool = False  # its error is that of the differences, probe by probe
    why_not: str | None = None  # why the probes are not paired; None also where there is no sample per probe
    unpaired_stderr: float | None = None  # what the standard error would be of independent probes; for comparison
    dof: float | None = None  # degrees of freedom of Student's t behind the interval
    p_value: float | None = None  # two-sided, of no difference but for the noise of the probes; None without stderr

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the interval leaves out 0; None where an end that would decide it is not known."""
        if (self.lower is not None and self.lower > 0) or (self.upper is not None and self.upper < 0):
            return True
        return False if self.lower is not None and self.upper is not None else None


def why_not_paired(a: SpectrumLike, b: SpectrumLike) -> str | None:
    """Which of the things that make two spectra share their probes is not the same, in words; None: they share them."""
    if a.seed is None or b.seed is None:
        return "the seed of the probes is not known"
    for name in ("n", "seed", "distribution", "num_probes"):
        if getattr(a, name) != getattr(b, name):
            return f"the probes are not shared: {name} is {getattr(a, name)} and {getattr(b, name)}"
    if a.tensor_sizes and b.tensor_sizes and list(a.tensor_sizes.items()) != list(b.tensor_sizes.items()):
        return "the probes are not shared: the parameter tensors differ in name, size or order"
    return None


def difference(a: SpectrumLike, b: SpectrumLike, name: str = "trace", **options: Any) -> Difference:
    """``f(a) - f(b)`` of an estimate with an interval, 95 % unless it says otherwise.

    Means over probes (``trace``, ``mean_eigenvalue``, ``moment``, ``second_moment``, ``frobenius_square``) are taken
    probe by probe: ``d_i = s_ai - s_bi``, standard error ``s_d / sqrt(k)``, Student's t with ``k - 1`` degrees of
    freedom. ``frobenius_norm`` is linearised: ``d_i = s_ai / 2F_a - s_bi / 2F_b`` with ``s`` the squares. Of a count
    (``rank_degeneracy``, ``negative_mass``) both are taken at one ``tau``, and the probes' rigorous brackets are
    subtracted end from opposite end. The arithmetic of both sides is added. Where probes are not shared, and the
    result says why, the error of a mean is Welch's.

    The ends of the spectrum have no sample per probe: their interval is what two intervals at 97.5 % allow. Any other
    estimate gets what its two 95 % intervals allow, which holds with 90 %, and no standard error.

    Args:
        a, b: of the same kind of matrix.
        name: of an estimate of `Spectrum`, or ``"frobenius_square"``, ``|H|_F^2``.
        options: of the estimate, such as ``p`` of ``moment``. ``tau`` of a count is by default the smallest tolerance
            that is resolved in both.

    Raises:
        ArgumentError: there is no such estimate, or its options are wrong.

    References:
        B. L. Welch, The generalization of 'Student's' problem, Biometrika 34 (1947).

    Example:
        >>> from spectra.spectrum.spectrum import SpectrumLike
        >>> from spectra.spectrum.tridiagonal import Tridiagonal
        >>> a = Spectrum([Tridiagonal([x], [0.1]) for x in (1.0, 2.0, 4.0)], n=2, seed=0)
        >>> b = Spectrum([Tridiagonal([x], [0.1]) for x in (0.5, 1.5, 3.4)], n=2, seed=0)
        >>> found = difference(a, b, "mean_eigenvalue")
        >>> print(found)
        0.533 +- 0.033
        >>> found.paired, round(found.unpaired_stderr, 2)
        (True, 1.23)
    """
    if name in COUNTS:
        return _of_counts(a, b, name, **options)
    sides = _sides(a, b, name, options)
    if sides is not None:
        return _of_means(a, b, *sides)
    first, second = (_estimate(s, name, options) for s in (a, b))
    if name in ENDS and not options:
        first, second = (ENDS[name](s.quadrature, _EACH) for s in (a, b))
    confidence = 1 - (1 - first.confidence) - (1 - second.confidence)
    return _of_intervals(first, second, confidence)


def tensor_differences(a: SpectrumLike, b: SpectrumLike) -> dict[str, Difference]:
    """The differences of the traces of each parameter tensor's diagonal block, which sum to that of the trace.

    Raises:
        ArgumentError: the forms were not kept, or the tensors are not the same.
    """
    if a.tensor_forms is None or b.tensor_forms is None:
        raise ArgumentError("tensor_forms=None: the traces of the tensors were not kept")
    if a.tensor_sizes != b.tensor_sizes:
        raise ArgumentError("the tensors of the two spectra are not the same: compare their whole traces")
    found = {}
    for column, (name, size) in enumerate(a.tensor_sizes.items()):
        other = list(b.tensor_sizes).index(name)
        first = _Side(a.n * a.tensor_forms[:, column], sqrt(size) * _blur(a))
        found[name] = _of_means(a, b, first, _Side(b.n * b.tensor_forms[:, other], sqrt(size) * _blur(b)))
    return found


def common_tolerance(spectra: Sequence[SpectrumLike], name: str = "rank_degeneracy") -> float | None:
    """The smallest tolerance that all of the spectra resolve, of four to the decade; None: there is none.

    They go from a tenth of the largest of the spectral norms down by six decades, not below ten times the noise of any.
    """
    widest = max(spectra, key=lambda s: s.quadrature.scale)
    least = 10 * max(_blur(s) for s in spectra)
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


# --- means over probes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """What one spectrum has of a number that is a mean over probes."""

    samples: np.ndarray  # (k,), their mean is the number
    arithmetic: float = 0.0  # the error of the products
    least_error: float = 0.0  # what the standard error of the mean is not below

    def scaled(self, factor: float) -> _Side:
        """The same of a multiple, by a factor of at least 0."""
        return _Side(self.samples * factor, self.arithmetic * factor, self.least_error * factor)


def _side(q: Quadrature, name: str, options: dict[str, Any]) -> _Side | None:
    """The samples of a mean over probes; None for a number that is none."""
    if name in ("trace", "mean_eigenvalue") and not options:
        return _of_power(q, 1).scaled(1 if name == "trace" else 1 / q.n)
    if name in ("second_moment", "moment"):
        power = 2 if name == "second_moment" and not options else options["p"]
        moment(q, power)  # refuses what is no power, or beyond the steps
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


def _of_power(q: Quadrature, p: int) -> _Side:
    """``Tr H^p``."""

    def f(x: np.ndarray) -> np.ndarray:
        return np.asarray(x**p)

    samples = power_samples(q, p)
    slope = float(np.mean([t.weights @ np.abs(t.nodes) ** max(p - 1, 0) for t in q.tridiagonals]))
    arithmetic = sqrt(q.n) * q.blur if p == 1 else q.n * p * q.blur * slope
    centre = (float(samples.mean()) - float(f(q.converged.values).sum())) / max(1, q.remaining)
    return _Side(samples, arithmetic + q.error_of_known(f), q.least_error(f, centre))


def _sides(a: SpectrumLike, b: SpectrumLike, name: str, options: dict[str, Any]) -> tuple[_Side, _Side] | None:
    """The samples of both. Where an eigenvalue has converged on one side only, the plain ones if they scatter less.

    Of two nearly equal matrices the plain samples cancel, and those of which one side lacks an eigenvalue do not. They
    must scatter so much less that it is no chance of few probes: an F test at 0.1 %.
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


def _blur(s: SpectrumLike) -> float:
    return s.quadrature.blur


def _of_means(a: SpectrumLike, b: SpectrumLike, first: _Side, second: _Side) -> Difference:
    """Probe by probe where the probes are shared, else by Welch."""
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


def welch_dof(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Degrees of freedom of a difference of two means (Welch, Satterthwaite); of the smaller if both are exact."""
    parts = [error**2 for error in errors]
    if sum(parts) == 0:
        return float(min(sizes) - 1)
    shares = [part / sum(parts) for part in parts]  # of order one, so that no square under- or overflows
    return 1 / sum(share**2 / (size - 1) for share, size in zip(shares, sizes) if share > 0)


def p_of(size: float, stderr: float, dof: float) -> float:
    """The two-sided probability that noise alone is of this size."""
    if stderr == 0:
        return 0.0 if size > 0 else 1.0
    return 2 * float(stdtr(dof, -size / stderr))


# --- counts -------------------------------------------------------------------------------------------------------


def _of_counts(a: SpectrumLike, b: SpectrumLike, name: str, tau: float | None = None) -> Difference:
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
        return _of_intervals(first, second, confidence, tau=tau, resolved=resolved, why_not=reason, note=note)
    (low_a, value_a, high_a), (low_b, value_b, high_b) = (_masses(s, name, tau) for s in (a, b))
    k, dof = a.num_probes, float(a.num_probes - 1)
    errors = [float(d.std(ddof=1)) / sqrt(k) for d in (low_a - high_b, value_a - value_b, high_a - low_b)]
    t = float(stdtrit(dof, 0.5 + CONFIDENCE / 2))
    value = first.value - second.value
    lower = max(-1.0, float((low_a - high_b).mean()) - t * errors[0] - _ROUNDING)
    upper = min(1.0, float((high_a - low_b).mean()) + t * errors[2] + _ROUNDING)
    # What the brackets leave open is no scatter: only the rest of the difference counts against the probes.
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
    """Of each probe the lower bound, the Ritz mass within it, and the upper bound; three (k,)."""
    found = []
    for t in s.tridiagonals:
        noise = _blur(s) / t.scale if t.scale > 0 else 0.0  # relative to the probe's own scale
        curve = COUNTS[name](Quadrature((t,), s.n, noise, s.distribution), np.array([tau]))
        found.append((curve.bracket_lower[0], curve.value[0], curve.bracket_upper[0]))
    low, value, high = np.array(found).T
    return low, value, high


# --- what has an interval only ------------------------------------------------------------------------------------


def _estimate(s: SpectrumLike, name: str, options: dict[str, Any]) -> Estimate:
    method = None if name.startswith("_") else getattr(type(s), name, None)
    found: Any = method(s, **options) if callable(method) else s.estimates().get(name)
    if not isinstance(found, Estimate):
        known = ", ".join(["frobenius_square", "moment", *s.estimates()])
        raise ArgumentError(f"no estimate {name!r}: there are {known}, and methods of Spectrum that give one number")
    return found


def _of_intervals(first: Estimate, second: Estimate, confidence: float, **more: Any) -> Difference:
    lower = None if first.lower is None or second.upper is None else first.lower - second.upper
    upper = None if first.upper is None or second.lower is None else first.upper - second.lower
    k = min(first.num_probes, second.num_probes)
    more.setdefault("note", first.note or second.note)
    return Difference(first.value - second.value, None, lower, upper, k, confidence=round(confidence, 12), **more)
