"""Reading a run: other options for what is stored, parts of it, differences, and columns for other libraries."""

from __future__ import annotations

import dataclasses
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from reference import bulk_with_outliers, lanczos, sphere_starts
from run_files import failed_record, make_record

from spectra.errors import ArgumentError, MissingDependency
from spectra.results import tables as columns
from spectra.results.column_attributes import attributes_of
from spectra.results.measure import Measure
from spectra.results.trajectory import Trajectory
from spectra.spectrum.estimators import ESTIMATORS
from spectra.spectrum.spectrum import Spectrum

SIZES = {"w": 150, "b": 50}


def spectrum_at(epoch: int) -> Spectrum:
    """The same probes at every epoch, and a matrix that grows a little."""
    values = bulk_with_outliers(200, 0) * (1 + 0.1 * epoch)
    starts = sphere_starts(200, 4, 0)
    forms = starts**2 * values
    return Spectrum(
        [lanczos(values, start, 12) for start in starts],
        200,
        seed=0,
        tensor_sizes=SIZES,
        tensor_forms=np.stack([forms[:, :150].sum(1), forms[:, 150:].sum(1)], axis=1),
    )


@pytest.fixture(scope="module")
def run() -> Trajectory:
    records = [make_record(float(epoch), spectrum=spectrum_at(epoch)) for epoch in (0, 1, 3)]
    return Trajectory([*records, failed_record(2.0), make_record(3.0, "ggn")], path="run.h5")


@pytest.fixture(scope="module")
def series(run):
    return run["hessian", "eval"]


def test_an_estimate_is_recomputed_under_other_options_at_every_epoch(series):
    found = series.estimate("rank_degeneracy", tau=0.05)
    for epoch, value, lower, resolved in zip(series.epochs, found.value, found.lower, found.resolved):
        if epoch == 2:
            assert np.isnan([value, lower]).all()
            assert not resolved
        else:
            expected = series.spectrum(epoch).rank_degeneracy(tau=0.05)
            assert (value, lower, resolved) == (expected.value, expected.lower, expected.resolved)


def test_any_function_of_a_spectrum_can_be_applied(series):
    third = series.apply(lambda s: s.moment(3))
    assert third.value[0] == series.spectrum(0).moment(3).value
    assert third.stderr[0] == series.spectrum(0).moment(3).stderr
    plain = series.apply(lambda s: s.num_probes)
    np.testing.assert_array_equal(plain.value, [4, 4, np.nan, 4])
    assert np.isnan(plain.stderr).all()
    assert plain.resolved.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: s.estimate("pie"), "no estimate 'pie'"),
        (lambda s: s.estimate("_curve"), "no estimate '_curve'"),
        (lambda s: s.estimate("tensor_traces"), "a dict per checkpoint"),
        (lambda s: s.apply(lambda spectrum: "x"), "a str per checkpoint: one number or estimate is needed"),
        (lambda s: s.difference(0, 9), "epoch=9: no record"),
        (lambda s: s.difference(0, 2), "failed: NaN weights"),
        (lambda s: s.sharpness("pie"), "no sharpness measure 'pie': there are none"),
    ],
)
def test_what_cannot_be_asked_is_refused(series, ask, words):
    with pytest.raises(ArgumentError, match=words):
        ask(series)


def plain_traces(series) -> np.ndarray:
    """The means over the probes with no eigenvalue taken as known, which is what the traces of tensors sum to."""
    return np.array(
        [np.nan if r.spectrum is None else r.spectrum.n * np.mean(r.spectrum.tensor_forms.sum(1)) for r in series]
    )


def test_traces_by_layer_are_arrays_that_sum_to_the_plain_mean_over_the_probes(series):
    layers = series.by_layer
    assert list(layers) == ["w", "b"]
    total = sum(values.value for values in layers.values())
    np.testing.assert_allclose(total, plain_traces(series))
    assert np.isnan(total[2])
    assert layers["w"].stderr[0] == series.spectrum(0).tensor_traces()["w"].stderr


def test_differences_between_epochs_are_paired(series):
    found = series.difference(3, 0)
    assert found.paired
    assert found.value == pytest.approx(series.trace.value[3] - series.trace.value[0])
    # H_3 - H_0 = 0.3 H_0: the error is 0.3 of that of H_0, and that of independent probes sqrt(1 + 1.3^2) of it.
    assert found.stderr == pytest.approx(0.3 * series.trace.stderr[0])
    assert found.unpaired_stderr == pytest.approx(np.hypot(1, 1.3) * series.trace.stderr[0])
    assert series.difference(3, 0, "rank_degeneracy", tau=0.05).tau == 0.05
    parts = series.difference_by_layer(3, 0)
    assert sum(part.value for part in parts.values()) == pytest.approx(np.diff(plain_traces(series)[[0, 3]])[0])


def test_a_part_of_a_run_has_both_its_ends(run, series):
    assert series.between(1, 3).epochs.tolist() == [1, 2, 3]
    assert series.between(last=1.0).epochs.tolist() == [0, 1]
    assert len(series.between()) == 4
    part = run.between(3)
    assert [(record.epoch, record.operator) for record in part] == [(3.0, "hessian"), (3.0, "ggn")]
    assert part.path == "run.h5"
    unknown = Trajectory([make_record(0.0, epoch=None)])
    assert (len(unknown.between(0)), len(unknown.between())) == (0, 1)


def test_sharpness_over_training():
    measured = {"fr": Measure(value=2.0, stderr=0.5, form="x")}
    run = Trajectory([make_record(0.0, sharpness=measured), make_record(1.0), failed_record(2.0)])
    found = run["hessian", "eval"].sharpness("fr")
    np.testing.assert_array_equal(found.value, [2, np.nan, np.nan])
    np.testing.assert_array_equal(found.stderr, [0.5, np.nan, np.nan])
    assert run.to_columns()["sharpness_fr"][0] == 2.0


