"""The stair between the wings: a task at its parameters, through operators and Lanczos, to records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from spectra import presets
from spectra.checkpoints.checkpoint import Checkpoint
from spectra.degeneracy import rank_bound_ff
from spectra.errors import ArgumentError
from spectra.heldout import beside, held_out_notes, held_out_settings, run_lengths, shared_progress, told_of
from spectra.krylov.probes import DISTRIBUTIONS
from spectra.krylov.slq import lockstep_width, slq
from spectra.operators.curvature import CurvatureOperator, torch_dtype_of
from spectra.operators.fisher import EmpiricalFisherOperator
from spectra.operators.function import choose_parameters
from spectra.operators.ggn import GGNOperator
from spectra.operators.hessian import HessianOperator
from spectra.operators.modes import batch_norm_layers, check_bn_mode
from spectra.operators.point import measure_point, widths_of
from spectra.provenance import origin, provenance_of
from spectra.records import Record
from spectra.spectrum import Spectrum
from spectra.task import Task

OPERATORS: dict[str, type[CurvatureOperator]] = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
    "empirical_fisher": EmpiricalFisherOperator,
}

Progress = Callable[[str, str, int, int], None]  # operator, BN mode, products done, products at most


@dataclass(frozen=True)
class Settings:
    """What is asked of an analysis, apart from the task itself. The defaults are those of the command line.

    Raises:
        ArgumentError: a value outside its range.
    """

    operators: str | Sequence[str] = ("hessian",)
    bn_modes: str | Sequence[str] = ("eval",)
    lanczos_steps: int = 100
    num_probes: int = 8
    seed: int = 0
    distribution: str = "sphere"
    params: str | Sequence[str] | None = None
    dtype: str | None = None
    test_data: bool = False  # the same numbers on the task's test data, in the same records
    preset: str | None = None  # in words, for the record; `presets.filled` gives the options that it stands for
    width: int | None = None  # probes that share each pass over the data; None: as many as fit in memory

    def __post_init__(self) -> None:
        for name, value in (("operators", self.operators), ("bn_modes", self.bn_modes)):
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name in self.operators:
            if name not in OPERATORS:
                known = ", ".join(map(repr, OPERATORS))
                raise ArgumentError(f"operator={name!r}: one of {known} is needed")
        for mode in self.bn_modes:
            check_bn_mode(mode)
        if not self.operators or not self.bn_modes:
            raise ArgumentError("at least one operator and one BN mode are needed")
        if self.lanczos_steps < 1:
            raise ArgumentError(f"lanczos_steps={self.lanczos_steps}: at least 1 is needed; 100 is the default")
        if self.num_probes < 1:
            raise ArgumentError(f"num_probes={self.num_probes}: at least 1 is needed; 8 is the default")
        if self.seed < 0:
            raise ArgumentError(f"seed={self.seed}: at least 0 is needed")
        if self.distribution not in DISTRIBUTIONS:
            known = ", ".join(map(repr, DISTRIBUTIONS))
            raise ArgumentError(f"distribution={self.distribution!r}: one of {known} is needed")
        if self.width is not None and self.width < 1:
            raise ArgumentError(f"width={self.width}: at least 1 is needed")
        torch_dtype_of(self.dtype)

    def pairs(self) -> list[tuple[str, str]]:
        """The (operator, BN mode) pairs asked for, in order, each once."""
        return list(dict.fromkeys((name, mode) for name in self.operators for mode in self.bn_modes))


def analyze(task: Task, **options: Any) -> list[Record]:
    """The records of a task at the parameters of its model, one per operator and BN mode.

    Args:
        task: the task.
        options: those of :func:`iter_analyze`.

    Returns:
        What ``spectra analyze`` computes for one checkpoint.

    Example:
        >>> import torch
        >>> from spectra.task import Task
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
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    skip: Sequence[tuple[str, str]] = (),
    settings: Settings | None = None,
    extra: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    **options: Any,
) -> Iterator[Record]:
    """The records of a task, each as soon as it is there. They are of the parameters as they are at this call.

    Args:
        task: the task, with the parameters to analyse in its model.
        checkpoint: where the parameters are from, for the record.
        progress: called with operator, BN mode, products done and products at most.
        skip: (operator, BN mode) pairs that are not wanted.
        settings: what is asked, or in its place
        options: the fields of :class:`Settings`: ``operators``, ``bn_modes``, ``lanczos_steps``, ``num_probes``,
            ``seed``, ``distribution``, ``params``, ``dtype``, ``test_data``, ``width``; and ``preset``, whose options
            hold where none is given.
        extra: more settings for the record, such as how the data were chosen.
        notes: what should be printed beside the numbers.

    Raises:
        SpectraError: the numbers asked for would not be right, or do not fit in memory; everything that can be
            checked is checked for all operators before the first record is computed.
    """
    if settings is not None and options:
        raise ArgumentError(f"{next(iter(options))}= beside settings=: give one of the two")
    asked = settings or Settings(**presets.filled(**options))
    wanted = [pair for pair in asked.pairs() if pair not in set(skip)]
    tasks = [task, task.held_out()] if asked.test_data else [task]
    operators = [
        [OPERATORS[name](each, mode, dtype=asked.dtype, params=asked.params) for each in tasks] for name, mode in wanted
    ]
    return _records(operators, asked, checkpoint, progress, extra or {}, notes)


def _records(
    operators: list[list[CurvatureOperator]],
    asked: Settings,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    extra: dict[str, Any],
    notes: Sequence[str],
) -> Iterator[Record]:
    """A record of each operator, which may have its twin on the test data beside it."""
    for training, *held_out in operators:
        for operator in (training, *held_out):
            with told_of(operator, training):
                _width(operator, asked)
                _ = operator.self_test
    for twins in operators:
        yield _analyze_one(twins, asked, checkpoint, progress, extra, notes)


