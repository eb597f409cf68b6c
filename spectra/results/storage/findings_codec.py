"""The other results of a record, as HDF5 groups: exact traces and spectra, checks, overlaps, sharpness measures."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np

from spectra.jsonable import dumps
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure
from spectra.results.optimizer import OptimizerSettings
from spectra.results.record import Record
from spectra.results.storage.attributes import get_attribute, read_texts, set_attribute, write_texts
from spectra.results.storage.branch import Branch
from spectra.results.storage.dataclass_codec import read_named_rows, read_object, read_rows, write_object, write_rows
from spectra.results.storage.eigenvectors_codec import read_eigenvectors, write_eigenvectors
from spectra.results.storage.shapes import unique
from spectra.results.trace_checks import Check
from spectra.spectrum.class_structure import ClassStructure
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.spectrum.overlap import Overlap


def write_findings(group: h5py.Group, record: Record) -> None:
    """Write a group for each of these results that the record has."""
    if record.exact is not None:
        _write_exact(group.create_group("exact"), record.exact, record.remainder)
    if record.exact_spectrum is not None:
        write_object(group.create_group("exact_spectrum"), record.exact_spectrum)
    if record.checks:
        write_rows(group.create_group("checks"), Check, record.checks)
    if record.overlap is not None:
        write_object(group.create_group("overlap"), record.overlap)
    if record.class_structure is not None:
        write_object(group.create_group("class_structure"), record.class_structure)
    if record.eigenvector_analysis is not None:
        write_eigenvectors(group.create_group("eigenvector_analysis"), record.eigenvector_analysis)
    if record.optimizer is not None:
        write_object(group.create_group("optimizer"), record.optimizer)
    if record.sharpness:
        write_rows(group.create_group("sharpness"), Measure, record.sharpness.values(), names=record.sharpness)


def read_findings(group: Branch) -> dict[str, Any]:
    """The fields of a record that are stored in its groups, by name."""
    found: dict[str, Any] = {}
    if "exact" in group:
        found["exact"], found["remainder"] = _read_exact(group["exact"])
    if "exact_spectrum" in group:
        found["exact_spectrum"] = read_object(group["exact_spectrum"], GGNSpectrum)
    if "checks" in group:
        found["checks"] = tuple(read_rows(group["checks"], Check))
    if "overlap" in group:
        found["overlap"] = read_object(group["overlap"], Overlap)
    if "class_structure" in group:
        found["class_structure"] = read_object(group["class_structure"], ClassStructure)
    if "eigenvector_analysis" in group:
        found["eigenvector_analysis"] = read_eigenvectors(group["eigenvector_analysis"])
    if "optimizer" in group:
        found["optimizer"] = read_object(group["optimizer"], OptimizerSettings)
    if "sharpness" in group:
        found["sharpness"] = read_named_rows(group["sharpness"], Measure, "sharpness/name")
    return found


def _write_exact(group: h5py.Group, exact: ExactTrace, remainder: Estimate | None) -> None:
    """The mappings by tensor are written here, as columns that share their keys; all other fields by the codec."""
    set_attribute(group, "applies", int(exact.applies))
    if remainder is not None:
        set_attribute(group, "remainder", dumps(remainder.to_json()))
    write_texts(group, "names", exact.by_layer)
    group["traces"] = np.array(list(exact.by_layer.values()), dtype=np.float64)
    group["certified"] = np.array([exact.certified.get(name, False) for name in exact.by_layer], dtype=np.uint8)
    if exact.stderr_by_layer is not None:
        group["stderrs"] = np.array([exact.stderr_by_layer[name] for name in exact.by_layer], dtype=np.float64)
    write_object(group, exact, without=("by_layer", "certified", "stderr_by_layer"))


def _read_exact(group: Branch) -> tuple[ExactTrace, Estimate | None]:
    names = unique(read_texts(group["names"]), "exact/names")
    exact = read_object(
        group,
        ExactTrace,
        by_layer=dict(zip(names, group["traces"][()].tolist())),
        certified={name: bool(flag) for name, flag in zip(names, group["certified"][()])},
        stderr_by_layer=dict(zip(names, group["stderrs"][()].tolist())) if "stderrs" in group else None,
    )
    remainder = get_attribute(group, "remainder")
    return exact, None if remainder is None else Estimate(**json.loads(remainder))
