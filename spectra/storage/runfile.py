"""The results file of a run: HDF5, format version 1. Only whole records are ever in it, whatever interrupts the writer.

The tree; docs/format.md says the same at length, with the types, and how to get any number with h5py alone::

    /                        encoding-type "spectra-run", encoding-version 1, spectra-version, created (ISO 8601, UTC),
                             settings (JSON: what all records share), checksum
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
HDF5 does not look, stands a line with the SHA-256 of the whole file: damage is found before HDF5 stumbles over it.

Each append writes a whole new file beside the old one, flushes it to the disk and puts it in its place in one step.
"""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py

from spectra.errors import StorageError
from spectra.jsonable import dumps
from spectra.records import Identity, Record, Trajectory
from spectra.storage.cells import seal
from spectra.storage.hdf5 import write_record
from spectra.storage.loading import ENCODING_TYPE, ENCODING_VERSION, differences, load, one_line
from spectra.storage.regular import resolved
from spectra.storage.replacing import check_writable, fingerprint, replace_file
from spectra.storage.sealing import sealed, unsealed
from spectra.version import __version__

#: The oldest HDF5 library that must be able to read the file; from 1.8 on its own structures carry checksums too.
LIBRARY = ("v108", "v108")


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
    return load(path)[0]


@dataclass(frozen=True)
class _Known:
    """What is kept in memory of a record in the file, so that a long run needs no more than a short one."""

    identity: Identity
    complete: bool
    numbers: bool  # complete or unverified
    hashed: bool
    of_file: bool

    @classmethod
    def of(cls, record: Record) -> _Known:
        hashed, of_file = record.checkpoint_sha256 is not None, record.checkpoint is not None
        return cls(record.identity, record.status == "complete", record.status != "failed", hashed, of_file)


class RunFile:
    """A results file that is being written: `with RunFile.open(path, settings) as run: run.append(record)`.

    Nothing is created before the first record. A file that is there already is continued if it is of the same run.
    """

    def __init__(
        self,
        path: Path,
        shown: str,
        settings: Mapping[str, Any],
        known: dict[str, _Known],
        seen: tuple[int, int, int] | None,
    ) -> None:
        self.path = path
        self.shown = shown  # as the user calls it
        self.settings = settings
        self._known = known  # by the name of the group
        self._seen = seen  # the file when it was read
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
        wanted: dict[str, Any] = json.loads(dumps(settings))
        known: dict[str, _Known] = {}
        differing: list[str] = []
        seen = fingerprint(target)  # before it is read: what changes from now on is noticed
        if seen is not None:
            trajectory, records = load(target, shown=str(path))
            differing = differences(trajectory.settings, wanted)
            if differing and not force:
                raise StorageError(
                    f"{path}: is of a run with other settings: {'; '.join(differing)}; "
                    "use the settings of the file, or choose another file, or --force to replace it"
                )
            known = {} if differing else {name: _Known.of(record) for name, record in records.items()}
        run = cls(target, str(path), wanted, known, seen)
        run._force, run.replaced = force, tuple(differing)
        return run

    def __enter__(self) -> RunFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open between two appends, so there is nothing to close."""

    @property
    def records(self) -> tuple[Record, ...]:
        """The whole records in the file, in the order of arrival, read from it."""
        return () if not self._known else tuple(load(self.path, shown=self.shown)[1].values())

    def has(self, identity: Identity) -> bool:
        """Whether a complete record of this identity is in the file. One that failed is to be tried again.

        Args:
            identity: `Identity.of(...)` with the settings that the record would have.

        Raises:
            StorageError: a record of the same checkpoint file is there, and the file's content was another one.
        """
        complete = [known for known in self._known.values() if known.complete]
        if any(known.identity == identity or known.identity.is_of_file(identity) for known in complete):
            return True
        for known in complete:
            hashed = known.hashed and identity.subject != identity.checkpoint
            if hashed and not self._force and known.identity.same_place(identity):
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
        return self.has(identity) or any(one.numbers and one.identity == identity for one in self._known.values())

    def has_twin(self, identity: Identity) -> bool:
        """Whether a complete record of the same weights is in the file, from a checkpoint in another file."""
        return any(known.complete and known.identity.twin_of(identity) for known in self._known.values())

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
        if fingerprint(self.path) != self._seen:
            raise StorageError(f"{self.shown}: was changed by another process; two runs cannot write one file")
        identity = record.identity
        if self.has(identity):
            raise StorageError(f"{self.shown}: has {record.label} already")
        earlier = [
            name
            for name, other in self._known.items()
            if (other.identity == identity or other.identity.same_place(identity))
            and (not other.complete or (self._force and record.status == "complete"))
            and (not other.numbers or record.status != "failed")
        ]
        name = earlier[0] if earlier else f"{1 + max(map(int, self._known), default=-1):06d}"
        replace_file(self.path, self._image(record, name, obsolete=earlier), shown=self.shown)
        self._seen = fingerprint(self.path)
        self.replaced = ()
        self._known = {key: kept for key, kept in self._known.items() if key not in earlier} | {name: _Known.of(record)}
        return record

    def _image(self, record: Record, name: str, *, obsolete: list[str]) -> bytes:
        """The bytes of the file with the record in it, built in memory: the disk sees all of it or nothing."""
        try:
            anew = self._seen is None or bool(self.replaced)
            buffer = io.BytesIO(b"" if anew else unsealed(self.path.read_bytes(), self.shown))
            with h5py.File(buffer, "w" if anew else "r+", libver=LIBRARY) as file:
                if anew:
                    write_root(file, self.settings)
                for old in {*obsolete, name} & set(file["records"]):
                    del file["records"][old]
                write_record(file["records"].create_group(name), record)
        except (OSError, RuntimeError) as error:  # h5py raises both
            raise StorageError(f"{self.shown}: cannot be continued: {one_line(error)}") from error
        return sealed(buffer.getvalue())


def write_root(file: h5py.File, settings: Mapping[str, Any]) -> None:
    """What a file begins with, before its first record."""
    file.attrs["encoding-type"] = ENCODING_TYPE
    file.attrs["encoding-version"] = ENCODING_VERSION
    file.attrs["spectra-version"] = __version__
    file.attrs["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.attrs["settings"] = dumps(settings)
    file.create_group("records")
    seal(file)
