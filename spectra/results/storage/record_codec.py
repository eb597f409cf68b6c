"""One record as an HDF5 group, and back: the names and types that `storage` specifies, and the checksums over them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from spectra.jsonable import dumps
from spectra.results.identity import Place
from spectra.results.record import Record
from spectra.results.storage.attributes import (
    get_attribute,
    padded,
    read_texts,
    seal,
    set_attribute,
    verify,
    write_texts,
)
from spectra.results.storage.branch import Branch
from spectra.results.storage.findings_codec import read_findings, write_findings
from spectra.results.storage.shapes import check_numbers, check_shapes, unique
from spectra.results.storage.texts import check_attributes, object_in, settings_in, texts_in
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import ESTIMATES_EDITION, Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

#: Attribute of a record's group -> field of its place.
PLACE = {
    "checkpoint": "checkpoint",
    "checkpoint_sha256": "sha256",
    "weights_sha256": "weights",
    "own_tensors": "own_tensors",
    "epoch": "epoch",
    "step": "step",
}
_PAIR_ATTRIBUTES = (
    "which", "noise", "scale", "tolerance", "products", "seed", "complete", "completeness"
)  # fmt: skip
#: The large parts of a record, which no table needs: fields, and the paths of their groups.
SPECTRA = {"spectrum": "spectrum", "test_spectrum": "test/spectrum"}
_FINDINGS = ("exact", "exact_spectrum", "checks", "sharpness", "overlap")
_NUMBERS = ("value", "stderr", "lower", "upper", "confidence", "tau")  # columns of `estimates`, float64


def write_record(group: h5py.Group, record: Record) -> None:
    """Write a record into an empty group. `complete` is the last thing written."""
    identity = record.identity
    for name, part in PLACE.items():
        value = getattr(record.place, part)
        set_attribute(group, name, float(value) if part == "epoch" and value is not None else value)
    set_attribute(group, "operator", record.operator)
    set_attribute(group, "bn_mode", record.bn_mode)
    set_attribute(group, "params", identity.params)
    set_attribute(group, "l2", identity.l2)
    set_attribute(group, "seed", identity.seed)
    set_attribute(group, "data_seed", identity.data_seed)
    set_attribute(group, "status", record.status)
    set_attribute(group, "reason", record.reason)
    for name in ("settings", "provenance", "notes"):
        set_attribute(group, name, dumps(getattr(record, name)))
    facts = group.create_group("facts")
    for name, fact in record.facts.items():
        set_attribute(facts, name, math.nan if fact is None else fact)
    seal(facts)
    if record.spectrum is not None:
        _write_spectrum(group.create_group("spectrum"), record.spectrum)
        _write_estimates(group.create_group("estimates"), record.estimates)
    if record.test_spectrum is not None:
        test = group.create_group("test")
        _write_spectrum(test.create_group("spectrum"), record.test_spectrum)
        _write_estimates(test.create_group("estimates"), record.test_estimates)
        seal(test)
    write_findings(group, record)
    seal(group)
    group.attrs["complete"] = np.uint8(1)


def place_in(attributes: Mapping[str, Any]) -> Place:
    """The place that the attributes of a record's group describe; an attribute that is not there is None."""
    parts: dict[str, Any] = {part: attributes.get(name) for name, part in PLACE.items()}
    return Place(**parts)


def read_record(group: Branch | h5py.Group) -> Record:
    """The record of a group. Whatever does not fit raises; the caller names the file and the group.

    Args:
        group: as `Contents.read` has read it; or of an open file that spectra wrote.

    Raises:
        ValueError: its numbers do not belong together, or a checksum does not match what is there.
    """
    if isinstance(group, h5py.Group):
        group = Branch.of(group)
    fields = read_fields(group)
    fields |= {field: read_spectrum(group[path], path) for field, path in SPECTRA.items() if path in group}
    return Record(**fields)


