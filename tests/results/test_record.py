"""A record says what was asked and found; a trajectory orders records and turns them into arrays."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from run_files import SETTINGS, failed_record, make_record, make_spectrum

from spectra.errors import ArgumentError
from spectra.jsonable import dumps, to_jsonable
from spectra.results.identity import Identity, Place
from spectra.results.record import Record
from spectra.results.trajectory import Trajectory
from spectra.spectrum.estimates import Estimate

# --- Record -------------------------------------------------------------------------------------------------------


def test_json_has_the_fields_that_programs_read():
    entry = make_record(3).to_json()
    assert {
        "checkpoint": "run/ckpt_3.pt",
        "epoch": 3.0,
        "step": 300,
        "operator": "hessian",
        "bn_mode": "eval",
        "loss": 0.625,
        "n_parameters": 200,
        "n_samples": 138,
        "status": "complete",
        "reason": None,
    }.items() <= entry.items()
    assert not {"exact", "sharpness", "check"} & entry.keys()  # not asked for: absent
    for name in ("trace", "frobenius_norm", "lambda_max", "lambda_min", "rank_degeneracy"):
        assert {"value", "stderr", "lower", "upper"} <= entry["estimates"][name].keys()
    spectrum = make_record(3).spectrum
    trace = spectrum.trace()
    assert entry["estimates"]["trace"]["value"] == trace.value
    assert entry["estimates"]["trace"]["stderr"] == trace.stderr
    assert sum(e["value"] for e in entry["tensor_traces"].values()) == pytest.approx(
        spectrum.n * np.mean([t.alphas[0] for t in spectrum.tridiagonals]), rel=1e-12
    )


def test_json_is_strict_json_whatever_is_in_the_record():
    record = make_record(
        facts={"loss": math.nan, "accuracy": math.inf, "n_samples": np.int64(5)},
        provenance={"noise": float("nan"), "path": "caf\udce9\0.pt", "array": np.array([1.0, math.inf]), "set": {2, 1}},
        settings=SETTINGS | {"odd": (1, np.float32(0.5), None, object)},
        cached_estimates={"trace": Estimate(math.nan, math.inf, None, math.nan, 4)},
    )
    text = json.dumps(record.to_json(), allow_nan=False)  # raises on NaN
    entry = json.loads(text)
    assert entry["loss"] is None
    assert entry["facts"] == {"loss": None, "accuracy": None, "n_samples": 5}
    assert entry["provenance"]["array"] == [1.0, None]
    assert entry["provenance"]["set"] == [1, 2]
    text.encode("utf-8")


def test_a_number_that_could_not_be_computed_is_null_with_its_reason():
    warned = Estimate(math.nan, None, None, None, 4, note="positivity not certified")
    silent = Estimate(math.inf, None, None, None, 4)
    estimates = make_record(cached_estimates={"a": warned, "b": silent}).to_json()["estimates"]
    assert estimates["a"]["value"] is None
    assert estimates["a"]["reason"] == "positivity not certified"
    assert estimates["b"]["value"] is None
    assert "not a finite number" in estimates["b"]["reason"]


def test_a_failed_record_has_its_reason_and_no_numbers():
    entry = failed_record(2).to_json()
    assert (entry["status"], entry["reason"]) == ("failed", "NaN weights")
    assert entry["loss"] is None
    assert entry["estimates"] == {}
    assert failed_record(2).estimates == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "done"}, "status='done'"),
        ({"spectrum": None}, "spectrum=None"),
        ({"status": "failed"}, "reason=None"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ArgumentError, match=words):
        make_record(**changes)


def test_estimates_are_those_of_the_spectrum_unless_stored():
    record = make_record()
    assert record.estimates == record.spectrum.estimates()
    stored = {"trace": Estimate(1.0, 0.1, 0.8, 1.2, 4)}
    assert make_record(cached_estimates=stored).estimates == stored


def test_identity_tells_what_makes_numbers_different():
    base = make_record(1).identity
    assert base == make_record(1, checkpoint="elsewhere/same.pt", notes=(), facts={}).identity
    for changes in (
        {"checkpoint_sha256": "f" * 64},
        {"operator": "ggn"},
        {"bn_mode": "train"},
        {"settings": SETTINGS | {"l2": 0.1}},
        {"settings": SETTINGS | {"seed": 1}},
        {"settings": SETTINGS | {"data_seed": 1}},
        {"settings": SETTINGS | {"params": "fc.*"}},
        {"settings": SETTINGS | {"params": ["fc.*"]}},
    ):
        assert make_record(1, **changes).identity != base, changes


def test_identity_without_a_hash_falls_back_to_name_then_time():
    def of(**where):
        return Identity.of(Place(**where), operator="ggn", bn_mode="eval", settings={})

    assert of(checkpoint="a.pt") != of(checkpoint="b.pt")
    assert of(epoch=1.0) != of(epoch=2.0)
    assert of(epoch=1.0, step=3) == of(epoch=1.0, step=3)
    assert not of(epoch=1.0).same_place(of(epoch=1.0))


def test_a_path_or_tuple_in_settings_is_the_same_after_json():
    settings = {"batch_sizes": ((64, 2), (10, 1)), "b": 1}
    assert dumps(settings) == dumps({"b": 1, "batch_sizes": [[64, 2], [10, 1]]})
    assert to_jsonable(np.array([[1, 2]])) == [[1, 2]]
    assert to_jsonable(True) is True


# --- Trajectory ---------------------------------------------------------------------------------------------------


def test_records_are_ordered_by_epoch_then_step_then_arrival():
    a, b = make_record(2, step=7), make_record(2, step=5)
    first, second = make_record(0, notes=("first",)), make_record(0, notes=("second",))
    none = make_record(5, epoch=None)
    t = Trajectory([a, none, b, first, second])
    assert t.records == (first, second, b, a, none)
    np.testing.assert_array_equal(t.epochs, [0.0, 2.0])
    assert len(t) == 5
    assert t[0] is first
    assert t[-1] is none
    assert list(t) == list(t.records)


def test_a_run_that_knows_only_steps_is_ordered_by_steps():
    t = Trajectory([make_record(i, epoch=None, step=step) for i, step in enumerate((300, 10, 200))])
    np.testing.assert_array_equal(t["hessian", "eval"].steps, [10, 200, 300])
    assert np.isnan(t["hessian", "eval"].epochs).all()
    assert t.epochs.size == 0


def test_a_series_has_every_estimate_as_arrays_with_nan_where_it_failed():
    records = [make_record(3), make_record(0), failed_record(1)]
    series = Trajectory(records)["hessian", "eval"]
    np.testing.assert_array_equal(series.epochs, [0, 1, 3])
    for name in ("trace", "frobenius_norm", "lambda_max", "rank_degeneracy"):
        values = getattr(series, name)
        for part in ("value", "stderr", "lower", "upper"):
            wanted = [
                math.nan
                if not r.estimates or getattr(r.estimates[name], part) is None
                else getattr(r.estimates[name], part)
                for r in series.records
            ]
            np.testing.assert_array_equal(getattr(values, part), wanted)
    assert np.isnan(series.trace.value[1])
    assert np.isnan(series.lambda_max.stderr).all()  # an end of the spectrum has no standard error
    np.testing.assert_array_equal(series.trace.resolved, [True, False, True])
    np.testing.assert_array_equal(np.isnan(series.fact("loss")), [False, True, False])
    assert series.records[1].reason == "NaN weights"


def test_a_count_that_is_not_resolved_says_so_in_the_series():
    vague = Estimate(0.3, None, 0.0, 0.9, 4, tau=1e-3, resolved=False)
    clear = Estimate(0.75, 0.01, 0.74, 0.76, 4, tau=1e-3, resolved=True)
    records = [make_record(i, cached_estimates={"rank_degeneracy": e}) for i, e in enumerate((vague, clear))]
    np.testing.assert_array_equal(Trajectory(records)["hessian", "eval"].rank_degeneracy.resolved, [False, True])


def test_an_estimate_that_only_some_records_have_is_nan_in_the_others():
    new = make_record(
        1, cached_estimates={"trace": Estimate(1.0, 0.1, 0.8, 1.2, 4), "new": Estimate(2.0, 0.1, 1, 3, 4)}
    )
    old = make_record(0, cached_estimates={"trace": Estimate(3.0, 0.1, 2.8, 3.2, 4)})
    series = Trajectory([old, new])["hessian", "eval"]
    assert series.names == ("trace", "new")
    np.testing.assert_array_equal(series.new.value, [math.nan, 2.0])


def test_series_are_told_apart_by_operator_and_mode():
    pairs = [("hessian", "eval"), ("hessian", "train"), ("ggn", "eval")]
    t = Trajectory([make_record(epoch, *pair) for epoch in (0, 1) for pair in pairs])
    assert t.keys() == tuple(pairs)
    assert t.operators == ("hessian", "ggn")
    assert t.bn_modes == ("eval", "train")
    assert ("ggn", "eval") in t
    assert ("ggn", "train") not in t
    assert [r.operator for r in t["ggn", "eval"]] == ["ggn", "ggn"]


def test_what_is_not_there_is_an_error_that_lists_what_is():
    t = Trajectory([make_record(0), make_record(2), failed_record(3)])
    series = t["hessian", "eval"]
    with pytest.raises(ArgumentError, match=r"\('ggn', 'eval'\).*\('hessian', 'eval'\)"):
        t["ggn", "eval"]
    with pytest.raises(ArgumentError, match=r"epoch=1.*there are 0, 2, 3"):
        series.spectrum(1)
    with pytest.raises(ArgumentError, match="failed: NaN weights"):
        series.spectrum(3)
    with pytest.raises(ArgumentError, match=r"no estimate 'tracee'.*trace, mean_eigenvalue"):
        series.values("tracee")
    with pytest.raises(AttributeError, match=r"no estimate 'tracee'.*trace, mean_eigenvalue"):
        _ = series.tracee
    with pytest.raises(ArgumentError, match=r"no fact 'los'.*loss"):
        series.fact("los")


def test_the_spectrum_and_density_of_an_epoch_are_its_records():
    records = [make_record(0), make_record(2)]
    series = Trajectory(records)["hessian", "eval"]
    assert series.spectrum(2) is records[1].spectrum
    density = series.density(2, points=64)
    wanted = records[1].spectrum.density(points=64)
    np.testing.assert_array_equal(density.values, wanted.values)


def test_of_several_records_of_one_epoch_the_last_complete_one_is_taken():
    records = [make_record(1, step=1), make_record(1, step=2), failed_record(1, step=3)]
    assert Trajectory(records)["hessian", "eval"].at(1).step == 2


def test_an_empty_trajectory_is_empty():
    t = Trajectory([])
    assert len(t) == 0
    assert t.keys() == ()
    assert t.epochs.shape == (0,)


def test_a_record_needs_only_what_it_knows():
    record = Record(operator="ggn", bn_mode="eval", spectrum=make_spectrum())
    entry = record.to_json()
    assert entry["checkpoint"] is None
    assert entry["epoch"] is None
    assert record.label == "ggn eval"
