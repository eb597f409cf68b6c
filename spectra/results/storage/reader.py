"""Reads a results file: checks it, reads the identity of each record at once, and the data of a record when used."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from spectra.errors import SpectraError, StorageError
from spectra.jsonable import dumps
from spectra.results.record import Record
from spectra.results.storage.appended import GROWING, MARK, frames_in, put
from spectra.results.storage.attributes import verify
from spectra.results.storage.checksum import data_end, parted, read_bytes, seal_of
from spectra.results.storage.contents import Contents
from spectra.results.storage.record_codec import read_record
from spectra.results.storage.stored import StoredRecord
from spectra.results.storage.texts import settings_in
from spectra.results.trajectory import Trajectory
from spectra.version import __version__

ENCODING_TYPE = "spectra-run"
ENCODING_VERSION = 1


class Loaded(NamedTuple):
    """The contents of a file."""

    trajectory: Trajectory
    records: dict[str, Record]  # by the names of their groups, in the order of arrival
    growing: bool  # records may follow the HDF5 data: the run has not ended


class Whole(NamedTuple):
    """The HDF5 data of a file with all of its records in them."""

    image: bytes
    sealed: bool  # the file has their SHA-256, and it matches
    notes: list[str]


def load(path: str | Path, *, shown: str | None = None) -> Loaded:
    """The trajectory in a file, and its records.

    Records of a file with a seal are read when they are used. Where another tool has edited the file and removed the
    seal, all of them are read and compared with the checksums of their groups.

    Args:
        path: the file.
        shown: its name for messages, if that is not `path`.

    Raises:
        StorageError: the file cannot be read, is damaged, is not ours, or is of a newer version.
    """
    name = shown or str(path)
    image, is_sealed, notes = whole(read_bytes(Path(path), name), name)
    records: dict[str, Record] = {}
    file = _opened(image, name)
    with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        with reading(name, "is damaged"):
            contents = Contents(file, image)
            _check_is_ours(contents, name)
            every = contents.group(file, "records")
            contents.check(file, without=("records",))
            verify(file)
            settings = settings_in(file.attrs["settings"])
            growing = GROWING in file.attrs
            if growing and not is_sealed:
                notes.append(
                    f"{name}: was edited by another tool before its run had ended: records after its HDF5 "
                    "data, if any, are lost; the same command computes them again"
                )
            keys = sorted(every)
        for key in keys:
            with reading(name, f"record {key} is damaged"):
                group = contents.group(every, key)
                if "complete" not in group.attrs:
                    notes.append(f"{name}: record {key} was not finished, and is left out")
                elif is_sealed:
                    records[key] = StoredRecord.of(group, contents, functools.partial(_read_later, name, key))
                else:
                    records[key] = read_record(contents.read(group))
        if is_sealed:
            stack.pop_all()  # the records hold the file open, which is in memory
    return Loaded(Trajectory(records.values(), settings=settings, notes=notes, path=str(path)), records, growing)


def whole(content: bytes, name: str, *, ours: str = "") -> Whole:
    """The HDF5 data of a file, with the records after them copied into them.

    Args:
        content: of the file.
        name: of the file, for messages.
        ours: the SHA-256 of the last appended record, if this process wrote all of them.

    Raises:
        StorageError: data or records do not match their SHA-256, or contain something that spectra does not write.
    """
    image, appended = parted(content, name)
    if appended is None:
        if content.find(MARK, data_end(content)) >= 0:
            raise StorageError(f"{name}: is damaged: records follow its HDF5 data, which have no SHA-256")
        return Whole(image, False, [])
    frames, notes = frames_in(appended, seal_of(image), name)
    if frames:
        buffer = io.BytesIO(image)
        with _opened(image, name) as file, reading(name, "is damaged"):
            contents = Contents(file, image)
            _check_is_ours(contents, name)
            contents.group(file, "records")
        with reading(name, "a record after its HDF5 data is damaged"), h5py.File(buffer, "r+") as file:
            put(file, frames, ours=frames[-1].sha256 == ours)
        image = buffer.getvalue()
    return Whole(image, True, notes)


def _opened(image: bytes, name: str) -> h5py.File:
    with reading(name, "is truncated or damaged: it cannot be read as HDF5"):
        return h5py.File(h5py.h5f.open_file_image(image))


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
    """Turn any error into one line with the file and the part: on damaged files h5py raises errors of many types."""
    try:
        yield
    except SpectraError:
        raise
    except Exception as error:
        raise StorageError(f"{name}: {what}: {one_line(error)}") from error


def differences(
    there: Mapping[str, Any], wanted: Mapping[str, Any], *, names: tuple[str, str] = ("the file", "")
) -> list[str]:
    """The differences of two settings, in words: `seed is 0 in the file, 1 now`.

    Args:
        there: the settings of a file.
        wanted: the settings to compare with.
        names: the source of each; empty for the present call.
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
    """The message of an error, without line breaks; its type if there is none."""
    return " ".join(str(error).split()) or type(error).__name__
