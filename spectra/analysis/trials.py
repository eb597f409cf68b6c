"""Trials: the time and memory of the parts of a record, measured on the first batches of its data.

Each part is timed on two amounts of data and extrapolated by the line through both, so that a part that does not
depend on the data, such as a certificate, is not multiplied by their number. Times are (2,): seconds by the clock, and
seconds of the processor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import torch

from spectra.analysis.block_analysis import partition_of
from spectra.analysis.findings import Findings, allowance_of, find
from spectra.analysis.settings import Settings
from spectra.krylov.lanczos import tridiagonalize
from spectra.krylov.slq import slq
from spectra.operators.base import SymmetricOperator
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.point import measure_point
from spectra.runtime.faults import Faults
from spectra.runtime.memory import used_bytes
from spectra.spectrum.spectrum import Spectrum
from spectra.task.batches import choose_rows, rows_of, tensors_of
from spectra.task.task import Task

_FEW_STEPS = 2  # of the Lanczos run whose spectrum the trial of checks and measures is given
_REPEATS = 2  # of a product; the shortest counts
_BASIS = 2**28  # bytes of the Krylov basis of the trial of Lanczos
_INTERVAL = 0.003  # seconds between two readings of the memory


Time = np.ndarray  # (2,)


def no_time() -> Time:
    """No seconds."""
    return np.zeros(2)


def timed(call: Callable[[], Any]) -> tuple[Time, Any]:
    """The time of a call, and its result."""
    before = np.array([time.perf_counter(), time.process_time()])
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()]) - before, result


def shortest(call: Callable[[], Any]) -> Time:
    """The time of a call, the shortest of a few."""
    times: Time = np.min([timed(call)[0] for _ in range(_REPEATS)], axis=0)
    return times


class Peak:
    """Within the block, ``bytes`` becomes the largest memory in use beyond that at its begin."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._begin = used_bytes(self.device)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self.bytes = max(self.bytes, used_bytes(self.device) - self._begin)


@dataclass(frozen=True)
class Trial:
    """The cost of parts of a record on a share of its data, or, extrapolated, on all."""

    share: float  # of the data, by weight
    load: Time  # a pass over the data without a computation
    point: Time  # loss and gradient
    first: Time  # the first product of a block of probes, which makes the graphs
    kept: Time  # a product of the block from kept graphs
    new: Time  # the same where no graph is kept
    findings: Time  # checks and measures
    blocks: Time  # a product of each diagonal block with as many probes, from kept graphs; 0 where none are asked for
    graph_bytes: float  # of all graphs
    data_bytes: float
    work_bytes: float  # that a product takes for a batch, whose graph is not kept
    findings_bytes: float  # that checks and measures take
    found: Findings | None = None
    spectrum: Spectrum | None = None

    def scaled_to_all(self, smaller: Trial | None, *, more_batches: bool) -> Trial:
        """The cost on all data: on the line through this trial and a smaller one, or through the origin."""

        def line(name: str) -> Any:
            mine = getattr(self, name)
            if smaller is None:
                return mine / self.share
            slope = np.maximum(0.0, mine - getattr(smaller, name)) / (self.share - smaller.share)
            return mine + slope * (1 - self.share)

        extrapolated = ("load", "point", "first", "kept", "new", "findings", "blocks", "graph_bytes", "data_bytes")
        work = 1.0 if more_batches else 1 / self.share  # more batches need no more memory, larger ones do
        return replace(
            self,
            share=1.0,
            work_bytes=self.work_bytes * work,
            findings_bytes=self.findings_bytes * work,
            **{name: line(name) for name in extrapolated},
        )


def trial_on_all(operator: CurvatureOperator, asked: Settings, width: int, *, with_findings: bool) -> Trial:
    """The extrapolated cost on all data of an operator.

    Args:
        operator: on all data, tested.
        asked: the settings of the record.
        width: the number of probes that share each pass.
        with_findings: whether the record has checks and measures on these data.
    """
    task = operator.task
    whole = task.survey().total_weight
    trials: list[Trial] = []
    pieces = _pieces(task)
    for data in pieces:
        few = replace(task, data=data, test_data=None, calibration=None)
        share = sum(task.weight_of(batch) for batch in data) / whole
        trials.append(_trial(operator, few, share, asked, width, with_findings=with_findings))
    smaller = trials[0] if len(trials) == 2 and trials[1].share > trials[0].share else None
    return trials[-1].scaled_to_all(smaller, more_batches=task.survey().num_batches > 1)


