"""plan_checkpoints: what an analysis will cost, from trial products on the first batches of the first checkpoint."""

from __future__ import annotations

import io
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import torch

from spectra.analysis.analysis_run import ChosenData, device_of
from spectra.analysis.analyze import choose_probes_per_pass, place_of
from spectra.analysis.block_analysis import partition_of
from spectra.analysis.predicted import Plan, RecordCost
from spectra.analysis.provenance import provenance_of
from spectra.analysis.resume import weights_sha256
from spectra.analysis.run import TaskMaker, under_names_of
from spectra.analysis.settings import RunSettings, Settings, run_settings
from spectra.analysis.trials import Time, Trial, lanczos_times, no_time, shortest, stand_in, timed, trial_on_all
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.checkpoints.loading import Recipient
from spectra.errors import CheckpointError
from spectra.operators.curvature import CurvatureOperator
from spectra.results.identity import Place
from spectra.results.record import Record
from spectra.results.storage.record_codec import write_record
from spectra.results.storage.runfile import LIBRARY
from spectra.runtime.memo import shared_results
from spectra.runtime.memory import available_bytes, memory_limited, used_bytes
from spectra.spectrum.block_spectra import BlockSpectra


def plan_checkpoints(paths: Sequence[Path], make_task: TaskMaker, asked: RunSettings) -> Plan:
    """Predict the cost of :func:`spectra.analysis.run.analyze_checkpoints`. No file is written.

    The first checkpoint is read, its operators are tested as in an analysis, and a few products are computed on its
    first batches. All checkpoints are taken to cost the same, and no record to be in the results file already.

    Args:
        paths: the checkpoints.
        make_task: the task of a checkpoint; its model receives the weights.
        asked: the settings.

    Raises:
        SpectraError: the analysis would be refused for the same reason.
    """
    if not paths:
        raise CheckpointError("no checkpoint to analyse")
    start = np.array([max(0.0, time.time() - psutil.Process().create_time()), time.process_time()])
    settings = asked.analysis
    with memory_limited(parse_size(settings.memory, "memory")):
        read, checkpoint = timed(partial(_read, paths[0], asked))
        making, made = timed(lambda: make_task(checkpoint))
        choosing, task = timed(lambda: ChosenData(asked.data, with_test=settings.test_data).task(made))
        Recipient(asked.partial).load(under_names_of(make_task, checkpoint, task.model), task.model)
        device = device_of(asked.device)
        if device is not None:
            task.model.to(device)
        hashing, _ = timed(lambda: weights_sha256(task.model))
        tasks = [task, task.held_out()] if settings.test_data else [task]
        once, _ = timed(lambda: [each.survey() for each in tasks])
        operators = [
            [settings.operator_of(name)(each, mode, dtype=settings.dtype, params=settings.params) for each in tasks]
            for name, mode in settings.pairs()
        ]
        widths = [choose_probes_per_pass(of_record, settings) for of_record in operators]
        with shared_results():
            tests = [_tested(of_record) for of_record in operators]
        if settings.memory is not None:
            widths = [choose_probes_per_pass(of_record, settings) for of_record in operators]
        device = operators[0][0].device
        base, peak = used_bytes(device), _peak(device)
        records, seen = [], set()
        for of_record, width, test in zip(operators, widths, tests):
            mode = of_record[0].bn_mode
            own = settings
            if mode in seen or settings.params is not None:
                own = replace(settings, metrics="none", bounds=False)
            seen.add(mode)
            records.append(_record_cost(of_record, own, width, test, place_of(checkpoint)))
        ratio = _float32_ratio(operators[0][0]) if operators[0][0].torch_dtype == torch.float64 else None
    return Plan(
        len(paths),
        start,
        read + 2 * hashing,
        making + choosing + once,
        records,
        base,
        peak,
        settings,
        _notes(asked, records),
        ratio,
    )


def _read(path: Path, asked: RunSettings) -> Any:
    return load_checkpoint(path, unsafe=asked.unsafe, weights=asked.weights, max_size=parse_size(asked.max_size))


def _tested(operators: Sequence[CurvatureOperator]) -> Time:
    """The time of the checks before the first product."""
    total = no_time()
    for operator in operators:
        total = total + timed(partial(getattr, operator, "self_test"))[0]
    return total


