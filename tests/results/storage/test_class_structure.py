"""The class structure in a results file: what is put in comes back, and what is damaged is refused."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, make_record

from spectra.errors import NumericsError
from spectra.figures.figures import plan
from spectra.results.storage.attributes import seal
from spectra.results.storage.record_codec import read_record, write_record
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.class_structure import ClassStructure

FULL = ClassStructure(np.array([0, 7]), [0.25, 0.125], [0.5, 0.0], np.array([[4.0, 1.0], [1.0, 2.0]]), 0.5, 4.0, 0.25)


@pytest.mark.parametrize("found", [FULL, dataclasses.replace(FULL, total_error=None)])
def test_what_is_put_in_comes_back(tmp_path, found):
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        run.append(make_record(0, operator="ggn", class_structure=found))
        run.append(make_record(1))
    having, without = trajectory = load_trajectory(tmp_path / "run.h5")
    assert without.class_structure is None
    assert "class_structure" not in without.to_json()
    for field in dataclasses.fields(found):
        np.testing.assert_equal(getattr(having.class_structure, field.name), getattr(found, field.name))
    assert having.to_json()["class_structure"] == found.to_json()
    assert [sheet.name for sheet in plan(trajectory) if sheet.kind == "class-structure"] == [
        "class-structure-ggn-epoch0"
    ]


def test_the_traces_and_eigenvalues_follow_from_the_fields():
    assert FULL.traces == pytest.approx({"class": 1.25, "same_class": 0.5, "cross_class": 0.5, "within": 1.75})
    expected = np.linalg.eigvalsh([[1.5, 0.375**0.5 * 0.125**0.5], [0.375**0.5 * 0.125**0.5, 0.25]])[::-1]
    np.testing.assert_allclose(FULL.eigenvalues, expected)
    assert FULL.class_eigenvalues.sum() == pytest.approx(1.25)


@pytest.mark.parametrize(
    "changed", [{"gram": np.full((2, 2), np.nan)}, {"same_weights": [-0.1, 1.0]}, {"other_weights": [np.inf, 1.0]}]
)
def test_numbers_that_have_no_spectrum_are_refused(changed):
    with pytest.raises(NumericsError):
        dataclasses.replace(FULL, **changed)


@pytest.mark.parametrize("name", ["labels", "gram", "same_weights"])
def test_arrays_that_do_not_fit_are_refused(tmp_path, name):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("record")
        write_record(group, make_record(0, class_structure=FULL))
        within = group["class_structure"]
        values = within[name][()]
        del within[name]
        within[name] = values[:1]
        seal(within)
        seal(group)
    with h5py.File(tmp_path / "x.h5") as file, pytest.raises(ValueError, match="class_structure"):
        read_record(file["record"])
