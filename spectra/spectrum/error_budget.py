"""Error budget of an estimate: its error from probes, Lanczos steps, arithmetic and data, and how to reduce it.

The parts are half-widths of 95 % intervals, in the units of the number:

- ``probes``: Student's t times the standard error over probes;
- ``truncation``: the further width from stopping after ``m`` Lanczos steps; 0 where these determine the number;
- ``arithmetic``: the width that is due to the noise ``eta`` of the products;
- ``data``: the change to be expected with another sample of data of the same size. No interval of the package contains
  it, since the numbers are about the loss of the given data.

The error from the data is that of ``spectrum.sampling_error``, from the per-batch quadratic forms of the first product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

from spectra.jsonable import to_jsonable
from spectra.spectrum.estimates import Estimate, t_quantile
from spectra.spectrum.estimators import ESTIMATORS, Estimator, Interval
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.sampling_error import population_error

if TYPE_CHECKING:
    from spectra.spectrum.spectrum import Spectrum

NAMES = tuple(estimator.name for estimator in ESTIMATORS if estimator.budget)

ADVICE = {
    "probes": "more probes (--probes): four times as many halve it",
    "truncation": "more Lanczos steps (--lanczos-steps)",
    "arithmetic": "products in float64 (--dtype float64)",
    "data": "more data: the loss of these samples is known better than that of their population",
}


@dataclass(frozen=True)
class Budget:
    """The parts of the error of one number. A part that is None is not known, for the reason in ``unknown``."""

    probes: float | None
    truncation: float | None
    arithmetic: float | None
    data: float | None
    unknown: Mapping[str, str]  # part -> why it is not known

    @property
    def largest(self) -> str | None:
        """The largest of the known parts; None where all are 0."""
        known = {name: value for name in ADVICE if (value := getattr(self, name))}
        return max(known, key=lambda name: float(known[name])) if known else None

    @property
    def advice(self) -> str | None:
        """How to reduce the largest part of the error."""
        return None if self.largest is None else ADVICE[self.largest]

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON, with ``largest`` and ``advice``."""
        entries: dict[str, Any] = to_jsonable(asdict(self))
        return entries | {"largest": self.largest, "advice": self.advice}


def budgets_of(spectrum: Spectrum, estimates: Mapping[str, Estimate]) -> dict[str, Budget]:
    """Name -> error budget, for the estimates of :data:`NAMES` that could be computed."""
    quiet = spectrum.quadrature.without_noise()
    return {
        e.name: _budget(spectrum, quiet, e, estimates[e.name])
        for e in ESTIMATORS
        if e.budget and e.name in estimates and not isnan(estimates[e.name].value)
    }


def _budget(spectrum: Spectrum, quiet_rules: Quadrature, estimator: Estimator, estimate: Estimate) -> Budget:
    unknown = {}
    data = None
    # The steps determine one sample per probe exactly, so that no part of the error is due to them.
    exact_in_steps = estimator.interval is Interval.SAMPLES
    if estimator.from_trace is not None:
        error = data_error(spectrum)
        if error.half_width is None:
            unknown["data"] = error.reason
        else:
            data = estimator.from_trace(error.half_width, spectrum.n)
    else:
        unknown["data"] = "not linear in the matrix: the parts of the batches do not add up to it"
    if estimate.lower is None or estimate.upper is None:
        unknown["probes"] = "one probe has no scatter"
        return Budget(None, 0.0 if exact_in_steps else None, None, data, unknown)
    whole = _reach(estimate)
    exact = _without_noise(quiet_rules, estimator, estimate)
    quiet = min(whole, _reach(exact))
    if exact_in_steps:
        return Budget(quiet, 0.0, whole - quiet, data, unknown)
    if estimate.stderr is None:
        unknown["probes"] = "the bound of an end of the spectrum is for the best of all probes together"
        return Budget(None, quiet, whole - quiet, data, unknown)
    probes = min(quiet, t_quantile(estimate.num_probes, estimate.confidence) * estimate.stderr)
    return Budget(probes, quiet - probes, whole - quiet, data, unknown)


@dataclass(frozen=True)
class DataError:
    """How much of the error of a trace is due to the data, or why that is not known."""

    half_width: float | None = None  # of the 95 % interval
    reason: str = ""  # where there is no number


def data_error(spectrum: Spectrum) -> DataError:
    """The error of the trace that is due to the data, from the per-batch quadratic forms of the first product."""
    forms, weights = spectrum.batch_forms, spectrum.batch_weights
    if forms is None or weights is None:
        return DataError(reason="the parts of the batches were not kept")
    sampling = population_error(forms, weights)
    if sampling.stderr is None:
        return DataError(reason=str(sampling.reason))
    return DataError(t_quantile(weights.size) * spectrum.n * sampling.stderr)


def _reach(estimate: Estimate) -> float:
    """How far the interval reaches from the value, on its longer side."""
    assert estimate.lower is not None
    assert estimate.upper is not None
    return max(estimate.upper - estimate.value, estimate.value - estimate.lower, 0.0)


def _without_noise(quiet: Quadrature, estimator: Estimator, estimate: Estimate) -> Estimate:
    """The same estimate from rules without noise; the estimate itself where the result has no interval."""
    found = estimator.recompute(quiet, estimate)
    return found if found.lower is not None and found.upper is not None else estimate
