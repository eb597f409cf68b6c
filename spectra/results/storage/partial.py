"""The finished probes of an unfinished record: a file that is removed when the record is complete.

It is in the folder of the results file, ends with its SHA-256 too, and is replaced in one step. `run.h5.partial`::

    /                    encoding-type "spectra-partial", encoding-version 1, key and how (JSON)
    /parts/0/000000      a probe of part 0 of the record: its arrays, by name
    /under-way/000000    a recurrence that is not finished, likewise; attributes: part, vectors (JSON: the valid part of
                         `run.h5.basis`, :mod:`spectra.results.storage.vectors`)

The key identifies the record, so that its probes are used for no other one. `how` has the choices by which they were
computed, such as the width; the computation continues with the same.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spectra.errors import StorageError
from spectra.jsonable import dumps
from spectra.results.storage.atomic_write import remove_leftovers, replace_file
from spectra.results.storage.checksum import read_bytes, sealed, unsealed
from spectra.results.storage.contents import Contents
from spectra.results.storage.safe_open import resolved
from spectra.results.storage.vectors import Written

ENCODING_TYPE = "spectra-partial"
ENCODING_VERSION = 1

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class UnderWay:
    """Recurrences in the middle of their steps."""

    part: int  # of the record
    recurrences: Sequence[Arrays]  # without their vectors
    written: Written  # describes the vectors


@dataclass(frozen=True)
class Partial:
    """The finished probes of a record, and the key of the record."""

    key: Mapping[str, Any]  # JSON-able; equal keys mean equal numbers
    how: Mapping[str, Any]  # JSON-able
    parts: Sequence[Sequence[Arrays]]  # the parts of the record, the probes of each from the first on
    under_way: UnderWay | None = None  # of the last part, or of the one after it

    def differs(self, key: Mapping[str, Any]) -> list[str]:
        """The names of the entries that differ from another key."""
        other = json.loads(dumps(key))
        return [name for name in sorted({*self.key, *other}) if self.key.get(name) != other.get(name)]


class PartialFile:
    """The file `run.h5.partial` of a results file `run.h5`, or one of another ending."""

    def __init__(self, out: str | Path, ending: str = "partial") -> None:
        target = resolved(out)
        self.path = target.with_name(f"{target.name}.{ending}")
        self.shown = f"{out}.{ending}"

    def read(self) -> Partial | None:
        """The contents of the file; None if there is no file.

        Raises:
            StorageError: it is damaged, or not ours.
        """
        if not os.path.lexists(self.path):
            return None
        content = read_bytes(self.path, self.shown, follow=False)
        image = unsealed(content, self.shown)
        if len(image) == len(content):  # HDF5 never reads a file without a checksum
            raise StorageError(f"{self.shown}: is damaged: its SHA-256 is missing")
        try:
            with h5py.File(io.BytesIO(image), "r") as file:
                Contents(file, image).check(file)
                if (file.attrs["encoding-type"], file.attrs["encoding-version"]) != (ENCODING_TYPE, ENCODING_VERSION):
                    raise StorageError(f"{self.shown}: is not one that this version of spectra wrote")
                parts = [_arrays_in(part) for _, part in sorted(file["parts"].items())] if "parts" in file else []
                key, how = json.loads(file.attrs["key"]), json.loads(file.attrs["how"])
                return Partial(key, how, parts, _under_way_in(file))
        except StorageError:
            raise
        except Exception as error:  # h5py raises errors of many types
            raise StorageError(f"{self.shown}: is damaged: {' '.join(str(error).split())}") from error

    def write(self, partial: Partial) -> None:
        """Replace the file in one step.

        Raises:
            StorageError: it cannot be written; the old file is unchanged.
        """
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=("v108", "v108")) as file:
            file.attrs["encoding-type"] = ENCODING_TYPE
            file.attrs["encoding-version"] = ENCODING_VERSION
            file.attrs["key"], file.attrs["how"] = dumps(partial.key), dumps(partial.how)
            for number, part in enumerate(partial.parts):
                _put(file.create_group(f"parts/{number}"), part)
            if (under_way := partial.under_way) is not None:
                group = file.create_group("under-way")
                group.attrs["part"] = under_way.part
                group.attrs["vectors"] = dumps(asdict(under_way.written))
                _put(group, under_way.recurrences)
        replace_file(self.path, sealed(buffer.getvalue()), shown=self.shown)

    def remove(self) -> None:
        """Remove the file, and the temporary files of killed processes.

        Raises:
            StorageError: it cannot be removed.
        """
        try:
            remove_leftovers(self.path)
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.shown}: cannot be removed: {error.strerror}; remove it by hand") from error


def _put(group: h5py.Group, probes: Sequence[Arrays]) -> None:
    for row, probe in enumerate(probes):
        cells = group.create_group(f"{row:06d}")
        for name, values in probe.items():
            cells[name] = values


def _arrays_in(group: h5py.Group) -> list[Arrays]:
    return [{name: cell[()] for name, cell in probe.items()} for _, probe in sorted(group.items())]


def _under_way_in(file: h5py.File) -> UnderWay | None:
    if "under-way" not in file:
        return None
    group = file["under-way"]
    fields = json.loads(group.attrs["vectors"])
    written = Written(**(fields | {"chunks": tuple((int(which), int(count)) for which, count in fields["chunks"])}))
    return UnderWay(int(group.attrs["part"]), _arrays_in(group), written)