def read_fields(group: Branch) -> dict[str, Any]:
    """The fields of a record but its spectra, of which only the checksums need be in the group.

    Raises:
        ValueError: its numbers do not belong together, or a checksum does not match what is there.
    """
    for name in _FINDINGS:
        if name in group:
            check_shapes(group[name], name)
    verify(group, without=("spectrum",))
    check_attributes({name: get_attribute(group, name) for name in group.attrs})
    notes = texts_in(group.attrs["notes"], "notes")
    test = group.get("test", {})
    cached, cached_test = _read_cache(group, notes), _read_cache(test, notes)
    return dict(
        operator=str(group.attrs["operator"]),
        bn_mode=str(group.attrs["bn_mode"]),
        place=place_in({name: get_attribute(group, name) for name in PLACE}),
        status=str(group.attrs["status"]),
        reason=get_attribute(group, "reason"),
        settings=settings_in(group.attrs["settings"]),
        facts={name: _fact(value) for name, value in group["facts"].attrs.items() if name != "checksum"},
        provenance=object_in(group.attrs["provenance"], "provenance"),
        notes=tuple(notes),
        cached_estimates=cached,
        cached_test_estimates=cached_test,
        **read_findings(group),
    )


def _read_cache(group: Branch | dict[str, Any], notes: list[str]) -> dict[str, Estimate] | None:
    """The estimates as they are stored beside a spectrum, or None where they are to be computed."""
    if "estimates" not in group or "spectrum" not in group:
        return None
    if get_attribute(group["estimates"], "edition") != ESTIMATES_EDITION:
        return None
    try:
        check_shapes(group["estimates"], "estimates")
        verify(group["estimates"])
        return _read_estimates(group["estimates"])
    except ValueError:
        notes.append("the stored estimates were damaged: computed again from the tridiagonals")
        return None


def _write_spectrum(group: h5py.Group, spectrum: Spectrum) -> None:
    set_attribute(group, "n", spectrum.n)
    set_attribute(group, "noise", float(spectrum.noise))
    set_attribute(group, "seed", spectrum.seed)
    set_attribute(group, "distribution", spectrum.distribution)
    parts = spectrum.tridiagonals
    group["alphas"] = padded([part.alphas for part in parts])
    group["betas"] = padded([part.betas for part in parts])
    group["lengths"] = np.array([part.steps for part in parts], dtype=np.int64)
    group["exhausted"] = np.array([part.exhausted for part in parts], dtype=np.uint8)
    group["orthogonality"] = np.array([part.orthogonality for part in parts], dtype=np.float64)
    if spectrum.start_overlaps is not None:
        group["start_overlaps"] = spectrum.start_overlaps
    set_attribute(group, "semidefinite", int(spectrum.semidefinite))
    if spectrum.batch_forms is not None and spectrum.batch_weights is not None:
        batches = group.create_group("batches")
        batches["forms"] = spectrum.batch_forms
        batches["weights"] = spectrum.batch_weights
        seal(batches)
    if spectrum.tensor_sizes:
        tensors = group.create_group("tensors")
        write_texts(tensors, "names", spectrum.tensor_sizes)
        tensors["sizes"] = np.array(list(spectrum.tensor_sizes.values()), dtype=np.int64)
        if spectrum.tensor_forms is not None:
            tensors["forms"] = spectrum.tensor_forms
        if spectrum.deflated_tensor_forms is not None:
            tensors["deflated_forms"], tensors["deflated_traces"] = spectrum.deflated_tensor_forms
        seal(tensors)
    if spectrum.eigenpairs is not None and spectrum.overlaps is not None:
        _write_eigenpairs(group.create_group("eigenpairs"), spectrum.eigenpairs, spectrum.overlaps)
    seal(group)


