"""Writes the results file of a run: HDF5, format version 1. It holds complete records only, however a run ends.

docs/format.md specifies the groups, their types and the checksums. A missing attribute is an unknown value. After the
HDF5 data, where HDF5 does not look, a line has their SHA-256, so that damage is found before HDF5 reads them.

A record is appended after that line, and flushed to the disk (``results.storage.appended``). When the appended bytes
exceed half of the HDF5 data, and when the run ends, a new file with all records in its HDF5 data is written, flushed to
the disk, and renamed over the old one. So a record costs the same in a file of ten and of ten thousand. During the run
the root has the attribute `growing`.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py

from spectra.errors import StorageError
from spectra.jsonable import dumps
from spectra.results.identity import Identity
from spectra.results.record import Record
from spectra.results.storage.appended import GROWING, Frame, put
from spectra.results.storage.atomic_write import check_writable, cut_back, extend_file, fingerprint, replace_file
from spectra.results.storage.attributes import seal, set_attribute
from spectra.results.storage.checksum import seal_of, sealed
from spectra.results.storage.index import Index, Known
from spectra.results.storage.reader import ENCODING_TYPE, ENCODING_VERSION, differences, load, one_line, whole
from spectra.results.storage.record_codec import write_record
from spectra.results.storage.safe_open import resolved
from spectra.results.trajectory import Trajectory
from spectra.version import __version__

#: The oldest HDF5 library that can read the file; from 1.8 on the structures of HDF5 have checksums too.
LIBRARY = ("v108", "v108")
#: The most bytes after the HDF5 data, as a share of these, before the file is written anew.
SHARE = 0.5


def load_trajectory(path: str | Path) -> Trajectory:
    """Read every record of a results file. Neither torch nor the checkpoints are needed.

    Args:
        path: a file that `spectra analyze` wrote.

    Returns:
        Its records in training order, each read from memory when it is first used. An incomplete one is left out,
        with a note.

    Raises:
        StorageError: the file is missing, empty, truncated, damaged, not HDF5, not ours, or of a newer version.

    Example:
        >>> load_trajectory("no-such-run.h5")
        Traceback (most recent call last):
        ...
        spectra.errors.StorageError: no-such-run.h5: no such file
    """
    return load(path).trajectory


class RunFile:
    """A results file that is being written: `with RunFile.open(path, settings) as run: run.append(record)`.

    Nothing is created before the first record. An existing file is continued if it is of the same run.
    """

    def __init__(self, path: Path, shown: str, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.shown = shown  # as the user calls it
        self.settings = settings
        self._known: Index[str] = Index()  # by the name of the group
        self._next = 0  # the number of the next group
        self._seen: tuple[int, int, int] | None = None  # the file when it was read or written last
        self._growing = False  # whether the file is to be written anew at the end of the run
        self._end = 0  # size of the file in bytes
        self._most = 0  # size at which it is written anew; 0: nothing may be appended
        self._sha256 = ""  # of the last record appended, or of the HDF5 data
        self._force = False
        self.replaced: tuple[str, ...] = ()  # with force: differences to the settings of a file that is to be replaced

    @classmethod
    def open(cls, path: str | Path, settings: Mapping[str, Any], *, force: bool = False) -> RunFile:
        """Open a file to append to, or prepare to create it. Makes all checks that need no record.

        Args:
            path: the file; its folder must exist.
            settings: what all records of the run share (JSON-able), without what may differ between two calls, such as
                the checkpoints, the operators or a progress display.
            force: replace a file of other settings when the first record is added, and records of a checkpoint whose
                file has changed, rather than refuse them.

        Raises:
            StorageError: the folder is missing or cannot be written, the disk is full, the file is not ours, is
                damaged, or is of a run with other settings; the message lists them with both values.
        """
        # The target of a link is replaced, not the link.
        target = resolved(path)
        check_writable(target, shown=str(path))
        run = cls(target, str(path), json.loads(dumps(settings)))
        run._force = force
        run._seen = fingerprint(target)  # taken before it is read, so that later changes are detected
        if run._seen is None:
            return run
        there = load(target, shown=str(path))
        differing = differences(there.trajectory.settings, run.settings)
        if differing and not force:
            raise StorageError(
                f"{path}: is of a run with other settings: {'; '.join(differing)}; "
                "use the settings of the file, or choose another file, or --force to replace it"
            )
        run.replaced = tuple(differing)
        if not differing:
            run._known = Index((name, Known.of(record)) for name, record in there.records.items())
            run._next = 1 + max((int(name) for name in there.records if name.isdecimal()), default=-1)
            run._growing = there.growing
        return run

    def __enter__(self) -> RunFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file. An error of the block is not hidden by one of closing."""
        with contextlib.nullcontext() if error is None else contextlib.suppress(StorageError):
            self.close()

    def close(self) -> None:
        """Move all records into the HDF5 data of the file. Before, they are in the file too, but after these data.

        Raises:
            StorageError: it cannot be written, or was changed by another process; it stays unchanged.
        """
        if self._growing:
            self._check_unchanged()
            self._write_anew([], growing=False)

    @property
    def records(self) -> tuple[Record, ...]:
        """The complete records of the file, in the order of arrival, read from it."""
        return () if not len(self._known) else tuple(load(self.path, shown=self.shown).records.values())

    def has(self, identity: Identity) -> bool:
        """Whether a complete record of this identity is in the file. One that failed is computed again.

        Args:
            identity: `Identity.of(...)` with the settings that the record would have.

        Raises:
            StorageError: the file has a record of this checkpoint, whose content has changed since.
        """
        if self._complete([*self._known.same(identity), *self._known.of_file(identity)]):
            return True
        for known in self._complete(self._known.at_place(identity)):
            if known.hashed and identity.subject != identity.checkpoint and not self._force:
                before, now = known.identity.subject, identity.subject
                was, remedy = ("was another file", "--force") if known.of_file else ("had other weights", "force=True")
                if before[:64] == now[:64]:  # the same file, completed by weights of the task
                    before, now = before[65:], now[65:]
                    was = "was completed by other weights of the task"
                raise StorageError(
                    f"{self.shown}: {identity.checkpoint} {was} when it was analysed: its SHA-256 was {before[:12]}"
                    f"..., now it is {now[:12]}...; choose another results file for what replaced it, or {remedy}"
                )
        return False

    def has_numbers(self, identity: Identity) -> bool:
        """Whether a record of this identity that did not fail is in the file. An unverified one is computed again."""
        return self.has(identity) or any(self._known[name].numbers for name in self._known.same(identity))

    def has_twin(self, identity: Identity) -> bool:
        """Whether a complete record of the same weights is in the file, from a checkpoint in another file."""
        return bool(self._complete(self._known.twins(identity)))

    def _complete(self, names: Sequence[str]) -> list[Known]:
        return [self._known[name] for name in names if self._known[name].complete]

    def kept_identity(self, record: Record) -> Identity:
        """The identity of a record in the file: the object in memory that is equal to that of the argument."""
        return self._known[self._known.same(record.identity)[-1]].identity

    def append(self, record: Record) -> Record:
        """Add a record. One of the same checkpoint, operator and mode that is not complete is replaced.

        After an error the file has its previous records, and no temporary file is left.

        Returns:
            The record as it is stored: its settings include those of the run.

        Raises:
            StorageError: it cannot be written, another process wrote the file since it was opened, or a complete record
                of the same identity is there already.
        """
        if not self.settings.keys() <= record.settings.keys():  # one that failed early may lack some
            record = replace(record, settings={**self.settings, **record.settings})
        self._check_unchanged()
        identity = record.identity
        if self.has(identity):
            raise StorageError(f"{self.shown}: has {record.label} already")
        by_force = self._force and record.status == "complete"
        obsolete = [
            name
            for name in sorted({*self._known.same(identity), *self._known.at_place(identity)})
            if (by_force or not self._known[name].complete)
            and (record.status != "failed" or not self._known[name].numbers)
        ]
        names = obsolete or [f"{self._next:06d}"]
        self._add(Frame(names, self._image(record, names[0])))
        for name in obsolete:
            self._known.remove(name)
        self._known.add(names[0], Known.of(record))
        self._next += not obsolete
        return record

    def _check_unchanged(self) -> None:
        if fingerprint(self.path) != self._seen:
            raise StorageError(f"{self.shown}: was changed by another process; two runs cannot write one file")

    def _image(self, record: Record, name: str) -> bytes:
        """A record as an HDF5 file of its own, built in memory, so that all of it or nothing is written to the disk."""
        buffer = io.BytesIO()
        with self._failing_in_a_line(), h5py.File(buffer, "w", libver=LIBRARY) as file:
            write_record(file.create_group(f"records/{name}"), record)
        return buffer.getvalue()

    def _add(self, frame: Frame) -> None:
        """Append a record after the HDF5 data, or write a new file if too many bytes follow them."""
        content, own = frame.written(self._sha256)
        if self._end + len(content) > self._most or not frame.has_our_names:
            size = 0 if self._seen is None or self.replaced else self._seen[2]
            self._write_anew([frame], growing=len(content) <= SHARE * size)
            return
        try:
            extend_file(self.path, self._end, [memoryview(content)], shown=self.shown)
        except BaseException:
            cut_back(self.path, self._end)
            raise
        finally:
            self._seen = fingerprint(self.path)
        self._end, self._sha256 = self._end + len(content), own

    def _write_anew(self, frames: Sequence[Frame], *, growing: bool) -> None:
        """Replace the file by one with all of its records, and those of frames, in its HDF5 data."""
        anew, self._most = self._seen is None or bool(self.replaced), 0  # nothing may be appended until it is written
        with self._failing_in_a_line():
            there = b"" if anew else whole(self.path.read_bytes(), self.shown, ours=self._sha256).image
            buffer = io.BytesIO(there)
            with h5py.File(buffer, "w" if anew else "r+", libver=LIBRARY) as file:
                if anew:
                    write_root(file, self.settings)
                put(file, frames, ours=True)
                if growing != (GROWING in file.attrs):
                    file.attrs.pop(GROWING, None)
                    set_attribute(file, GROWING, 1 if growing else None)
                    seal(file)
        image = buffer.getvalue()
        content = sealed(image)
        replace_file(self.path, content, shown=self.shown)
        self._seen, self.replaced, self._growing = fingerprint(self.path), (), growing
        if growing:
            self._end, self._sha256 = len(content), seal_of(image)
            self._most = len(content) + int(SHARE * len(image))

    @contextlib.contextmanager
    def _failing_in_a_line(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except (OSError, RuntimeError) as error:  # h5py raises both
            raise StorageError(f"{self.shown}: cannot be continued: {one_line(error)}") from error


def write_root(file: h5py.File, settings: Mapping[str, Any]) -> None:
    """Write the attributes of the root, and an empty group of records."""
    file.attrs["encoding-type"] = ENCODING_TYPE
    file.attrs["encoding-version"] = ENCODING_VERSION
    file.attrs["spectra-version"] = __version__
    file.attrs["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.attrs["settings"] = dumps(settings)
    file.create_group("records")
    seal(file)
