"""Checks the HDF5 structure of a file before its data are read.

A file may come from another person. HDF5 files can refer to other files (external links, external storage, virtual
datasets), can contain circles, and can declare more data than they have. Files written by spectra do none of this, so a
file with any of it is refused.

A record has about fifty datasets and as many attributes. Each is opened once, by the low-level interface of h5py, for
the check and for reading.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

from spectra.results.storage.branch import Branch

_MOST_ATTRIBUTES = 1024  # of a group
_DEEPEST = 12  # groups within each other
_MOST_CHUNK = 2**20  # bytes of a chunk that is larger than its dataset
_DEFLATE_RATIO = 1032  # the most that deflate gains
_FILTERS = {h5z.FILTER_DEFLATE: "gzip", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}
_NUMBERS = (h5t.INTEGER, h5t.FLOAT)
#: How a file refers to a text of a dataset: its length, and its place in the file.
_TEXT = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_ANY_TEXT = h5py.string_dtype("utf-8")
_TEXT_IN_MEMORY = h5t.py_create(_ANY_TEXT)
#: Types of numbers in the file, and in NumPy.
_PLAIN = {
    h5t.FLOAT: ((h5t.IEEE_F64LE, np.dtype("<f8")), (h5t.IEEE_F32LE, np.dtype("<f4"))),
    h5t.INTEGER: (
        *((h5t.STD_I64LE, np.dtype("<i8")), (h5t.STD_U8LE, np.dtype("u1")), (h5t.STD_I8LE, np.dtype("i1"))),
        (h5t.STD_U64LE, np.dtype("<u8")),
    ),
}


class Contents:
    """The objects of an open HDF5 file, each checked before it is used.

    Args:
        file: open for reading.
        image: its bytes.
    """

    def __init__(self, file: h5py.File, image: bytes) -> None:
        self.file = file
        self.image = image
        self._walking = threading.Lock()
        self._checked: dict[str, str] = {}  # groups that were walked -> what is wrong with them, or ""
        self._known: dict[str, dict[str, Any]] = {}  # groups -> attributes read before the group itself
        self._seen: dict[int, str] = {}  # address of an object -> its only path
        self._left = len(image)  # bytes of the file that no dataset has used so far
        self._texts_left = self._texts_left_at_once = len(image)
        if file.id.get_create_plist().get_sizes() != (8, 8):
            raise ValueError("its addresses are not of 8 bytes")

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        """A group by its name in another one; its contents are not checked.

        Raises:
            ValueError: it is a soft or external link, or not a group.
        """
        path = f"{parent.name.rstrip('/')}/{name}"
        link = parent.id.links.get_info(name.encode())
        _check_link(path, link.type)
        if h5o.get_info(parent.id, name.encode()).type != h5o.TYPE_GROUP:
            raise ValueError(f"{_within_record(path)} is not a group")
        self._once(path, link.u)
        return h5py.Group(h5g.open(parent.id, name.encode()))

    def attributes(self, group: h5py.Group, names: tuple[str, ...]) -> dict[str, Any]:
        """The attributes of these names that exist, of a group that has not been walked."""
        path = str(group.name)
        found: dict[str, Any] = {}
        for name in names:
            if h5a.exists(group.id, name.encode()):
                value = found[name] = _attribute(group.id, name.encode(), path)
                self._texts_left_at_once -= _length(value)
                if self._texts_left_at_once < 0:
                    raise ValueError(f"attributes of {path} share their texts with others")
        self._known[path] = found
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}

    def check(self, group: h5py.Group, *, without: tuple[str, ...] = ()) -> None:
        """Walk everything in a group, which is then known to be finite, in this file, and without second names.

        Args:
            group: of the file, reached through `group`.
            without: names in it that are not walked.

        Raises:
            ValueError: something that spectra does not write; the message says what and where.
        """
        self._visit(group, without, keep=False)

    def read(self, group: h5py.Group, *, without: tuple[str, ...] = ()) -> Branch:
        """Check a group as `check` does, and read everything in it.

        Args:
            group: of the file, reached through `group`.
            without: paths in it of groups; only their attribute `checksum` is read.

        Returns:
            The attributes and arrays of the group and of those inside it, in memory.

        Raises:
            ValueError: something that spectra does not write; the message says what and where.
        """
        return self._visit(group, without, keep=True)

    def _visit(self, group: h5py.Group, without: tuple[str, ...], *, keep: bool) -> Branch:
        """Walk a group unless that was done, or once more to read it; its bytes are counted once."""
        name = str(group.name)
        found = Branch(name)
        with self._walking:
            again = name in self._checked
            if not again or (keep and not self._checked[name]):
                left = (self._left, self._texts_left)
                try:
                    self._walk(group.id, found, without, keep)
                    self._checked[name] = ""
                except ValueError as error:
                    self._checked[name] = str(error)
                if again:
                    self._left, self._texts_left = left
            wrong = self._checked[name]
        if wrong:
            raise ValueError(wrong)
        return found

    def _walk(self, top: h5g.GroupID, whole: Branch, without: tuple[str, ...], keep: bool) -> None:
        self._once(whole.name, h5o.get_info(top).addr)
        ahead = [(top, whole, 0, without)]
        while ahead:
            at, branch, depth, passed = ahead.pop()
            if depth > _DEEPEST:
                raise ValueError(f"{_within_record(branch.name)} has more than {_DEEPEST} groups around it")
            self._read_attributes(at, branch)
            links: list[tuple[bytes, int, int]] = []
            if len(at):
                at.links.iterate(lambda name, link, links=links: links.append((name, link.type, link.u)), info=True)
            for coded, kind, address in links:
                name = coded.decode()
                path = f"{branch.name.rstrip('/')}/{name}"
                _check_link(path, kind)
                self._once(path, address)
                found = h5o.open(at, coded)
                if isinstance(found, h5g.GroupID):
                    branch.children[name] = inner = Branch(path)
                    if name in passed:
                        inner.attrs = self.attributes(h5py.Group(found), ("checksum",))
                    else:
                        within = tuple(p.removeprefix(f"{name}/") for p in passed if p.startswith(f"{name}/"))
                        ahead.append((found, inner, depth + 1, within))
                elif isinstance(found, h5d.DatasetID):
                    values = self._dataset(_within_record(path), found, keep)
                    if keep:
                        branch.children[name] = values
                else:
                    raise ValueError(f"{_within_record(path)} is neither a group nor a dataset")

    def _once(self, path: str, address: int) -> None:
        if (other := self._seen.setdefault(address, path)) != path:
            raise ValueError(f"{path} is {other} under another name")

    def _read_attributes(self, group: h5g.GroupID, branch: Branch) -> None:
        if h5a.get_num_attrs(group) > _MOST_ATTRIBUTES:
            raise ValueError(f"{_within_record(branch.name)} has more than {_MOST_ATTRIBUTES} attributes")
        names: list[bytes] = []
        h5a.iterate(group, names.append)
        known = self._known.pop(branch.name, {})
        for coded in names:
            name = coded.decode()
            value = branch.attrs[name] = known[name] if name in known else _attribute(group, coded, branch.name)
            if length := _length(value):
                self._take_texts(f"attribute {name} of {_within_record(branch.name)}", length)

    def _take_texts(self, where: str, length: int) -> None:
        self._texts_left -= length
        if self._texts_left < 0:
            raise ValueError(f"{where}: more text than the file can hold")

    def _dataset(self, where: str, dataset: h5d.DatasetID, keep: bool) -> Any:
        """Check a dataset; its values with `keep`, else None."""
        kind, offset, stored = dataset.get_type(), dataset.get_offset(), dataset.get_storage_size()
        # HDF5 gives an offset only for a dataset that is in one piece in this file.
        created = None if offset is not None and stored else dataset.get_create_plist()
        if created is not None:
            layout = created.get_layout()
            if layout == h5d.VIRTUAL:
                raise ValueError(f"{where} is a virtual dataset")
            if layout not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
                raise ValueError(f"{where} has an unknown layout")
            if created.get_external_count():
                raise ValueError(f"{where} is stored in another file")
        of_texts = _check_type(where, kind) and kind.is_variable_str()
        shape = dataset.shape
        if len(shape) > 3:
            raise ValueError(f"{where} has {len(shape)} dimensions")
        count = math.prod(shape)
        if of_texts:
            self._check_texts(where, count, None if created is not None else offset)
        else:
            _check_size(where, created, (count, kind.get_size()), stored)
        self._left -= stored
        if self._left < 0:
            raise ValueError(f"{where} is larger than the file")
        if not keep:
            return None
        if of_texts:
            texts = np.empty(shape, _ANY_TEXT)
            if count:
                dataset.read(h5s.ALL, h5s.ALL, texts, _TEXT_IN_MEMORY)
            return texts
        if created is None and count:
            for of_file, of_numpy in _PLAIN.get(kind.get_class(), ()):
                if kind.equal(of_file) and offset + count * of_numpy.itemsize <= len(self.image):
                    return np.frombuffer(self.image, of_numpy, count, offset).reshape(shape).copy()
        return h5py.Dataset(dataset)  # compressed, or not as spectra writes it: read when it is used

    def _check_texts(self, where: str, count: int, start: int | None) -> None:
        if count:
            if start is None or start + count * _TEXT.itemsize > len(self.image):
                raise ValueError(f"{where} has no texts in one piece of the file")
            cells = np.frombuffer(self.image, _TEXT, count, start)
            self._take_texts(where, int(cells["length"].sum(dtype=np.uint64)))


def _check_link(path: str, kind: int) -> None:
    if kind != h5l.TYPE_HARD:
        what = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}.get(kind, "a link")
        raise ValueError(f"{_within_record(path)} is {what}")


def _check_type(where: str, kind: h5t.TypeID) -> bool:
    """Whether it is a type of texts; otherwise it is a type of numbers."""
    text = bool(kind.get_class() == h5t.STRING)
    if not text and (kind.get_class() not in _NUMBERS or kind.get_size() not in (1, 2, 4, 8)):
        raise ValueError(f"{where} holds neither numbers nor texts")
    return text


def _check_size(where: str, created: Any, size: tuple[int, int], stored: int) -> None:
    """Check that a dataset declares no more data than its stored bytes can hold.

    `created` has its creation properties (None: in one piece, without filters), `size` the number of its entries and
    the bytes of each.
    """
    declared = size[0] * size[1]
    filters = [] if created is None else [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    if unknown := [code for code in filters if code not in _FILTERS]:
        raise ValueError(f"{where} needs the filter {unknown[0]}: {', '.join(_FILTERS.values())} are known")
    if len(set(filters)) < len(filters):
        raise ValueError(f"{where} has a filter twice")
    most = stored * (_DEFLATE_RATIO if h5z.FILTER_DEFLATE in filters else 1)
    if declared > most:
        raise ValueError(f"{where} declares {declared} bytes, of which the file holds {stored}")
    if created is not None and created.get_layout() == h5d.CHUNKED:
        chunk = math.prod(created.get_chunk()) * size[1]
        if chunk > max(declared, _MOST_CHUNK):
            raise ValueError(f"{where} has chunks of {chunk} bytes for {declared}")


def _attribute(group: h5g.GroupID, name: bytes, path: str) -> Any:
    """The value of an attribute, which is one NumPy scalar or one text."""
    attribute = h5a.open(group, name)
    kind, where = attribute.get_type(), f"attribute {name.decode()} of {_within_record(path)}"
    if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
        raise ValueError(f"{where} is not one value")
    if _check_type(where, kind):
        if not kind.is_variable_str():
            return h5py.Group(group).attrs[name]
        text = np.empty((), _ANY_TEXT)
        attribute.read(text, _TEXT_IN_MEMORY)
        value = text.item()
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    for of_file, of_numpy in _PLAIN[kind.get_class()]:
        if kind.equal(of_file):
            number = np.empty((), of_numpy)
            attribute.read(number, of_file)
            return number[()]
    return h5py.Group(group).attrs[name]


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 0


def _within_record(path: str) -> str:
    """The name of an object within its record."""
    pieces = path.split("/")
    return "/".join(pieces[3:]) or path if pieces[1:2] == ["records"] else path
