"""measure: the facts and the spectrum of one data set of a record, the training data or the test data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spectra.analysis.held_out import Report
from spectra.analysis.resume import Unfinished
from spectra.analysis.settings import Settings
from spectra.krylov.eigsh import eigsh
from spectra.krylov.planned_slq import planned_slq
from spectra.krylov.slq import slq
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.point import measure_point
from spectra.results.identity import Place
from spectra.runtime.phases import phase
from spectra.runtime.ranks import ranks
from spectra.spectrum.probe_planning import Aims, Planner
from spectra.spectrum.spectrum import Spectrum


@dataclass(frozen=True)
class Planned:
    """A record to be computed."""

    operators: list[CurvatureOperator]  # on the training data, and on the test data where these are requested
    settings: Settings
    probes_per_pass: int
    place: Place
    notes: Sequence[str]
    aims: Aims | None = None  # the errors for which steps and probes are chosen; None: they are as in the settings


@dataclass(frozen=True)
class Measured:
    """What was measured on one data set."""

    facts: Mapping[str, float | int | None]  # of `measure_point`: loss, accuracy, gradient norm, counts
    spectrum: Spectrum  # with eigenpairs, if they are requested
    vectors: np.ndarray | None  # (n, K), the eigenvectors; None: no eigenpairs are requested
    graphs: Mapping[str, int]  # of `KeptProducts.summary`: how many batches were kept between products
    unused: int = 0  # products of the pilot of a planned run that are not in the spectrum


def measure(
    planned: Planned,
    part: int,
    unfinished: Unfinished | None,
    progress: Report,
    nearby: np.ndarray | None = None,
) -> Measured:
    """Measure one data set of a record.

    Args:
        planned: the record.
        part: of the record: 0 is on the training data, 1 on the test data.
        unfinished: stores the finished probes, and provides those of an interrupted process.
        progress: called with products done and products at most.
        nearby: vectors from which the search for eigenpairs starts.
    """
    operator, asked = planned.operators[part], planned.settings
    with operator.prepared():
        phase("loss and gradient")
        facts = measure_point(operator)
        pairs, ahead = None, asked.num_probes * min(asked.lanczos_steps, operator.n)
        if asked.eigenpairs:
            phase("eigenpairs")
            pairs = None if unfinished is None else unfinished.kept_pairs(part, operator.n)
        if asked.eigenpairs and pairs is None:
            pairs = eigsh(
                operator,
                min(asked.eigenpairs, operator.n),
                "LM",
                seed=asked.seed,
                nearby=nearby,
                progress=_phase_progress("eigenpairs", progress, 0, ahead),
            )
            if unfinished is not None:
                unfinished.keep_pairs(part, pairs)
        done = [] if unfinished is None else unfinished.done(part)
        under_way = [] if unfinished is None else unfinished.under_way(part, operator.device)
        already = sum(r.tridiagonal.steps for r in done) + sum(len(h.alphas) for h in under_way)
        phase("probes", already, ahead)
        options: dict[str, Any] = {
            "width": planned.probes_per_pass,
            "progress": _phase_progress("probes", progress, 0 if pairs is None else pairs.products, 0),
            "eigenpairs": pairs,
            "done": done,
            "group_done": None if unfinished is None else partial(unfinished.keep, part),
            "under_way": under_way,
            # Where several processes share the probes, only finished ones are stored.
            "step_done": None if unfinished is None or ranks() is not None else partial(unfinished.step, part),
        }
        limits, unused = (asked.lanczos_steps, asked.num_probes), 0
        if planned.aims is None:
            spectrum = slq(operator, *limits, asked.seed, distribution=asked.distribution, **options)
        else:
            planner = Planner(planned.aims, operator.n, operator.noise, asked.distribution, *limits)
            spectrum, unused = planned_slq(operator, planner, asked.seed, **options)
        graphs = operator.kept.summary
    if pairs is not None and not asked.save_eigenvectors:
        spectrum.eigenpairs = pairs.without_vectors()
    return Measured(facts, spectrum, None if pairs is None else pairs.vectors, graphs, unused)


def _phase_progress(name: str, progress: Report, before: int, after: int) -> Report:
    """Reports the products of a phase, and to `progress` those of the record.

    Args:
        name: of the phase.
        progress: called with products done and products at most.
        before: products of the record before the phase.
        after: products of the record after the phase, at most.
    """

    def report(done: int, total: int) -> None:
        phase(name, done, total)
        progress(before + done, before + total + after)

    return report
