"""The difference of the headline numbers of two records, with its error also where one or both numbers are exact."""

from __future__ import annotations

from math import sqrt
from typing import Any

from spectra.errors import ArgumentError
from spectra.results.record import Record
from spectra.spectrum.differences import difference
from spectra.spectrum.pairing import Difference, p_of
from spectra.spectrum.spectrum import Spectrum


def headline_difference(a: Record, b: Record, name: str = "trace", **options: Any) -> Difference:
    """The headline of `a` less that of `b`.

    Where both are estimates this is ``spectrum.differences.difference``, paired where the probes are shared. Where
    one is exact, the error is that of the other alone. Where both are exact, the standard error is 0, and there is no
    p-value: nothing about the difference is random.

    Args:
        a: a complete record.
        b: another complete record, of the same kind of matrix.
        name: of an estimate.
        options: of the estimate.

    Raises:
        ArgumentError: a record failed, there is no such estimate, or its options are wrong.
    """
    for record in (a, b):
        if record.spectrum is None:
            raise ArgumentError(f"{record.label} failed: {record.reason}")
    assert a.spectrum is not None
    assert b.spectrum is not None
    first, second = a.headlines.get(name), b.headlines.get(name)
    if options or first is None or second is None or not (first.exact or second.exact):
        return difference(a.informed_spectrum, b.informed_spectrum, name, **options)
    value = first.value - second.value
    if first.exact and second.exact:
        return Difference(value, 0.0, value, value, 0, confidence=1.0, why_not="both numbers are exact")
    estimate, spectrum = (second, b.spectrum) if first.exact else (first, a.spectrum)
    dof = float(estimate.num_probes - 1)
    surely = max(0.0, abs(value) - _arithmetic(spectrum, name))
    return Difference(
        value,
        estimate.stderr,
        None if first.lower is None or second.upper is None else first.lower - second.upper,
        None if first.upper is None or second.lower is None else first.upper - second.lower,
        estimate.num_probes,
        confidence=estimate.confidence,
        note=estimate.note,
        why_not="one of the two numbers is exact",
        dof=dof or None,
        p_value=None if estimate.stderr is None else p_of(surely, estimate.stderr, dof),
    )


def _arithmetic(spectrum: Spectrum, name: str) -> float:
    """The error of the arithmetic in an estimate of the trace or of the mean eigenvalue."""
    error = sqrt(spectrum.n) * spectrum.quadrature.blur
    return error / spectrum.n if name == "mean_eigenvalue" else error
