"""Entry: what is logged of one record. Tags are ``spectra/OPERATOR/BN_MODE/NAME``: ``spectra/hessian/eval/trace``.

Of a number with an interval there are also ``NAME_lower`` and ``NAME_upper``. A number that is missing, not finite or
not resolved has no entry; the interval of a number that is not resolved has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from spectra.errors import escaped

if TYPE_CHECKING:
    from spectra.results.record import Record
    from spectra.spectrum.estimates import Estimate
    from spectra.spectrum.spectrum import Spectrum

BINS = 64
#: Facts that do not change in a training.
_CONSTANT = ("n_parameters", "n_samples", "test_n_samples")


@dataclass(frozen=True, eq=False)
class Histogram:
    """The number of eigenvalues in each bin: the integral of the smoothed density over the bin, times ``n``.

    The counts sum to ``n``, and are not whole numbers. The outer bins contain what the smoothing puts beyond them.
    """

    edges: np.ndarray  # (B + 1,) eigenvalues, ascending
    counts: np.ndarray  # (B,)
    total: float  # n
    first_moment: float  # the sum of the eigenvalues: the plain mean over the probes of the trace
    second_moment: float  # the sum of their squares, of the smoothed density


@dataclass(frozen=True, eq=False)
class Entry:
    """What is logged of one record."""

    x: int | None  # the step of the training, else its epoch; None: neither is known
    numbers: Mapping[str, float]  # tag -> a finite number
    words: Mapping[str, str]  # tag -> text
    histograms: Mapping[str, Histogram]


def entry_of(record: Record) -> Entry:
    """The numbers to quote of a record, its facts and measures, its density, and whether and why it failed.

    Returns:
        ``failed`` is 1 for a failed record and else 0; ``reason`` is the text of a failed or unverified one.
    """
    prefix = f"spectra/{record.operator}/{record.bn_mode}"
    found: dict[str, float | int | None] = {"failed": float(record.status == "failed"), "epoch": record.epoch}
    found |= {name: value for name, value in record.facts.items() if name not in _CONSTANT}
    test = {f"test/{name}": estimate for name, estimate in record.test_estimates.items()}
    for name, estimate in {**record.headlines, **test}.items():
        found |= _parts(name, estimate)
    for name, measure in record.sharpness.items():
        found |= {f"sharpness/{name}": measure.value, f"sharpness/{name}_stderr": measure.stderr}
    x = record.step if record.step is not None or record.epoch is None else int(record.epoch)
    return Entry(
        x,
        {f"{prefix}/{name}": float(value) for name, value in found.items() if value is not None and isfinite(value)},
        {f"{prefix}/reason": f"{record.status}: {escaped(str(record.reason))}"} if record.status != "complete" else {},
        {} if record.spectrum is None else {f"{prefix}/density": histogram_of(record.spectrum)},
    )


def _parts(name: str, estimate: Estimate) -> dict[str, float | None]:
    """A number with its interval, and of a count its tolerance; without the number where that is not resolved."""
    value = None if estimate.resolved is False else estimate.value
    ends = {f"{name}_lower": estimate.lower, f"{name}_upper": estimate.upper, f"{name}_tau": estimate.tau}
    return {name: value, **ends}


def histogram_of(spectrum: Spectrum, bins: int = BINS) -> Histogram:
    """The default density of a spectrum, integrated over bins of equal width between the ends of its grid."""
    ends = spectrum.density(points=2)  # for the ends of the grid and the width of the kernel
    edges = np.linspace(ends.grid[0], ends.grid[-1], bins + 1)
    rules = spectrum.quadrature.rules
    inner = np.mean([ndtr((edges[1:-1, None] - nodes) / ends.sigma) @ weights for nodes, weights in rules], axis=0)
    n = spectrum.n
    first, second = (n * float(np.mean([weights @ nodes**p for nodes, weights in rules])) for p in (1, 2))
    counts = n * np.diff(inner, prepend=0.0, append=1.0)
    return Histogram(edges, counts, float(n), first, second + n * ends.sigma**2)
