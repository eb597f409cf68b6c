"""Reading a results file: what is refused, what is read at once, and what when it is used."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from spectra.errors import SpectraError, StorageError
from spectra.jsonable import dumps
from spectra.records import Record, Trajectory
from spectra.storage.cells import verify
from spectra.storage.contents import Contents
from spectra.storage.hdf5 import read_record
from spectra.storage.sealing import read_bytes, unsealed
from spectra.storage.stored import StoredRecord
from spectra.storage.texts import settings_in
from spectra.version import __version__

ENCODING_TYPE = "spectra-run"
ENCODING_VERSION = 1


def load(path: str | Path, *, shown: str | None = None) -> tuple[Trajectory, dict[str, Record]]:
    """The trajectory in a file, and its records by the names of their groups, in the order of arrival.

    With the checksum of the whole file compared, records are read when they are used. Without it, where another tool
    has edited the file, all of them are read and compared with the checksums of their groups.
    """
    name = shown or str(path)
    content = read_bytes(Path(path), name)
    image = unsealed(content, name)
    records: dict[str, Record] = {}
    notes: list[str] = []
    with reading(name, "is truncated or damaged: it cannot be read as HDF5"):
        file = h5py.File(h5py.h5f.open_file_image(image))
    with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        with reading(name, "is damaged"):
            contents = Contents(file, image)
            _check_is_ours(contents, name)
            every = contents.group(file, "records")
            contents.check(file, without=("records",))
            verify(file)
            settings = settings_in(file.attrs["settings"])
            keys = sorted(every)
        for key in keys:
            with reading(name, f"record {key} is damaged"):
                group = contents.group(every, key)
                if "complete" not in group.attrs:
                    notes.append(f"{name}: record {key} was not finished, and is left out")
                elif len(image) < len(content):
                    records[key] = StoredRecord.of(group, contents, functools.partial(_read_later, name, key))
                else:
                    records[key] = read_record(contents.read(group))
        if len(image) < len(content):
            stack.pop_all()  # the records hold the file open, which is in memory
    return Trajectory(records.values(), settings=settings, notes=notes, path=str(path)), records


def _read_later(name: str, key: str, read: Callable[[], Record]) -> Record:
    with reading(name, f"record {key} is damaged"):
        return read()


def _check_is_ours(contents: Contents, name: str) -> None:
    says = contents.attributes(contents.file, ("encoding-type", "encoding-version", "spectra-version"))
    kind, version = says.get("encoding-type"), says.get("encoding-version")
    if kind != ENCODING_TYPE or version is None:
        raise StorageError(
            f"{name}: is an HDF5 file, but not one that spectra wrote (no encoding-type {ENCODING_TYPE!r})"
        )
    if int(version) > ENCODING_VERSION:
        raise StorageError(
            f"{name}: has format version {int(version)}, written by spectra {says.get('spectra-version')}; "
            f"this is spectra {__version__}, which reads up to version {ENCODING_VERSION}: "
            "upgrade with pip install -U hessian-spectra"
        )


@contextlib.contextmanager
def reading(name: str, what: str) -> Iterator[None]:
    """A file that is not as it should be can make h5py raise nearly anything: one line, with the file and the part."""
    try:
        yield
    except SpectraError:
        raise
    except Exception as error:
        raise StorageError(f"{name}: {what}: {one_line(error)}") from error


def differences(
    there: Mapping[str, Any], wanted: Mapping[str, Any], *, names: tuple[str, str] = ("the file", "")
) -> list[str]:
    """What is not the same in two settings, in words: `seed is 0 in the file, 1 now`.

    Args:
        there: the settings of a file.
        wanted: those that are to be the same.
        names: where each of the two is from; empty: from what is asked now.
    """
    missing = object()

    def shown(settings: Mapping[str, Any], key: str) -> str:
        return dumps(settings[key]) if key in settings else "not set"

    now = f"in {names[1]}" if names[1] else "now"
    return [
        f"{key} is {shown(there, key)} in {names[0]}, {shown(wanted, key)} {now}"
        for key in sorted({*there, *wanted})
        if there.get(key, missing) != wanted.get(key, missing)
    ]


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
