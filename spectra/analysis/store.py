"""The results file during a run (Store), the events of the run (Listener) and its result (Outcome)."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spectra.analysis.eigenspaces import Eigenspaces
from spectra.analysis.resume import Unfinished
from spectra.analysis.settings import RunSettings
from spectra.errors import CheckpointError, TaskError
from spectra.results.identity import Identity, Place
from spectra.results.record import Record
from spectra.results.storage.reader import load
from spectra.results.storage.runfile import RunFile, load_trajectory


class Listener:
    """Receives the events of a run under way. The methods do nothing here; a display overrides those that it shows."""

    def checkpoint(self, index: int, total: int | None, path: Path) -> None:
        """The analysis of a checkpoint begins; `index` counts from 0, and `total` is None where it is not known."""

    def progress(self, operator: str, bn_mode: str, done: int, total: int) -> None:
        """`done` of `total` products of one record are computed."""

    def phase(self, name: str, done: float, of: float, what: str) -> None:
        """A phase continues: `done` of `of` units (0: not known how many); `what` is in progress."""

    def record(self, record: Record) -> None:
        """A record is complete and stored, or has failed."""

    def kept(self, place: Place, operator: str, bn_mode: str) -> None:
        """A record is in the file already."""

    def duplicate(self, path: Path, of: Path, records: int) -> None:
        """A checkpoint has the content of an earlier one and is skipped, with its number of records."""

    def same_weights(self, path: Path, of: Path, records: int) -> None:
        """A checkpoint has the weights of an earlier one, in another file, and is skipped."""
        self.duplicate(path, of, records)

    def note(self, words: str) -> None:
        """A line about the run as a whole."""

    def warning(self, words: str) -> None:
        """A line about the run as a whole that must be seen."""
        self.note(words)


@dataclass(frozen=True)
class Outcome:
    """The result of a run: its file, the records of this call, and the number of records that the file had before."""

    out: Path
    new: frozenset[Identity]  # of this call
    kept: int  # records that were in the file already

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of this call, in the order of arrival, read from the file."""
        return tuple(record for record in load(self.out).records.values() if record.identity in self.new)

    @property
    def failed(self) -> tuple[Record, ...]:
        """The records of this call without numbers."""
        return tuple(record for record in self.records if record.status == "failed")

    @property
    def unverified(self) -> tuple[Record, ...]:
        """The records of this call in which a check or a measure ended in an unexpected error."""
        return tuple(record for record in self.records if record.status == "unverified")


class Store:
    """The file of a run: opened at the first checkpoint, which determines the settings; filled record by record."""

    def __init__(self, asked: RunSettings, listener: Listener) -> None:
        self.out, self.choice, self.force, self.listener = asked.out, asked.data, asked.force, listener
        self.unfinished = Unfinished(self.out, listener.note)
        self.file: RunFile | None = None
        self.settings: dict[str, Any] = {}
        self.waiting: list[Record] = []  # failed records, until a checkpoint determines the settings
        self.eigenspaces = Eigenspaces(self.out, listener.note)
        self.twins = True  # a record of the same weights from another file counts as one of this checkpoint
        self.added: set[Identity] = set()  # the records themselves are in the file
        self.kept = 0
        self._threads: tuple[int | None] | None = None  # result of `threads`; None: not computed yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; however the run ends, all of its records are in the file."""
        if self.file is not None:
            self.file.__exit__(kind, error, trace)

    def open(self, settings: dict[str, Any]) -> None:
        """Open the file for a run of these settings, at the first call; later ones check that they are the same.

        Raises:
            TaskError: the settings are not those of the first checkpoint.
            StorageError: the file cannot be written or continued.
        """
        settings = settings | self.choice.as_settings()
        if self.file is None:
            self.file = RunFile.open(self.out, settings, force=self.force)
            if self.file.replaced:
                self.listener.note(f"{self.out}: is begun anew: {'; '.join(self.file.replaced)}")
            self.settings = settings
            for record in (replace(one, settings=settings) for one in self.waiting):
                if self.file.has_numbers(record.identity):
                    self.listener.note(f"{record.reason}; its records in the file are kept")
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
        """Whether the file has the record of an operator and BN mode at these parameters."""
        if self.file is None:
            return False
        identity = self._identity(pair, place)
        return (self.twins and self.file.has_twin(identity)) or self.file.has(identity)

    def keep(self, pair: tuple[str, str], place: Place) -> None:
        """Count a stored record; the eigenvectors of the next record are compared with its own."""
        self.kept += 1
        self.eigenspaces.passed(pair, place)

    def _identity(self, pair: tuple[str, str], place: Place) -> Identity:
        return Identity.of(place, operator=pair[0], bn_mode=pair[1], settings=self.settings)

    def knows(self, pair: tuple[str, str], place: Place) -> bool:
        """Whether the file has a record with numbers, of this call or of an earlier one."""
        return self.file is not None and self.file.has_numbers(self._identity(pair, place))

    def keep_all(self, pairs: Sequence[tuple[str, str]], place: Place) -> list[tuple[str, str]]:
        """Count the stored records among these, and return their operators and BN modes."""
        there = [pair for pair in pairs if self.has(pair, place)]
        for pair in there:
            self.keep(pair, place)
        return there

    def threads(self) -> int | None:
        """The number of threads of the unfinished record, else of the last complete one; None: of another machine."""
        if (left := self.unfinished.threads) is not None:
            return left
        if self._threads is None:
            stored = load_trajectory(self.out) if self.out.exists() else ()
            self._threads = (_threads_of([record for record in stored if record.status != "failed"][-1:]),)
        return self._threads[0]

    def add(self, record: Record) -> None:
        """Append a record to the file. A failed one waits until a checkpoint gives the settings of the run."""
        if self.file is None:
            self.waiting.append(record)
            return
        self._append(record)
        if record.status != "failed":
            self.eigenspaces.passed((record.operator, record.bn_mode), record.place)
            self.unfinished.end()

    def _append(self, record: Record) -> None:
        assert self.file is not None
        record = self.file.append(record)
        self.added.add(self.file.kept_identity(record))
        if record.status != "failed":
            self._threads = (_threads_of([record]),)

    def close(self) -> Outcome:
        """The outcome of the run. The files of unfinished probes and of eigenvectors are removed.

        Raises:
            CheckpointError: there is no record.
            StorageError: a file cannot be removed.
        """
        self.unfinished.end()
        self.eigenspaces.close()
        if self.file is None:
            first = f"; the first: {self.waiting[0].reason}" if self.waiting else ""
            raise CheckpointError(f"none of the checkpoints could be analysed{first}")
        return Outcome(self.out, frozenset(self.added), self.kept)


def _threads_of(last: Sequence[Record]) -> int | None:
    """The number of threads of the last record, if it was computed on a machine of this platform; else None."""
    if not last or last[0].provenance.get("platform") != platform.platform():
        return None
    found: int | None = last[0].provenance.get("threads")
    return found