def _width(operator: CurvatureOperator, asked: Settings) -> int:
    """How many probes share each pass: as asked, else as memory allows; one that does not fit at all is refused."""
    fits = lockstep_width(operator, min(asked.lanczos_steps, operator.n), asked.num_probes)
    return fits if asked.width is None else min(asked.width, asked.num_probes)


def _measure(
    operator: CurvatureOperator, asked: Settings, progress: Callable[[int, int], None] | None
) -> tuple[dict[str, float | int | None], Spectrum]:
    with operator.prepared():
        facts = measure_point(operator)
        spectrum = slq(
            operator,
            asked.lanczos_steps,
            asked.num_probes,
            asked.seed,
            distribution=asked.distribution,
            width=_width(operator, asked),
            progress=progress,
        )
    return facts, spectrum


def _analyze_one(
    operators: list[CurvatureOperator],
    asked: Settings,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    extra: dict[str, Any],
    notes: Sequence[str],
) -> Record:
    start = time.perf_counter()
    operator, *held_out = operators
    report = None if progress is None else partial(progress, operator.kind, operator.bn_mode)
    first, *others = shared_progress(report, len(operators))
    width = _width(operator, asked)
    facts, spectrum = _measure(operator, asked, first)
    widths = widths_of(operator)
    if widths is not None:
        d_y, units, d_x = widths
        facts |= {"rank_bound_ff": rank_bound_ff(d_y, units, d_x), "d_y": d_y, "d_x": d_x, "sum_of_widths": units}
    test_spectrum: Spectrum | None = None
    said, cost = _notes(operator), {}
    for twin, again in zip(held_out, others):
        test_facts, test_spectrum = _measure(twin, asked, again)
        facts |= beside(facts, test_facts, twin.task.reduces_to)
        cost = {"test_products": sum(t.steps for t in test_spectrum.tridiagonals)}
        said += held_out_notes(twin, operator.self_test.notes)
    return Record(
        checkpoint=None if checkpoint is None else str(checkpoint.path),
        checkpoint_sha256=None if checkpoint is None else checkpoint.sha256,
        epoch=None if checkpoint is None else checkpoint.epoch,
        step=None if checkpoint is None else checkpoint.step,
        operator=operator.kind,
        bn_mode=operator.bn_mode,
        status="complete",
        reason=None,
        settings=run_settings(operator.task, asked) | {"width": width} | extra,
        facts=facts,
        spectrum=spectrum,
        test_spectrum=test_spectrum,
        provenance=provenance_of(operator, spectrum, time.perf_counter() - start) | cost,
        notes=(*said, *(checkpoint.notes if checkpoint is not None else ()), *notes),
    )


def run_settings(task: Task, asked: Settings) -> dict[str, Any]:
    """The settings that all records of a run share: what makes their numbers comparable.

    Raises:
        ArgumentError: the pattern of parameters meets none.
        DataError, TaskError: the data cannot be used.
    """
    chosen = choose_parameters(task.model, asked.params)
    survey = task.survey()
    params = asked.params if asked.params is None or isinstance(asked.params, str) else list(asked.params)
    dtype = torch_dtype_of(asked.dtype) or next(iter(chosen.values())).dtype
    return {
        "task": task.name,
        "loss": task.describe(),
        "reduction": task.reduces_to,
        "l2": task.l2,
        "data": survey.fingerprint,
        "batch_sizes": run_lengths(survey.rows),
        "lanczos_steps": asked.lanczos_steps,
        "num_probes": asked.num_probes,
        "seed": asked.seed,
        "distribution": asked.distribution,
        "params": params,
        "dtype": str(dtype).removeprefix("torch."),
        **({"preset": asked.preset} if asked.preset else {}),
        **(held_out_settings(task) if asked.test_data else {}),
    }


def failed_record(
    operator: str, bn_mode: str, reason: str, settings: dict[str, Any], path: str, checkpoint: Checkpoint | None
) -> Record:
    """A record that says why there are no numbers, for one checkpoint among several."""
    return Record(
        checkpoint=path,
        checkpoint_sha256=None if checkpoint is None else checkpoint.sha256,
        epoch=None if checkpoint is None else checkpoint.epoch,
        step=None if checkpoint is None else checkpoint.step,
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


def sampled(
    task: Task,
    *,
    samples: int | None = None,
    data_seed: int = 0,
    batch_size: int | None = None,
    l2: float | None = None,
    reduction: str | None = None,
) -> Task:
    """The task on a fixed random subset of its data, in other batches, with another l2 or reduction, as asked."""
    if samples is not None:
        task = task.subset(samples, data_seed)
    if batch_size is not None:
        task = task.rebatched(batch_size)
    if l2 is not None:
        task = replace(task, l2=l2)
    return task if reduction is None else replace(task, reduction=reduction)


def _notes(operator: CurvatureOperator) -> list[str]:
    notes = list(operator.self_test.notes)
    if operator.bn_mode != "eval" and not batch_norm_layers(operator.task.model):
        notes.append(f"the network has no batch-norm layer: {operator.bn_mode} mode is the same function as eval mode")
    if operator.per_sample:
        over = operator.task.averaging.over
        notes.append(f"a sample is one row of the target, weighted as in the loss ({over})")
    if operator.task.l2:
        notes.append(f"the numbers are of the loss with its l2 term: every eigenvalue is moved by {operator.task.l2:g}")
    return notes
