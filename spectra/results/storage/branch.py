"""A group of a results file in memory: attributes, arrays, and the groups inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np


class Branch(Mapping[str, Any]):
    """The contents of a group, with the interface of ``h5py.Group``: items by name or by path.

    Args:
        name: its path in the file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.attrs: dict[str, Any] = {}  # NumPy scalars, and texts
        self.children: dict[str, Branch | np.ndarray | h5py.Dataset] = {}  # texts: UTF-8, dtype object

    @classmethod
    def of(cls, group: h5py.Group) -> Branch:
        """The contents of a group of a trusted open file."""
        found = cls(str(group.name))
        found.attrs = dict(group.attrs)
        found.children = {
            name: cls.of(child) if isinstance(child, h5py.Group) else child[()] for name, child in group.items()
        }
        return found

    def __getitem__(self, path: str) -> Any:
        name, _, within = path.partition("/")
        found = self.children[name]
        if not within:
            return found
        if not isinstance(found, Branch):
            raise KeyError(path)
        return found[within]

    def __contains__(self, path: object) -> bool:
        name, _, within = str(path).partition("/")
        found = self.children.get(name)
        return found is not None and (not within or (isinstance(found, Branch) and within in found))

    def __iter__(self) -> Iterator[str]:
        return iter(self.children)

    def __len__(self) -> int:
        return len(self.children)
