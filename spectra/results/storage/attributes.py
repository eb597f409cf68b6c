"""Attributes, texts and padded tables of a results file, and the checksum of a group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import numpy as np

from spectra.jsonable import printable
from spectra.results.storage.branch import Branch

#: Attributes and groups without influence on the checksum: they describe the bytes, or follow from other data.
UNSUMMED_ATTRIBUTES = ("checksum", "complete")
UNSUMMED_GROUPS = ("records", "estimates")

_TEXT = h5py.string_dtype("utf-8")


def seal(group: h5py.Group) -> None:
    """Write the checksum of a group into its attribute `checksum`. Groups inside it must have theirs."""
    group.attrs["checksum"] = checksum(group)


def verify(group: h5py.Group | Branch, *, without: tuple[str, ...] = ()) -> None:
    """Compare the checksums of a group, and of the groups inside it, with their contents.

    Args:
        group: with all its contents.
        without: names of groups inside it, at any depth, that are not compared.

    Raises:
        ValueError: a checksum does not match.
    """
    for name in sorted(group):
        if name not in (*UNSUMMED_GROUPS, *without) and isinstance(child := group[name], h5py.Group | Branch):
            verify(child, without=without)
    if group.attrs.get("checksum") != checksum(group):
        raise ValueError(f"the checksum of {group.name} does not match its content")


def checksum(group: h5py.Group | Branch) -> str:
    """SHA-256 over the attributes and datasets of a group, by sorted name, and the checksums of the groups inside it.

    The attributes `checksum` and `complete` and the groups `records` and `estimates` are not included.
    """
    digest = hashlib.sha256()
    for piece in _pieces(group):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(group: h5py.Group | Branch) -> Iterator[bytes]:
    for name in sorted(group.attrs):
        if name not in UNSUMMED_ATTRIBUTES:
            yield from _content("attribute", name, group.attrs[name])
    for name in sorted(group):
        if name in UNSUMMED_GROUPS:
            continue
        child = group[name]
        if isinstance(child, h5py.Group | Branch):
            yield from _content("group", name, child.attrs["checksum"])
        else:
            yield from _content("dataset", name, child[()])


def _content(kind: str, name: str, value: Any) -> Iterator[bytes]:
    """A line `kind name type shape`, then the bytes: numbers little-endian in C order, texts UTF-8 ended by NUL."""
    if isinstance(value, str):
        yield f"{kind} {name} text []\n".encode()
        yield value.encode() + b"\0"
        return
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel().tolist()]
        yield f"{kind} {name} text {list(array.shape)}\n".encode()
        yield b"".join(text + b"\0" for text in texts)
    else:
        array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        yield f"{kind} {name} {array.dtype.kind}{8 * array.dtype.itemsize} {list(array.shape)}\n".encode()
        yield array.tobytes()


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """(k, m): rows of different lengths, padded with NaN at the end."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


def set_attribute(group: h5py.Group, name: str, value: str | float | None) -> None:
    """Write an attribute as UTF-8 text, int64 (uint64 beyond its range) or float64; None writes nothing."""
    if value is None:
        return
    if isinstance(value, str):
        group.attrs[name] = printable(value)
    elif isinstance(value, bool | int | np.integer):
        group.attrs[name] = np.int64(value) if -(2**63) <= int(value) < 2**63 else np.uint64(value)
    else:
        group.attrs[name] = np.float64(value)


def get_attribute(group: h5py.Group | Branch, name: str) -> Any:
    """The value of an attribute, as a Python number or text; None if it is absent."""
    value = group.attrs.get(name)
    return value.item() if isinstance(value, np.generic) else value


def get_array(group: Branch, path: str) -> np.ndarray | None:
    """The values of a dataset; None if it is absent."""
    return group[path][()] if path in group else None


def write_texts(group: h5py.Group, name: str, texts: Iterable[str]) -> None:
    """Write a one-dimensional dataset of texts in UTF-8, without unprintable characters."""
    cleaned = [printable(text) for text in texts]
    group.create_dataset(name, shape=(len(cleaned),), data=cleaned or None, dtype=_TEXT)


def read_texts(texts: np.ndarray | h5py.Dataset) -> list[str]:
    """The texts of a dataset in UTF-8."""
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts[()].tolist()]
