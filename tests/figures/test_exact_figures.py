"""Figures show the exact traces where they are known: points without bars, diamonds over the bars of the estimates."""

from __future__ import annotations

import numpy as np
import pytest
from figure_parts import caption, drawn
from run_files import make_record

from spectra.figures import draw, over_training, sheets
from spectra.figures.compared import comparison_figure
from spectra.figures.moments import moments_of
from spectra.results.comparison import Arm
from spectra.results.exact_trace import ExactTrace
from spectra.results.trajectory import Trajectory

LAYERS = {"conv.weight": 20.0, "conv.bias": 1.5, "fc.weight": 10.0}


def exact_trace(factor: float = 1.0, kind: str = "hessian", **changes) -> ExactTrace:
    layers = {name: factor * value for name, value in LAYERS.items()}
    certified = dict.fromkeys(layers, True) if kind == "hessian" else {"fc.weight": True}
    return ExactTrace(total=31.5 * factor, by_layer=layers, kind=kind, certified=certified, **changes)


def run(**changes) -> Trajectory:
    """Epochs 0, 1, 2 in eval mode, of which 0 and 1 have an exact trace, and in train mode, which has none."""
    exact = [exact_trace(1.0, **changes), exact_trace(2.0, **changes), None]
    records = [make_record(float(epoch), exact=e) for epoch, e in enumerate(exact)]
    return Trajectory([*records, *(make_record(float(epoch), bn_mode="train") for epoch in range(3))])


@pytest.fixture(scope="module")
def trajectory():
    return run()


def segments(container) -> list[np.ndarray]:
    return container[2][0].get_segments()


def test_the_trajectory_has_exact_traces_as_points_without_bars(trajectory):
    figure = drawn(sheets.trajectory_figure, moments_of(trajectory, "hessian"))
    panel = next(ax for ax in figure.axes if ax.get_ylabel() == sheets.PANELS["trace"])
    eval_mode, train = panel.containers
    estimate = trajectory["hessian", "eval"].records[2].estimates["trace"]
    np.testing.assert_allclose(eval_mode[0].get_ydata(), [31.5, 63.0, estimate.value])
    bars = segments(eval_mode)
    assert not np.isfinite(bars[0]).any()
    assert not np.isfinite(bars[1]).any()
    np.testing.assert_allclose(bars[2][:, 1], [estimate.lower, estimate.upper])
    np.testing.assert_allclose(train[0].get_ydata(), trajectory["hessian", "train"].trace.value)
    assert "A trace without a bar is exact." in caption(figure)


@pytest.mark.parametrize("changes", [{"stderr": 0.1, "stderr_by_layer": dict.fromkeys(LAYERS, 0.1)}, {"kind": "ggn"}])
def test_a_trace_that_is_drawn_at_random_or_of_another_matrix_is_no_point(changes):
    other = run(**changes)
    figure = drawn(sheets.trajectory_figure, moments_of(other, "hessian"))
    panel = next(ax for ax in figure.axes if ax.get_ylabel() == sheets.PANELS["trace"])
    np.testing.assert_allclose(panel.containers[0][0].get_ydata(), other["hessian", "eval"].trace.value)
    assert "exact" not in caption(figure)


@pytest.mark.parametrize(("kind", "names"), [("hessian", list(LAYERS)), ("ggn", ["fc.weight"])])
def test_exact_traces_of_tensors_are_diamonds_over_the_bars_of_the_estimates(kind, names):
    records = [make_record(0.0, exact=exact_trace(kind=kind)), make_record(0.0, bn_mode="train")]
    figure = drawn(sheets.layer_figure, moments_of(records, "hessian")[0])
    (ax,) = figure.axes
    bars = [c for c in ax.containers if hasattr(c, "patches")]
    estimates = [trace.value for trace in records[0].spectrum.tensor_traces().values()]
    np.testing.assert_allclose([bar.get_width() for bar in bars[0]], estimates)  # the bars stay the estimates
    (diamonds,) = [line for line in ax.lines if line.get_label() == draw.EXACT_TRACE]
    shown = dict(zip(LAYERS, diamonds.get_xdata()))
    assert {name: x for name, x in shown.items() if np.isfinite(x)} == {name: LAYERS[name] for name in names}
    low, high = ax.get_xlim()
    assert low <= 0
    assert high > max(LAYERS[name] for name in names)
    assert "Diamonds: exact traces." in caption(figure)
    centres = [bar.get_y() + bar.get_height() / 2 for bar in bars[0]]
    np.testing.assert_allclose(diamonds.get_ydata(), centres)  # over the bar of the same mode


