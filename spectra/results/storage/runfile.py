"""The results file of a run: HDF5, format version 1. Only whole records are ever in it, whatever interrupts the writer.

The tree; docs/format.md says the same at length, with the types, and how to get any number with h5py alone::

    /                        encoding-type "spectra-run", encoding-version 1, spectra-version, created (ISO 8601, UTC),
                             settings (JSON: what all records share), checksum;
                             growing (1: the run has not ended, records may stand behind the HDF5 data)
    /records/000000          one checkpoint x operator x batch-norm mode, numbered in the order of arrival
        attributes           identity: checkpoint, checkpoint_sha256, weights_sha256, own_tensors, epoch, step,
                             operator, bn_mode, params, l2, seed, data_seed; status ("complete" | "unverified" |
                             "failed"), reason; settings, provenance, notes (JSON); checksum; complete (1, written last:
                             without it a record is not whole)
    /records/000000/facts    attributes: loss, accuracy, gradient_norm, ... (NaN: could not be computed)
    /records/000000/spectrum the truth: attributes n, noise, seed, distribution
        alphas, betas        (k, m) float64, NaN behind the shorter rows; betas[i, lengths[i]-1] is the last residual
        lengths              (k,) int64      steps of each probe
        exhausted            (k,) uint8      1: an invariant subspace was found
        orthogonality        (k,) float64    max |Q Q' - I| reached
        start_overlaps       (k, m) float64  Q_1' q_i: every probe in the Krylov basis of the first one
        tensors/names, sizes (t,) text, (t,) int64
        tensors/forms        (k, t) float64  q_i[t]' (H q_i)[t] of the first product; summed over t: alphas[i, 0]
        eigenpairs           values, residuals (r,), overlaps (k, r) float64, ...: where they were asked for
        eigenpairs/vectors   (r, n) float32: where they were saved
    /records/000000/estimates  a cache that follows from `spectrum`, a row per estimate: columns name, value, stderr,
                             lower, upper, confidence, num_probes, tau, resolved (-1 unknown, 0, 1), note;
                             attribute edition: of the formulas, a cache of another edition is not used
    /records/000000/test     spectrum and estimates of the same operator on held-out data; absent if not asked for

A missing attribute is a value that is not known. Texts are UTF-8. A group without `spectrum` is a record that failed.
The checksum of a group is the SHA-256 over its attributes and datasets, and over the checksums of the groups inside it.
It is compared when a record is read; where only the cache is damaged, it is computed again. Behind the HDF5 data, where
HDF5 does not look, stands a line with their SHA-256: damage is found before HDF5 stumbles over it.

A record is added behind that line, and flushed to the disk (``results.storage.appended``). When what stands there has
grown to half of the HDF5 data, and when the run ends, a new file is written with all of it in its HDF5 data, flushed to
the disk, and put in the place of the old one in one step. So a record costs the same in a file of ten and of ten
thousand. While the run goes on, the root has the attribute `growing`.
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

#: The oldest HDF5 library that must be able to read the file; from 1.8 on its own structures carry checksums too.
LIBRARY = ("v108", "v108")
#: How much may stand behind the HDF5 data, as a share of these, until they are written anew.
SHARE = 0.5


def load_trajectory(path: str | Path) -> Trajectory:
    """Read every record of a results file. Neither torch nor the checkpoints are needed.

    Args:
        path: a file that `spectra analyze` wrote.

    Returns:
        Its records in training order, each read from memory when it is first used. One that is not whole is left out,
        which a note says.

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

    Nothing is created before the first record. A file that is there already is continued if it is of the same run.
    """

    def __init__(self, path: Path, shown: str, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.shown = shown  # as the user calls it
        self.settings = settings
        self._known: Index[str] = Index()  # by the name of the group
        self._next = 0  # the number of the next group
        self._seen: tuple[int, int, int] | None = None  # the file when it was read or written last
        self._growing = False  # its HDF5 data are to be written once more at the end of the run
        self._end = 0  # of the file, in bytes
        self._most = 0  # how long it may become before it is written anew; 0: nothing may be added behind its data
        self._sha256 = ""  # of what stands last in it
        self._force = False
        self.replaced: tuple[str, ...] = ()  # by force: how the settings of the file that is begun anew differ

    @classmethod
    def open(cls, path: str | Path, settings: Mapping[str, Any], *, force: bool = False) -> RunFile:
        """Open a file to append to, or prepare to create it. Does all that can be checked before hours are spent.

        Args:
            path: the file; its folder must exist.
            settings: what all records of the run share (JSON-able). What may differ between two visits, such as the
                checkpoints, the operators or a progress display, does not belong here.
            force: what is of other settings, or of a checkpoint whose content was another, is replaced rather than
                refused: in the first case all of the file, when the first record is added.

        Raises:
            StorageError: the folder is missing or cannot be written, the disk is full, the file is not ours, or is
                damaged, or is of a run with other settings: the message lists them with both values.
        """
        # A link stays a link: what it points to is replaced.
        target = resolved(path)
        check_writable(target, shown=str(path))
        run = cls(target, str(path), json.loads(dumps(settings)))
        run._force = force
        run._seen = fingerprint(target)  # before it is read: what changes from now on is noticed
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
        """Close the file. What goes wrong with it then does not hide an error that is there already."""
        with contextlib.nullcontext() if error is None else contextlib.suppress(StorageError):
            self.close()

    def close(self) -> None:
        """Put all records into the HDF5 data of the file. Without it they are in the file too, but behind these.

        Raises:
            StorageError: it cannot be written, or was changed by another process; it is as it was.
        """
        if self._growing:
            self._check_unchanged()
            self._write_anew([], growing=False)

    @property
    def records(self) -> tuple[Record, ...]:
        """The whole records in the file, in the order of arrival, read from it."""
        return () if not len(self._known) else tuple(load(self.path, shown=self.shown).records.values())

    def has(self, identity: Identity) -> bool:
        """Whether a complete record of this identity is in the file. One that failed is to be tried again.

        Args:
            identity: `Identity.of(...)` with the settings that the record would have.

        Raises:
            StorageError: a record of the same checkpoint file is there, and the file's content was another one.
        """
        if self._complete([*self._known.same(identity), *self._known.of_file(identity)]):
            return True
        for known in self._complete(self._known.at_place(identity)):
            if known.hashed and identity.subject != identity.checkpoint and not self._force:
                before, now = known.identity.subject, identity.subject
                was, remedy = ("was another file", "--force") if known.of_file else ("had other weights", "force=True")
                if before[:64] == now[:64]:  # the same file, and the task's own weights beside it
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
        """The identity of a record in the file, as the object that is kept in memory of it."""
        return self._known[self._known.same(record.identity)[-1]].identity

    def append(self, record: Record) -> Record:
        """Add a record. One of the same checkpoint, operator and mode that is not complete is replaced.

        Whatever goes wrong, the file keeps what it had, and nothing is left beside it.

        Returns:
            The record as it is stored: its settings include those of the run.

        Raises:
            StorageError: it cannot be written, or another process wrote the file since it was opened; or a complete
                record of the same identity is there already.
        """
        if not self.settings.keys() <= record.settings.keys():  # one that failed early may not know them all
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
        """A record as an HDF5 file of its own, built in memory: the disk sees all of it or nothing."""
        buffer = io.BytesIO()
        with self._failing_in_a_line(), h5py.File(buffer, "w", libver=LIBRARY) as file:
            write_record(file.create_group(f"records/{name}"), record)
        return buffer.getvalue()

    def _add(self, frame: Frame) -> None:
        """Add a record behind the HDF5 data, or to a new file if these are too short for that."""
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
        """Put a file in the place of the old one that has all of its records, and those of frames, in its HDF5 data."""
        anew, self._most = self._seen is None or bool(self.replaced), 0  # until it is known what is in the file
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
    """What a file begins with, before its first record."""
    file.attrs["encoding-type"] = ENCODING_TYPE
    file.attrs["encoding-version"] = ENCODING_VERSION
    file.attrs["spectra-version"] = __version__
    file.attrs["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.attrs["settings"] = dumps(settings)
    file.create_group("records")
    seal(file)
