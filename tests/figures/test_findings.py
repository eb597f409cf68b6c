"""The figures of the cross-check and of sharpness hold the numbers that they are said to hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from run_files import make_record
from scipy.special import stdtrit

from spectra.errors import ArgumentError
from spectra.figures import figures, findings
from spectra.figures.style import style
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure, not_measured
from spectra.results.trace_checks import compare
from spectra.results.trajectory import Trajectory


@pytest.fixture
def axes():
    with style():
        figure = Figure()
        FigureCanvasAgg(figure)
        yield figure.subplots(1, 2)


def drawn(records, kind: str) -> list[Figure]:
    with style():
        made = [sheet.draw() for sheet in figures.plan(Trajectory(records), what=[kind])]
        for figure in made:
            figure.canvas.draw()
    return made


# --- the cross-check ----------------------------------------------------------------------------------------------


def checks_of(spread: float, *exact: float):
    samples = np.array([4.0, 6.0, 5.0, 5.5, 4.5]) - 5
    return tuple(
        compare(f"trace of layer{i}.weight", 5 + spread * samples, value, level=0.01) for i, value in enumerate(exact)
    )


def test_the_grey_band_ends_where_a_comparison_fails():
    (check,) = checks_of(0.1, 5.0)
    assert check.critical == pytest.approx(float(stdtrit(4, 0.995)), rel=1e-9)
    exact = dataclasses.replace(check, error=0.0, detectable=0.0)
    assert np.isnan(exact.critical)


def test_a_failed_comparison_stands_out_beyond_its_band_and_none_is_lost(axes):
    checks = checks_of(0.1, 5.0, 9.0, 5.01)
    assert [check.failed for check in checks] == [False, True, False]
    left, right = axes
    findings.draw_checks(left, right, checks, "hessian")
    shown = {line.get_label(): line for line in left.lines if not line.get_label().startswith("_")}
    assert set(shown) == {"agrees", "disagrees"}
    assert shown["disagrees"].get_marker() != shown["agrees"].get_marker()
    assert shown["disagrees"].get_markersize() > shown["agrees"].get_markersize()
    assert list(shown["disagrees"].get_ydata()) == [1]
    assert abs(shown["disagrees"].get_xdata()[0]) > checks[1].critical
    assert list(shown["agrees"].get_xdata()) == [checks[0].z, checks[2].z]
    noticed = {int(y): float(x) for line in right.lines[:2] for x, y in zip(line.get_xdata(), line.get_ydata())}
    assert noticed == {row: check.detectable / check.exact for row, check in enumerate(checks)}


def test_an_infinite_z_is_drawn_at_the_end_of_the_axis(axes):
    check = compare("trace", np.full(3, 5.0), 4.0)
    assert np.isinf(check.z)
    findings.draw_checks(*axes, [check], "hessian")
    assert axes[0].get_xlim()[0] < axes[0].lines[0].get_xdata()[0] < axes[0].get_xlim()[1]


def test_checks_that_are_all_inconclusive_are_not_drawn():
    vague, clear = checks_of(50.0, 5.0, 6.0), checks_of(0.1, 5.0)
    record = make_record(0.0, checks=vague)
    assert "checks" not in {sheet.kind for sheet in figures.plan(Trajectory([record]))}
    with pytest.raises(ArgumentError, match=r"checks needs comparisons of traces .* that are not all inconclusive"):
        figures.plan(Trajectory([record]), what=["checks"])
    (figure,) = drawn([record, make_record(0.0, bn_mode="train", checks=clear)], "checks")
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")] == ["batch norm in train mode"]


@pytest.mark.parametrize("k", [2, 3])
def test_checks_of_two_or_three_probes_that_are_mostly_inconclusive_are_not_drawn(k):
    samples = 5 + 3 * np.linspace(-1, 1, k)
    vague = tuple(compare(f"trace of layer{i}", samples, 5.0 + i) for i in range(3))
    agrees = compare("trace", 5 + 1e-6 * (samples - 5), 5.0)
    assert [check.verdict for check in (*vague, agrees)] == ["inconclusive"] * 3 + ["agrees"]
    assert not [s for s in figures.plan(Trajectory([make_record(checks=(*vague, agrees))])) if s.kind == "checks"]
    failed = compare("trace", np.full(k, 5.0), 4.0)
    (figure,) = drawn([make_record(checks=(*vague, failed))], "checks")
    assert len(figure.axes[0].get_yticklabels()) == 4


def test_a_monte_carlo_trace_is_not_called_exact_in_the_figure():
    exact = ExactTrace(total=5.0, by_layer={"fc": 5.0}, kind="hessian", stderr=0.1, stderr_by_layer={"fc": 0.1})
    for record, words in ((make_record(exact=exact), "a Monte-Carlo trace"), (make_record(), "exact ones")):
        (figure,) = drawn([dataclasses.replace(record, checks=checks_of(0.1, 5.0))], "checks")
        assert words in " ".join(figure.get_supxlabel().split())
        assert "exact value" not in figure.axes[1].get_xlabel()


def test_of_many_comparisons_the_failed_ones_are_kept_and_the_rest_is_counted():
    checks = checks_of(0.1, *np.full(50, 5.0), 9.0)
    (figure,) = drawn([make_record(0.0, checks=checks)], "checks")
    assert "layer50.weight" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "without 11 others" in " ".join(figure.get_supxlabel().split())


# --- sharpness ----------------------------------------------------------------------------------------------------


def test_sharpness_over_training_has_a_panel_per_measure_and_gaps_where_there_is_none():
    values = {0.0: 3.0, 1.0: None, 2.0: 5.0}
    records = [
        make_record(
            epoch,
            sharpness={
                "minimum_sharpness": not_measured("no", form="f") if value is None else Measure(value=value, form="f"),
                "adaptive_sharpness": Measure(value=1.0 + epoch, form="f", stderr=0.1),
                "once": Measure(value=1.0, form="f") if epoch == 1 else not_measured("no", form="f"),
            },
        )
        for epoch, value in values.items()
    ]
    (figure,) = drawn(records, "sharpness")
    panels = {ax.get_ylabel(): ax for ax in figure.axes}
    assert set(panels) == {"minimum sharpness", "adaptive sharpness"}
    np.testing.assert_array_equal(panels["minimum sharpness"].lines[0].get_ydata(), [3.0, np.nan, 5.0])
    ((segments,),) = [panels["adaptive sharpness"].containers[0][2]]
    ends = np.array([segment[:, 1] for segment in segments.get_segments()])
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * 1.96 * 0.1)
    with pytest.raises(ArgumentError, match="sharpness measure at no less than 2"):
        figures.plan(Trajectory(records[:1]), what=["sharpness"])


@pytest.mark.parametrize("spread", [0.0, 50.0])
def test_extreme_comparisons_are_drawn_without_a_warning(spread, recwarn):
    agrees = compare("trace", np.array([5.0, 5.0]), 5.0)
    drawn([make_record(0.0, checks=(*checks_of(spread, 5.0, 0.0), dataclasses.replace(agrees, dof=7)))], "checks")
    assert not [str(warning.message) for warning in recwarn]
