"""What two results files of the same run have in common: everything but the times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

#: What says when, where and with how much memory, not what: the one thing in which two files of the same run differ.
TIMES = {"created", "checksum", "provenance"}
PROVENANCE_TIMES = ("seconds", "date", "command", "graphs")


def contents(path: Path) -> dict[str, dict[str, Any]]:
    """Every record: its datasets and attributes but the times, by checkpoint, operator and mode."""
    found = {}
    with h5py.File(path, "r", locking=False) as file:
        for group in file["records"].values():
            cells: dict[str, Any] = {}
            for place, node in [("", group), *_walk(group)]:
                for name, value in node.attrs.items():
                    if not (node is group and name in TIMES):
                        cells[f"{place}@{name}"] = value.tobytes() if isinstance(value, np.generic) else value
                if isinstance(node, h5py.Dataset):
                    values = node.asstr()[()].tolist() if node.dtype.kind == "O" else node[()].tobytes()
                    cells[place] = (str(node.dtype), node.shape, values)
            provenance = json.loads(group.attrs["provenance"])
            cells["provenance"] = {key: provenance[key] for key in provenance.keys() - {*PROVENANCE_TIMES}}
            found[f"{group.attrs['checkpoint']} {group.attrs['operator']} {group.attrs['bn_mode']}"] = cells
        found["root"] = {name: file.attrs[name] for name in file.attrs if name not in TIMES}
    return found


def _walk(group: h5py.Group) -> Iterator[tuple[str, Any]]:
    for node in group.values():
        yield node.name.split("/", 3)[-1], node
        if isinstance(node, h5py.Group):
            yield from _walk(node)
