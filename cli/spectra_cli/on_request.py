"""Quantities that depend on a parameter, such as `spectra show --at g=1e-3`, from a stored spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from spectra.errors import ArgumentError
from spectra.results.record import Record
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum

#: Letter of a parameter -> its meaning, and name -> function for the quantities at its value.
_Quantities = dict[str, Callable[[Spectrum, float], Estimate]]
ASKS: dict[str, tuple[str, _Quantities]] = {
    "g": (
        "a shift H + gI",
        {
            "log_determinant": lambda s, g: s.log_determinant(g),
            "evidence": lambda s, g: s.evidence(g),
            "effective_dimension": lambda s, g: s.effective_dimension(g),
        },
    ),
    "tau": (
        "a tolerance",
        {
            "rank_degeneracy": lambda s, tau: s.rank_degeneracy(tau),
            "negative_mass": lambda s, tau: s.negative_mass(tau),
        },
    ),
    "x": ("a point", {"cumulative": lambda s, x: _cumulative(s, x)}),
    "edge": (
        "the edge of a bulk: eigenvalues above it, or below a negative one",
        {"outliers": lambda s, edge: s.outliers(edge, side="below" if edge < 0 else "above")},
    ),
    "top": ("a number of eigenvalues", {"top_log_product": lambda s, top: s.top_log_product(_whole(top))}),
    "p": ("a power", {"moment": lambda s, p: s.moment(_whole(p))}),
}

HELP = "; ".join(f"{key}: {', '.join(found)}" for key, (_, found) in ASKS.items())


def parse_asks(options: Sequence[str]) -> list[tuple[str, float]]:
    """``g=1e-3`` as ("g", 0.001).

    Raises:
        ArgumentError: not of that form, or an unknown letter.
    """
    asked = []
    for option in options:
        key, equals, value = option.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or key not in ASKS or not math.isfinite(number):
            known = ", ".join(f"{name}=NUMBER ({words})" for name, (words, _) in ASKS.items())
            raise ArgumentError(f"--at {option}: one of {known} is needed")
        asked.append((key, number))
    return asked


def quantities_at(record: Record, asks: Sequence[tuple[str, float]]) -> dict[str, Estimate]:
    """Name, such as ``evidence(g=0.001)`` -> estimate, for the requested parameters.

    Raises:
        ArgumentError: a value outside the range of the quantity.
    """
    found = {}
    if record.spectrum is not None:
        for key, value in asks:
            for name, quantity in ASKS[key][1].items():
                found[f"{name}({key}={value:g})"] = quantity(record.spectrum, value)
    return found


def _whole(value: float) -> int:
    if value != int(value):
        raise ArgumentError(f"{value:g}: a whole number is needed")
    return int(value)


def _cumulative(spectrum: Spectrum, x: float) -> Estimate:
    found = spectrum.cumulative(x)
    stderr = None if found.stderr is None else float(found.stderr)
    return Estimate(float(found.value), stderr, float(found.lower), float(found.upper), spectrum.num_probes)
