"""Runs side by side: what a difference is a fact of, and what cannot be compared."""

from __future__ import annotations

import json
from math import isnan, sqrt

import numpy as np
import pytest
from reference import bulk_with_outliers, probes_of
from run_files import SETTINGS, changed, failed_record, make_record
from scipy import stats

from spectra.errors import ArgumentError
from spectra.results.comparison import Arm
from spectra.results.exact_trace import ExactTrace
from spectra.results.record import Record
from spectra.results.run_comparison import compare
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.wasserstein import spectral_distance

VALUES = bulk_with_outliers(150, 0)


def record(scale: float = 1.0, *, seed: int = 0, probes: int = 4, steps: int = 20, **changes) -> Record:
    spectrum = Spectrum(probes_of(scale * VALUES, steps, probes, seed), 150, seed=seed)
    return make_record(3.0, **({"spectrum": spectrum} | changes))


def arms(*scales: tuple[float, ...], names="abc", **changes) -> list[Arm]:
    return [Arm(name, tuple(record(scale, **changes) for scale in runs)) for name, runs in zip(names, scales)]


def contrast(found, quantity: str):
    return next(c for c in found.contrasts if c.quantity == quantity)


def test_one_run_each_has_the_error_of_its_probes():
    found = compare(arms((1.0,), (1.5,)))
    assert found.single
    row = contrast(found, "trace")
    first, second = (arm.spectra[0] for arm in found.arms)
    expected = second.difference(first)
    assert (row.value, row.stderr, row.p_value) == (expected.value, expected.stderr, expected.p_value)
    assert (row.arm, row.against, row.basis, row.paired) == ("b", "a", "probes", True)
    ends = contrast(found, "lambda_max")
    assert (ends.stderr, ends.p_value) == (None, None)
    assert ends.lower < 0.5 * VALUES.max() < ends.upper
    loss = contrast(found, "loss")
    assert (loss.value, loss.stderr, loss.p_value) == (0.0, None, None)


