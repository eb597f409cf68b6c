"""One huge interval leaves a figure readable, and what is cut off is marked; scales fit values over decades."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spectra.figures import draw
from spectra.figures.readable import Drawn, clip_intervals, plain_ticks
from spectra.figures.style import style
from spectra.results.values import Values

VALUES = np.array([4.0, 68.0, 66.0, 31.0, 27.0, 24.0, 16.0])
REACH = np.array([9.0, 25.0, 14.0, 11.0, 9.0, 7.0, 5.0])


@pytest.fixture
def ax():
    with style():
        figure = Figure(figsize=(5, 3))
        FigureCanvasAgg(figure)
        yield figure.subplots()


def values_of(value, reach, resolved=None) -> Values:
    value, reach = np.array(value, dtype=float), np.array(reach, dtype=float)
    known = np.isfinite(value) if resolved is None else np.array(resolved)
    return Values(value, np.full(value.size, nan), value - reach, value + reach, known)


def drawn_on(ax, value, reach) -> Drawn:
    return draw.draw_series(ax, np.arange(len(value), dtype=float), values_of(value, reach))


def triangles(ax) -> dict[str, list[float]]:
    """Marker -> where along the other axis."""
    found: dict[str, list[float]] = {}
    for line in ax.lines:
        if line.get_marker() in ("^", "v", "<", ">"):
            along = line.get_xdata() if line.get_marker() in "^v" else line.get_ydata()
            found.setdefault(line.get_marker(), []).extend(np.atleast_1d(along).tolist())
    return found


def test_one_huge_interval_does_not_flatten_the_rest_and_is_marked_at_both_edges(ax):
    reach = np.where(np.arange(7) == 3, 900.0, REACH)
    assert clip_intervals(ax, [drawn_on(ax, VALUES, reach)])
    low, high = ax.get_ylim()
    assert high - low < 200
    others = np.arange(7) != 3
    assert low < (VALUES - REACH)[others].min()
    assert high > (VALUES + REACH)[others].max()
    assert low < VALUES.min() < VALUES.max() < high
    marked = {marker: where for marker, where in triangles(ax).items() if where}
    assert marked == {"^": [3.0], "v": [3.0]}


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_that_is_huge_on_one_side_is_marked_on_that_side(ax, sign):
    values = values_of(VALUES, REACH)
    ends = values.upper if sign > 0 else values.lower
    ends[3] = sign * 5000.0
    draw.draw_series(ax, np.arange(7.0), values)
    assert clip_intervals(ax, [Drawn.of(np.arange(7.0), values, "black")])
    assert [marker for marker, where in triangles(ax).items() if where] == ["^" if sign > 0 else "v"]


@pytest.mark.parametrize(
    ("value", "reach"),
    [
        (VALUES, REACH),
        (VALUES, 10 * REACH),  # all are wide: that is what is known
        (VALUES, np.full(7, nan)),
        (VALUES, np.zeros(7)),  # exact
        ([5.0], [3.0]),
        ([nan, nan], [1.0, 1.0]),
        ([], []),
    ],
)
def test_an_axis_without_an_outlier_is_left_alone(ax, value, reach):
    part = drawn_on(ax, value, reach)
    before = ax.get_ylim()
    assert not clip_intervals(ax, [part])
    assert ax.get_ylim() == before
    assert not triangles(ax)


def test_nothing_drawn_is_nothing_clipped(ax):
    assert not clip_intervals(ax, [])


def test_of_two_intervals_the_huge_one_is_clipped_whichever_comes_first(ax):
    for reach in ([0.5, 400.0], [400.0, 0.5]):
        assert clip_intervals(ax, [drawn_on(ax, [1.0, 2.0], reach)])
        assert ax.get_ylim()[1] < 10


def test_points_stay_on_the_axis_however_far_they_are(ax):
    value = [1.0, 1.1, 1.2, 500.0]
    assert not clip_intervals(ax, [drawn_on(ax, value, [0.1, 0.1, 0.1, 300.0])])
    low, high = ax.get_ylim()
    assert low < 1.0
    assert high > 800.0


def test_on_a_logarithmic_axis_an_interval_that_reaches_zero_is_marked(ax):
    value = np.array([3000.0, 600.0, 66.0, 31.0, 5.0, 2.4, 1.6])
    reach = 0.3 * value
    reach[3] = 90.0
    part = drawn_on(ax, value, reach)
    assert ax.get_yscale() == "log"
    assert clip_intervals(ax, [part])
    assert {marker: where for marker, where in triangles(ax).items() if where} == {"v": [3.0]}
    low, high = ax.get_ylim()
    assert 0 < low < 0.7 * 1.6
    assert high > 1.3 * 3000.0


def test_horizontal_intervals_are_clipped_along_the_other_axis(ax):
    rows = np.arange(4.0)
    value, reach = np.array([1.0, 2.0, 3.0, 2.5]), np.array([0.1, 0.2, 80.0, 0.1])
    ax.barh(rows, value, xerr=reach)
    assert clip_intervals(ax, [Drawn(rows, value, value - reach, value + reach, "black")], along="x")
    assert ax.get_xlim()[1] < 10
    assert {marker: where for marker, where in triangles(ax).items() if where} == {">": [2.0], "<": [2.0]}


# --- scales -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reach", "scale"),
    [
        ([1.0, 10.0, 100.0], [0.1, 1.0, 10.0], "log"),
        ([1.0, 10.0, 20.0], [0.1, 1.0, 10.0], "linear"),
        ([1.0, 10.0, 100.0], [2.0, 20.0, 200.0], "symlog"),  # every interval reaches 0
        ([3000.0, 600.0, 66.0, -2.0, 24.0], [1.0] * 5, "symlog"),
        ([-500.0, -5.0, -3.0, -2.0], [1.0] * 4, "symlog"),
        ([-5.0, -0.8, -0.4, -0.1], [0.1] * 4, "linear"),
        ([0.0, 0.0], [0.0, 0.0], "linear"),
        ([], [], "linear"),
    ],
)
def test_the_scale_fits_the_points(ax, value, reach, scale):
    drawn_on(ax, value, reach)
    assert ax.get_yscale() == scale


def test_one_huge_interval_does_not_change_the_scale(ax):
    drawn_on(ax, VALUES, np.where(np.arange(7) == 3, 900.0, REACH))
    assert ax.get_yscale() == "linear"


def test_a_logarithmic_axis_of_few_decades_has_plain_numbers(ax):
    drawn_on(ax, [1.0, 10.0, 90.0], [0.1, 1.0, 9.0])
    plain_ticks(ax)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert {"1", "2", "5", "10", "20", "50"} <= set(labels)
    assert not any("times" in label for label in labels)


def test_a_logarithmic_axis_of_many_decades_and_a_linear_one_keep_their_ticks(ax):
    drawn_on(ax, [1.0, 10.0, 1e6], [0.1, 1.0, 9.0])
    before = ax.yaxis.get_major_locator()
    plain_ticks(ax)
    assert ax.yaxis.get_major_locator() is before
    ax.set_yscale("linear")
    before = ax.yaxis.get_major_locator()
    plain_ticks(ax)
    assert ax.yaxis.get_major_locator() is before


def test_an_exact_number_is_a_point_without_a_bar(ax):
    drawn_on(ax, [1.0, 2.0], [0.0, 0.5])
    (container,) = ax.containers
    exact, bar = container[2][0].get_segments()
    assert not np.isfinite(exact).any()
    np.testing.assert_allclose(bar[:, 1], [1.5, 2.5])
    np.testing.assert_array_equal(container[0].get_ydata(), [1.0, 2.0])
