"""A record that is read from its file when something of it beyond its identity is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py

from spectra.results.record import Record
from spectra.results.storage.contents import Contents
from spectra.results.storage.record_codec import PLACE, place_in, read_record
from spectra.results.storage.texts import check_attributes, settings_in

#: The fields by which a run is ordered, listed and continued: they are read at once.
_FIELDS = ("operator", "bn_mode", "status", "reason")
_AT_ONCE = (*_FIELDS, "place", "settings")


class _OnDemand:
    """A field that the instance does not have yet: the first use of one reads all of them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, record: Any, owner: type) -> Any:
        if record is None:  # the default of the field, for whoever asks the class
            return Record.__dict__.get(self.name)
        record.read()
        return getattr(record, self.name)


class StoredRecord(Record):
    """A `Record` whose spectrum and findings are still in the file. Reading them makes it a plain `Record`."""

    _source: Callable[[], Record]

    @classmethod
    def of(cls, group: h5py.Group, contents: Contents, reading: Callable[[Callable[[], Record]], Record]) -> Record:
        """The record of a group, of which the checksum of the whole file has been compared.

        Args:
            group: of a file that stays open. Its own checksums are compared when it is read.
            contents: of that file.
            reading: calls what reads the group, and turns what goes wrong into an error with the name of the file.
        """

        def read() -> Record:
            return read_record(contents.read(group))

        record = cls.__new__(cls)
        found = contents.attributes(group, (*PLACE, *_FIELDS, "settings"))
        check_attributes(found)
        fields = {name: found.get(name) for name in _FIELDS}
        record.__dict__.update(fields, place=place_in(found), settings=settings_in(found.get("settings")))
        record.__dict__["_source"] = lambda: reading(read)
        return record

    def read(self) -> None:
        """Read what is still in the file, and be a plain record from now on."""
        whole = self._source()
        self.__dict__.clear()
        self.__dict__.update(whole.__dict__)
        object.__setattr__(self, "__class__", Record)

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies and pickles are of the whole
        self.read()
        return self.__reduce_ex__(protocol)

    def __eq__(self, other: object) -> bool:
        self.read()
        return self == other

    __hash__ = None  # type: ignore[assignment]


for _name in Record.__dataclass_fields__.keys() - set(_AT_ONCE):
    setattr(StoredRecord, _name, _OnDemand(_name))
