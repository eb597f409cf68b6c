"""Dataclasses in HDF5 groups: one object as attributes and datasets, many objects of a kind as columns.

The annotation of a field decides how it is stored. One that is not listed here raises KeyError: the owner stores that
field itself. A new field of such a dataclass changes the file format: files without it must stay readable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from spectra.jsonable import dumps
from spectra.results.storage.attributes import get_array, get_attribute, read_texts, seal, set_attribute, write_texts
from spectra.results.storage.branch import Branch
from spectra.results.storage.shapes import unique

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T", bound="DataclassInstance")


def _same(value: Any) -> Any:
    return value


#: Annotation of a field -> type of its column (None: text), the cell that stands for None, and how a cell is read.
_COLUMNS: dict[Any, tuple[type | None, Any, Callable[[Any], Any]]] = {
    "str": (None, "", _same),
    "str | None": (None, "", lambda cell: cell or None),
    "int": (np.int64, None, _same),
    "float": (np.float64, math.nan, _same),
    "float | None": (np.float64, math.nan, lambda cell: None if math.isnan(cell) else cell),
    "bool | None": (np.int8, -1, lambda cell: None if cell < 0 else bool(cell)),
    "Mapping[str, Any]": (None, None, json.loads),
}
#: Annotation of a field, without `| None` -> how its attribute is read. None is stored as a missing attribute.
_ATTRIBUTES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("str", "int", "float"), _same),
    "bool": bool,
    "Mapping[str, Any]": json.loads,
    **dict.fromkeys(("tuple[str, ...]", "tuple[Mapping[str, Any], ...]"), lambda text: tuple(json.loads(text))),
}
_ARRAY = "np.ndarray"  # a dataset; None is stored as a missing dataset


def write_object(group: h5py.Group, value: DataclassInstance, *, without: tuple[str, ...] = ()) -> None:
    """Write the fields of a dataclass into a group, except those that the caller has written; then its checksum."""
    for name, annotation, _ in _fields(type(value), without):
        content = getattr(value, name)
        if annotation in _ATTRIBUTES:
            set_attribute(group, name, _plain(content))
        elif annotation != _ARRAY:
            raise KeyError(f"{name}: {annotation}")
        elif content is not None:
            group[name] = content
    seal(group)


def read_object(group: Branch, kind: type[_T], **known: Any) -> _T:
    """The object that `write_object` has written.

    Args:
        group: with its attributes and arrays.
        kind: the dataclass.
        known: the fields that the caller has read.

    Raises:
        ValueError: an attribute or array is missing whose field cannot be None.
    """
    for name, annotation, optional in _fields(kind, known):
        stored = get_array(group, name) if annotation == _ARRAY else get_attribute(group, name)
        if stored is None and not optional:
            raise ValueError(f"{group.name} has no {name}")
        known[name] = stored if stored is None or annotation == _ARRAY else _ATTRIBUTES[annotation](stored)
    return kind(**known)


def write_rows(group: h5py.Group, kind: type[_T], rows: Iterable[_T], *, names: Iterable[str] | None = None) -> None:
    """Write a column for each field of a dataclass, with a cell for each object; then the checksum of the group.

    Args:
        group: in which everything else is already written.
        kind: the dataclass.
        rows: objects of it.
        names: of the rows, for the column `name`; None: they have no names, or a field of this name.
    """
    rows = list(rows)
    if names is not None:
        write_texts(group, "name", names)
    for field in fields(kind):
        dtype, missing, _ = _COLUMNS[field.type]
        cells = [missing if (cell := getattr(row, field.name)) is None else _plain(cell) for row in rows]
        if dtype is None:
            write_texts(group, field.name, cells)
        else:
            group[field.name] = np.array(cells, dtype=dtype)
    seal(group)


def read_rows(group: Branch, kind: type[_T]) -> list[_T]:
    """The objects that `write_rows` has written.

    Raises:
        KeyError: a column is missing.
        ValueError: a column has another type, such as text in place of numbers, or another length.
    """
    columns: dict[str, list[Any]] = {}
    for field in fields(kind):
        dtype, _, read = _COLUMNS[field.type]
        stored = group[field.name]
        if dtype is not None and not np.can_cast(stored.dtype, dtype, "same_kind"):
            raise ValueError(f"{group.name}/{field.name} has type {stored.dtype}: {np.dtype(dtype)} is needed")
        cells = read_texts(stored) if dtype is None else stored[()].astype(dtype).tolist()
        columns[field.name] = [read(cell) for cell in cells]
    return [kind(**dict(zip(columns, row))) for row in zip(*columns.values(), strict=True)]


def read_named_rows(group: Branch, kind: type[_T], where: str) -> dict[str, _T]:
    """The objects that `write_rows` has written, by their names; errors as of `read_rows`.

    Raises:
        ValueError: a name is there twice. The message begins with `where`.
    """
    return dict(zip(unique(read_texts(group["name"]), where), read_rows(group, kind), strict=True))


def _fields(kind: type[DataclassInstance], without: Iterable[str]) -> list[tuple[str, str, bool]]:
    """Names of the other fields, their annotations without `| None`, and whether they have it."""
    found = [(field.name, str(field.type)) for field in fields(kind) if field.name not in without]
    return [(name, of.removesuffix(" | None"), of.endswith(" | None")) for name, of in found]


def _plain(value: Any) -> Any:
    """A mapping or tuple as JSON, anything else as it is."""
    return dumps(value) if isinstance(value, Mapping | tuple) else value
