"""Comparison of runs in arms of one or more runs: differences with errors from the probes or from the training runs.

A difference of two numbers has two kinds of noise. The noise of the probes is small and known; it decides whether two
*networks* differ. The noise of training (initial weights, order of the data) is visible only where an arm has several
runs. A claim about two *optimizers* must exceed it: a difference of two single runs does not support such a claim.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import hypot, isfinite, isnan, nan, sqrt
from typing import Any

import numpy as np
from scipy.special import stdtrit

from spectra.errors import ArgumentError
from spectra.jsonable import to_jsonable
from spectra.results.comparison import Arm, Cell, Comparison, Contrast, Gap
from spectra.results.headline import is_exact
from spectra.results.headline_difference import headline_difference
from spectra.results.record import Record
from spectra.spectrum.count_differences import common_tolerance
from spectra.spectrum.estimates import CONFIDENCE, Estimate
from spectra.spectrum.estimators import COMPARED, COUNTS
from spectra.spectrum.pairing import p_of, welch_dof
from spectra.spectrum.wasserstein import spectral_distance

FACTS = ("loss", "accuracy", "gradient_norm")
#: Settings that may differ between compared runs, with a warning: a difference of the numbers may be due to them.
_ALIKE = {
    "data": "the data",
    "loss": "the loss",
    "dtype": "the precision (dtype)",
    "l2": "l2",
    "lanczos_steps": "the Lanczos steps",
    "params": "the choice of parameters",
    "bn_mode": "the batch-norm mode",
}


def compare(arms: Sequence[Arm]) -> Comparison:
    """Every quantity in every arm, the differences of the other arms from the first, and the distances of the spectra.

    Counts are taken at one tolerance, the smallest that all runs resolve. An exact trace is used if it is known
    (`Record.headline`). With one run each, a difference has the error of the probes (see ``spectrum.differences``), and
    no error between exact numbers. With several runs it is Welch's test over the runs. The error of the probes (at most
    the mean over pairs of runs) is added in quadrature, since the error of shared probes is not in the spread of runs.

    Raises:
        ArgumentError: fewer than two arms, equal labels, an arm without a run, a run without a spectrum, or matrices of
            different kinds: different operators, or means and sums over the data.

    References:
        B. L. Welch, The generalization of 'Student's' problem, Biometrika 34 (1947).
    """
    records = [record for arm in arms for record in arm.records]
    _check(arms, records)
    spectra = [spectrum for arm in arms for spectrum in arm.spectra]
    tolerances = {name: common_tolerance(spectra, name) for name in COUNTS}
    columns: dict[str, list[Cell]] = {}
    for name in (*FACTS, *COMPARED):
        found = [Cell(name, arm.label, tuple(_value(r, name, tolerances) for r in arm.records)) for arm in arms]
        if any(isfinite(run.value) for cell in found for run in cell.runs):
            columns[name] = found
    contrasts = [
        _contrast(name, first, other, arms[0], arm, tolerances.get(name))
        for name, (first, *others) in columns.items()
        for other, arm in zip(others, arms[1:])
    ]
    cells = [cell for found in columns.values() for cell in found]
    gaps = [_gap(arms[0], arm) for arm in arms[1:]]
    return Comparison(tuple(arms), tuple(cells), tuple(contrasts), tuple(gaps), tuple(_warnings(records)), tolerances)


def _check(arms: Sequence[Arm], records: Sequence[Record]) -> None:
    if len(arms) < 2:
        raise ArgumentError(f"{len(arms)} run or label to compare: at least 2 are needed")
    labels = [arm.label for arm in arms]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ArgumentError(f"label {twice!r} is given twice: give the runs of one arm to one label")
    for arm in arms:
        if not arm.records:
            raise ArgumentError(f"label {arm.label!r} has no runs: name a file")
        for record in arm.records:
            if record.spectrum is None:
                raise ArgumentError(f"{arm.label}: {record.label} failed and cannot be compared: {record.reason}")
    for name, read in _SAME.items():
        found = list(dict.fromkeys(read(record) for record in records))
        if len(found) > 1:
            raise ArgumentError(f"{name} {found[0]} and {found[1]} cannot be compared: choose runs of one kind")


_SAME: dict[str, Callable[[Record], str]] = {
    "operators": lambda record: record.operator,
    "matrices that are": lambda record: "preconditioned" if record.settings.get("precondition") else "plain",
    "losses that are a": lambda record: str(record.settings.get("reduction", "mean")),
}


def _warnings(records: Sequence[Record]) -> list[str]:
    """A line for each setting in which the runs differ and that may cause a difference of the numbers."""
    found = []
    readers: dict[str, Callable[[Record], Any]] = {
        "the number of parameters n": lambda record: record.spectrum.n if record.spectrum else None,
        "the distribution of the probes": lambda record: record.spectrum.distribution if record.spectrum else None,
    }
    for key, words in _ALIKE.items():
        if key == "bn_mode":
            readers[words] = lambda record: record.bn_mode
        else:
            readers[words] = lambda record, key=key: to_jsonable(record.settings.get(key))  # type: ignore[misc]
    for words, read in readers.items():
        values = [str(read(record)) for record in records]
        if len(set(values)) > 1:
            shown = ", ".join(value if len(value) <= 40 else f"{value[:37]}..." for value in dict.fromkeys(values))
            found.append(f"{words} is not the same: {shown}; a difference may be due to that")
    epochs = [record.epoch for record in records]
    if len(set(epochs)) > 1:
        shown = ", ".join(dict.fromkeys("unknown" if epoch is None else f"{epoch:g}" for epoch in epochs))
        found.append(f"the epochs are not the same: {shown}; --epoch E compares at one")
    return found


def _value(record: Record, name: str, tolerances: dict[str, float | None]) -> Estimate:
    nothing = Estimate(nan, None, None, None, 0)
    if name in FACTS:
        fact = record.facts.get(name)
        return nothing if fact is None else replace(nothing, value=float(fact))
    if name in COUNTS and record.spectrum is not None:
        tau = tolerances[name]
        if tau is None:
            return replace(nothing, resolved=False, note="no tolerance is resolved in every run")
        estimate: Estimate = getattr(record.spectrum, name)(tau)
        return estimate
    return record.headlines.get(name, nothing)


def _contrast(name: str, first: Cell, other: Cell, against: Arm, arm: Arm, tau: float | None) -> Contrast:
    value = other.value - first.value
    plain = Contrast(name, arm.label, against.label, value, None, None, None, None, "none")
    if isnan(value):
        return replace(plain, note="not known, or not resolved, in every run")
    options = {"tau": tau} if name in COUNTS else {}
    found = [
        headline_difference(a, b, name, **options) for a in arm.records for b in against.records if name not in FACTS
    ]
    exact = all(is_exact(run) for run in (*first.runs, *other.runs))
    plain = replace(plain, exact=exact)
    if len(first.runs) == len(other.runs) == 1:
        if not found:  # a fact is exact for its data
            return replace(plain, basis="probes")
        d = found[0]
        names = ("value", "stderr", "lower", "upper", "p_value", "confidence")
        parts: dict[str, Any] = {name: getattr(d, name) for name in names}
        return replace(plain, basis="exact" if exact else "probes", paired=d.paired, note=d.note, **parts)
    sizes = len(first.runs), len(other.runs)
    if min(sizes) < 2:
        return replace(plain, note="an arm of one run has no spread")
    errors = [float(cell.spread or 0.0) / sqrt(len(cell.runs)) for cell in (first, other)]
    probes = [d.stderr for d in found if d.stderr is not None]
    stderr = hypot(*errors, float(np.mean(probes)) if probes else 0.0)
    dof = welch_dof(errors, sizes)
    reach = float(stdtrit(dof, 0.5 + CONFIDENCE / 2)) * stderr
    return replace(
        plain,
        stderr=stderr,
        lower=value - reach,
        upper=value + reach,
        p_value=p_of(abs(value), stderr, dof),
        basis="runs",
        paired=bool(found) and all(d.paired for d in found),
    )


def _gap(against: Arm, arm: Arm) -> Gap:
    between = [spectral_distance(a, b) for a in arm.spectra for b in against.spectra]
    inside = [
        spectral_distance(a, b).value for side in (arm, against) for a, b in itertools.combinations(side.spectra, 2)
    ]
    distance = replace(
        between[0],
        value=_mean(d.value for d in between),
        floor=_mean(d.floor for d in between),
        truncation=_mean(d.truncation for d in between),
        paired=all(d.paired for d in between),
        why_not=next((d.why_not for d in between if d.why_not), None),
    )
    return Gap(arm.label, against.label, distance, _mean(inside) if inside else None)


def _mean(numbers: Iterable[float]) -> float:
    return float(np.mean(list(numbers)))
