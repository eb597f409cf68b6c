"""What the fuzzer does to valid inputs: bytes, and the structure of results files, checkpoints, sidecars and options.

A draw is a `random.Random`; the same draw gives the same mutation.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np
from crafted_checkpoints import mutated_pickle
from mutilating import ANYWHERE, IN_RESULTS
from run_files import sealed_anew

from spectra.results.storage.checksum import sealed, unsealed

#: Acts on a terminal, or looks like a line of the program, if it is printed as it is.
EVIL = "a\x1b[2K\x1b]0;t\x07\rb\x08\x9b31m\u202ed\u2066\u200b\u2028y\nspectra: error: all is well\x85\x7f"
NUMBERS = (0, 1, -1, 2, 7, 255, 2**31, 2**53 + 1, 2**62, -(2**63), 0.5, -0.0, 1e-320, 1e300, -1e300)
ODD_NUMBERS = (*NUMBERS, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    EVIL,
    "x" * 5000,
    "[" * 3000,
    "{",
    "null",
    "[]",
    '{"a": 1}',
    "../../x",
    "%s%n{0}",
    "\u00e9\u6743",
    "0",
)
WORDS = (
    *(
        "",
        " ",
        EVIL,
        "x" * 3000,
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1",
        "0",
        "1",
        "2",
        "9" * 400,
        "0x10",
        "1_0",
        "1/0",
        "2/1",
    ),
    *("0:0:0", "1:2:3:4", ":", "a=b", "tau=", "tau=nan", "tau=0.1", "=1", "%s", "{0}", "*", "[", "~", "a b", "-", "--"),
    *("hessian", "ggn", "eval", "train", "both", "all", "missing.pt", "missing.py:f", "1G", "cpu", "cuda:99"),
)


def odd_json(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """A JSON value with one part of it replaced, taken out or added."""
    if isinstance(value, dict) and value and depth < 4 and draw.random() < 0.85:
        key = draw.choice(sorted(value))
        changed = dict(value)
        if draw.random() < 0.15:
            del changed[key]
        else:
            changed[key] = odd_json(value[key], draw, depth + 1)
        return changed
    if isinstance(value, list) and value and depth < 4 and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], odd_json(value[at], draw, depth + 1), *value[at + 1 :]]
    return copy.deepcopy(draw.choice([*NUMBERS, *TEXTS, None, True, [], {}, [[]], {"": {}}, [1, "a"], 10**400]))


# --- results files ------------------------------------------------------------------------------------------------


def resealed(content: bytes, draw: random.Random) -> bytes:
    """One attribute or dataset of a valid file changed, renamed or taken out, under checksums that fit."""
    buffer = io.BytesIO(unsealed(content, ""))
    with warnings.catch_warnings(), np.errstate(all="ignore"), h5py.File(buffer, "r+", libver=("v108", "v108")) as file:
        warnings.simplefilter("ignore")
        groups: list[Any] = [file["/"]]
        file.visititems(lambda _, node: groups.append(node) if isinstance(node, h5py.Group) else None)
        group = draw.choice(groups)
        with contextlib.suppress(TypeError, ValueError, OverflowError, KeyError, OSError):  # HDF5 has no such value
            _change(group, draw)
        sealed_anew(group)
    return sealed(buffer.getvalue())


def _change(group: Any, draw: random.Random) -> None:
    attributes, names = sorted(set(group.attrs) - {"checksum"}), sorted(group)
    if attributes and (not names or draw.random() < 0.5):
        name = draw.choice(attributes)
        value = group.attrs[name]
        if draw.random() < 0.1:
            del group.attrs[name]
        elif isinstance(value, str) and value[:1] in ("{", "[") and draw.random() < 0.8:
            group.attrs[name] = json.dumps(odd_json(json.loads(value), draw))
        else:
            group.attrs[name] = draw.choice([*ODD_NUMBERS, *TEXTS, np.float32(1.5), np.int8(-1)])
    elif names:
        name = draw.choice(names)
        what = draw.random()
        if what < 0.1:
            del group[name]
        elif what < 0.15:
            group.move(name, draw.choice(["x", "spectrum", "estimates", "tensors", EVIL.replace("/", "")]))
        elif isinstance(group[name], h5py.Dataset):
            _change_dataset(group, name, draw)


def _change_dataset(group: Any, name: str, draw: random.Random) -> None:
    dataset = group[name]
    values = dataset[()]
    texts = values.dtype.kind == "O"
    if draw.random() < 0.65 and values.size:
        at = tuple(draw.randrange(side) for side in values.shape)
        values[at] = draw.choice(TEXTS) if texts else draw.choice(ODD_NUMBERS)
        dataset[...] = values
        return
    shapes: list[Callable[[], Any]] = [
        lambda: values[:0],
        lambda: values[:-1],
        lambda: np.concatenate([values, values]),
        lambda: values.T,
        lambda: values[None],
        lambda: values.ravel(),
        lambda: values[0],
    ]
    types = [] if texts else [lambda kind=kind: values.astype(kind) for kind in ("f4", "i1", "u8", ">f8", "S3", "?")]
    changed = draw.choice([*shapes, *types])()
    del group[name]
    if texts:
        group.create_dataset(name, data=changed, dtype=h5py.string_dtype("utf-8"))
    else:
        group[name] = changed


#: Changes under which no other number may be shown: the checksums of what is changed do not fit it.
DAMAGE = IN_RESULTS
RESULTS = (*DAMAGE, *[resealed] * (2 * len(DAMAGE)))


# --- checkpoints --------------------------------------------------------------------------------------------------


def _parts(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {part.filename: archive.read(part) for part in archive.infolist()}


def _archive(parts: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, data in parts:
            archive.writestr(name, data)
    return buffer.getvalue()


def other_pickle(content: bytes, draw: random.Random) -> bytes:
    """Opcodes of the pickle changed; the checksums of the archive fit."""
    parts = _parts(content)
    name = next(name for name in parts if name.endswith("/data.pkl"))
    parts[name] = mutated_pickle(parts[name], [parts[name]], draw)
    return _archive(list(parts.items()))


def other_entries(content: bytes, draw: random.Random) -> bytes:
    """An entry of the archive taken out, renamed, repeated, cut, lengthened or compressed."""
    parts = list(_parts(content).items())
    at, what = draw.randrange(len(parts)), draw.randrange(6)
    name, data = parts[at]
    if what == 0:
        del parts[at]
    elif what == 1:
        parts[at] = draw.choice(["../x", "/x", EVIL, "archive/data/", name.upper(), "x" * 300]), data
    elif what == 2:
        parts.append((name, draw.choice([data, b"", data[::-1]])))
    elif what == 3:
        parts[at] = name, data[: draw.randrange(len(data) + 1)]
    elif what == 4:
        parts[at] = name, data + bytes(draw.choice([1, 64, 10**6]))
    return _archive(parts, zipfile.ZIP_DEFLATED if what == 5 else zipfile.ZIP_STORED)


def other_header(content: bytes, draw: random.Random) -> bytes:
    """The header of a safetensors file with one value changed, or with another length."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    words = json.dumps(odd_json(header, draw)).encode()
    said = draw.choice([len(words)] * 5 + [0, 7, len(words) - 1, len(words) + 8, 2**40, 2**64 - 1])
    return struct.pack("<Q", said) + words + content[8 + length :]


def other_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with one value changed."""
    return json.dumps(odd_json(json.loads(content), draw)).encode()


CHECKPOINTS = {
    "zip": (*ANYWHERE, *[other_pickle] * 5, *[other_entries] * 3),
    "legacy": ANYWHERE,
    "safetensors": (*ANYWHERE, *[other_header] * 6),
    "sidecar": (*ANYWHERE, *[other_json] * 8),
}
