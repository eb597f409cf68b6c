"""One record as an HDF5 group, and back: the names and types that `storage` specifies, and the checksums over them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from spectra.estimates import Estimate
from spectra.jsonable import dumps, printable
from spectra.records import Record
from spectra.spectrum import Spectrum
from spectra.tridiagonal import Tridiagonal

#: Attributes that say something about the bytes, not about the record, and parts that follow from the rest.
UNSUMMED_ATTRIBUTES = ("checksum", "complete")
UNSUMMED_GROUPS = ("records", "estimates")

_TEXT = h5py.string_dtype("utf-8")
_NUMBERS = ("value", "stderr", "lower", "upper", "confidence", "tau")  # columns of `estimates`, float64


def write_record(group: h5py.Group, record: Record) -> None:
    """Write a record into an empty group. `complete` is the last thing written."""
    identity = record.identity
    _set(group, "checkpoint", record.checkpoint)
    _set(group, "checkpoint_sha256", record.checkpoint_sha256)
    _set(group, "epoch", None if record.epoch is None else float(record.epoch))
    _set(group, "step", record.step)
    _set(group, "operator", record.operator)
    _set(group, "bn_mode", record.bn_mode)
    _set(group, "params", identity.params)
    _set(group, "l2", identity.l2)
    _set(group, "seed", identity.seed)
    _set(group, "data_seed", identity.data_seed)
    _set(group, "status", record.status)
    _set(group, "reason", record.reason)
    for name in ("settings", "provenance", "notes"):
        _set(group, name, dumps(getattr(record, name)))
    facts = group.create_group("facts")
    for name, fact in record.facts.items():
        _set(facts, name, math.nan if fact is None else fact)
    seal(facts)
    if record.spectrum is not None:
        _write_spectrum(group.create_group("spectrum"), record.spectrum)
        _write_estimates(group.create_group("estimates"), record.estimates)
    if record.test_spectrum is not None:
        test = group.create_group("test")
        _write_spectrum(test.create_group("spectrum"), record.test_spectrum)
        _write_estimates(test.create_group("estimates"), record.test_estimates)
        seal(test)
    seal(group)
    group.attrs["complete"] = np.uint8(1)


def read_record(group: h5py.Group) -> Record:
    """The record of a group. Whatever does not fit raises; the caller names the file and the group.

    Raises:
        ValueError: a checksum does not match what is there.
    """
    verify(group)
    notes = list(json.loads(group.attrs["notes"]))
    test = group.get("test", {})
    cached, cached_test = _read_cache(group, notes), _read_cache(test, notes)
    return Record(
        operator=str(group.attrs["operator"]),
        bn_mode=str(group.attrs["bn_mode"]),
        checkpoint=_get(group, "checkpoint"),
        checkpoint_sha256=_get(group, "checkpoint_sha256"),
        epoch=_get(group, "epoch"),
        step=_get(group, "step"),
        status=str(group.attrs["status"]),
        reason=_get(group, "reason"),
        settings=json.loads(group.attrs["settings"]),
        facts={name: _fact(value) for name, value in group["facts"].attrs.items() if name != "checksum"},
        spectrum=_read_spectrum(group["spectrum"]) if "spectrum" in group else None,
        test_spectrum=_read_spectrum(test["spectrum"]) if "spectrum" in test else None,
        provenance=json.loads(group.attrs["provenance"]),
        notes=tuple(notes),
        cached_estimates=cached,
        cached_test_estimates=cached_test,
    )


def _read_cache(group: h5py.Group | dict[str, Any], notes: list[str]) -> dict[str, Estimate] | None:
    """The estimates as they are stored beside a spectrum, or None where they are to be computed."""
    if "estimates" not in group:
        return None
    try:
        verify(group["estimates"])
        return _read_estimates(group["estimates"])
    except ValueError:
        notes.append("the stored estimates were damaged: computed again from the tridiagonals")
        return None


def _write_spectrum(group: h5py.Group, spectrum: Spectrum) -> None:
    _set(group, "n", spectrum.n)
    _set(group, "noise", float(spectrum.noise))
    _set(group, "seed", spectrum.seed)
    _set(group, "distribution", spectrum.distribution)
    parts = spectrum.tridiagonals
    group["alphas"] = _padded([part.alphas for part in parts])
    group["betas"] = _padded([part.betas for part in parts])
    group["lengths"] = np.array([part.steps for part in parts], dtype=np.int64)
    group["exhausted"] = np.array([part.exhausted for part in parts], dtype=np.uint8)
    group["orthogonality"] = np.array([part.orthogonality for part in parts], dtype=np.float64)
    if spectrum.tensor_sizes:
        tensors = group.create_group("tensors")
        _texts(tensors, "names", spectrum.tensor_sizes)
        tensors["sizes"] = np.array(list(spectrum.tensor_sizes.values()), dtype=np.int64)
        if spectrum.tensor_forms is not None:
            tensors["forms"] = spectrum.tensor_forms
        seal(tensors)
    seal(group)


def _read_spectrum(group: h5py.Group) -> Spectrum:
    alphas, betas = group["alphas"][()], group["betas"][()]
    tridiagonals = [
        Tridiagonal(alphas[i, :steps], betas[i, :steps], exhausted=bool(exhausted), orthogonality=float(orthogonality))
        for i, (steps, exhausted, orthogonality) in enumerate(
            zip(group["lengths"][()], group["exhausted"][()], group["orthogonality"][()], strict=True)
        )
    ]
    tensors = group.get("tensors")
    sizes = None if tensors is None else dict(zip(_strings(tensors["names"]), tensors["sizes"][()].tolist()))
    return Spectrum(
        tridiagonals,
        int(group.attrs["n"]),
        noise=float(group.attrs["noise"]),
        seed=_get(group, "seed"),
        distribution=str(group.attrs["distribution"]),
        tensor_sizes=sizes,
        tensor_forms=tensors["forms"][()] if tensors is not None and "forms" in tensors else None,
    )


def _write_estimates(group: h5py.Group, estimates: Mapping[str, Estimate]) -> None:
    rows = list(estimates.values())
    _texts(group, "name", estimates)
    for column in _NUMBERS:
        cells = [getattr(row, column) for row in rows]
        group[column] = np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
    group["num_probes"] = np.array([row.num_probes for row in rows], dtype=np.int64)
    group["resolved"] = np.array([-1 if row.resolved is None else int(row.resolved) for row in rows], dtype=np.int8)
    _texts(group, "note", [row.note or "" for row in rows])
    seal(group)


def _read_estimates(group: h5py.Group) -> dict[str, Estimate]:
    numbers = {column: group[column][()].tolist() for column in _NUMBERS}
    num_probes, resolved = group["num_probes"][()].tolist(), group["resolved"][()].tolist()
    notes = _strings(group["note"])

    def optional(column: str, row: int) -> float | None:
        number: float = numbers[column][row]
        return None if math.isnan(number) else number

    return {
        name: Estimate(
            value=numbers["value"][row],
            stderr=optional("stderr", row),
            lower=optional("lower", row),
            upper=optional("upper", row),
            num_probes=num_probes[row],
            confidence=numbers["confidence"][row],
            tau=optional("tau", row),
            resolved=None if resolved[row] < 0 else bool(resolved[row]),
            note=notes[row] or None,
        )
        for row, name in enumerate(_strings(group["name"]))
    }


def seal(group: h5py.Group) -> None:
    """Write the checksum of a group into its attribute `checksum`. Groups inside it are sealed before."""
    group.attrs["checksum"] = checksum(group)


def verify(group: h5py.Group) -> None:
    """Compare the checksums of a group, and of those inside it, with what they hold.

    Raises:
        ValueError: one does not match.
    """
    for name in sorted(group):
        if name not in UNSUMMED_GROUPS and isinstance(group[name], h5py.Group):
            verify(group[name])
    if group.attrs.get("checksum") != checksum(group):
        raise ValueError(f"the checksum of {group.name} does not match its content")


def checksum(group: h5py.Group) -> str:
    """SHA-256 over the attributes and datasets of a group, by sorted name, and the checksums of the groups inside it.

    The attributes `checksum` and `complete` and the groups `records` and `estimates` do not count.
    """
    digest = hashlib.sha256()
    for piece in _pieces(group):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(group: h5py.Group) -> Iterator[bytes]:
    for name in sorted(group.attrs):
        if name not in UNSUMMED_ATTRIBUTES:
            yield from _content("attribute", name, group.attrs[name])
    for name in sorted(group):
        if name in UNSUMMED_GROUPS:
            continue
        child = group[name]
        if isinstance(child, h5py.Group):
            yield from _content("group", name, child.attrs["checksum"])
        else:
            yield from _content("dataset", name, child[()])


def _content(kind: str, name: str, value: Any) -> Iterator[bytes]:
    """A line `kind name type shape`, then the bytes: numbers little-endian in C order, texts UTF-8 ended by NUL."""
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel().tolist()]
        yield f"{kind} {name} text {list(array.shape)}\n".encode()
        yield b"".join(text + b"\0" for text in texts)
    else:
        array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        yield f"{kind} {name} {array.dtype.kind}{8 * array.dtype.itemsize} {list(array.shape)}\n".encode()
        yield array.tobytes()


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """(k, m): rows of different lengths, NaN behind the shorter ones."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


def _set(group: h5py.Group, name: str, value: str | float | None) -> None:
    """An attribute: UTF-8 text, int64 (uint64 beyond it) or float64. None is an attribute that is not there."""
    if value is None:
        return
    if isinstance(value, str):
        group.attrs[name] = printable(value)
    elif isinstance(value, bool | int | np.integer):
        group.attrs[name] = np.int64(value) if -(2**63) <= int(value) < 2**63 else np.uint64(value)
    else:
        group.attrs[name] = np.float64(value)


def _get(group: h5py.Group, name: str) -> Any:
    value = group.attrs.get(name)
    return value.item() if isinstance(value, np.generic) else value


def _fact(value: Any) -> float | int | None:
    number: float | int = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number


def _texts(group: h5py.Group, name: str, texts: Iterable[str]) -> None:
    cleaned = [printable(text) for text in texts]
    group.create_dataset(name, shape=(len(cleaned),), data=cleaned or None, dtype=_TEXT)


def _strings(dataset: h5py.Dataset) -> list[str]:
    return [str(text) for text in dataset.asstr()[()]]
