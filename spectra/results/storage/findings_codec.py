"""What a record has beside its spectrum, as HDF5 groups: exact traces, checks against them, sharpness measures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from spectra.jsonable import dumps
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure
from spectra.results.record import Record
from spectra.results.storage.attributes import get_attribute, read_texts, seal, set_attribute, write_texts
from spectra.results.storage.branch import Branch
from spectra.results.storage.shapes import unique
from spectra.results.trace_checks import Check
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.spectrum.overlap import Overlap

_EXACT = ("total", "kind", "method", "bn_mode", "l2", "stderr", "draws")  # attributes of `exact`
_GGN = ("n", "num_samples", "rank_bound", "l2", "noise", "bn_mode", "data")  # attributes of `exact_spectrum`
_CHECK_NUMBERS = ("estimate", "exact", "error", "z", "detectable")
_MEASURE_TEXTS = ("form", "loss", "bn_mode", "curvature", "reason")
_MEASURE_NUMBERS = ("value", "stderr", "certificate", "clipped")


def write_findings(group: h5py.Group, record: Record) -> None:
    """The groups of what the record has; of what it has not, none."""
    if record.exact is not None:
        _write_exact(group.create_group("exact"), record.exact, record.remainder)
    if record.exact_spectrum is not None:
        _write_eigenvalues(group.create_group("exact_spectrum"), record.exact_spectrum)
    if record.checks:
        _write_checks(group.create_group("checks"), record.checks)
    if record.overlap is not None:
        _write_overlap(group.create_group("overlap"), record.overlap)
    if record.sharpness:
        _write_sharpness(group.create_group("sharpness"), record.sharpness)


def read_findings(group: Branch) -> dict[str, Any]:
    """The fields of a record that its groups hold."""
    found: dict[str, Any] = {}
    if "exact" in group:
        found["exact"], found["remainder"] = _read_exact(group["exact"])
    if "exact_spectrum" in group:
        found["exact_spectrum"] = _read_eigenvalues(group["exact_spectrum"])
    if "checks" in group:
        found["checks"] = _read_checks(group["checks"])
    if "overlap" in group:
        found["overlap"] = _read_overlap(group["overlap"])
    if "sharpness" in group:
        found["sharpness"] = _read_sharpness(group["sharpness"])
    return found


def _write_overlap(group: h5py.Group, overlap: Overlap) -> None:
    set_attribute(group, "before", overlap.before)
    set_attribute(group, "reason", overlap.reason)
    if overlap.matrix is not None:
        group["matrix"] = overlap.matrix
    seal(group)


def _read_overlap(group: Branch) -> Overlap:
    matrix = group["matrix"][()] if "matrix" in group else None
    return Overlap(str(group.attrs["before"]), matrix, get_attribute(group, "reason"))


def _write_exact(group: h5py.Group, exact: ExactTrace, remainder: Estimate | None) -> None:
    for name in _EXACT:
        set_attribute(group, name, getattr(exact, name))
    set_attribute(group, "applies", int(exact.applies))
    set_attribute(group, "reasons", dumps(list(exact.reasons)))
    if remainder is not None:
        set_attribute(group, "remainder", dumps(remainder.to_json()))
    write_texts(group, "names", exact.by_layer)
    group["traces"] = np.array(list(exact.by_layer.values()), dtype=np.float64)
    group["certified"] = np.array([exact.certified.get(name, False) for name in exact.by_layer], dtype=np.uint8)
    if exact.stderr_by_layer is not None:
        group["stderrs"] = np.array([exact.stderr_by_layer[name] for name in exact.by_layer], dtype=np.float64)
    seal(group)


def _read_exact(group: Branch) -> tuple[ExactTrace, Estimate | None]:
    names = unique(read_texts(group["names"]), "exact/names")
    stderrs = dict(zip(names, group["stderrs"][()].tolist())) if "stderrs" in group else None
    exact = ExactTrace(
        by_layer=dict(zip(names, group["traces"][()].tolist())),
        certified={name: bool(flag) for name, flag in zip(names, group["certified"][()])},
        reasons=tuple(json.loads(group.attrs["reasons"])),
        stderr_by_layer=stderrs,
        **{name: get_attribute(group, name) for name in _EXACT},
    )
    remainder = get_attribute(group, "remainder")
    return exact, None if remainder is None else Estimate(**json.loads(remainder))


def _write_eigenvalues(group: h5py.Group, exact: GGNSpectrum) -> None:
    for name in _GGN:
        set_attribute(group, name, getattr(exact, name))
    set_attribute(group, "settings", dumps(exact.settings))
    group["eigenvalues"] = exact.eigenvalues
    seal(group)


def _read_eigenvalues(group: Branch) -> GGNSpectrum:
    known = {name: get_attribute(group, name) for name in _GGN}
    return GGNSpectrum(eigenvalues=group["eigenvalues"][()], settings=json.loads(group.attrs["settings"]), **known)


def _write_checks(group: h5py.Group, checks: Sequence[Check]) -> None:
    for column in ("name", "verdict", "of"):
        write_texts(group, column, [getattr(check, column) for check in checks])
    for column in _CHECK_NUMBERS:
        group[column] = np.array([getattr(check, column) for check in checks], dtype=np.float64)
    group["dof"] = np.array([check.dof for check in checks], dtype=np.int64)
    seal(group)


def _read_checks(group: Branch) -> tuple[Check, ...]:
    columns: dict[str, list[Any]] = {name: read_texts(group[name]) for name in ("name", "verdict", "of")}
    columns |= {name: group[name][()].tolist() for name in (*_CHECK_NUMBERS, "dof")}
    return tuple(Check(**dict(zip(columns, row))) for row in zip(*columns.values(), strict=True))


def _write_sharpness(group: h5py.Group, sharpness: dict[str, Measure] | Any) -> None:
    rows = list(sharpness.values())
    write_texts(group, "name", sharpness)
    for column in _MEASURE_TEXTS:
        write_texts(group, column, [getattr(row, column) or "" for row in rows])
    for column in _MEASURE_NUMBERS:
        cells = [getattr(row, column) for row in rows]
        group[column] = np.array([math.nan if cell is None else cell for cell in cells], dtype=np.float64)
    attained = [-1 if row.attained is None else int(row.attained) for row in rows]
    group["attained"] = np.array(attained, dtype=np.int8)
    write_texts(group, "details", [dumps(row.details) for row in rows])
    seal(group)


def _read_sharpness(group: Branch) -> dict[str, Measure]:
    texts = {column: read_texts(group[column]) for column in ("name", *_MEASURE_TEXTS, "details")}
    numbers = {column: group[column][()].tolist() for column in _MEASURE_NUMBERS}
    attained = group["attained"][()].tolist()

    def optional(column: str, row: int) -> float | None:
        number: float = numbers[column][row]
        return None if math.isnan(number) else number

    return {
        name: Measure(
            value=numbers["value"][row],
            form=texts["form"][row],
            stderr=optional("stderr", row),
            loss=texts["loss"][row],
            bn_mode=texts["bn_mode"][row],
            curvature=texts["curvature"][row] or None,
            attained=None if attained[row] < 0 else bool(attained[row]),
            certificate=optional("certificate", row),
            clipped=optional("clipped", row),
            reason=texts["reason"][row] or None,
            details=json.loads(texts["details"][row]),
        )
        for row, name in enumerate(unique(texts["name"], "sharpness/name"))
    }
