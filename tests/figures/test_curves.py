"""The curves of a spectrum as figures: the bounds that are drawn hold, and what is not known is said in words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from figure_parts import bars
from reference import bulk_with_outliers, probes_of, sphere_starts
from run_files import make_record

from spectra.errors import ArgumentError
from spectra.figures import curve_sheets, figures
from spectra.figures.curves import cumulative_grid, draw_cumulative, draw_degeneracy, draw_dimension
from spectra.figures.moments import moments_of
from spectra.figures.style import style
from spectra.results.trajectory import Trajectory
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

INDEFINITE = bulk_with_outliers(600)
# A null space, a bulk over decades, and outliers, as of a Gauss-Newton matrix.
SEMIDEFINITE = np.concatenate([np.zeros(500), np.logspace(-4, -1, 90), [1, 2, 3, 5, 8, 10, 12, 20, 30, 40.0]])
ZERO = Spectrum([Tridiagonal(np.zeros(1), np.zeros(1), exhausted=True)] * 2, 100, noise=1e-7)


def spectrum_of(eigenvalues, steps=30, num_probes=5, noise=1e-7):
    return Spectrum(probes_of(eigenvalues, steps, num_probes, 0), len(eigenvalues), noise=noise)


def band(collection) -> dict[str, np.ndarray]:
    """Of a filled band its corners: (x, y) pairs, the lower edge from left to right, and the upper one back."""
    (path,) = collection.get_paths()
    return path.vertices


def within(collection, x: float) -> tuple[float, float]:
    """The lower and upper edge of a staircase band at a point inside of one of its steps."""
    vertices = band(collection)
    ys = [
        a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0])
        for a, b in itertools.pairwise(vertices)
        if min(a[0], b[0]) < x < max(a[0], b[0])
    ]
    return min(ys), max(ys)


# --- counts over the tolerance ---------------------------------------------------------------------------------


def test_an_unresolved_part_of_the_degeneracy_curve_has_a_bracket_and_no_point(ax, spectrum):
    curve, norm = spectrum.degeneracy_curve(), spectrum.spectral_norm().value
    assert 0 < curve.resolved.sum() < len(curve)
    draw_degeneracy(ax, curve, norm, headline=spectrum.rank_degeneracy())
    value = ax.containers[0][0].get_ydata()
    np.testing.assert_array_equal(np.isfinite(value), curve.resolved)
    np.testing.assert_allclose(value[curve.resolved], curve.value[curve.resolved])
    ends = bars(ax.containers[0])
    np.testing.assert_allclose(
        ends[curve.resolved], np.transpose([curve.lower, curve.upper])[curve.resolved], rtol=1e-6
    )
    hatched = [patch for patch in ax.collections if patch.get_hatch()]
    assert len(hatched) == 1
    assert "not resolved" in str(hatched[0].get_label())
    assert ax.get_xscale() == "log"


def test_the_headline_is_marked_at_its_tolerance(ax, spectrum):
    headline, norm = spectrum.rank_degeneracy(), spectrum.spectral_norm().value
    draw_degeneracy(ax, spectrum.degeneracy_curve(), norm, headline=headline)
    (star,) = (line for line in ax.lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[headline.tau / norm, headline.value]]
    assert f"{headline.value:.3f}" in str(star.get_label())


def test_a_curve_that_is_nowhere_resolved_has_no_point_and_no_star(ax):
    eigenvalues = np.random.default_rng(0).normal(size=500)
    spectrum = Spectrum(probes_of(eigenvalues, 10, 4, 0), 500, noise=1e-7)
    assert spectrum.rank_degeneracy().resolved is False
    draw_degeneracy(ax, spectrum.degeneracy_curve(), 3.0, headline=spectrum.rank_degeneracy())
    assert not ax.lines
    assert len([patch for patch in ax.collections if patch.get_hatch()]) == 1


@pytest.mark.parametrize(
    ("eigenvalues", "noise", "words"), [(np.zeros(9), 1e-7, "every eigenvalue is 0"), (np.arange(9.0), 0.5, "noise")]
)
def test_where_no_tolerance_makes_sense_the_axes_say_so(ax, eigenvalues, noise, words):
    spectrum = Spectrum(probes_of(eigenvalues, 3, 2, 0), 9, noise=noise)
    draw_degeneracy(ax, spectrum.degeneracy_curve(), spectrum.spectral_norm().value)
    assert words in ax.texts[0].get_text()
    assert not ax.lines


# --- the distribution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eigenvalues", [INDEFINITE, SEMIDEFINITE], ids=["indefinite", "semidefinite"])
def test_the_measure_of_the_probes_lies_in_the_staircase_also_between_the_points_of_the_grid(ax, eigenvalues):
    """The dark band is rigorous: whatever the steps are, it holds the measure that the probes have."""
    spectrum = spectrum_of(eigenvalues)
    grid = cumulative_grid(spectrum, 25)
    found = spectrum.cumulative(grid)
    draw_cumulative(ax, found, spectrum)
    wide, narrow = ax.collections
    starts = sphere_starts(len(eigenvalues), 5, 0)
    steps = np.random.default_rng(0).integers(0, 24, 60)
    for i, share in zip(steps, np.random.default_rng(1).uniform(0.01, 0.99, 60)):
        x = float(grid[i] + share * (grid[i + 1] - grid[i]))
        assert within(wide, x) == pytest.approx((found.lower[i], found.upper[i + 1]))
        assert within(narrow, x) == pytest.approx((found.bracket_lower[i], found.bracket_upper[i + 1]))
        measure = float((starts[:, eigenvalues <= x] ** 2).sum(axis=1).mean())
        low, high = within(narrow, x)
        assert low - 1e-12 <= measure <= high + 1e-12


def test_the_bounds_of_the_probes_lie_within_those_with_their_error_and_around_the_value():
    spectrum = spectrum_of(INDEFINITE)
    found = spectrum.cumulative(cumulative_grid(spectrum))
    edges = [found.lower, found.bracket_lower, found.value, found.bracket_upper, found.upper]
    assert all((a <= b + 1e-12).all() for a, b in itertools.pairwise(edges))
    assert (found.upper - found.lower > found.bracket_upper - found.bracket_lower).any()


def test_the_ritz_mass_is_drawn_with_a_step_at_every_node(ax):
    spectrum = spectrum_of(INDEFINITE, 6, 2)
    draw_cumulative(ax, spectrum.cumulative(cumulative_grid(spectrum, 9)), spectrum)
    (line,) = ax.lines
    nodes = np.sort(spectrum.nodes.ravel())
    np.testing.assert_array_equal(line.get_xdata()[1:-1], nodes)
    np.testing.assert_allclose(line.get_ydata()[1:-1], spectrum.cdf(nodes))
    assert line.get_drawstyle() == "steps-post"
    assert (line.get_ydata()[0], line.get_ydata()[-1]) == (0.0, 1.0)


# --- the effective dimension --------------------------------------------------------------------------------------


def test_the_effective_dimension_is_drawn_with_bounds_that_hold(ax):
    spectrum = spectrum_of(SEMIDEFINITE)
    draw_dimension(ax, spectrum, label="eval")
    (line,) = ax.lines
    g, value = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (g.max() / g.min(), g.size) == (pytest.approx(1e7), 29)
    corners = band(ax.collections[0])
    for at, drawn in zip(g, value):
        estimate = spectrum.effective_dimension(float(at), semidefinite=True)
        truth = float((SEMIDEFINITE / (SEMIDEFINITE + at)).sum())
        assert drawn == estimate.value
        assert estimate.lower <= truth <= estimate.upper
        edges = corners[np.isclose(corners[:, 0], at, rtol=1e-9), 1]
        assert (edges.min(), edges.max()) == pytest.approx((estimate.lower, estimate.upper))


def test_a_single_probe_has_a_line_and_no_band(ax):
    draw_dimension(ax, spectrum_of(SEMIDEFINITE, num_probes=1), label="eval")
    assert np.isfinite(ax.lines[0].get_ydata()).all()
    assert not any(path.vertices.size for collection in ax.collections for path in collection.get_paths())


def test_where_g_is_within_the_noise_only_the_upper_bound_is_drawn_and_called_so(ax):
    draw_dimension(ax, spectrum_of(SEMIDEFINITE, noise=1e-4), label="eval")
    known, bound = (np.isfinite(line.get_ydata()) for line in ax.lines)
    assert (known ^ bound).all()
    assert bound.any()
    assert known.any()
    assert ax.lines[1].get_linestyle() == ":"
    assert "upper bound" in ax.lines[1].get_label()


@pytest.mark.parametrize(
    ("spectrum", "words"), [(ZERO, "every eigenvalue is 0"), (spectrum_of(INDEFINITE), "positive semidefinite")]
)
def test_a_curve_that_there_is_not_has_its_reason(ax, spectrum, words):
    draw_dimension(ax, spectrum, label="eval")
    assert not ax.lines
    assert words in " ".join(ax.texts[0].get_text().split())
    draw_dimension(ax, spectrum, label="train")
    first, second = (text.get_window_extent() for text in ax.texts)
    assert not first.overlaps(second)


# --- whole figures ------------------------------------------------------------------------------------------------


def of(spectrum, operator="ggn", mode="eval"):
    return make_record(0.0, operator, mode, spectrum=spectrum)


def test_the_negative_mass_has_a_panel_next_to_the_degeneracy():
    spectrum = spectrum_of(INDEFINITE)
    (moment,) = moments_of([of(spectrum, "hessian")], "hessian")
    with style():
        near, below = curve_sheets.negative_figure(moment).axes
    for axes, curve in ((near, spectrum.degeneracy_curve()), (below, spectrum.negative_curve())):
        points = np.asarray(axes.lines[0].get_ydata(), dtype=float)
        assert curve.resolved.any()
        np.testing.assert_array_equal(points[curve.resolved], curve.value[curve.resolved])
        assert np.isnan(points[~curve.resolved]).all()
    assert near.get_ylabel() != below.get_ylabel()


def test_an_own_list_of_tolerances_is_the_curve_at_these():
    spectrum = spectrum_of(INDEFINITE)
    curve = spectrum.negative_curve(np.array([0.1, 0.5]))
    assert curve.tau.tolist() == [0.5, 0.1]
    assert curve.value[1] == spectrum.negative_mass(0.1).value


def test_the_effective_dimension_is_planned_for_semidefinite_operators_only():
    run = Trajectory([of(spectrum_of(SEMIDEFINITE), name) for name in ("hessian", "ggn", "empirical_fisher")])
    names = [sheet.name for sheet in figures.plan(run, what=["dimension"])]
    assert names == ["dimension-ggn-epoch0", "dimension-empirical_fisher-epoch0"]
    with pytest.raises(ArgumentError, match=r"dimension needs a positive semidefinite matrix: .* --operator ggn"):
        figures.plan(Trajectory([of(spectrum_of(SEMIDEFINITE), "hessian")]), what=["dimension"])


@pytest.mark.parametrize(
    "spectrum",
    [
        ZERO,
        spectrum_of(SEMIDEFINITE, num_probes=1),
        spectrum_of(INDEFINITE, 1, 3),
        spectrum_of(np.full(50, 2.0), 5),
        spectrum_of(SEMIDEFINITE, noise=0.2),
    ],
    ids=["zero", "one probe", "one step", "a multiple of the identity", "noise"],
)
def test_extreme_spectra_are_drawn_within_their_figures(spectrum):
    kinds = ("stems", "cumulative", "negative", "dimension")
    for sheet in figures.plan(Trajectory([of(spectrum), of(spectrum, mode="recalibrated")]), what=kinds):
        with style():
            figure = sheet.draw()
            figure.canvas.draw()
        whole = figure.bbox.expanded(1.001, 1.001)
        for axes in figure.axes:
            box = axes.get_tightbbox()
            assert whole.x0 <= box.x0, sheet.name
            assert box.x1 <= whole.x1, sheet.name
            assert axes.bbox.height > 60, sheet.name  # room is left for the curve
