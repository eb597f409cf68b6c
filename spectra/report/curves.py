"""The curves of a record for the page, as numbers of a few digits: density, Ritz values and rank degeneracy."""

from __future__ import annotations

from math import log10
from typing import Any

import numpy as np

from spectra.figures.draw import converged, lowest_height
from spectra.report.packing import curve
from spectra.results.record import Record
from spectra.spectrum.density import VIEWS
from spectra.spectrum.spectrum import Spectrum

# Points of a curve to a width of the kernel, and at most; of the linear view there are about 5 (m + 12).
_PER_WIDTH = 5
_MOST = 2000


def curves_of(record: Record) -> dict[str, Any]:
    """All curves of a record: its density in both views, its Ritz values, its rank degeneracy; none if it failed."""
    spectrum = record.spectrum
    if spectrum is None:
        return {}
    return {
        **{view: _density(spectrum, view, record.linear_threshold()) for view in VIEWS},
        "stems": _stems(spectrum, record.linear_threshold()),
        "degeneracy": _degeneracy(spectrum),
    }


def _density(spectrum: Spectrum, view: str, threshold: float) -> dict[str, Any]:
    """The density in a view, where it is visible.

    Returns:
        ``origin`` and ``step`` of the coordinate; the index of the ``first`` point; ``level``, the values, and
        ``above``, the upper ends of the band over the values (None with one probe), both as `levels`, with 0 at
        ``floor``, the lower end of the axis; ``sigma`` in units of the coordinate; and ``s`` of the asinh view.
    """
    s = threshold if view == "asinh" else None
    whole = spectrum.density(view=view, linear_threshold=s, points=2)  # for its ends and the width of its kernel
    points = min(int(np.ptp(whole.coordinate) / whole.sigma * _PER_WIDTH) + 2, _MOST)
    density = spectrum.density(view=view, linear_threshold=s, points=points)
    x, floor = density.coordinate, float(f"{lowest_height(density.values, spectrum.n):.3g}")
    heights = levels(density.values, floor)
    upper = heights if density.upper is None else levels(density.upper, floor)
    seen = np.flatnonzero(upper > upper.min())
    part = slice(int(seen[0]), int(seen[-1]) + 1) if seen.size else slice(None)
    return {
        "origin": float(f"{x[0]:.9g}"),
        "step": float(f"{(x[-1] - x[0]) / (x.size - 1):.9g}"),
        "first": part.start or 0,
        "level": differences(heights[part]),
        "above": None if density.upper is None else (upper - heights)[part].tolist(),
        "sigma": float(f"{density.sigma:.3g}"),
        "floor": floor,
        "s": s,
    }


def levels(values: np.ndarray, unit: float) -> np.ndarray:
    """``1000 log10(values / unit)`` as integers, at least -1000: a value is known to 0.12 % then."""
    return np.asarray(np.rint(1000 * np.log10(np.maximum(values, unit / 10) / unit)).astype(int))


def differences(numbers: np.ndarray) -> list[int]:
    """The first of some integers, and the difference of each other one from the one before it."""
    return [int(number) for number in np.diff(numbers, prepend=0)]


def _stems(spectrum: Spectrum, threshold: float) -> dict[str, Any]:
    """The Ritz values of all probes and their weights.

    Returns:
        ``node``, the differences of ``1000 asinh(node / s)`` as integers; ``weight``, ``100 log10(weight)`` as
        integers; ``converged``, a text with a 1 where a value has converged and a 0 elsewhere.
    """
    parts = spectrum.tridiagonals
    nodes, weights = (np.concatenate([getattr(t, name) for t in parts]) for name in ("nodes", "weights"))
    settled = np.concatenate([converged(t) for t in parts])
    shown = weights > 0
    return {
        "s": threshold,
        "node": differences(np.rint(1000 * np.arcsinh(nodes[shown] / threshold)).astype(int)),
        "weight": [round(100 * log10(weight)) for weight in weights[shown].tolist()],
        "converged": "".join("1" if one else "0" for one in settled[shown]),
    }


def _degeneracy(spectrum: Spectrum) -> dict[str, Any] | None:
    """The fraction within every tolerance, in units of the spectral norm; None where there is nothing to draw."""
    found, scale = spectrum.degeneracy_curve(), spectrum.spectral_norm().value
    if scale <= 0 or len(found) == 0:
        return None
    order = np.argsort(found.tau)
    columns = {"tau": found.tau / scale, "value": found.value, "lower": found.lower, "upper": found.upper}
    return {name: curve(column[order]) for name, column in columns.items()} | {
        "resolved": found.resolved[order].astype(int).tolist(),
        "scale": float(scale),
    }
