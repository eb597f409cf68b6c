"""The results file of a run while it is filled: what is told of it, and what it comes to."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spectra.analysis.eigenspaces import Eigenspaces
from spectra.analysis.resume import Unfinished
from spectra.analysis.settings import check_at_most
from spectra.errors import CheckpointError, TaskError
from spectra.results.identity import Identity, Place
from spectra.results.record import Record
from spectra.results.storage.reader import load
from spectra.results.storage.runfile import RunFile, load_trajectory


@dataclass(frozen=True)
class DataChoice:
    """Which of the task's data are used, and how: None leaves what the task says."""

    samples: int | None = None  # a fixed random subset of this many rows
    data_seed: int = 0  # of that subset, and of the snapshot
    batch_size: int | None = None
    l2: float | None = None
    reduction: str | None = None  # "mean" or "sum" over the data
    snapshot: bool = False  # one pass over the data, frozen and used for every product

    def __post_init__(self) -> None:
        for name in ("samples", "data_seed", "batch_size"):
            check_at_most(name, getattr(self, name))

    def as_settings(self) -> dict[str, Any]:
        seeded = self.snapshot or self.samples is not None
        found: dict[str, Any] = {"samples": self.samples, "data_seed": self.data_seed if seeded else None}
        return found | ({"snapshot_data": True} if self.snapshot else {})


class Listener:
    """What is told of a run under way. The methods do nothing here: a display overrides those it shows."""

    def checkpoint(self, index: int, total: int | None, path: Path) -> None:
        """A checkpoint is taken up, of so many if that is known."""

    def progress(self, operator: str, bn_mode: str, done: int, total: int) -> None:
        """Products done, of those of one record."""

    def phase(self, name: str, done: float, of: float, what: str) -> None:
        """What is being done, how much of it is done already, of how much (0: not known), and what in it."""

    def record(self, record: Record) -> None:
        """A record is complete and stored, or has failed."""

    def kept(self, place: Place, operator: str, bn_mode: str) -> None:
        """A record is in the file already."""

    def duplicate(self, path: Path, of: Path, records: int) -> None:
        """A checkpoint has the content of one before it, and is passed over, with so many records."""

    def twin(self, path: Path, of: Path, records: int) -> None:
        """The same of a checkpoint that has the weights of one before it, in another file."""
        self.duplicate(path, of, records)

    def note(self, words: str) -> None:
        """Something about the run as a whole, in a line."""


@dataclass(frozen=True)
class Outcome:
    """What a run of checkpoints came to."""

    out: Path
    new: frozenset[Identity]  # of this call
    kept: int  # records that were in the file already

    @property
    def records(self) -> tuple[Record, ...]:
        """Those of this call, in the order of arrival, read from the file."""
        return tuple(record for record in load(self.out).records.values() if record.identity in self.new)

    @property
    def failed(self) -> tuple[Record, ...]:
        """Those without numbers."""
        return tuple(record for record in self.records if record.status == "failed")

    @property
    def unverified(self) -> tuple[Record, ...]:
        """Those of which a check or a measure ended in an unexpected error."""
        return tuple(record for record in self.records if record.status == "unverified")


class Store:
    """The file of a run: opened when the first checkpoint says what the run is, filled record by record."""

    def __init__(self, out: Path, choice: DataChoice, unfinished: Unfinished, force: bool, tell: Listener) -> None:
        self.out, self.choice, self.unfinished, self.force, self.tell = out, choice, unfinished, force, tell
        self.file: RunFile | None = None
        self.settings: dict[str, Any] = {}
        self.waiting: list[Record] = []  # failures, until a checkpoint says what the run is
        self.eigenspaces = Eigenspaces(out, tell.note)
        self.twins = True  # a record of the same weights from another file counts as one of this checkpoint
        self.added: set[Identity] = set()  # the records themselves are in the file
        self.kept = 0
        self._threads: tuple[int | None] | None = None  # what `threads` found; None: not looked for yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """However the run ends, all of its records are in the HDF5 data of its file."""
        if self.file is not None:
            self.file.__exit__(kind, error, trace)

    def open(self, settings: dict[str, Any]) -> None:
        settings = settings | self.choice.as_settings()
        if self.file is None:
            self.file = RunFile.open(self.out, settings, force=self.force)
            if self.file.replaced:
                self.tell.note(f"{self.out}: is begun anew: {'; '.join(self.file.replaced)}")
            self.settings = settings
            for record in (replace(one, settings=settings) for one in self.waiting):
                if self.file.has(record.identity):
                    self.tell.note(f"{record.reason}; what the file has of it already is kept")
                else:
                    self._append(record)
            self.waiting = []
        elif settings != self.settings:
            differs = [key for key in settings if settings[key] != self.settings.get(key)]
            raise TaskError(
                f"the task of this checkpoint is not that of the first one: {differs[0]} is "
                f"{settings[differs[0]]!r} in place of {self.settings.get(differs[0])!r}"
            )

    def has(self, pair: tuple[str, str], place: Place) -> bool:
        assert self.file is not None
        identity = self._identity(pair, place)
        found = (self.twins and self.file.has_twin(identity)) or self.file.has(identity)
        self.kept += found
        if found:
            self.eigenspaces.passed(pair, place)
        return found

    def _identity(self, pair: tuple[str, str], place: Place) -> Identity:
        return Identity.of(place, operator=pair[0], bn_mode=pair[1], settings=self.settings)

    def knows(self, pair: tuple[str, str], place: Place) -> bool:
        """Whether a record with numbers, of this call or of an earlier one, is there."""
        return self.file is not None and self.file.has_numbers(self._identity(pair, place))

    def count(self, pairs: Sequence[tuple[str, str]], place: Place) -> None:
        """Count what the file has of a checkpoint."""
        if self.file is not None:
            for pair in pairs:
                self.has(pair, place)

    def threads(self) -> int | None:
        """With how many the last complete record of the file was computed, if that was on such a machine."""
        if self._threads is None:
            stored = load_trajectory(self.out) if self.out.exists() else ()
            self._threads = (_threads_of([record for record in stored if record.status != "failed"][-1:]),)
        return self._threads[0]

    def add(self, record: Record) -> None:
        if self.file is None:
            self.waiting.append(record)
            return
        self._append(record)
        if record.status != "failed":
            self.eigenspaces.passed((record.operator, record.bn_mode), record.place)
            self.unfinished.end()

    def _append(self, record: Record) -> None:
        assert self.file is not None
        self.added.add(self.file.append(record).identity)
        if record.status != "failed":
            self._threads = (_threads_of([record]),)

    def close(self) -> Outcome:
        if self.file is None:
            first = f"; the first: {self.waiting[0].reason}" if self.waiting else ""
            raise CheckpointError(f"none of the checkpoints could be analysed{first}")
        return Outcome(self.out, frozenset(self.added), self.kept)


def _threads_of(last: Sequence[Record]) -> int | None:
    """Of the last record, if there is one that was computed on such a machine."""
    if not last or last[0].provenance.get("platform") != platform.platform():
        return None
    found: int | None = last[0].provenance.get("threads")
    return found
