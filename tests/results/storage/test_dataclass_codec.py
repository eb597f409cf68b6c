"""Dataclasses as HDF5 groups: what the layout tests of whole records do not reach."""

from __future__ import annotations

import dataclasses
import io

import every_finding
import h5py
import numpy as np
import pytest
from run_files import sealed_anew

from spectra.errors import StorageError
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure
from spectra.results.storage.attributes import get_attribute
from spectra.results.storage.branch import Branch
from spectra.results.storage.checksum import sealed, unsealed
from spectra.results.storage.dataclass_codec import read_named_rows, read_object, read_rows, write_object, write_rows
from spectra.results.storage.runfile import load_trajectory
from spectra.results.storage.shapes import _SHAPES
from spectra.results.trace_checks import Check
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.exact_spectrum import GGNSpectrum

CHECK = Check("trace", 1.5, 2.0, 0.25, -2.0, 7, 1.0, "agrees")
GGN = GGNSpectrum(eigenvalues=np.ones(2), n=4, num_samples=1, rank_bound=2)


@pytest.fixture
def group():
    with h5py.File(io.BytesIO(), "w") as file:
        yield file.create_group("group")


@pytest.mark.parametrize("kind", [Check, Estimate, Measure])
def test_no_rows_are_columns_without_cells(group, kind):
    write_rows(group, kind, [])
    assert {group[field.name].shape for field in dataclasses.fields(kind)} == {(0,)}
    assert read_rows(Branch.of(group), kind) == []


@pytest.mark.parametrize(("kind", "place"), [(Check, "checks"), (Estimate, "estimates"), (Measure, "sharpness")])
def test_every_column_is_among_those_whose_lengths_are_compared(group, kind, place):
    write_rows(group, kind, [], names=None if kind is Check else [])
    assert set(group) == set(_SHAPES[place])


@pytest.mark.parametrize(("column", "cells"), [("estimate", ["1.5"]), ("z", ["nan"]), ("dof", ["7"]), ("dof", [7.5])])
def test_a_column_of_another_type_is_refused(group, column, cells):
    write_rows(group, Check, [CHECK])
    del group[column]
    group[column] = cells
    with pytest.raises(ValueError, match=rf"/group/{column} has type \w+: (float64|int64) is needed"):
        read_rows(Branch.of(group), Check)


def test_a_column_of_a_narrower_type_is_read(group):
    write_rows(group, Check, [CHECK])
    for column, kind in (("z", "f4"), ("dof", "u1"), ("exact", "i2")):
        cell = group[column][()]
        del group[column]
        group[column] = cell.astype(kind)
    assert read_rows(Branch.of(group), Check) == [CHECK]


def test_columns_of_different_lengths_and_missing_ones_are_refused(group):
    write_rows(group, Check, [CHECK, CHECK])
    del group["z"]
    with pytest.raises(KeyError, match="z"):
        read_rows(Branch.of(group), Check)
    group["z"] = [1.0]
    with pytest.raises(ValueError, match="shorter"):
        read_rows(Branch.of(group), Check)


def test_a_name_that_is_there_twice_is_refused(group):
    write_rows(group, Measure, [Measure(value=1.0, form="")] * 2, names=["a", "a"])
    with pytest.raises(ValueError, match="sharpness/name has 'a' twice"):
        read_named_rows(Branch.of(group), Measure, "sharpness/name")


@pytest.mark.parametrize("name", ["n", "l2", "bn_mode", "settings", "eigenvalues"])
def test_a_field_that_cannot_be_none_is_not_missing(group, name):
    write_object(group, GGN)
    assert get_attribute(group, "data") is None
    part = Branch.of(group)
    assert read_object(part, GGNSpectrum).data is None
    del (part.children if name == "eigenvalues" else part.attrs)[name]
    with pytest.raises(ValueError, match=f"/group has no {name}"):
        read_object(part, GGNSpectrum)


def test_a_field_of_an_unknown_type_is_refused_when_it_is_written(group):
    with pytest.raises(KeyError, match=r"by_layer: Mapping\[str, float\]"):
        write_object(group, ExactTrace(total=1.0))

    @dataclasses.dataclass
    class Row:
        numbers: list[int]

    with pytest.raises(KeyError, match="list"):
        write_rows(group, Row, [Row([1])])


@pytest.mark.parametrize("place", ["checks/z", "sharpness/stderr", "estimates/value"])
def test_text_in_place_of_numbers_under_checksums_that_fit(tmp_path, place):
    path = tmp_path / "run.h5"
    every_finding.write(path)
    before = load_trajectory(path)[0].informed_spectrum.estimates()
    buffer = io.BytesIO(unsealed(path.read_bytes(), ""))
    with h5py.File(buffer, "r+", libver=("v108", "v108")) as file:
        part, column = place.split("/")
        columns = file["records/000000"][part]
        count = len(columns[column])
        del columns[column]
        columns.create_dataset(column, data=["1.5"] * count, dtype=h5py.string_dtype("utf-8"))
        sealed_anew(columns)
    path.write_bytes(sealed(buffer.getvalue()))
    record = load_trajectory(path)[0]
    if part == "estimates":
        assert "damaged: computed again" in record.notes[-1]
        assert record.estimates.keys() == before.keys()
    else:
        with pytest.raises(StorageError, match=rf"record 000000 is damaged: .*/{place} has type object: float64"):
            record.read("checks")
