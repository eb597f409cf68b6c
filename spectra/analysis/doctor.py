"""examine_checkpoints: what will go wrong in an analysis, found by its own checks before it is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from spectra.analysis import diagnoses
from spectra.analysis.analysis_run import ChosenData, device_of
from spectra.analysis.analyze import place_of
from spectra.analysis.diagnoses import OK, PROBLEM, WARNING, Diagnosis
from spectra.analysis.held_out import errors_name_test_data
from spectra.analysis.observed import observe
from spectra.analysis.plan import plan_checkpoints
from spectra.analysis.preconditioning import preconditioner_for
from spectra.analysis.resume import weights_sha256
from spectra.analysis.run import TaskMaker, under_names_of
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
from spectra.results.identity import Place, apart
from spectra.runtime.memo import shared_results
from spectra.runtime.memory import available_bytes, memory_limited, used_bytes
from spectra.runtime.phases import phase
from spectra.task.batches import choose_rows, rows_of
from spectra.task.task import Task
from spectra.task.user_errors import reason_of, unexpected

# Rows on which the exact trace is tried: whether it exists is decided on a few rows.
_ROWS = 16


def examine_checkpoints(paths: Sequence[Path], make_task: TaskMaker, asked: RunSettings) -> list[Diagnosis]:
    """Run the checks of an analysis, and further ones that an analysis has no use for.

    What can differ between checkpoints is checked in all of them: whether they can be read, fit, and are finite, equal
    weights, and the statistics of batch norm. All other checks are made on the first and the last one.

    A check that is refused is a problem, and the checks that are still possible go on: with the task's own weights if
    the first checkpoint does not fit, and on one frozen pass if the data differ between passes. No file is written.

    Args:
        paths: the checkpoints, in the order of training.
        make_task: the task of a checkpoint; its model receives the weights.
        asked: the settings.

    Returns:
        One finding for each problem, with the checkpoints that have it.
    """
    if not paths:
        raise CheckpointError("no checkpoint to analyse")
    doctor = _Doctor(asked, several=len(paths) > 1)
    with memory_limited(parse_size(asked.analysis.memory, "memory")):
        task: Task | None = None
        for path in paths:
            doctor.path = path
            task = doctor.task_of(path, make_task, anyway=path == paths[0])
            task = None if task is None else doctor.with_data(task)
            if task is None:
                continue
            with shared_results():
                if path in (paths[0], paths[-1]):
                    doctor.examine(task)
                else:
                    doctor.look(task)
        doctor.path = None
        doctor.equal_weights()
        if not doctor.refused:
            with doctor.refusals("cost"):
                plan = plan_checkpoints(paths, make_task, asked)
                device = torch.device("cpu") if task is None else next(task.model.parameters()).device
                free = available_bytes(device) + used_bytes(device)
                doctor.add([diagnoses.of_plan(plan, free)])
    if len(paths) > 2:
        words = f"{len(paths)} checkpoints were read; all checks were made on {paths[0]} and {paths[-1]}"
        doctor.add([Diagnosis("checkpoint", OK, words)])
    return doctor.found


class _Doctor:
    """Collects the diagnoses of checkpoints, one after the other."""

    def __init__(self, asked: RunSettings, *, several: bool) -> None:
        self.asked, self.several = asked, several
        self.found: list[Diagnosis] = []
        self.path: Path | None = None  # of the checkpoint that is examined
        self._recipient = Recipient(asked.partial)
        self._chosen = ChosenData(asked.data, with_test=asked.analysis.test_data)
        self._fixed: tuple[Task, Task | None] | None = None  # the last task, and the same with fixed data
        self._preconditioner: dict[str, torch.Tensor] | None = None  # of the checkpoint that is examined
        self._places: dict[str, list[Place]] = {}  # hash of weights -> the checkpoints that have them

    @property
    def refused(self) -> bool:
        return any(one.level == PROBLEM for one in self.found)

    def add(self, diagnoses_found: Iterable[Diagnosis]) -> None:
        """Keep diagnoses, those of the same problem as one."""
        for one in diagnoses_found:
            if self.path is not None and not one.checkpoints:
                one = replace(one, checkpoints=(str(self.path),))
            joined = ((place, other.joined(one)) for place, other in enumerate(self.found))
            place, found = next((pair for pair in joined if pair[1] is not None), (len(self.found), one))
            self.found[place : place + 1] = [found or one]

    def refuse(self, check: str, error: Exception, remedy: str = "") -> None:
        """Keep an error as a problem: a refusal with its message, any other as unexpected."""
        words = reason_of(error)
        if self.several:  # which name it with every finding
            words = words.removeprefix(f"{self.path}: ")
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

    def task_of(self, path: Path, make_task: TaskMaker, *, anyway: bool) -> Task | None:
        """The task with the weights of the checkpoint; if they do not fit, with its own weights, or None."""
        asked = self.asked
        phase("reading")
        ready: Task | None = None
        self._preconditioner = None
        with self.refusals("checkpoint"):
            size = parse_size(asked.max_size)
            how = asked.analysis.precondition
            checkpoint = load_checkpoint(
                path, unsafe=asked.unsafe, weights=asked.weights, max_size=size, optimizer_state=how is not None
            )
            several = asked.weights is None and bool(checkpoint.others)
            for note in checkpoint.notes:
                self.add([Diagnosis("checkpoint", WARNING if several and "--weights" in note else OK, note)])
            with self.refusals("task"):
                task = self._chosen.task(make_task(checkpoint))
                ready = task if anyway else None
                with self.refusals("checkpoint"):
                    named = under_names_of(make_task, checkpoint, task.model)
                    self.add(diagnoses.of_fit(self._recipient.load(named, task.model)))
                    self._places.setdefault(weights_sha256(task.model), []).append(place_of(checkpoint))
                    ready = task
                    with self.refusals("optimizer"):
                        self._preconditioner = preconditioner_for(how, checkpoint, task.model)
                device = device_of(asked.device)
                if device is not None:
                    task.model.to(device)
        return ready

    def equal_weights(self) -> None:
        """Checkpoints with the weights of another one."""
        for places in self._places.values():
            names = tuple(str(place.checkpoint) for place in places)
            if len(places) > 1:
                first, last = ((place.epoch, place.step) for place in (places[0], places[-1]))
                trained = apart(first, last)
                words = "they have the same weights" + (", of several epochs or steps" if trained else "")
                remedy = "training may not have changed them" if trained else "an analysis computes them once"
                self.add([Diagnosis("equal weights", WARNING if trained else OK, words, remedy, names)])

    def with_data(self, task: Task) -> Task | None:
        """The task with data that are the same on every pass: frozen, if they are not. Made once per task."""
        if self._fixed is None or self._fixed[0] is not task:
            self._fixed = task, self._on_fixed_data(task)
        return self._fixed[1]

    def _on_fixed_data(self, task: Task) -> Task | None:
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

    def look(self, task: Task) -> None:
        """What differs between checkpoints: the statistics of batch norm."""
        settings = self.asked.analysis
        for mode in settings.bn_modes:
            with self.refusals("batch norm"):
                function = HessianOperator(task, mode, dtype=settings.dtype, params=settings.params).function
                self.add(diagnoses.of_batch_norm(function))

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
            if self._preconditioner is not None:
                operator.precondition(self._preconditioner)
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
