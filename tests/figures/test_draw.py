"""What is drawn on axes is the numbers that were given, with their intervals, and nothing that is not known."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from figure_parts import bars
from matplotlib.collections import LineCollection
from reference import probes_of
from run_files import TENSORS, make_spectrum

from spectra.figures import draw
from spectra.figures.style import LOOKS, asinh_axis, literal
from spectra.results.values import Values
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum

# --- spectra ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["linear", "asinh"])
def test_a_density_is_drawn_as_it_is_with_its_band_on_a_log_axis(ax, spectrum, view):
    density = spectrum.density(view=view)
    draw.draw_density(ax, density, n=600, label="eval")
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), density.grid)
    np.testing.assert_array_equal(line.get_ydata(), density.values)
    (band,) = ax.collections
    drawn = band.get_paths()[0].vertices[:, 1]
    assert drawn.max() == pytest.approx(density.upper.max())
    assert drawn.min() == pytest.approx(density.lower.min(), abs=1e-300)
    assert ax.get_yscale() == "log"
    assert ax.get_xscale() == view
    assert "mass 1" in ax.get_ylabel()


def test_the_log_axis_reaches_far_enough_down_to_show_a_single_eigenvalue(ax, spectrum):
    density = spectrum.density()
    draw.draw_density(ax, density, n=600)
    bottom, top = ax.get_ylim()
    one = 1 / 600 / (density.sigma * np.sqrt(2 * np.pi))
    assert bottom < 0.1 * one
    assert bottom > 1e-11 * density.values.max()
    assert top > density.values.max()


def test_one_probe_has_no_band(ax):
    draw.draw_density(ax, Spectrum(probes_of(np.arange(50.0), 10, 1, 0), 50).density(), n=50)
    assert len(ax.lines) == 1
    assert not ax.collections


def test_a_second_density_widens_the_axes_and_keeps_the_first_in_view(ax):
    narrow, wide = (Spectrum(probes_of(factor * np.linspace(-1, 1, 60), 20, 3, 0), 60) for factor in (1, 10))
    for spectrum in (wide, narrow):
        draw.draw_density(ax, spectrum.density(), n=60)
    low, high = ax.get_xlim()
    assert low < -10
    assert high > 10
    assert ax.get_ylim()[1] > max(line.get_ydata().max() for line in ax.lines)


@pytest.mark.parametrize(
    ("threshold", "low", "high"),
    [(1e-3, -1.0, 30.0), (0.1, -0.5, 0.9), (3.0, -4.0, 4.0), (1e-12, 2.0, 8.0), (1, 0, 1e15)],
)
def test_asinh_ticks_are_true_and_inside_a_view_that_shows_some(ax, threshold, low, high):
    asinh_axis(ax, threshold, low, high)
    shown = [
        (x, label.get_text())
        for x, label in zip(ax.xaxis.get_major_locator()(), ax.xaxis.get_majorticklabels())
        if low <= x <= high
    ]
    assert 1 <= len(shown) <= 12
    for x, words in shown:
        plain = words.strip("$").replace("^{", "**").replace("}", "")
        base, _, power = plain.partition("**")
        number = np.sign(float(base)) * abs(float(base)) ** float(power or 1)
        assert number == pytest.approx(x)


def test_stems_are_every_ritz_value_with_its_weight(ax, spectrum):
    draw.draw_stems(ax, spectrum)
    drawn = sorted((x, y) for line in ax.lines for x, y in line.get_xydata())
    expected = sorted(zip(spectrum.nodes.ravel(), spectrum.weights.ravel()))
    np.testing.assert_allclose(drawn, expected)
    (stems,) = (c for c in ax.collections if isinstance(c, LineCollection))
    assert len(stems.get_segments()) == len(expected)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < spectrum.weights.min()


def test_stems_tell_converged_ritz_values_from_those_that_stand_for_many(ax):
    eigenvalues = np.concatenate([[10.0, 7.0, -5.0], np.random.default_rng(0).normal(0, 0.5, 500)])
    draw.draw_stems(ax, Spectrum(probes_of(eigenvalues, 25, 3, 0), 503))
    found = {str(line.get_label()): np.unique(np.asarray(line.get_xdata()).round(6)) for line in ax.lines}
    assert {10.0, 7.0, -5.0} <= set(found["converged"])
    assert np.abs(found["not converged"]).max() < 3
    assert found["not converged"].size > 20


# --- estimates ----------------------------------------------------------------------------------------------------


def series(value, lower, upper, resolved=None) -> Values:
    value, lower, upper = (np.array(column, dtype=float) for column in (value, lower, upper))
    given = np.isfinite(value) if resolved is None else np.array(resolved)
    return Values(value, np.full(value.size, nan), lower, upper, given)


def test_error_bars_of_a_series_are_the_intervals_and_gaps_stay_gaps(ax):
    values = series([1.0, nan, 3.0, 4.0], [0.5, nan, 2.9, nan], [2.0, nan, 3.3, nan])
    draw.draw_series(ax, np.arange(4.0), values, label="eval")
    (container,) = ax.containers
    np.testing.assert_array_equal(container[0].get_ydata(), [1.0, nan, 3.0, 4.0])
    ends = bars(container)
    np.testing.assert_allclose(ends[[0, 2]], [[0.5, 2.0], [2.9, 3.3]])
    assert not np.isfinite(ends[[1, 3]]).any()


def test_an_unresolved_value_is_an_open_bracket_and_never_a_point(ax):
    values = series([0.9, 0.6, 0.95], [0.89, 0.2, 0.94], [0.91, 1.0, 0.96], [True, False, True])
    draw.draw_series(ax, np.arange(3.0), values)
    line, bracket = ax.containers
    np.testing.assert_array_equal(line[0].get_ydata(), [0.9, nan, 0.95])
    assert bracket[0] is None
    np.testing.assert_allclose(bars(bracket), [[0.2, 1.0]])
    assert 0.6 not in np.concatenate([np.asarray(artist.get_ydata()) for artist in ax.lines])


def test_a_missing_bound_is_an_arrow_head(ax):
    draw.draw_series(ax, np.arange(2.0), series([5.0, 6.0], [4.9, 5.9], [nan, 6.1]))
    (arrow,) = (line for line in ax.lines if line.get_marker() == draw.CARETUPBASE)
    assert arrow.get_xydata().tolist() == [[0.0, 5.0]]
    np.testing.assert_allclose(bars(ax.containers[0]), [[4.9, 5.0], [5.9, 6.1]])


@pytest.mark.parametrize(
    ("value", "scale"), [([1.0, 100.0], "log"), ([1.0, 20.0], "linear"), ([-1.0, 100.0], "linear")]
)
def test_only_positive_values_over_a_wide_range_get_a_log_axis(ax, value, scale):
    draw.draw_series(ax, np.arange(2.0), series(value, value, value))
    assert ax.get_yscale() == scale


def test_tensor_traces_are_bars_with_their_intervals_in_the_order_of_the_network(ax):
    traces = make_spectrum().tensor_traces()
    draw.draw_tensors(ax, traces)
    error, container = ax.containers
    np.testing.assert_allclose([bar.get_width() for bar in container], [e.value for e in traces.values()])
    ends = [segment[:, 0] for segment in error[2][0].get_segments()]
    np.testing.assert_allclose(ends, [(e.lower, e.upper) for e in traces.values()])
    assert [label.get_text() for label in ax.get_yticklabels()] == list(TENSORS)
    assert ax.yaxis_inverted()


def test_rows_are_points_with_intervals_and_a_missing_estimate_is_no_point(ax):
    estimates = [Estimate(2.0, None, 1.5, 2.25, 4), None, Estimate(-1.0, None, None, -0.5, 4)]
    draw.draw_rows(ax, estimates, ["a", "b", "c"])
    np.testing.assert_array_equal(ax.containers[0][0].get_xdata(), [2.0, nan, -1.0])
    (arrow,) = (line for line in ax.lines if line.get_marker() == draw.CARETLEFTBASE)
    assert arrow.get_xdata().tolist() == [-1.0]


def test_the_looks_differ_in_colour_marker_and_line():
    for attribute in ("colour", "marker", "line"):
        assert len({getattr(look, attribute) for look in LOOKS.values()}) == len(LOOKS)


def test_a_dollar_sign_in_a_name_is_no_formula(ax):
    ax.set_title(literal("a $\\broken{ name$ of a task"))
    ax.figure.canvas.draw()