def _pieces(task: Task) -> list[list[Any]]:
    """A smaller and a larger amount of data: one and two batches, or a quarter and a half of a single one."""
    batches = list(islice((batch for batch in task.batches() if task.weight_of(batch) > 0), 2))
    if len(batches) == 2:
        return [batches[:1], batches]
    rows = rows_of(batches[0])
    if rows is None or rows < 16:
        return [batches]
    return [[choose_rows(batches[0], torch.arange(rows // part))] for part in (4, 2)]


def _trial(
    whole: CurvatureOperator, task: Task, share: float, asked: Settings, width: int, *, with_findings: bool
) -> Trial:
    """The trial on a task with few data, at the parameters and statistics of the whole operator."""
    operator = type(whole)(task, whole.bn_mode, dtype=whole.torch_dtype, params=whole.params)
    operator.function.adopt(whole.function)
    operator._test = whole.self_test
    _ = task.survey()
    load, _ = timed(lambda: list(operator.batches()))
    block = torch.randn(width, operator.n, generator=torch.Generator().manual_seed(0)) / operator.n**0.5
    block = block.to(operator.device, operator.torch_dtype)

    with operator.passes.holding(), Peak(operator.device) as work:
        new = shortest(lambda: operator.apply(block))
    with operator.prepared(2**62):
        point, _ = timed(lambda: measure_point(operator))
        first, _ = timed(lambda: operator.apply(block))
        kept = shortest(lambda: operator.apply(block))
        blocks = _blocks_time(operator, asked, width) if with_findings and asked.blocks is not None else no_time()
        graphs = operator.kept.summary["kept_bytes"]
        few_steps = min(_FEW_STEPS, operator.n)
        spectrum = slq(operator, few_steps, asked.num_probes, asked.seed, width=width) if with_findings else None
    found, findings, more = None, no_time(), 0
    if spectrum is not None:
        asked = replace(asked, exact_spectrum=0)
        allowance = allowance_of(whole, asked)
        with Peak(operator.device) as peak:
            findings, found = timed(lambda: find(operator, spectrum, asked, Faults("trial"), allowance=allowance))
        more = peak.bytes
    data = sum(tensor.numel() * tensor.element_size() for batch in task.data for tensor in tensors_of(batch))
    work_bytes, findings_bytes = work.bytes, max(0, more - graphs)
    times = (load, point, first, kept, new, findings, blocks)
    return Trial(share, *times, graphs, data, work_bytes, findings_bytes, found, spectrum)


def _blocks_time(operator: CurvatureOperator, asked: Settings, width: int) -> Time:
    """The time of a step of all diagonal blocks: a product with `width` vectors of each."""
    assert asked.blocks is not None
    parts = [operator.block(names) for names in partition_of(operator, asked.blocks).blocks.values()]
    generator = torch.Generator().manual_seed(0)
    vectors = [
        torch.randn(width, part.n, generator=generator).to(operator.device, operator.torch_dtype) for part in parts
    ]
    return shortest(lambda: operator.apply_to_blocks(list(zip(parts, vectors))))


class _Diagonal(SymmetricOperator):
    """A diagonal matrix, whose products cost nothing compared with Lanczos itself."""

    def __init__(self, n: int, like: SymmetricOperator) -> None:
        super().__init__(n, like.torch_dtype, like.device)
        self.entries = torch.linspace(-1, 1, n, dtype=like.torch_dtype, device=like.device)

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        return block * self.entries


def lanczos_times(operator: SymmetricOperator, lanczos_steps: int) -> tuple[Time, Time]:
    """``(a, b)``: ``m`` steps of one probe take ``a m + b m^2`` in addition to the products."""
    few = int(np.clip(_BASIS / (operator.n * operator.dtype.itemsize), 4, 32))
    start = np.full(operator.n, operator.n**-0.5)
    diagonal = _Diagonal(operator.n, operator)

    def run(steps: int) -> Time:
        return timed(lambda: tridiagonalize(diagonal, [start], steps, tolerance=0.0))[0]

    run(2)
    long, short = max(2, min(few, lanczos_steps)), max(1, min(few, lanczos_steps) // 2)
    at_long, at_short = run(long) / long, run(short) / short
    slope = np.maximum(0.0, at_long - at_short) / max(1, long - short)
    return np.maximum(0.0, at_long - slope * long), slope


def stand_in(operator: CurvatureOperator, asked: Settings) -> Spectrum:
    """A spectrum of a small matrix with the steps and probes of a record, for the time and size of what follows it."""
    steps = min(asked.lanczos_steps, operator.n)
    return slq(_Diagonal(min(operator.n, 2 * steps + 2), operator), steps, asked.num_probes, width=1)