def test_without_exact_traces_there_are_no_diamonds():
    figure = drawn(sheets.layer_figure, moments_of([make_record(0.0)], "hessian")[0])
    assert not [line for line in figure.axes[0].lines if line.get_label() == draw.EXACT_TRACE]
    assert "exact" not in caption(figure)


def test_the_largest_tensors_are_chosen_by_their_exact_traces(monkeypatch):
    monkeypatch.setattr(sheets, "_MOST_TENSORS", 1)
    layers = {"conv.weight": 1e-6, "conv.bias": 1e6, "fc.weight": 0.0}
    exact = ExactTrace(total=1e6, by_layer=layers, kind="hessian", certified=dict.fromkeys(layers, True))
    figure = drawn(sheets.layer_figure, moments_of([make_record(0.0, exact=exact)], "hessian")[0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["conv.bias"]


def test_the_tensors_over_training_are_exact_where_known(trajectory):
    figure = drawn(over_training.layers_over_training, moments_of(trajectory, "hessian"))
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left") == "fc.weight")
    estimate = trajectory[2].spectrum.tensor_traces()["fc.weight"]
    np.testing.assert_allclose(panel.containers[0][0].get_ydata(), [10.0, 20.0, estimate.value])
    assert "A trace without a bar is exact." in caption(figure)


def test_the_modes_side_by_side_show_the_exact_trace(trajectory):
    moment = moments_of(trajectory, "hessian")[0]
    figure = drawn(sheets.mode_figure, moment)
    eval_mode, train = figure.axes[1].containers
    assert eval_mode[0].get_xdata()[0] == 31.5
    assert train[0].get_xdata()[0] == moment.records["train"].estimates["trace"].value
    assert "A trace without a bar is exact." in caption(figure)


def test_what_the_mode_changes_has_the_error_of_the_estimate_where_the_other_is_exact(trajectory):
    figure = drawn(over_training.modes_over_training, moments_of(trajectory, "hessian"))
    panel = next(ax for ax in figure.axes if "Tr" in ax.get_ylabel())
    traces = [record.estimates["trace"] for record in trajectory["hessian", "train"]]
    heights = panel.containers[0][0].get_ydata()
    np.testing.assert_allclose(heights[:2], [traces[0].value - 31.5, traces[1].value - 63.0])
    np.testing.assert_allclose(segments(panel.containers[0])[0][:, 1], [traces[0].lower - 31.5, traces[0].upper - 31.5])
    assert "Where the trace of one mode is exact" in caption(figure)


def test_runs_over_training_are_compared_by_their_exact_traces(trajectory):
    series = trajectory["hessian", "eval"]
    arms = [Arm(name, (series.records[1],)) for name in "ab"]
    figure = drawn(comparison_figure, arms, {"a": [series], "b": [series]})
    panel = next(ax for ax in figure.axes if ax.get_ylabel() == sheets.PANELS["trace"])
    np.testing.assert_allclose(panel.lines[0].get_ydata(), series.headline("trace").value)


def test_one_huge_interval_is_clipped_in_the_trajectory_and_the_caption_says_so():
    from dataclasses import replace

    records = [make_record(float(epoch)) for epoch in range(5)]
    estimates = dict(records[2].estimates)
    estimates["trace"] = replace(estimates["trace"], lower=-1e6, upper=1e6)
    huge = [*records[:2], replace(records[2], cached_estimates=estimates), *records[3:]]
    for given, clipped in ((records, False), (huge, True)):
        figure = drawn(sheets.trajectory_figure, moments_of(Trajectory(given), "hessian"))
        panel = next(ax for ax in figure.axes if ax.get_ylabel() == sheets.PANELS["trace"])
        assert max(map(abs, panel.get_ylim())) < 1e4
        assert ("A triangle at the edge of a panel" in caption(figure)) == clipped
