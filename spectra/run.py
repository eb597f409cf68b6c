"""A run of checkpoints into one file: each is loaded, analysed and stored before the next, and what is stored is kept.

A checkpoint that fails among several is recorded with its reason and the rest goes on. A single one that fails raises,
and leaves no file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spectra.analysis import failed_record, iter_analyze
from spectra.checkpoints.checkpoint import Checkpoint, load_checkpoint
from spectra.errors import ArgumentError, CheckpointError, NumericsError, SpectraError, TaskError
from spectra.records import Identity, Record
from spectra.settings import Settings, run_settings, sampled
from spectra.storage.replacing import check_writable
from spectra.storage.runfile import RunFile, load_trajectory
from spectra.task import Task

TaskMaker = Callable[[Checkpoint], Task]


@dataclass(frozen=True)
class DataChoice:
    """Which of the task's data are used, and how: None leaves what the task says."""

    samples: int | None = None  # a fixed random subset of this many rows
    data_seed: int = 0  # of that subset, and of the snapshot
    batch_size: int | None = None
    l2: float | None = None
    reduction: str | None = None  # "mean" or "sum" over the data
    snapshot: bool = False  # one pass over the data, frozen and used for every product

    def as_settings(self) -> dict[str, Any]:
        seeded = self.snapshot or self.samples is not None
        found: dict[str, Any] = {"samples": self.samples, "data_seed": self.data_seed if seeded else None}
        return found | ({"snapshot_data": True} if self.snapshot else {})


class Listener:
    """What is told of a run under way. The methods do nothing here: a display overrides those it shows."""

    def checkpoint(self, index: int, total: int, path: Path) -> None:
        """A checkpoint is taken up."""

    def progress(self, operator: str, bn_mode: str, done: int, total: int) -> None:
        """Products done, of those of one record."""

    def record(self, record: Record) -> None:
        """A record is complete and stored, or has failed."""

    def kept(self, path: Path, operator: str, bn_mode: str) -> None:
        """A record is in the file already."""


@dataclass(frozen=True)
class Outcome:
    """What a run of checkpoints came to."""

    records: tuple[Record, ...]  # of this call
    kept: int  # records that were in the file already

    @property
    def failed(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.status == "failed")


