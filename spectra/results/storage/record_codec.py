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
from spectra.results.storage.attributes import get_attribute, seal, set_attribute, verify
from spectra.results.storage.blocks_codec import read_blocks, write_blocks
from spectra.results.storage.branch import Branch
from spectra.results.storage.dataclass_codec import read_named_rows, write_rows
from spectra.results.storage.findings_codec import read_findings, write_findings
from spectra.results.storage.shapes import check_shapes
from spectra.results.storage.spectrum_codec import read_spectrum, write_spectrum
from spectra.results.storage.texts import check_attributes, object_in, settings_in, texts_in
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import ESTIMATES_EDITION

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
LARGE = {**SPECTRA, "blocks": "blocks"}
_FINDINGS = ("exact", "exact_spectrum", "checks", "sharpness", "overlap", "eigenvector_analysis", "class_structure")


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
        write_spectrum(group.create_group("spectrum"), record.spectrum)
        _write_estimates(group.create_group("estimates"), record.estimates)
    if record.test_spectrum is not None:
        test = group.create_group("test")
        write_spectrum(test.create_group("spectrum"), record.test_spectrum)
        _write_estimates(test.create_group("estimates"), record.test_estimates)
        seal(test)
    if record.blocks is not None:
        write_blocks(group.create_group("blocks"), record.blocks)
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
    if "blocks" in group:
        fields["blocks"] = read_blocks(group["blocks"])
    return Record(**fields)


def read_fields(group: Branch) -> dict[str, Any]:
    """The fields of a record but its spectra and blocks, of which only the checksums need be in the group.

    Raises:
        ValueError: its numbers do not belong together, or a checksum does not match what is there.
    """
    for name in _FINDINGS:
        if name in group:
            check_shapes(group[name], name)
    verify(group, without=("spectrum", "blocks"))
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


def _write_estimates(group: h5py.Group, estimates: Mapping[str, Estimate]) -> None:
    set_attribute(group, "edition", ESTIMATES_EDITION)
    write_rows(group, Estimate, estimates.values(), names=estimates)


def _fact(value: Any) -> float | int | None:
    number: float | int = value.item()
    return None if isinstance(number, float) and math.isnan(number) else number