def test_columns_have_an_entry_per_record_and_every_number(run):
    found = run.to_columns()
    assert {len(column) for column in found.values()} == {5}
    assert found["epoch"].tolist() == [0, 1, 2, 3, 3]
    assert found["operator"].tolist() == ["hessian"] * 4 + ["ggn"]
    assert found["status"].tolist() == ["complete", "complete", "failed", "complete", "complete"]
    series = run["hessian", "eval"]
    for part in ("value", "stderr", "lower", "upper"):
        column = found["trace" if part == "value" else f"trace_{part}"]
        np.testing.assert_array_equal(column[:4], getattr(series.trace, part))
    assert found["fact_loss"][0] == 2.5
    assert np.isnan(found["fact_loss"][2])
    assert np.isnan(found["lambda_max_stderr"]).all()
    assert found["rank_degeneracy_tau"][0] == series.records[0].estimates["rank_degeneracy"].tau
    assert found["rank_degeneracy_resolved"].tolist()[2] is False
    assert "trace_tau" not in found


def test_an_empty_run_has_empty_columns():
    assert set(Trajectory([]).to_columns()) == set(columns.KEYS)


def stand_in(monkeypatch, **functions):
    monkeypatch.setattr(columns, "_optional", lambda name: SimpleNamespace(**functions[name]))


def test_a_frame_is_made_of_the_columns(run, monkeypatch):
    stand_in(monkeypatch, pandas={"DataFrame": lambda table: ("frame", table)})
    kind, table = run.to_pandas()
    assert kind == "frame"
    assert table.keys() == run.to_columns().keys()
    assert len(run["ggn", "eval"].to_pandas()[1]["epoch"]) == 1


def test_a_data_set_of_a_series_is_over_its_epochs_and_that_of_a_run_over_records(run, monkeypatch):
    stand_in(monkeypatch, xarray={"Dataset": lambda variables, coordinates, attributes: (variables, coordinates)})
    variables, coordinates = run["hessian", "eval"].to_xarray()
    assert set(coordinates) == set(columns.KEYS)
    assert {dimension for dimension, *_ in [*variables.values(), *coordinates.values()]} == {"epoch"}
    assert variables["trace"][1].shape == (4,)
    variables, coordinates = run.to_xarray()  # epoch 3 is there twice
    assert {dimension for dimension, *_ in [*variables.values(), *coordinates.values()]} == {"record"}
    assert coordinates["epoch"][1].tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("name", ["pandas", "xarray"])
def test_a_library_that_is_missing_is_named_with_its_remedy(name):
    def missing(name):
        raise ImportError(name)

    with pytest.raises(MissingDependency, match=rf"{name} is not installed: pip install 'hessian-spectra\[{name}\]'"):
        columns._optional(name, missing)


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_pandas_takes_the_columns(run):
    frame = run.to_pandas()
    assert frame.shape == (5, len(run.to_columns()))
    assert frame.loc[0, "trace"] == run[0].estimates["trace"].value


@pytest.mark.skipif(importlib.util.find_spec("xarray") is None, reason="xarray is not installed")
def test_xarray_takes_the_columns(run):
    data = run["hessian", "eval"].to_xarray()
    assert float(data["trace"].sel(epoch=1.0)) == run["hessian", "eval"].trace.value[1]
    assert data["trace"].attrs["units"] == "loss / parameter^2"
    assert data["epoch"].attrs["long_name"] == "epoch of training"
    assert data.attrs["lanczos_steps"] == 12
    assert "standard error of trace over the probes" in data._repr_html_()
    for name in data["trace"].attrs["ancillary_variables"].split():
        assert name in data
    assert np.isnan(data["trace"].sel(epoch=2.0))  # it failed


@pytest.mark.skipif(importlib.util.find_spec("xarray") is None, reason="xarray is not installed")
def test_a_data_set_can_be_written_and_read(run, tmp_path):
    xarray = importlib.import_module("xarray")
    data = run.to_xarray()
    back = xarray.Dataset.from_dict(data.to_dict())
    xarray.testing.assert_identical(data, back)


def test_every_column_says_what_it_is(run):
    """Those of every estimator too, whether these records have it or not."""
    measured = dataclasses.replace(run[0], sharpness={"fisher_rao_norm": Measure(value=1.0, form="")})
    names = {*Trajectory([measured]).to_columns(), "trace_stderr", "trace_deflated", "trace_deflated_upper"}
    names |= {estimator.name for estimator in ESTIMATORS}
    for name in names:
        found = attributes_of(name, names)
        assert found["long_name"], name
        assert name.endswith("_resolved") or name.startswith("sharpness_") or name in columns.KEYS or found["units"]
    assert attributes_of("rank_degeneracy")["units"] == "1"
    assert attributes_of("rank_degeneracy_tau")["units"] == attributes_of("lambda_max_upper")["units"]
    assert attributes_of("fact_gradient_norm")["units"] == "loss / parameter"
    assert "Student" in attributes_of("trace_lower")["interval"]
    assert "Ritz" in attributes_of("lambda_max_lower")["interval"]
    assert attributes_of("somebody_s_column") == {}


def test_settings_that_differ_between_records_are_not_attributes_of_the_data_set(run):
    other = dataclasses.replace(run[0], settings={**run[0].settings, "seed": 1})
    shared = columns._shared_settings([run[0], other])
    assert "seed" not in shared
    assert shared["task"] == "digits-convnet"
    assert columns._shared_settings([]) == {}
