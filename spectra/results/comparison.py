"""Comparison: the values of each arm of runs, their differences, and the distances of their spectra."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any

import numpy as np

from spectra.jsonable import to_jsonable
from spectra.results.record import Record
from spectra.spectrum.estimates import CONFIDENCE, Estimate
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.wasserstein import Distance


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a label, and a complete record of each of its runs."""

    label: str
    records: tuple[Record, ...]
    sources: tuple[str, ...] = ()  # the files

    @property
    def spectra(self) -> list[Spectrum]:
        return [record.spectrum for record in self.records if record.spectrum is not None]


@dataclass(frozen=True)
class Cell:
    """A quantity in an arm: its values in the runs, and their mean and spread."""

    quantity: str
    arm: str
    runs: tuple[Estimate, ...]  # one per run; a fact, such as the loss, has no error

    @property
    def value(self) -> float:
        """The mean over the runs; NaN where the value of one run is not known or not resolved."""
        known = all(isfinite(run.value) and run.resolved is not False for run in self.runs)
        return float(np.mean([run.value for run in self.runs])) if known else nan

    @property
    def spread(self) -> float | None:
        """The standard deviation over the runs; None with one run."""
        if len(self.runs) < 2 or isnan(self.value):
            return None
        return float(np.std([run.value for run in self.runs], ddof=1))


@dataclass(frozen=True)
class Contrast:
    """The difference of a quantity in one arm from that in another arm.

    `basis` says where the error comes from: ``"probes"`` (one run each: of these two networks), ``"exact"`` (one run
    each, and both numbers are exact), ``"runs"`` (Welch's test over the runs, with the error of the probes added), or
    ``"none"`` (a single run against several: no error is known).
    """

    quantity: str
    arm: str
    against: str
    value: float
    stderr: float | None
    lower: float | None
    upper: float | None
    p_value: float | None  # two-sided, of this row by itself
    basis: str
    confidence: float = CONFIDENCE
    paired: bool = False  # the probes are shared, and the difference is taken probe by probe
    note: str | None = None
    exact: bool = False  # all compared numbers are exact: probes add no error


@dataclass(frozen=True)
class Gap:
    """The distance of the spectra of two arms: with several runs the mean over pairs of runs, one of each arm."""

    arm: str
    against: str
    distance: Distance  # of the only pair, or the means over the pairs
    within: float | None  # the mean distance of two runs of one arm; None where no arm has two


@dataclass(frozen=True)
class Comparison:
    """The result of `run_comparison.compare`."""

    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]  # for each quantity one per arm
    contrasts: tuple[Contrast, ...]  # of every arm with the first
    gaps: tuple[Gap, ...]
    warnings: tuple[str, ...]
    tolerances: dict[str, float | None]  # of the counts: the common tau

    @property
    def single(self) -> bool:
        """Whether each arm has one run."""
        return all(len(arm.records) == 1 for arm in self.arms)

    def to_json(self) -> dict[str, Any]:
        """All of it as a dictionary for JSON; NaN and infinite numbers are None."""
        entries: dict[str, Any] = to_jsonable(
            {
                "arms": [
                    {"label": a.label, "files": list(a.sources), "runs": [r.label for r in a.records]}
                    for a in self.arms
                ],
                "quantities": [
                    {
                        "quantity": c.quantity,
                        "arm": c.arm,
                        "value": c.value,
                        "spread": c.spread,
                        "runs": [run.to_json() for run in c.runs],
                    }
                    for c in self.cells
                ],
                "differences": [dict(vars(contrast)) for contrast in self.contrasts],
                "distances": [
                    {"arm": g.arm, "against": g.against, "within": g.within}
                    | vars(g.distance)
                    | {"above_floor": g.distance.above_floor}
                    for g in self.gaps
                ],
                "tolerances": self.tolerances,
                "warnings": list(self.warnings),
            }
        )
        return entries
