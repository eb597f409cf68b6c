"""The analysis of one checkpoint: from a task at its parameters to its records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from spectra.analysis import presets
from spectra.analysis.analysis_run import AnalysisRun
from spectra.analysis.block_analysis import measure_blocks, partition_of
from spectra.analysis.class_analysis import measure_class_structure
from spectra.analysis.eigenspaces import Eigenspaces
from spectra.analysis.eigenvectors import analyse_eigenvectors
from spectra.analysis.findings import exact_answer, find
from spectra.analysis.held_out import errors_name_test_data, held_out_facts, held_out_notes, shared_progress
from spectra.analysis.measuring import Measured, Planned, measure
from spectra.analysis.notes import notes_of, notes_of_pairs, notes_of_rank
from spectra.analysis.preconditioning import NOTE, identified, preconditioner_for
from spectra.analysis.provenance import origin, provenance_of
from spectra.analysis.resume import Unfinished, key_of
from spectra.analysis.settings import RunSettings, Settings, run_settings
from spectra.analysis.store import Listener
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.checkpoint import Checkpoint
from spectra.errors import ArgumentError
from spectra.krylov.slq import lockstep_width
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.point import widths_of
from spectra.operators.residual import ResidualOperator
from spectra.results.identity import Place
from spectra.results.record import Record
from spectra.runtime.faults import Faults
from spectra.runtime.memo import shared_results
from spectra.runtime.memory import memory_limited
from spectra.runtime.phases import part, phase
from spectra.runtime.ranks import first_alone, jointly, shared_by
from spectra.spectrum.degeneracy import rank_bound_ff
from spectra.spectrum.estimators import FROM_TRACE
from spectra.spectrum.probe_planning import words_of_aims
from spectra.task.task import Task

Progress = Callable[[str, str, int, int], None]  # operator, BN mode, products done, products at most


def analyze(task: Task, **options: Any) -> list[Record]:
    """The records of a task at the parameters of its model, one per operator and BN mode.

    Args:
        task: the task.
        options: those of :func:`iter_analyze`.

    Returns:
        What ``spectra analyze`` computes for one checkpoint.

    Example:
        >>> import torch
        >>> from spectra.task.task import Task
        >>> x, y = torch.randn(20, 3), torch.randint(2, (20,))
        >>> task = Task(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [(x, y)])
        >>> record = analyze(task, lanczos_steps=8, num_probes=4)[0]
        >>> record.operator, record.bn_mode, record.facts["n_parameters"]
        ('hessian', 'eval', 8)
    """
    return list(iter_analyze(task, **options))


def iter_analyze(
    task: Task,
    *,
    checkpoint: Checkpoint | Place | None = None,
    progress: Progress | None = None,
    skip: Sequence[tuple[str, str]] = (),
    settings: Settings | None = None,
    extra: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    unfinished: Unfinished | None = None,
    eigenspaces: Eigenspaces | None = None,
    **options: Any,
) -> Iterator[Record]:
    """The records of a task, each as soon as it is computed. They are of the parameters at the time of the call.

    Args:
        task: the task, with the parameters to analyse in its model.
        checkpoint: the origin of the parameters, for the record.
        progress: called with operator, BN mode, products done and products at most.
        skip: (operator, BN mode) pairs to leave out.
        settings: the settings, in place of options.
        extra: more settings for the record, such as how the data were chosen.
        notes: to add to the notes of the records.
        unfinished: stores the probes of a record as they are finished, and provides those of an interrupted process.
        eigenspaces: provides the eigenvectors of the previous record, with which those of this one are compared.
        options: the fields of :class:`Settings`: ``operators``, ``bn_modes``, ``lanczos_steps``, ``num_probes``,
            ``seed``, ``distribution``, ``params``, ``dtype``, ``metrics``, ``bounds``, ``exact_spectrum``, ``check``,
            ``test_data``, ``width``, ``memory``, ``eigenpairs``, ``warm_start``, ``save_eigenvectors``, ``rtol``,
            ``blocks``, ``product``, ``class_structure``, ``precondition`` (with a checkpoint loaded with
            ``optimizer_state=True``); and ``preset``, the name of a preset whose options hold where none is given.

    Raises:
        SpectraError: the requested numbers would not be right, or do not fit in memory. Everything that can be checked
            in advance is checked for all operators before the first record is computed. An unexpected error in a check
            or a measure is not raised: it is logged, and the record has the status ``"unverified"`` and the reason.
    """
    if settings is not None and options:
        raise ArgumentError(f"{next(iter(options))}= and settings= exclude each other: give one of the two")
    asked = RunSettings(settings or Settings(**presets.filled(**options)))
    run = AnalysisRun(asked, _ProgressListener(progress), extra or {}, unfinished, eigenspaces)
    preconditioner = preconditioner_for(run.settings.precondition, checkpoint, task.model)
    return records_of(run, task, place_of(checkpoint), skip=skip, notes=notes, preconditioner=preconditioner)


class _ProgressListener(Listener):
    """Passes the progress on to a function."""

    def __init__(self, report: Progress | None) -> None:
        self._report = report

    def progress(self, operator: str, bn_mode: str, done: int, total: int) -> None:
        if self._report is not None:
            self._report(operator, bn_mode, done, total)


def records_of(
    run: AnalysisRun,
    task: Task,
    place: Place,
    *,
    skip: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    preconditioner: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[Record]:
    """The records of a task within a run, as of :func:`iter_analyze`. A file of the run is neither read nor written."""
    asked = run.settings
    wanted = [pair for pair in asked.pairs() if pair not in set(skip)]
    tasks = [task, task.held_out()] if asked.test_data else [task]
    operators = jointly(
        lambda: [
            [asked.operator_of(name)(each, mode, dtype=asked.dtype, params=asked.params) for each in tasks]
            for name, mode in wanted
        ]
    )
    if asked.precondition is not None:
        if preconditioner is None:
            raise ArgumentError("precondition='optimizer': a checkpoint with the state of its optimizer is needed")
        notes = [*notes, NOTE]
        for operator in (operator for of_record in operators for operator in of_record):
            operator.precondition(preconditioner)
    if asked.blocks is not None:
        for of_record in operators:
            partition_of(of_record[0], asked.blocks)  # is checked
    # The first record of each mode has the measures; if it is skipped, they are computed already.
    measured = {mode for name, mode in asked.pairs() if (name, mode) in set(skip) and name == asked.measured_with}
    return _records(run, operators, measured, place, notes)


def _records(
    run: AnalysisRun, operators: list[list[CurvatureOperator]], measured: set[str], place: Place, notes: Sequence[str]
) -> Iterator[Record]:
    """A record for each list of operators: that on the training data, and that on the test data, if there are any.

    A sharpness measure belongs to the network, not to an operator: `measured` are the modes whose records have them.
    """
    limit = parse_size(run.settings.memory, "memory")
    with memory_limited(limit):
        chosen = [choose_probes_per_pass(of_record, run.settings) for of_record in operators]
    with memory_limited(limit), shared_results():  # the operators have the same loss and data
        for training, *held_out in operators:
            for operator in (training, *held_out):
                with errors_name_test_data(operator is not training):
                    phase("checking")
                    operator.agree()
    if limit is not None:  # again, because self-tests take memory that the process does not give back
        with memory_limited(limit):
            chosen = [choose_probes_per_pass(of_record, run.settings) for of_record in operators]
    for of_record, probes_per_pass in zip(operators, chosen):
        mode, asked = of_record[0].bn_mode, run.settings
        if mode in measured or asked.params is not None or of_record[0].kind == ResidualOperator.kind:
            asked = replace(asked, metrics="none", bounds=False)
        else:
            measured.add(mode)
        with memory_limited(limit):
            record = _analyze_one(run, Planned(of_record, asked, probes_per_pass, place, notes))
        yield record


def choose_probes_per_pass(operators: Sequence[CurvatureOperator], asked: Settings) -> int:
    """The number of probes of a record that share each pass over the data: ``width``, else as many as fit in memory.

    Args:
        operators: of the record: on the training data, and on the test data where these are requested.
        asked: the settings, with ``width``.

    Raises:
        OutOfMemory: not even one probe fits.
    """
    fits: list[int] = []
    for operator in operators:
        with errors_name_test_data(operator is not operators[0]):
            fits.append(lockstep_width(operator, min(asked.lanczos_steps, operator.n), asked.num_probes))
    return min(fits) if asked.width is None else min(asked.width, asked.num_probes)


def _analyze_one(run: AnalysisRun, planned: Planned) -> Record:
    start = time.perf_counter()
    operator, *held_out = planned.operators
    asked, place, unfinished, eigenspaces = planned.settings, planned.place, run.unfinished, run.eigenspaces
    report = partial(run.listener.progress, operator.kind, operator.bn_mode)
    first, *others = shared_progress(report, len(planned.operators))
    settings = run_settings(operator.task, asked) | run.extra
    if unfinished is not None:
        record = {"operator": operator.kind, "bn_mode": operator.bn_mode, "settings": settings, **identified(operator)}
        key = key_of(operator.task.model, operator.device, record)
        goes_on_with = unfinished.begin(key, planned.probes_per_pass, fixed=asked.width is not None)
        planned = replace(planned, probes_per_pass=goes_on_with)
    pair = operator.kind, operator.bn_mode
    nearby = eigenspaces.before(pair) if eigenspaces is not None and asked.warm_start else None
    faults = Faults(f"{place.words}, {operator.kind}, BN {operator.bn_mode}" if place != Place() else operator.kind)
    exact = None
    if asked.aims:
        with faults.kept("the exact trace"):
            exact = exact_answer(operator, asked)
        planned = replace(planned, aims=tuple(aim for aim in asked.aims if exact is None or aim[0] not in FROM_TRACE))
    training = measure(planned, 0, unfinished, first, nearby)
    facts, spectrum, vectors = dict(training.facts), training.spectrum, training.vectors
    overlap = None if eigenspaces is None or vectors is None else eigenspaces.compare(pair, place, vectors)
    found = find(operator, spectrum, asked, faults, exact)
    widths = widths_of(operator)
    if widths is not None:
        d_y, units, d_x = widths
        facts |= {"rank_bound_ff": rank_bound_ff(d_y, units, d_x), "d_y": d_y, "d_x": d_x, "sum_of_widths": units}
    notes = [
        *found.warnings,
        *notes_of(operator),
        *notes_of_rank(operator, facts),
        *notes_of_pairs(spectrum.eigenpairs),
    ]
    if asked.aims:  # the test data are measured with the same probes and steps, so that both can be compared
        k, m = spectrum.num_probes, spectrum.lanczos_steps
        planned = replace(planned, settings=replace(asked, num_probes=k, lanczos_steps=m), aims=None)
        settings = settings | {"num_probes": k, "lanczos_steps": m}  # the key of the unfinished probes has the other
    eigenvector_analysis = None
    with faults.kept("the analysis of the eigenvectors"):
        eigenvector_analysis = first_alone(lambda: analyse_eigenvectors(operator, spectrum.eigenpairs, vectors))
    structure = None
    if asked.class_structure:
        with faults.kept("the class structure"):
            structure, remarks = first_alone(lambda: measure_class_structure(operator, spectrum, found.traces.exact))
            notes += remarks
    blocks = None
    with faults.kept("the blocks"):
        blocks, remarks = measure_blocks(planned)
        notes += remarks
    cost: dict[str, int] = {}
    if blocks is not None:
        cost["block_products"] = sum(t.steps for spectrum in blocks.values() for t in spectrum.tridiagonals)
    tested: Measured | None = None
    kept = {"graphs": dict(training.graphs)} if training.graphs["batches"] else {}  # else nothing was computed here
    for test_operator, test_progress in zip(held_out, others):
        with part("held-out", 0, 1):
            tested = measure(planned, 1, unfinished, test_progress)
        facts |= held_out_facts(facts, tested.facts, test_operator.task.reduces_to)
        cost["test_products"] = sum(t.steps for t in tested.spectrum.tridiagonals)
        notes += held_out_notes(test_operator, operator.self_test.notes)
    seconds = time.perf_counter() - start + (0.0 if unfinished is None else unfinished.seconds)
    made = Record(
        place=place,
        operator=operator.kind,
        bn_mode=operator.bn_mode,
        status="complete" if faults.reason is None else "unverified",
        reason=faults.reason,
        settings=settings | {"width": planned.probes_per_pass},
        facts=facts,
        spectrum=spectrum,
        test_spectrum=None if tested is None else tested.spectrum,
        provenance=provenance_of(operator, spectrum, seconds, training.unused)
        | kept
        | cost
        | shared_by()
        | faults.as_provenance(),
        exact=found.traces.exact,
        checks=(*found.traces.checks, *found.spectrum.checks),
        exact_spectrum=found.eigenvalues,
        overlap=overlap,
        eigenvector_analysis=eigenvector_analysis,
        class_structure=structure,
        blocks=blocks,
        remainder=found.traces.remainder,
        optimizer=place.optimizer,
        sharpness=found.sharpness,
        notes=(*faults.notes, *notes, *place.notes, *planned.notes),
    )
    if not asked.aims:
        return made
    known = [name for name, number in made.headlines.items() if number.exact]
    outcome = words_of_aims(made.informed_spectrum, asked.aims, made.estimates, known)
    return replace(made, notes=(*outcome, *made.notes))


def place_of(checkpoint: Checkpoint | Place | None) -> Place:
    """The origin of the weights as a record keeps it: file, content, epoch, step and notes."""
    if checkpoint is None or isinstance(checkpoint, Place):
        return checkpoint or Place()
    return Place(
        checkpoint=str(checkpoint.path),
        sha256=checkpoint.sha256,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        notes=tuple(checkpoint.notes),
        optimizer=checkpoint.optimizer,
    )


def failed_record(operator: str, bn_mode: str, reason: str, settings: dict[str, Any], place: Place) -> Record:
    """The failed record of a checkpoint that could not be analysed: without numbers, with the reason."""
    return Record(
        place=place,
        operator=operator,
        bn_mode=bn_mode,
        status="failed",
        reason=reason,
        settings=settings,
        facts={},
        spectrum=None,
        provenance=origin(),
        notes=(),
    )
