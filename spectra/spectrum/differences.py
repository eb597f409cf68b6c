"""Differences of the estimates of two spectra, with errors that take account of shared probes.

The probes of a run are the same at every checkpoint, so errors that both spectra share cancel in a difference. For
sphere probes, to first order in ``1/n``, one probe's trace has the variance ``2 |H|_F^2``, and a difference of two
traces

    paired:    2 |H_a - H_b|_F^2 = 2 |H_a|_F^2 + 2 |H_b|_F^2 - 4 <H_a, H_b>
    unpaired:  2 |H_a|_F^2 + 2 |H_b|_F^2

(for Rademacher probes with the diagonals left out). The paired variance is the right one for shared probes, and is
always used for them. It is the smaller one only where ``<H_a, H_b> > 0``, as between neighbouring checkpoints. For the
same reason the bands of a trajectory are correlated: values whose bands overlap may still differ.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from spectra.errors import ArgumentError
from spectra.spectrum.count_differences import count_difference
from spectra.spectrum.estimates import CONFIDENCE, Estimate
from spectra.spectrum.estimators import COUNTS, ENDS
from spectra.spectrum.mean_differences import Side, mean_difference, sides_of
from spectra.spectrum.pairing import Difference, SpectrumLike, interval_difference

# Where each of two intervals is at this confidence, both hold together with 95 % (Bonferroni).
_EACH = (1 + CONFIDENCE) / 2


def difference(a: SpectrumLike, b: SpectrumLike, name: str = "trace", **options: Any) -> Difference:
    """The difference ``f(a) - f(b)`` of an estimate, with a 95 % interval unless stated otherwise below.

    Means over probes (``trace``, ``mean_eigenvalue``, ``moment``, ``second_moment``, ``frobenius_square``) are
    subtracted probe by probe: ``d_i = s_ai - s_bi``, standard error ``s_d / sqrt(k)``, Student's t with ``k - 1``
    degrees of freedom. ``frobenius_norm`` is linearised: ``d_i = s_ai / 2F_a - s_bi / 2F_b`` with ``s`` the squares.
    Both counts (``rank_degeneracy``, ``negative_mass``) are taken at one ``tau``; the rigorous brackets of the probes
    are subtracted, each end from the opposite one. The errors of the arithmetic of both sides are added. Where probes
    are not shared, ``why_not`` gives the reason and the error of a mean is Welch's.

    The ends of the spectrum have no sample per probe: their interval is that of all differences of values within two
    97.5 % intervals. For any other estimate it is that of two 95 % intervals, which has a confidence of 90 %; there is
    no standard error.

    Args:
        a: the first spectrum.
        b: the second spectrum, of the same kind of matrix.
        name: of an estimate of `Spectrum`, or ``"frobenius_square"``, ``|H|_F^2``.
        options: of the estimate, such as ``p`` of ``moment``. ``tau`` of a count is by default the smallest tolerance
            that is resolved in both.

    Raises:
        ArgumentError: there is no such estimate, or its options are wrong.

    References:
        B. L. Welch, The generalization of 'Student's' problem, Biometrika 34 (1947).

    Example:
        >>> from spectra.spectrum.spectrum import Spectrum
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
        return count_difference(a, b, name, **options)
    sides = sides_of(a, b, name, options)
    if sides is not None:
        return mean_difference(a, b, *sides)
    first, second = (_estimate(s, name, options) for s in (a, b))
    if name in ENDS and not options:
        first, second = (ENDS[name](s.quadrature, _EACH) for s in (a, b))
    confidence = 1 - (1 - first.confidence) - (1 - second.confidence)
    return interval_difference(first, second, confidence)


def tensor_differences(a: SpectrumLike, b: SpectrumLike) -> dict[str, Difference]:
    """The difference of the trace of each parameter tensor's diagonal block; they sum to the difference of the trace.

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
        first = Side(a.n * a.tensor_forms[:, column], sqrt(size) * a.quadrature.blur)
        found[name] = mean_difference(a, b, first, Side(b.n * b.tensor_forms[:, other], sqrt(size) * b.quadrature.blur))
    return found


def _estimate(s: SpectrumLike, name: str, options: dict[str, Any]) -> Estimate:
    method = None if name.startswith("_") else getattr(type(s), name, None)
    found: Any = method(s, **options) if callable(method) else s.estimates().get(name)
    if not isinstance(found, Estimate):
        known = ", ".join(["frobenius_square", "moment", *s.estimates()])
        raise ArgumentError(f"no estimate {name!r}: there are {known}, and methods of Spectrum that give one number")
    return found
