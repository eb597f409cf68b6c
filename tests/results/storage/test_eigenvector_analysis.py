"""The analysis of eigenvectors in a results file: what is put in comes back, and what is damaged is refused."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, make_record

from spectra.errors import StorageError
from spectra.results.storage.attributes import seal
from spectra.results.storage.eigenvectors_codec import write_eigenvectors
from spectra.results.storage.record_codec import read_record, write_record
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis

FULL = EigenvectorAnalysis(
    tensors=("0.weight", "ü.bias"),
    tensor_shares=np.array([[0.5, 1.0, 0.25], [0.5, 0.0, 0.75]]),
    gradient_norm=2.0,
    gradient_shares=np.array([0.5, 0.125, 0.0]),
    gradient_bounds=np.array([1e-9, np.nan, 0.5]),
    gradient_curvature=3.0,
    curvature_error=1e-12,
    labels=np.array([0, 7]),
    label_weights=np.array([0.25, 0.75]),
    class_forms=np.array([[1.0, 0.5, 0.0], [3.0, 0.5, 0.0]]),
    beyond_ggn=np.array([0.25, -1.0, -3.0]),
    forms_error=1e-13,
)
BARE = EigenvectorAnalysis(("a",), np.ones((1, 1)), 0.0, np.array([np.nan]), np.array([np.nan]), None, None)
NO_CLASSES = dataclasses.replace(BARE, class_reason="no classes: ü")


@pytest.mark.parametrize("found", [FULL, BARE, NO_CLASSES])
def test_what_is_put_in_comes_back(tmp_path, found):
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        run.append(make_record(0, eigenvector_analysis=found))
        run.append(make_record(1))
    having, without = load_trajectory(tmp_path / "run.h5")
    assert without.eigenvector_analysis is None
    assert "eigenvector_analysis" not in without.to_json()
    for field in dataclasses.fields(found):
        put, back = getattr(found, field.name), getattr(having.eigenvector_analysis, field.name)
        np.testing.assert_equal(back, put)
    assert having.to_json()["eigenvector_analysis"] == found.to_json()


def damaged(path, change):
    with h5py.File(path, "w") as file:
        group = file.create_group("record")
        write_record(group, make_record(0, eigenvector_analysis=FULL))
        change(group["eigenvector_analysis"])
        seal(group["eigenvector_analysis"])
        seal(group)
    with h5py.File(path) as file:
        return read_record(file["record"])


@pytest.mark.parametrize("name", ["gradient_bounds", "class_forms", "labels", "label_weights", "tensors"])
def test_arrays_that_do_not_fit_are_refused(tmp_path, name):
    def shorten(group):
        values = group[name][()]
        del group[name]
        group[name] = values[:1]

    with pytest.raises((ValueError, StorageError)):
        damaged(tmp_path / "x.h5", shorten)


def test_a_missing_array_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no gradient_shares"):
        damaged(tmp_path / "x.h5", lambda group: group.pop("gradient_shares"))


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    def twice(group):
        for name in list(group):
            del group[name]
        for name in list(group.attrs):
            del group.attrs[name]
        write_eigenvectors(group, dataclasses.replace(FULL, tensors=("one", "one")))

    with pytest.raises(ValueError, match="'one' twice"):
        damaged(tmp_path / "x.h5", twice)