def _record_cost(
    operators: Sequence[CurvatureOperator], asked: Settings, width: int, test: Time, place: Place
) -> RecordCost:
    operator = operators[0]
    steps = min(asked.lanczos_steps, operator.n)
    trials = [
        trial_on_all(one, asked, min(width, asked.num_probes), with_findings=one is operator) for one in operators
    ]
    budget = available_bytes(operator.device) // 4
    closing, size = timed(partial(_record_bytes, operator, asked, trials[0], place))
    found = trials[0].found
    exact = None if found is None else found.traces.exact
    search = min(asked.eigenpairs, operator.n)
    return RecordCost(
        operator=operator.kind,
        bn_mode=operator.bn_mode,
        n=operator.n,
        itemsize=operator.dtype.itemsize,
        steps=steps,
        probes=asked.num_probes,
        width=width,
        eigenpairs=search,
        trials=[replace(trial, found=None, spectrum=None) for trial in trials],
        lanczos=lanczos_times(operator, steps),
        fixed=test + closing,
        budget=budget,
        batches=operator.task.survey().num_batches,
        samples=operator.task.survey().num_samples,
        bytes=len(operators) * size + (4 * operator.n * search if asked.save_eigenvectors else 0),
        exact_trace=exact is not None
        and exact.total is not None
        and exact.stderr is None
        and (exact.applies or operator.kind == "ggn")
        and operator.kind != "residual",
        blocks=[part.n for part in _parts(operator, asked).values()],
    )


def _parts(operator: CurvatureOperator, asked: Settings) -> dict[str, CurvatureOperator]:
    """The diagonal blocks whose spectra are asked for, by name."""
    if asked.blocks is None:
        return {}
    return {name: operator.block(names) for name, names in partition_of(operator, asked.blocks).blocks.items()}


def _record_bytes(operator: CurvatureOperator, asked: Settings, trial: Trial, place: Place) -> int:
    """The size of a record with as many numbers as the record will have. Its time is that of estimates and storing."""
    assert trial.found is not None
    assert trial.spectrum is not None
    found, spectrum = trial.found, stand_in(operator, asked)
    parts = {name: stand_in(part, asked) for name, part in _parts(operator, asked).items()}
    record = Record(
        place=place,
        operator=operator.kind,
        bn_mode=operator.bn_mode,
        status="complete",
        settings=run_settings(operator.task, asked),
        facts={},
        spectrum=spectrum,
        provenance=provenance_of(operator, spectrum, 0.0),
        exact=found.traces.exact,
        checks=(*found.traces.checks, *found.spectrum.checks),
        remainder=found.traces.remainder,
        sharpness=found.sharpness,
        blocks=BlockSpectra(str(asked.blocks), parts) if parts else None,
        notes=(),
    )
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBRARY) as file:
        write_record(file.create_group("records/0"), record)
    tensors = sum(len(name) + 24 + 8 * asked.num_probes for name in operator.tensor_sizes)
    groups = 8 * (asked.num_probes + 1) * min(64, operator.task.survey().num_batches)
    pairs = 8 * min(asked.eigenpairs, operator.n) * (asked.num_probes + 8)
    return len(buffer.getvalue()) + tensors + groups + pairs


def _float32_ratio(operator: CurvatureOperator) -> Time:
    """The time of a product with the first batch in float32, relative to that in float64."""
    narrow, wide = (_product_time(one) for one in (operator.at(torch.float32), operator))
    ratio: Time = np.minimum(1.0, narrow / np.maximum(wide, 1e-9))
    return ratio


def _product_time(operator: CurvatureOperator) -> Time:
    with operator.function.evaluation():
        batch, _ = next(iter(operator.batches()))
        product = operator.linearise(batch)
        return shortest(partial(product, [torch.ones_like(p) for p in operator.function.theta]))


def _notes(asked: RunSettings, records: Sequence[RecordCost]) -> list[str]:
    notes = []
    if any(record.steps == record.n for record in records):
        notes.append("as many steps as parameters: a probe ends where its Krylov space does, and products are at most")
    if asked.analysis.rtol:
        notes.append("rtol: probes and steps are chosen by a pilot; this is the cost of all that are allowed")
    if asked.analysis.eigenpairs:
        notes.append("the search for eigenpairs ends when they have converged: its products and its time are at most")
    if asked.analysis.exact_spectrum:
        notes.append("the time of --exact-spectrum is not predicted")
    if asked.analysis.blocks is not None:
        notes.append("the products of --blocks are at most, and of the training data alone")
    if asked.out.exists():
        notes.append(f"{asked.out} exists: records that it has already are counted as well")
    return notes


def _peak(device: torch.device) -> int:
    """The largest memory that the process has used so far on a device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
