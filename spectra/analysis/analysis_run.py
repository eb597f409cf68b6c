"""AnalysisRun: the settings, the listener, the device and the results file that the records of a run share."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from spectra.analysis.eigenspaces import Eigenspaces
from spectra.analysis.on_first import on_first
from spectra.analysis.resume import Unfinished
from spectra.analysis.settings import DataChoice, RunSettings, Settings, sampled
from spectra.analysis.store import Listener, Store
from spectra.errors import ArgumentError, StorageError
from spectra.logs.destinations import Logs
from spectra.results.record import Record
from spectra.results.storage.atomic_write import check_writable
from spectra.results.storage.lock import only_writer
from spectra.results.storage.runfile import load_trajectory
from spectra.results.storage.safe_open import resolved
from spectra.runtime.ranks import first_alone, jointly
from spectra.runtime.rng_state import random_state_kept
from spectra.task.task import Task


@dataclass(frozen=True)
class AnalysisRun:
    """The shared state of the records of a run. `analyze` makes one without a file; `analyze_run`, `Tracker` with one.

    Attributes:
        asked: the settings.
        listener: receives the events of the run.
        extra: more settings for the records, such as how the data were chosen.
        unfinished: stores the probes of a record as they are finished, and provides those of an interrupted process.
        eigenspaces: provides the eigenvectors of the previous record, with which those of the next one are compared.
        device: to which the task's model is moved; None: it stays where it is.
        data: makes the task on the chosen data.
        file: the results file; None: the records are only returned.
        logs: where the records are logged as well.
    """

    asked: RunSettings
    listener: Listener = field(default_factory=Listener)
    extra: dict[str, Any] = field(default_factory=dict)
    unfinished: Unfinished | None = None
    eigenspaces: Eigenspaces | None = None
    device: torch.device | None = None
    data: ChosenData = field(default_factory=lambda: ChosenData(DataChoice(), with_test=False))
    file: Store | None = None
    logs: Logs = field(default_factory=Logs)

    @classmethod
    def open(cls, asked: RunSettings, listener: Listener, stack: ExitStack) -> AnalysisRun:
        """A run with its file, to be used within ``with run.store``; the stack holds the lock of the file.

        Raises:
            ArgumentError: there is no such device.
            MissingDependency: a package that a log needs is not installed.
            StorageError: the file cannot be written, is no results file, or is being written by another process.
        """
        first_alone(lambda: check_output(asked.out))
        opened: list[Logs] = []
        first_alone(lambda: opened.append(Logs(asked.log, listener.warning)))
        logs = opened[0] if opened else Logs()  # the first process logs
        stack.callback(logs.close)
        device = jointly(lambda: device_of(asked.device))
        first_alone(lambda: _entered(stack, only_writer(asked.out)))
        store = on_first(Store, lambda: Store(asked, listener), unfinished=Unfinished, eigenspaces=Eigenspaces)
        data = ChosenData(asked.data, with_test=asked.analysis.test_data)
        extra = asked.data.as_settings()
        return cls(asked, listener, extra, store.unfinished, store.eigenspaces, device, data, store, logs)

    def add(self, record: Record) -> None:
        """Store a record in the file, report it to the listener, and log it."""
        self.store.add(record)
        self.listener.record(record)
        with random_state_kept():
            self.logs.add(record)

    @property
    def settings(self) -> Settings:
        """The settings of the analysis of each checkpoint."""
        return self.asked.analysis

    @property
    def store(self) -> Store:
        """The file.

        Raises:
            StorageError: the run has none.
        """
        if self.file is None:
            raise StorageError("this analysis has no results file: AnalysisRun.open makes one that has")
        return self.file


def _entered(stack: ExitStack, context: AbstractContextManager[Any]) -> None:
    stack.enter_context(context)


def check_output(out: Path) -> None:
    """Check that a results file can be written, and that an existing file is a results file.

    Raises:
        StorageError: the file cannot be written, or is no results file.
    """
    target = resolved(out)  # a link stays a link: its target is replaced
    check_writable(target, shown=str(out))
    if target.exists():
        load_trajectory(out)


class ChosenData:
    """Makes the task on the chosen data: once, if task or data are the same object for every checkpoint."""

    def __init__(self, choice: DataChoice, *, with_test: bool) -> None:
        self.choice = choice
        self.with_test = with_test
        self.varies = False  # the task has not been the same object for every checkpoint
        self._last: tuple[Task, Task] | None = None  # as it was made, and on the chosen data
        self._frozen: tuple[Task, Task] | None = None  # the task of the last snapshot, and the same with it

    def task(self, made: Task) -> Task:
        """The task on the chosen data."""
        if self._last is None or self._last[0] is not made:
            self.varies = self._last is not None
            self._last = None  # so that old and new data are not in memory together
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
        """The task with a snapshot of its data; the last snapshot, where the data are the same object."""
        if self._frozen is not None:
            before, frozen = self._frozen
            if made.data is before.data and made.test_data is before.test_data:
                return replace(made, data=frozen.data, test_data=frozen.test_data)
        self._frozen = None
        self._frozen = made, made.snapshot(self.choice.data_seed, test=self.with_test)
        return self._frozen[1]


def device_of(name: str | None) -> torch.device | None:
    """The torch device of that name.

    Raises:
        ArgumentError: there is no such device on this machine.
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
