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
    get_array,
    get_attribute,
    padded,
    read_texts,
    seal,
    set_attribute,
    verify,
    write_texts,
)
from spectra.results.storage.branch import Branch
from spectra.results.storage.dataclass_codec import read_named_rows, read_object, write_object, write_rows
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
#: The large parts of a record, which no table needs: fields, and the paths of their groups.
SPECTRA = {"spectrum": "spectrum", "test_spectrum": "test/spectrum"}
_FINDINGS = ("exact", "exact_spectrum", "checks", "sharpness", "overlap")


def write_record(group: h5py.Group, record: Record) -> None:
    """Write a record into an empty group. `complete` is the last thing written."""
    for name, part in PLACE.items():
        value = getattr(record.place, part)
        set_attribute(group, name, float(value) if part == "epoch" and value is not None else value)
    identity = record.identity
    for name in ("operator", "bn_mode", "status", "reason"):
        set_attribute(group, name, getattr(record, name))
    for name in ("params", "l2", "seed", "data_seed"):
        set_attribute(group, name, getattr(identity, name))
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
        return read_named_rows(group["estimates"], Estimate, "estimates/name")
    except ValueError:
        notes.append("the stored estimates were damaged: computed again from the tridiagonals")
        return None


def _write_spectrum(group: h5py.Group, spectrum: Spectrum) -> None:
    """Without the codec of dataclasses: the arrays of the probes share tables, and optional parts have groups."""
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
    sizes = None
    if "tensors" in group:
        names = unique(read_texts(group["tensors/names"]), "spectrum/tensors/names")
        sizes = dict(zip(names, group["tensors/sizes"][()].tolist()))
    deflated = get_array(group, "tensors/deflated_forms")
    pairs = _read_eigenpairs(group["eigenpairs"]) if "eigenpairs" in group else None
    return Spectrum(
        tridiagonals,
        int(group.attrs["n"]),
        noise=float(group.attrs["noise"]),
        seed=get_attribute(group, "seed"),
        distribution=str(group.attrs["distribution"]),
        tensor_sizes=sizes,
        tensor_forms=get_array(group, "tensors/forms"),
        deflated_tensor_forms=None if deflated is None else (deflated, group["tensors/deflated_traces"][()]),
        batch_forms=group["batches/forms"][()] if "batches" in group else None,
        batch_weights=group["batches/weights"][()] if "batches" in group else None,
        semidefinite=bool(get_attribute(group, "semidefinite")),
        eigenpairs=pairs,
        overlaps=None if pairs is None else group["eigenpairs/overlaps"][()],
        start_overlaps=get_array(group, "start_overlaps"),
    )


def _write_eigenpairs(group: h5py.Group, pairs: Eigenpairs, overlaps: np.ndarray) -> None:
    group["converged"] = pairs.converged.astype(np.uint8)
    group["overlaps"] = overlaps
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
    write_object(group, pairs, without=("converged", "vectors"))


def _read_eigenpairs(group: Branch) -> Eigenpairs:
    vectors = group["vectors"][()].T if "vectors" in group else None
    return read_object(group, Eigenpairs, converged=group["converged"][()].astype(bool), vectors=vectors)


def _write_estimates(group: h5py.Group, estimates: Mapping[str, Estimate]) -> None:
    set_attribute(group, "edition", ESTIMATES_EDITION)
    write_rows(group, Estimate, estimates.values(), names=estimates)


def _fact(value: Any) -> float | int | None:
    number: float | int = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number
