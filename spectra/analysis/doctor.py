"""examine_checkpoints: what will go wrong in an analysis, found by its own checks before it is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from spectra.analysis import diagnoses
from spectra.analysis.analysis_run import ChosenData, device_of
from spectra.analysis.diagnoses import OK, PROBLEM, WARNING, Diagnosis
from spectra.analysis.held_out import errors_name_test_data
from spectra.analysis.observed import observe
from spectra.analysis.plan import plan_checkpoints
from spectra.analysis.run import TaskMaker
from spectra.analysis.settings import RunSettings
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.checkpoints.loading import Recipient
from spectra.errors import CheckpointError, DataError, NumericsError, SpectraError
from spectra.exact.trace import exact_trace
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.custom_functions import hessian_misses_a_part
from spectra.operators.hessian import HessianOperator
from spectra.operators.point import measure_point
from spectra.operators.selftest import self_test
from spectra.runtime.memo import shared_results
from spectra.runtime.memory import available_bytes, memory_limited, used_bytes
from spectra.runtime.phases import phase
from spectra.task.batches import choose_rows, rows_of
from spectra.task.task import Task
from spectra.task.user_errors import reason_of, unexpected

# Rows on which the exact trace is tried: whether it exists is decided on a few rows.
_ROWS = 16


def examine_checkpoints(paths: Sequence[Path], make_task: TaskMaker, asked: RunSettings) -> list[Diagnosis]:
    """Run the checks of an analysis on the first checkpoint, and further ones that an analysis has no use for.

    A check that is refused is a problem, and the checks that are still possible go on: with the task's own weights if
    those of the checkpoint do not fit, and on one frozen pass if the data differ from pass to pass. No file is written.

    Args:
        paths: the checkpoints; the first is examined.
        make_task: the task of a checkpoint; its model receives the weights.
        asked: the settings.
    """
    if not paths:
        raise CheckpointError("no checkpoint to analyse")
    doctor = _Doctor(asked)
    with memory_limited(parse_size(asked.analysis.memory, "memory")):
        task = doctor.task_of(paths[0], make_task)
        task = None if task is None else doctor.with_data(task)
        if task is not None:
            with shared_results():
                doctor.examine(task)
        if not doctor.refused:
            with doctor.refusals("cost"):
                plan = plan_checkpoints(paths, make_task, asked)
                device = torch.device("cpu") if task is None else next(task.model.parameters()).device
                free = available_bytes(device) + used_bytes(device)
                doctor.add([diagnoses.of_plan(plan, free)])
    if len(paths) > 1:
        doctor.add([Diagnosis("checkpoint", OK, f"only {paths[0]} of {len(paths)} checkpoints was examined")])
    return doctor.found


class _Doctor:
    """Collects the diagnoses of one checkpoint."""

    def __init__(self, asked: RunSettings) -> None:
        self.asked = asked
        self.found: list[Diagnosis] = []

    @property
    def refused(self) -> bool:
        return any(one.level == PROBLEM for one in self.found)

    def add(self, diagnoses_found: Iterable[Diagnosis]) -> None:
        """Keep diagnoses, each reason once."""
        for one in diagnoses_found:
            if all(one.reason != other.reason for other in self.found):
                self.found.append(one)

    def refuse(self, check: str, error: Exception, remedy: str = "") -> None:
        """Keep an error as a problem: a refusal with its message, any other as unexpected."""
        words = reason_of(error)
        if unexpected(error):
            words = f"unexpected error: {words}"
            remedy = "spectra analyze --debug with the same options shows where"
        self.add([Diagnosis(check, PROBLEM, words, remedy)])

    @contextmanager
    def refusals(self, check: str) -> Iterator[None]:
        """Context for a check whose error becomes a problem."""
        try:
            yield
        except Exception as error:
            self.refuse(check, error)

    def task_of(self, path: Path, make_task: TaskMaker) -> Task | None:
        """The task with the weights of the checkpoint, or with its own weights if they do not fit."""
        asked = self.asked
        phase("reading")
        ready: Task | None = None
        with self.refusals("checkpoint"):
            size = parse_size(asked.max_size)
            checkpoint = load_checkpoint(path, unsafe=asked.unsafe, weights=asked.weights, max_size=size)
            several = asked.weights is None and bool(checkpoint.others)
            for note in checkpoint.notes:
                self.add([Diagnosis("checkpoint", WARNING if several and "--weights" in note else OK, note)])
            with self.refusals("task"):
                made = make_task(checkpoint)
                task = ChosenData(asked.data, with_test=asked.analysis.test_data).task(made)
                with self.refusals("checkpoint"):
                    self.add(diagnoses.of_fit(Recipient(asked.partial).load(checkpoint, task.model)))
                device = device_of(asked.device)
                if device is not None:
                    task.model.to(device)
                ready = task
        return ready

    def with_data(self, task: Task) -> Task | None:
        """The task with data that are the same on every pass: frozen, if they are not."""
        phase("data")
        try:
            task.survey()
        except Exception as error:
            self.refuse("data", error)
            if not (isinstance(error, DataError) and "--snapshot-data" in str(error)):
                return None
        else:
            return task
        frozen: Task | None = None
        with self.refusals("data"):
            frozen = task.snapshot(self.asked.data.data_seed, test=self.asked.analysis.test_data)
            frozen.survey()
        return frozen

    def examine(self, task: Task) -> None:
        """Every check of the task on its training data, and those of the operators on the test data too."""
        settings = self.asked.analysis
        tasks = [task]
        if settings.test_data:
            with self.refusals("test data"), errors_name_test_data(True):
                held_out = task.held_out()
                held_out.survey()
                tasks.append(held_out)
        for each in tasks:
            self.add(diagnoses.of_data(each, "data" if each is task else "test data"))
        for name, mode in settings.pairs():
            for each in tasks:
                self._operator(name, mode, each, held_out=each is not task)
        for mode in settings.bn_modes:
            self._exact_trace(task, mode)

    def _exact_trace(self, task: Task, mode: str) -> None:
        """Whether the traces of the run can be compared with exact ones. An analysis goes on where they cannot."""
        with self.refusals("exact trace"):
            try:
                found = diagnoses.of_exact_trace(
                    exact_trace(
                        _on_few_rows(task), mode, params=self.asked.analysis.params, dtype=self.asked.analysis.dtype
                    )
                )
            except SpectraError as error:
                found = Diagnosis(
                    "exact trace", WARNING, reason_of(error), "an analysis goes on without comparing its traces"
                )
            self.add([found])

    def _operator(self, name: str, mode: str, task: Task, *, held_out: bool) -> None:
        check = f"{'test data, ' if held_out else ''}{name}, {mode}"
        with self.refusals(check), errors_name_test_data(held_out):
            settings = self.asked.analysis
            operator = settings.operator_of(name)(task, mode, dtype=settings.dtype, params=settings.params)
            phase("checking")
            if self._sound(operator, check, held_out=held_out):
                self.add(diagnoses.of_products(operator, check))
                self._range(operator, "test data, " if held_out else "")
            if not held_out:
                self._network(operator)

    def _sound(self, operator: CurvatureOperator, name: str, *, held_out: bool) -> bool:
        """Whether all checks of an operator pass, each made whether or not those before it did."""
        failed, checks = False, operator.checks()
        for part in (*checks, name):
            try:
                with errors_name_test_data(held_out):
                    if part in checks:
                        checks[part]()
                    elif failed:
                        self_test(operator)
                    else:
                        _ = operator.self_test
            except Exception as error:
                if not (failed and unexpected(error)):  # else it may follow from what is known already
                    self.refuse(part, error, self._wider(operator, error))
                failed = True
        return not failed

    def _wider(self, operator: CurvatureOperator, error: Exception) -> str:
        """The remedy for a number that is not finite: float64, if that helps."""
        if not isinstance(error, NumericsError):
            return ""
        if operator.torch_dtype == torch.float32:
            try:
                measure_point(operator.at(torch.float64))
                return "--dtype float64: the same number is finite in it"
            except Exception:  # whatever it is, float64 is no remedy
                pass
        return "an earlier checkpoint: this one has diverged, or its data hold numbers that are not finite"

    def _range(self, operator: CurvatureOperator, of: str) -> None:
        """Loss and gradient over all data, in the range of the dtype."""
        try:
            facts = measure_point(operator)
        except NumericsError as error:
            self.refuse("range", error, self._wider(operator, error))
            return
        words = f"{of}{operator.bn_mode}: loss {facts['loss']:.4g}, norm of the gradient {facts['gradient_norm']:.3g}"
        self.add([Diagnosis("range", OK, words)])

    def _network(self, operator: CurvatureOperator) -> None:
        """Parameters, units, batch norm, kinks and missing derivatives: of the network, whatever the operator."""
        function = operator.function
        with self.refusals("batch norm"):
            self.add(diagnoses.of_batch_norm(function))
        with self.refusals("parameters"):
            seen = observe(function)
            self.add(diagnoses.of_observed(seen))
            if isinstance(operator, HessianOperator):
                batch = next(batch for batch in operator.task.batches() if operator.task.weight_of(batch) > 0)
                with function.evaluation("eval"):
                    placed = function.place(batch)
                    missing = hessian_misses_a_part(function, placed)
                    jumps = not missing and hessian_misses_a_part(function, placed, (0.0, 0.0, 0.0))
                self.add([diagnoses.of_kinks(seen, missing, jumps)])


def _on_few_rows(task: Task) -> Task:
    batch = next(batch for batch in task.batches() if task.weight_of(batch) > 0)
    rows = rows_of(batch)
    few = batch if rows is None or rows <= _ROWS else choose_rows(batch, torch.arange(_ROWS))
    return replace(task, data=[few], test_data=None, calibration=task)
