"""Plan: the predicted cost of an analysis, and what would make it cheaper; a function of measured costs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spectra.analysis.settings import Settings
from spectra.analysis.trials import Time, Trial, no_time
from spectra.operators.kept import MARGIN

_SEARCH = 300, 20  # the most steps of `eigsh`: 300 + 20 K


@dataclass(frozen=True)
class RecordCost:
    """The predicted cost of one record. Times are (2,): seconds by the clock, and seconds of the processor."""

    operator: str
    bn_mode: str
    n: int  # parameters
    itemsize: int  # bytes of an entry of a vector
    steps: int  # m, at most n
    probes: int
    width: int  # probes that share each pass
    eigenpairs: int
    trials: Sequence[Trial]  # on all data: on the training data, and on the test data, if requested
    lanczos: tuple[Time, Time]  # (a, b): m steps of a probe take a m + b m^2
    fixed: Time  # self-test, estimates, storing
    budget: float  # bytes for kept graphs, and again for kept batches
    batches: int  # of the training data
    samples: int | None  # of the training data
    bytes: int  # of the record in the results file
    exact_trace: bool  # whether the trace of this matrix is known without probes
    blocks: Sequence[int] = ()  # the parameters of each diagonal block, where their spectra are asked for

    @property
    def products(self) -> int:
        """The products of the probes with the training data; fewer only where a Krylov space is exhausted."""
        return self.steps * self.probes

    @property
    def block_products(self) -> int:
        """The products of the probes of all diagonal blocks, at most."""
        return self.probes * sum(min(self.steps, size) for size in self.blocks)

    @property
    def search(self) -> int:
        """The products of the search for eigenpairs, at most."""
        return sum(_SEARCH[0] + (_SEARCH[1] + 1) * self.eigenpairs for _ in self.trials) if self.eigenpairs else 0

    def kept_share(self, trial: Trial) -> float:
        """The share of the graphs that is kept between products."""
        return min(1.0, self.budget / (MARGIN * max(1.0, trial.graph_bytes)))

    @property
    def graphs(self) -> float:
        """The largest number of bytes of the graphs of all batches, with their margin, over the data sets."""
        return max(MARGIN * trial.graph_bytes for trial in self.trials)

    def time(self, *, share: float = 1.0, processes: int = 1) -> Time:
        """The time of the record, on a share of the data.

        Args:
            share: of the data.
            processes: that share the products; the time of their communication is not included.
        """
        a, b = self.lanczos
        own = -(-self.batches // processes) / max(1, self.batches)  # the largest share of the batches
        total: Time = self.fixed + self.trials[0].findings * share
        for trial in self.trials:
            kept = self.kept_share(trial)
            reads = 1 if trial.data_bytes <= self.budget else self.products / self.width
            each = (kept * trial.kept + (1 - kept) * trial.new) / self.width
            count = self.products + self.search / len(self.trials)
            passes = trial.load * (reads + 1) + own * (trial.point + trial.first + count * each)
            total = total + share * passes + self.probes * (a * self.steps + b * self.steps**2 / processes)
        if self.blocks:
            trial = self.trials[0]
            step = trial.blocks + (1 - self.kept_share(trial)) * (trial.new - trial.kept)
            longest = min(self.steps, max(self.blocks))
            reads = 1 if trial.data_bytes <= self.budget else longest * self.probes / self.width
            passes = trial.load * (reads + 1) + own * (trial.first + longest * self.probes / self.width * step)
            total = total + share * passes + self.probes * (a * longest + b * longest**2 / processes)
        return total

    def memory(self, *, processes: int = 1) -> float:
        """The peak of the memory that the record needs, in bytes beyond what the process uses before it.

        Args:
            processes: that share the products and the Krylov basis; the memory is that of the first.
        """
        basis = self.steps * self.n * self.itemsize / processes
        vectors = self.width * (basis + self.n * (3 * self.itemsize + 3 * 8))
        if self.eigenpairs:
            vectors = max(vectors, self.n * self.itemsize * min(self.n, 100 + 10 * self.eigenpairs))
        own = -(-self.batches // processes) / max(1, self.batches)
        return max(
            own * (trial.data_bytes if trial.data_bytes <= self.budget else 0.0)
            + min(self.budget, own * trial.graph_bytes)
            + max(vectors + trial.work_bytes, trial.findings_bytes)
            for trial in self.trials
        )

    def traffic(self, processes: int) -> float:
        """The bytes that each of several processes sends: a sum of float64 vectors over all of them per product."""
        numbers = (self.products * len(self.trials) + self.search) * self.n
        numbers += self.probes * sum(min(self.steps, size) * size for size in self.blocks)
        return numbers * 2 * (processes - 1) / processes * (8 if self.batches > 1 else self.itemsize)


@dataclass(frozen=True)
class Saving:
    """A change of the settings that makes an analysis cheaper."""

    change: str  # of the options
    seconds: float  # that it saves
    price: str  # what is given up for it


@dataclass(frozen=True)
class Plan:
    """The predicted cost of an analysis."""

    checkpoints: int
    start: Time  # (2,): the process, until the first checkpoint is read
    each: Time  # (2,): reading a checkpoint
    once: Time  # (2,): reading the data for the first time
    records: Sequence[RecordCost]  # of one checkpoint
    base: float  # bytes that the process uses before the first record
    peak: float  # bytes at the peak so far, which a run reaches as well
    asked: Settings
    notes: Sequence[str] = field(default_factory=tuple)
    in_float32: Time | None = None  # (2,): the time of a float32 product relative to a float64 one

    def time(self, *, processes: int = 1) -> Time:
        """(2,): seconds of the whole analysis by the clock, and seconds of the processor.

        Args:
            processes: that share it; the seconds of one of them, without those of their communication.
        """
        total: Time = self.start + self.once + self.checkpoints * self.each
        for record in self.records:
            total = total + self.checkpoints * record.time(processes=processes)
        return total

    def traffic(self, processes: int) -> float:
        """The bytes that each of several processes sends in the whole analysis."""
        return self.checkpoints * sum(record.traffic(processes) for record in self.records)

    def memory_of_each(self, processes: int) -> float:
        """The peak of the memory of the first of several processes, in bytes."""
        return max(self.peak, *(self.base + record.memory(processes=processes) for record in self.records))

    @property
    def memory(self) -> float:
        """The peak of the memory of the process, in bytes."""
        return max(self.peak, *(self.base + record.memory() for record in self.records))

    @property
    def file_bytes(self) -> int:
        """The size of the results file, in bytes."""
        return self.checkpoints * sum(record.bytes for record in self.records)

    def savings(self) -> list[Saving]:
        """What would make the analysis cheaper by at least 2 %, the largest saving first."""
        asked, found = self.asked, []

        def consider(change: str, price: str, *records: RecordCost) -> None:
            less = sum(float(old.time()[0]) - float(new.time()[0]) for old, new in zip(self.records, records))
            if self.checkpoints * less >= max(0.02 * float(self.time()[0]), 0.1):
                found.append(Saving(change, self.checkpoints * less, price))

        def each(**changes: Any) -> list[RecordCost]:
            return [
                replace(record, **{n: min(v, getattr(record, n)) for n, v in changes.items()})
                for record in self.records
            ]

        if asked.num_probes >= 4:
            half = asked.num_probes // 2
            words = f"the errors over probes grow by a factor of {(asked.num_probes / half) ** 0.5:.2g}"
            consider(f"-k {half}", words, *each(probes=half))
        if asked.lanczos_steps >= 20:
            half = asked.lanczos_steps // 2
            consider(f"-m {half}", "a density half as sharp, wider brackets of counts", *each(steps=half))
        samples = self.records[0].samples
        if samples is not None and samples >= 100:
            shares = [float(record.time()[0] - record.time(share=0.5)[0]) for record in self.records]
            less = self.checkpoints * sum(shares)
            if less >= 0.02 * float(self.time()[0]):
                found.append(Saving(f"--samples {samples // 2}", less, "the matrix of half of the data"))
        short = [record for record in self.records if min(map(record.kept_share, record.trials)) < 1]
        if short:
            needed = max(record.graphs for record in short)
            size = -(-int(self.base + 4 * needed) // 2**20)
            where = (
                f"--memory {size}M" if asked.memory is not None else f"{size} MiB of memory in place of what is free"
            )
            consider(
                where, "none: all graphs are kept between products", *[replace(r, budget=needed) for r in self.records]
            )
        if self.in_float32 is not None:
            faster = [
                replace(
                    r, trials=[replace(t, kept=t.kept * self.in_float32, new=t.new * self.in_float32) for t in r.trials]
                )
                for r in self.records
            ]
            consider("--dtype float32", "products exact to about 1e-6", *faster)
        if all(record.exact_trace for record in self.records) and asked.check is not False:
            words = "only the trace, which is exact without probes"
            consider("-m 1 -k 2 --check", words, *each(steps=1, probes=2))
        if asked.check is not False or asked.metrics != "none":
            none = [replace(r, trials=[replace(r.trials[0], findings=no_time()), *r.trials[1:]]) for r in self.records]
            consider("--no-check --metrics none", "no exact trace, no sharpness measures", *none)
        return sorted(found, key=lambda saving: -saving.seconds)