def read_spectrum(group: Branch, path: str) -> Spectrum:
    """The spectrum in a group.

    Args:
        group: with everything in it.
        path: of the group within its record.

    Raises:
        ValueError: its numbers do not belong together, or a checksum does not match what is there.
    """
    check_shapes(group, path)
    verify(group)
    check_numbers(group)
    alphas, betas = group["alphas"][()], group["betas"][()]
    tridiagonals = [
        Tridiagonal(alphas[i, :steps], betas[i, :steps], exhausted=bool(exhausted), orthogonality=float(orthogonality))
        for i, (steps, exhausted, orthogonality) in enumerate(
            zip(group["lengths"][()], group["exhausted"][()], group["orthogonality"][()], strict=True)
        )
    ]
    tensors = group.get("tensors")
    sizes = (
        None
        if tensors is None
        else dict(zip(unique(read_texts(tensors["names"]), "spectrum/tensors/names"), tensors["sizes"][()].tolist()))
    )
    pairs = _read_eigenpairs(group["eigenpairs"]) if "eigenpairs" in group else None
    return Spectrum(
        tridiagonals,
        int(group.attrs["n"]),
        noise=float(group.attrs["noise"]),
        seed=get_attribute(group, "seed"),
        distribution=str(group.attrs["distribution"]),
        tensor_sizes=sizes,
        tensor_forms=tensors["forms"][()] if tensors is not None and "forms" in tensors else None,
        deflated_tensor_forms=_read_deflated(tensors),
        batch_forms=group["batches/forms"][()] if "batches" in group else None,
        batch_weights=group["batches/weights"][()] if "batches" in group else None,
        semidefinite=bool(get_attribute(group, "semidefinite")),
        eigenpairs=pairs,
        overlaps=None if pairs is None else group["eigenpairs/overlaps"][()],
        start_overlaps=group["start_overlaps"][()] if "start_overlaps" in group else None,
    )


def _read_deflated(tensors: Branch | None) -> tuple[np.ndarray, np.ndarray] | None:
    if tensors is None or "deflated_forms" not in tensors:
        return None
    return tensors["deflated_forms"][()], tensors["deflated_traces"][()]


def _write_eigenpairs(group: h5py.Group, pairs: Eigenpairs, overlaps: np.ndarray) -> None:
    for name in _PAIR_ATTRIBUTES:
        set_attribute(group, name, getattr(pairs, name))
    group["values"] = pairs.values
    group["residuals"] = pairs.residuals
    group["converged"] = pairs.converged.astype(np.uint8)
    group["overlaps"] = overlaps
    if pairs.rest is not None:
        group["rest"] = pairs.rest
    if pairs.vectors is not None:
        # Pieces of a vector of some 256 KiB: a single vector is read without the others.
        n, count = pairs.vectors.shape
        group.create_dataset(
            "vectors",
            data=pairs.vectors.T.astype(np.float32),
            chunks=(1, min(n, 2**16)) if count else None,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
    seal(group)


def _read_eigenpairs(group: Branch) -> Eigenpairs:
    known = {name: get_attribute(group, name) for name in _PAIR_ATTRIBUTES}
    return Eigenpairs(
        group["values"][()],
        group["residuals"][()],
        group["converged"][()].astype(bool),
        group["vectors"][()].T if "vectors" in group else None,
        rest=group["rest"][()] if "rest" in group else None,
        **known | {"complete": bool(known["complete"])},
    )


def _write_estimates(group: h5py.Group, estimates: Mapping[str, Estimate]) -> None:
    rows = list(estimates.values())
    set_attribute(group, "edition", ESTIMATES_EDITION)
    write_texts(group, "name", estimates)
    for column in _NUMBERS:
        cells = [getattr(row, column) for row in rows]
        group[column] = np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
    group["num_probes"] = np.array([row.num_probes for row in rows], dtype=np.int64)
    group["resolved"] = np.array([-1 if row.resolved is None else int(row.resolved) for row in rows], dtype=np.int8)
    write_texts(group, "note", [row.note or "" for row in rows])
    seal(group)


def _read_estimates(group: Branch) -> dict[str, Estimate]:
    numbers = {column: group[column][()].tolist() for column in _NUMBERS}
    num_probes, resolved = group["num_probes"][()].tolist(), group["resolved"][()].tolist()
    notes = read_texts(group["note"])

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
        for row, name in enumerate(unique(read_texts(group["name"]), "estimates/name"))
    }


def _fact(value: Any) -> float | int | None:
    number: float | int = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number