def analyze_run(
    paths: Sequence[Path],
    make_task: TaskMaker,
    settings: Settings,
    *,
    out: Path,
    data: DataChoice | None = None,
    device: str | None = None,
    unsafe: bool = False,
    weights: str | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Analyse checkpoints one after the other into one file, which is continued if it is of the same run.

    Args:
        paths: the checkpoints, in order of training.
        make_task: the task of a checkpoint; its model receives the weights.
        settings: what is asked.
        out: the file; its folder must exist.
        data: a subset, a batch size, an l2 or a reduction in place of the task's.
        device: where to compute; by default where the task's model is.
        unsafe: load checkpoints that hold code, and run it.
        weights: which weights of a checkpoint that has several.
        listener: is told what happens.

    Raises:
        SpectraError: a single checkpoint fails, the task cannot be made, or the file cannot be written or continued.
            Whatever is raised, the file keeps the records that were finished.
    """
    if not paths:
        raise CheckpointError("no checkpoint to analyse")
    check_output(out)
    choice, tell = data or DataChoice(), listener or Listener()
    where = _device(device)
    store = _Store(out, choice)
    chosen = _Chosen(choice, with_test=settings.test_data)
    for index, path in enumerate(paths):
        tell.checkpoint(index, len(paths), path)
        checkpoint: Checkpoint | None = None
        missing = settings.pairs()
        try:
            checkpoint = load_checkpoint(path, unsafe=unsafe, weights=weights)
            try:
                made = make_task(checkpoint)
            except SpectraError as error:
                raise _NoTask(error) from error
            task = chosen.task(made)
            notes = checkpoint.load_into(task.model)
            if where is not None:
                task.model.to(where)
            store.open(run_settings(task, settings))
            done = [pair for pair in missing if store.has(pair, checkpoint)]
            for pair in done:
                missing.remove(pair)
                tell.kept(path, *pair)
            for record in iter_analyze(
                task,
                checkpoint=checkpoint,
                settings=settings,
                progress=tell.progress,
                skip=done,
                extra=choice.as_settings(),
                notes=notes,
            ):
                store.add(record)
                missing.remove((record.operator, record.bn_mode))
                tell.record(record)
        except _NoTask as failure:
            raise failure.reason from failure.reason.__cause__
        except (CheckpointError, NumericsError) as error:
            if len(paths) == 1:
                raise
            for operator, bn_mode in missing:
                record = failed_record(operator, bn_mode, str(error), store.settings, str(path), checkpoint)
                store.add(record)
                tell.record(record)
    return store.close()


def check_output(out: Path) -> None:
    """See that a results file can be written, and that what is there already is one, before anything else is done.

    Raises:
        StorageError: it cannot, or it is not.
    """
    target = out.resolve()  # a link stays a link: what it points to is replaced
    check_writable(target, shown=str(out))
    if target.exists():
        load_trajectory(out)


class _NoTask(Exception):
    """The task could not be made: an error of the whole run, not of one checkpoint."""

    def __init__(self, reason: SpectraError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Store:
    """The file of a run: opened when the first checkpoint says what the run is, filled record by record."""

    def __init__(self, out: Path, choice: DataChoice) -> None:
        self.out, self.choice = out, choice
        self.file: RunFile | None = None
        self.settings: dict[str, Any] = {}
        self.records: list[Record] = []  # until the file is open, these are failures, which wait for it
        self.kept = 0

    def open(self, settings: dict[str, Any]) -> None:
        settings = settings | self.choice.as_settings()
        if self.file is None:
            self.file = RunFile.open(self.out, settings)
            self.settings = settings
            self.records = [replace(record, settings=settings) for record in self.records]
            for record in self.records:
                self.file.append(record)
        elif settings != self.settings:
            differs = [key for key in settings if settings[key] != self.settings.get(key)]
            raise TaskError(
                f"the task of this checkpoint is not that of the first one: {differs[0]} is "
                f"{settings[differs[0]]!r} in place of {self.settings.get(differs[0])!r}"
            )

    def has(self, pair: tuple[str, str], checkpoint: Checkpoint) -> bool:
        assert self.file is not None
        identity = Identity.of(
            operator=pair[0],
            bn_mode=pair[1],
            settings=self.settings,
            checkpoint=str(checkpoint.path),
            checkpoint_sha256=checkpoint.sha256,
        )
        found = self.file.has(identity)
        self.kept += found
        return found

    def add(self, record: Record) -> None:
        if self.file is not None:
            self.file.append(record)
        self.records.append(record)

    def close(self) -> Outcome:
        if self.file is None:
            raise CheckpointError(f"none of the checkpoints could be analysed; the first: {self.records[0].reason}")
        return Outcome(tuple(self.records), self.kept)


class _Chosen:
    """The task on the chosen data; the choice is made once for a task, or for data, that serve every checkpoint."""

    def __init__(self, choice: DataChoice, *, with_test: bool) -> None:
        self.choice = choice
        self.with_test = with_test
        self._last: tuple[Task, Task] | None = None  # as it was made, and on the chosen data
        self._frozen: tuple[Task, Task] | None = None  # the task of the last snapshot, and the same with it

    def task(self, made: Task) -> Task:
        if self._last is None or self._last[0] is not made:
            self._last = None  # its data are not kept beside the new ones
            choice = self.choice
            chosen = sampled(
                self._snapshot(made) if choice.snapshot else made,
                samples=choice.samples,
                data_seed=choice.data_seed,
                batch_size=choice.batch_size,
                l2=choice.l2,
                reduction=choice.reduction,
            )
            self._last = made, chosen
        return self._last[1]

    def _snapshot(self, made: Task) -> Task:
        """A snapshot of the task's data: that of the checkpoint before, where the data are the same object."""
        if self._frozen is not None:
            before, frozen = self._frozen
            if made.data is before.data and made.test_data is before.test_data:
                return replace(made, data=frozen.data, test_data=frozen.test_data)
        self._frozen = None
        self._frozen = made, made.snapshot(self.choice.data_seed, test=self.with_test)
        return self._frozen[1]


def _device(name: str | None) -> torch.device | None:
    """The device of that name, if it is there.

    Raises:
        ArgumentError: no such device, or none of its kind here.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"device={name!r}: 'cpu', 'cuda' or 'cuda:INDEX' is needed") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ArgumentError(f"device={name!r}: {found} CUDA devices are available here; --device cpu works everywhere")
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device={name!r}: 'cpu' or 'cuda' is needed")
    return device
