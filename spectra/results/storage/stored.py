"""A record that is read from its file in parts, each at its first use.

The identity is read at once; all that tables show, together at the first use of any of it; each spectrum separately.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import h5py

from spectra.results.record import Record
from spectra.results.storage.blocks_codec import read_blocks
from spectra.results.storage.contents import Contents
from spectra.results.storage.record_codec import LARGE, PLACE, place_in, read_fields
from spectra.results.storage.spectrum_codec import read_spectrum
from spectra.results.storage.texts import check_attributes, settings_in

#: The fields by which a run is ordered, listed and continued: they are read at once.
_FIELDS = ("operator", "bn_mode", "status", "reason")
_AT_ONCE = (*_FIELDS, "place", "settings")

_Reading = Callable[[Callable[[], Any]], Any]


class _OnDemand:
    """A field that is read at its first use, and is then an attribute of the instance."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, record: Any, owner: type) -> Any:
        if record is None:  # of the class: the default of the field
            return Record.__dict__.get(self.name)
        return record.read(self.name)


class StoredRecord(Record):
    """A `Record` whose spectra and findings are still in the file."""

    _fields: Callable[[], Mapping[str, Any]]  # read from the file
    _spectrum: Callable[[str], Any]  # read from the file, by the name of the field

    def __new__(cls, **fields: Any) -> Record:  # type: ignore[misc]
        """A plain record, if made from fields, as by `dataclasses.replace`."""
        return Record(**fields)

    @classmethod
    def of(cls, group: h5py.Group, contents: Contents, reading: _Reading) -> Record:
        """The record of a group in a file whose checksum matches.

        Args:
            group: of a file that stays open; its checksums are compared when it is read.
            contents: of that file.
            reading: calls a function that reads the group, and turns its errors into one with the name of the file.
        """
        record = object.__new__(cls)
        known = contents.attributes(group, (*PLACE, *_FIELDS, "settings"))
        check_attributes(known)

        def fields() -> Mapping[str, Any]:
            found = contents.read(group, without=tuple(LARGE.values()))
            later = {field: found[path] for field, path in LARGE.items() if path in found}
            checked = Record(**read_fields(found), **later)  # checks that there is a spectrum, without reading it
            return {name: value for name, value in vars(checked).items() if name not in later}

        def spectrum(field: str) -> Any:
            within = contents.read(functools.reduce(contents.group, LARGE[field].split("/"), group))
            return read_blocks(within) if field == "blocks" else read_spectrum(within, LARGE[field])

        at_once = {name: known.get(name) for name in _FIELDS}
        record.__dict__.update(at_once, place=place_in(known), settings=settings_in(known.get("settings")))
        record.__dict__["_fields"] = lambda: reading(fields)
        record.__dict__["_spectrum"] = lambda field: reading(lambda: spectrum(field))
        return record

    def read(self, name: str) -> Any:
        """Read a field of this name, and all fields that are read together with it."""
        if "facts" not in self.__dict__:
            self.__dict__.update(self._fields())
        if name not in self.__dict__:
            self.__dict__[name] = self._spectrum(name)
        return self.__dict__[name]

    def _whole(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Record.__dataclass_fields__}

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies and pickles are plain records, and need no file
        return _plain, (self._whole(),)

    def __repr__(self) -> str:
        return repr(_plain(self._whole()))

    def __eq__(self, other: object) -> bool:
        return _plain(self._whole()) == (_plain(other._whole()) if isinstance(other, StoredRecord) else other)

    __hash__ = None  # type: ignore[assignment]


def _plain(fields: Mapping[str, Any]) -> Record:
    return Record(**fields)


for _name in Record.__dataclass_fields__.keys() - set(_AT_ONCE):
    setattr(StoredRecord, _name, _OnDemand(_name))
