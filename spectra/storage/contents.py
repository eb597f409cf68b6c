"""What the HDF5 structure of a file may be, seen before anything in it is read.

A file may come from somebody else. HDF5 can point out of a file (external links, external storage, virtual datasets),
can be a graph that never ends, and can declare more than it holds. None of this is in a file that spectra wrote, so a
file with any of it is refused.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5t, h5z

_MOST_ATTRIBUTES = 1024  # of a group
_DEEPEST = 12  # groups within each other
_MOST_CHUNK = 2**20  # bytes of a chunk that is larger than its dataset
_DEFLATE_RATIO = 1032  # the most that deflate gains
_FILTERS = {h5z.FILTER_DEFLATE: "gzip", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}
_NUMBERS = (h5t.INTEGER, h5t.FLOAT)
#: A text in a dataset as it lies in the file: its length, and where in the file it is.
_TEXT = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])


class Contents:
    """The objects of an open HDF5 file, each looked at before it is used.

    Args:
        file: open for reading.
        image: its bytes.
    """

    def __init__(self, file: h5py.File, image: bytes) -> None:
        self.file = file
        self.image = image
        self._walking = threading.Lock()
        self._checked: dict[str, str] = {}  # groups whose trees have been walked, and what is wrong with them
        self._seen: dict[int, str] = {}  # addresses of objects, each of which has one name
        self._left = len(image)  # of the bytes, each belongs to one dataset
        self._texts_left = len(image)
        self._texts_left_at_once = len(image)
        if file.id.get_create_plist().get_sizes() != (8, 8):
            raise ValueError("its addresses are not of 8 bytes")

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        """A group by its name in another one; what is in it has not been looked at.

        Raises:
            ValueError: it is a link to elsewhere, or no group.
        """
        found = self._found(parent, name)
        if found.type != h5o.TYPE_GROUP:
            raise ValueError(f"{_path(parent, name)} is not a group")
        self._once(_whole_path(parent, name), found.addr)
        return parent[name]

    def attributes(self, group: h5py.Group, names: tuple[str, ...]) -> dict[str, Any]:
        """The values of those attributes that are there, of a group whose tree has not been walked."""
        found: dict[str, Any] = {}
        for name in names:
            if h5a.exists(group.id, name.encode()):
                found[name] = _attribute(group, name)
                self._texts_left_at_once -= _length(found[name])
                if self._texts_left_at_once < 0:
                    raise ValueError(f"attributes of {group.name} share their texts with others")
        return found

    def check(self, group: h5py.Group, *, without: tuple[str, ...] = ()) -> None:
        """Walk everything in a group. Whatever is read of it afterwards is finite, in this file, and has one name.

        Args:
            group: of the file, reached through `group`.
            without: names in it that are not walked.

        Raises:
            ValueError: something that spectra does not write; the message says what and where.
        """
        with self._walking:
            if group.name not in self._checked:
                try:
                    self._walk(group, without)
                    self._checked[group.name] = ""
                except ValueError as error:
                    self._checked[group.name] = str(error)
        if wrong := self._checked[group.name]:
            raise ValueError(wrong)

    def _walk(self, group: h5py.Group, without: tuple[str, ...]) -> None:
        self._once(group.name, h5o.get_info(group.id).addr)
        ahead = [(group, 0, without)]
        while ahead:
            at, depth, passed = ahead.pop()
            if depth > _DEEPEST:
                raise ValueError(f"{_path(at)} has more than {_DEEPEST} groups around it")
            self._check_attributes(at)
            for name in at:
                if name in passed:
                    continue
                found = self._found(at, name)
                self._once(_whole_path(at, name), found.addr)
                if found.type == h5o.TYPE_GROUP:
                    ahead.append((at[name], depth + 1, ()))
                elif found.type == h5o.TYPE_DATASET:
                    self._check_dataset(_path(at, name), h5d.open(at.id, name.encode()))
                else:
                    raise ValueError(f"{_path(at, name)} is neither a group nor a dataset")

    def _found(self, parent: h5py.Group, name: str) -> Any:
        """The type and the address of an object, which is not opened."""
        link = parent.id.links.get_info(name.encode())
        if link.type != h5l.TYPE_HARD:
            what = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}.get(link.type, "a link")
            raise ValueError(f"{_path(parent, name)} is {what}")
        return h5o.get_info(parent.id, name.encode())

    def _once(self, path: str, address: int) -> None:
        if (other := self._seen.setdefault(address, path)) != path:
            raise ValueError(f"{path} is {other} under another name")

    def _check_attributes(self, group: h5py.Group) -> None:
        if h5a.get_num_attrs(group.id) > _MOST_ATTRIBUTES:
            raise ValueError(f"{_path(group)} has more than {_MOST_ATTRIBUTES} attributes")
        for name in group.attrs:
            self._take_texts(f"attribute {name} of {_path(group)}", _length(_attribute(group, name)))

    def _take_texts(self, where: str, length: int) -> None:
        self._texts_left -= length
        if self._texts_left < 0:
            raise ValueError(f"{where}: more text than the file can hold")

    def _check_dataset(self, where: str, dataset: h5d.DatasetID) -> None:
        created = dataset.get_create_plist()
        layout = created.get_layout()
        if layout == h5d.VIRTUAL:
            raise ValueError(f"{where} is a virtual dataset")
        if layout not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
            raise ValueError(f"{where} has an unknown layout")
        if created.get_external_count():
            raise ValueError(f"{where} is stored in another file")
        kind = dataset.get_type()
        _check_type(where, kind)
        count, stored = math.prod(dataset.shape), dataset.get_storage_size()
        if dataset.rank > 3:
            raise ValueError(f"{where} has {dataset.rank} dimensions")
        if kind.get_class() == h5t.STRING and kind.is_variable_str():
            self._check_texts(where, dataset, count, layout)
        else:
            _check_size(where, created, (count, kind.get_size()), stored)
        self._left -= stored
        if self._left < 0:
            raise ValueError(f"{where} is larger than the file")

    def _check_texts(self, where: str, dataset: h5d.DatasetID, count: int, layout: int) -> None:
        if not count:
            return
        start, size = dataset.get_offset(), count * _TEXT.itemsize
        if layout != h5d.CONTIGUOUS or start is None or start + size > len(self.image):
            raise ValueError(f"{where} has no texts in one piece of the file")
        cells = np.frombuffer(self.image, _TEXT, count, start)
        self._take_texts(where, int(cells["length"].sum(dtype=np.uint64)))


def _check_type(where: str, kind: h5t.TypeID) -> None:
    text = kind.get_class() == h5t.STRING
    if not text and (kind.get_class() not in _NUMBERS or kind.get_size() not in (1, 2, 4, 8)):
        raise ValueError(f"{where} holds neither numbers nor texts")


def _check_size(where: str, created: Any, size: tuple[int, int], stored: int) -> None:
    """That a dataset of so many entries, of so many bytes each, is no more than what its bytes can make."""
    declared = size[0] * size[1]
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    if unknown := [code for code in filters if code not in _FILTERS]:
        raise ValueError(f"{where} needs the filter {unknown[0]}: {', '.join(_FILTERS.values())} are known")
    if len(set(filters)) < len(filters):
        raise ValueError(f"{where} has a filter twice")
    most = stored * (_DEFLATE_RATIO if h5z.FILTER_DEFLATE in filters else 1)
    if declared > most:
        raise ValueError(f"{where} declares {declared} bytes, of which the file holds {stored}")
    if created.get_layout() == h5d.CHUNKED:
        chunk = math.prod(created.get_chunk()) * size[1]
        if chunk > max(declared, _MOST_CHUNK):
            raise ValueError(f"{where} has chunks of {chunk} bytes for {declared}")


def _attribute(group: h5py.Group, name: str) -> Any:
    """The value of an attribute, which is one number or one text."""
    where = f"attribute {name} of {_path(group)}"
    attribute = h5a.open(group.id, name.encode())
    if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        raise ValueError(f"{where} is not one value")
    _check_type(where, attribute.get_type())
    value = group.attrs[name]
    return value.item() if isinstance(value, np.generic) else value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 0


def _whole_path(group: h5py.Group, name: str) -> str:
    return f"{group.name}/{name}".replace("//", "/")


def _path(group: h5py.Group, name: str = "") -> str:
    """The name of an object within its record."""
    path = _whole_path(group, name).rstrip("/") or "/"
    pieces = path.split("/")
    return "/".join(pieces[3:]) or path if pieces[1:2] == ["records"] else path