def test_several_runs_are_compared_by_welch_with_the_error_of_the_probes_added():
    """Facts have no error of probes: there it is SciPy's own test."""
    losses = [1.0, 1.2, 1.1], [1.5, 1.9, 1.4, 1.6]
    made = [
        Arm(name, tuple(record(1 + 0.1 * loss, facts={"loss": loss}) for loss in runs))
        for name, runs in zip("ab", losses)
    ]
    found = compare(made)
    assert not found.single
    row = contrast(found, "loss")
    expected = stats.ttest_ind(losses[1], losses[0], equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert row.basis == "runs"
    assert row.p_value == pytest.approx(expected.pvalue)
    assert (row.lower, row.upper) == pytest.approx((interval.low, interval.high))
    trace = contrast(found, "trace")
    runs = [[s.trace().value for s in arm.spectra] for arm in made]
    spread = sqrt(sum(np.var(r, ddof=1) / len(r) for r in runs))
    probes = np.mean([b.difference(a).stderr for b in made[1].spectra for a in made[0].spectra])
    assert trace.stderr == pytest.approx(np.hypot(spread, probes))
    cell = next(c for c in found.cells if c.quantity == "trace" and c.arm == "b")
    assert cell.value == pytest.approx(np.mean(runs[1]))
    assert cell.spread == pytest.approx(np.std(runs[1], ddof=1))


def test_probes_that_all_runs_share_are_not_forgotten_where_the_runs_agree():
    """Equal runs have no spread, but what their probes leave open is there all the same."""
    found = compare(arms((1.0, 1.0), (1.5, 1.5)))
    row = contrast(found, "trace")
    first, second = found.arms[0].spectra[0], found.arms[1].spectra[0]
    assert row.stderr == pytest.approx(second.difference(first).stderr)
    assert row.p_value > 0


def test_a_single_run_against_several_has_no_error():
    row = contrast(compare(arms((1.0,), (1.1, 1.2))), "trace")
    assert (row.basis, row.stderr, row.p_value, row.note) == ("none", None, None, "an arm of one run has no spread")
    assert not isnan(row.value)


def test_counts_are_at_one_tolerance_in_every_run():
    found = compare(arms((1.0,), (2.0,), (4.0,), steps=40))
    tau = found.tolerances["rank_degeneracy"]
    for cell, arm in zip((c for c in found.cells if c.quantity == "rank_degeneracy"), found.arms):
        assert cell.runs[0].tau == tau
        assert cell.runs[0] == arm.spectra[0].rank_degeneracy(tau)
        assert cell.runs[0].resolved


def test_a_count_that_is_resolved_nowhere_is_no_number():
    line = Spectrum(probes_of(np.linspace(-1, 1, 150), 3, 4, 0), 150, seed=0)
    found = compare([Arm("a", (make_record(spectrum=line),)), Arm("b", (make_record(spectrum=line),))])
    assert found.tolerances == {"rank_degeneracy": None, "negative_mass": None}
    assert not [cell for cell in found.cells if cell.quantity == "rank_degeneracy"]


def test_the_distance_of_two_runs_is_theirs_and_of_several_the_mean_with_that_within_arms():
    a, b = record(), record(2.0)
    (gap,) = compare([Arm("a", (a,)), Arm("b", (b,))]).gaps
    assert gap.distance == spectral_distance(b.spectrum, a.spectrum)
    assert gap.within is None
    c = record(1.2)
    (gap,) = compare([Arm("a", (a, c)), Arm("b", (b,))]).gaps
    pairs = [spectral_distance(b.spectrum, other.spectrum).value for other in (a, c)]
    assert gap.distance.value == pytest.approx(np.mean(pairs))
    assert gap.within == pytest.approx(spectral_distance(a.spectrum, c.spectrum).value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": SETTINGS | {"data": "sha256:9"}}, "the data is not the same: sha256:0123, sha256:9"),
        ({"settings": SETTINGS | {"dtype": "float64"}}, "dtype"),
        ({"settings": SETTINGS | {"l2": 0.1}}, "l2 is not the same: 0.0, 0.1"),
        ({"settings": SETTINGS | {"lanczos_steps": 9}}, "the Lanczos steps is not the same"),
        ({"settings": SETTINGS | {"loss": "other"}}, "the loss is not the same"),
        ({"settings": SETTINGS | {"params": "fc"}}, "the choice of parameters"),
        ({"bn_mode": "train"}, "the batch-norm mode is not the same: eval, train"),
        ({"epoch": 4.0}, "the epochs are not the same: 3, 4; --epoch E compares at one"),
        ({"epoch": None}, "the epochs are not the same: 3, unknown"),
        (
            {"spectrum": Spectrum(probes_of(VALUES[:149], 20, 4, 0), 149, seed=0)},
            "parameters n is not the same: 150, 149",
        ),
    ],
)
def test_what_may_explain_a_difference_is_said_in_one_line(changes, words):
    plain = record(settings=SETTINGS)
    found = compare([Arm("a", (plain,)), Arm("b", (changed(plain, **changes),))])
    (warning,) = found.warnings
    assert words in warning
    assert "\n" not in warning
    assert not compare([Arm("a", (plain,)), Arm("b", (plain,))]).warnings


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: [Arm("a", (record(),))], "1 run or label to compare: at least 2 are needed"),
        (lambda: arms((1.0,), (1.0,), names="aa"), "label 'a' is given twice"),
        (lambda: [*arms((1.0,)), Arm("b", ())], "label 'b' has no runs"),
        (lambda: [*arms((1.0,)), Arm("b", (failed_record(3.0),))], "failed and cannot be compared: NaN weights"),
        (lambda: [*arms((1.0,)), Arm("b", (record(operator="ggn"),))], "operators hessian and ggn cannot be compared"),
        (
            lambda: [*arms((1.0,)), Arm("b", (record(settings=SETTINGS | {"reduction": "sum"}),))],
            "losses that are a mean and sum cannot be compared",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(made, words):
    with pytest.raises(ArgumentError, match=words):
        compare(made())


def test_json_is_strict_and_has_everything():
    found = compare(arms((1.0, 1.1), (1.5,), probes=1))
    entries = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(entries) == {"arms", "quantities", "differences", "distances", "tolerances", "warnings"}
    assert [arm["label"] for arm in entries["arms"]] == ["a", "b"]
    assert entries["distances"][0]["floor"] is None  # one probe
    assert entries["distances"][0]["above_floor"] is None
    trace = next(q for q in entries["quantities"] if q["quantity"] == "trace")
    assert len(trace["runs"]) == 2


def exact_trace(total: float, **changes) -> ExactTrace:
    return ExactTrace(total=total, by_layer={"w": total}, kind="hessian", certified={"w": True}, **changes)


def test_exact_traces_are_compared_without_an_error_of_probes():
    first, second = record(exact=exact_trace(30.0)), record(2.0, exact=exact_trace(61.0))
    row = contrast(compare([Arm("a", (first,)), Arm("b", (second,))]), "trace")
    assert (row.value, row.stderr, row.p_value, row.basis, row.exact) == (31.0, 0.0, None, "exact", True)
    norm = contrast(compare([Arm("a", (first,)), Arm("b", (second,))]), "frobenius_norm")
    assert (norm.basis, norm.exact, norm.paired) == ("probes", False, True)
    third, fourth = record(exact=exact_trace(32.0)), record(2.0, exact=exact_trace(65.0))
    row = contrast(compare([Arm("a", (first, third)), Arm("b", (second, fourth))]), "trace")
    assert (row.value, row.basis, row.exact) == (32.0, "runs", True)
    expected = stats.ttest_ind([61.0, 65.0], [30.0, 32.0], equal_var=False)  # nothing is added for probes
    assert row.p_value == pytest.approx(expected.pvalue)


def test_an_exact_trace_less_an_estimate_has_the_error_of_the_estimate():
    drawn = exact_trace(61.0, stderr=0.1, stderr_by_layer={"w": 0.1})
    first, second = record(exact=exact_trace(30.0)), record(2.0, exact=drawn)
    row = contrast(compare([Arm("a", (first,)), Arm("b", (second,))]), "trace")
    trace = second.estimates["trace"]
    assert (row.value, row.stderr) == (trace.value - 30.0, trace.stderr)
    assert (row.basis, row.exact, row.paired) == ("probes", False, False)


def test_the_json_of_a_comparison_says_what_is_exact():
    found = compare([Arm("a", (record(exact=exact_trace(30.0)),)), Arm("b", (record(2.0),))])
    entries = json.loads(json.dumps(found.to_json(), allow_nan=False))
    traces = {q["arm"]: q["runs"][0] for q in entries["quantities"] if q["quantity"] == "trace"}
    assert (traces["a"]["value"], traces["a"]["source"], traces["b"]["source"]) == (30.0, "exact", "probes")
