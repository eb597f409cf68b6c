"""Figures hold the numbers that they claim to hold, and nothing that is not known."""

from __future__ import annotations

import io
import subprocess
import sys
from math import nan

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from reference import bulk_with_outliers, probes_of
from run_files import TENSORS, failed_record, make_record, make_spectrum

from spectra.errors import ArgumentError, StorageError
from spectra.figures import curves, draw, figures, frame, sheets
from spectra.figures.moments import axis_of, moments_of, values_over
from spectra.figures.style import LOOKS, asinh_axis, literal, style
from spectra.results.record import Record
from spectra.results.trajectory import Trajectory
from spectra.results.values import Values
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def ax():
    with style():
        figure = Figure()
        FigureCanvasAgg(figure)
        yield figure.subplots()


@pytest.fixture(scope="module")
def spectrum():
    return Spectrum(probes_of(bulk_with_outliers(600), 30, 5, 0), 600, noise=1e-7)


@pytest.fixture(scope="module")
def run():
    """Hessian and GGN in both modes over three epochs; of the Hessian, train mode fails at epoch 1."""
    records = [
        make_record(float(epoch), operator, mode)
        for epoch in range(3)
        for operator in ("hessian", "ggn")
        for mode in ("eval", "train")
        if (epoch, operator, mode) != (1, "hessian", "train")
    ]
    return Trajectory([*records, failed_record(1.0, bn_mode="train")], path="run.h5")


def bars(container) -> np.ndarray:
    """The ends of error bars, (T, 2)."""
    (segments,) = container[2]
    return np.array([[*segment[:, 1]] if len(segment) else [nan, nan] for segment in segments.get_segments()])


def texts(figure: Figure) -> str:
    return " ".join(f"{figure.get_suptitle()} {figure.get_supxlabel()}".split())


def finished(record_or_moments) -> Figure:
    with style():
        return record_or_moments()


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


def test_an_unresolved_part_of_the_degeneracy_curve_has_a_bracket_and_no_point(ax, spectrum):
    curve, norm = spectrum.degeneracy_curve(), spectrum.spectral_norm().value
    assert 0 < curve.resolved.sum() < len(curve)
    curves.draw_degeneracy(ax, curve, norm, headline=spectrum.rank_degeneracy())
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
    curves.draw_degeneracy(ax, spectrum.degeneracy_curve(), norm, headline=headline)
    (star,) = (line for line in ax.lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[headline.tau / norm, headline.value]]
    assert f"{headline.value:.3f}" in str(star.get_label())


def test_a_curve_that_is_nowhere_resolved_has_no_point_and_no_star(ax):
    eigenvalues = np.random.default_rng(0).normal(size=500)
    spectrum = Spectrum(probes_of(eigenvalues, 10, 4, 0), 500, noise=1e-7)
    assert spectrum.rank_degeneracy().resolved is False
    curves.draw_degeneracy(ax, spectrum.degeneracy_curve(), 3.0, headline=spectrum.rank_degeneracy())
    assert not ax.lines
    assert len([patch for patch in ax.collections if patch.get_hatch()]) == 1


@pytest.mark.parametrize(
    ("eigenvalues", "noise", "words"), [(np.zeros(9), 1e-7, "every eigenvalue is 0"), (np.arange(9.0), 0.5, "noise")]
)
def test_where_no_tolerance_makes_sense_the_axes_say_so(ax, eigenvalues, noise, words):
    spectrum = Spectrum(probes_of(eigenvalues, 3, 2, 0), 9, noise=noise)
    curves.draw_degeneracy(ax, spectrum.degeneracy_curve(), spectrum.spectral_norm().value)
    assert words in ax.texts[0].get_text()
    assert not ax.lines


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


# --- the checkpoints of a run -------------------------------------------------------------------------------------


def test_a_failed_or_missing_record_is_a_gap_in_the_values(run):
    moments = moments_of(run, "hessian")
    assert [moment.epoch for moment in moments] == [0, 1, 2]
    train = values_over(moments, "train", "trace")
    assert np.isfinite(train.value).tolist() == [True, False, True]
    assert train.resolved.tolist() == [True, False, True]
    expected = run["hessian", "eval"].trace
    found = values_over(moments, "eval", "trace")
    for name in ("value", "stderr", "lower", "upper"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(values_over(moments, "eval", "loss").value, [2.5, 1.25, 2.5 / 3])
    assert moments[1].gaps == ["train mode at epoch 1 failed: NaN weights"]


def test_records_of_one_checkpoint_are_together_and_of_two_apart():
    one = [make_record(1.0, bn_mode=mode, checkpoint=f"{mode}/a.pt") for mode in ("eval", "train")]
    other = make_record(1.0, checkpoint="b.pt", checkpoint_sha256="f" * 64)
    failed = failed_record(1.0, operator="hessian", bn_mode="train", checkpoint="b.pt", checkpoint_sha256=None)
    assert [len(moment.records) for moment in moments_of([*one, other, failed], "hessian")] == [2, 2]


def test_the_axis_is_epochs_then_steps_then_order():
    def of(*times):
        records = [
            make_record(checkpoint=f"{i}.pt", checkpoint_sha256=None, epoch=epoch, step=step)
            for i, (epoch, step) in enumerate(times)
        ]
        return axis_of(moments_of(records, "hessian"))

    position, words = of((0.0, 0), (2.0, 10))
    assert (position.tolist(), words) == ([0, 2], "epoch")
    position, words = of((1.0, 5), (1.0, 10))
    assert (position.tolist(), words) == ([5, 10], "step")
    position, words = of((None, None), (None, None))
    assert position.tolist() == [1, 2]
    assert "order" in words


# --- whole figures ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(run):
    """Every figure of the run, by its name."""
    with style():
        return {sheet.name: sheet.draw() for sheet in figures.plan(run)}


def test_all_that_the_records_allow_is_planned(drawn):
    per_epoch = {
        f"{kind}-{operator}-epoch{epoch}"
        for kind in ("density", "stems", "cumulative", "degeneracy", "negative", "dimension", "layers")
        for operator in ("hessian", "ggn")
        for epoch in range(3)
        if (kind, operator) != ("dimension", "hessian")  # it may be indefinite
    }
    modes = {"modes-hessian-epoch0", "modes-hessian-epoch2", *(f"modes-ggn-epoch{epoch}" for epoch in range(3))}
    kinds = [f"{kind}-training" for kind in ("density", "degeneracy", "layers", "modes")]
    run = {f"{kind}-{operator}" for kind in ("trajectory", *kinds) for operator in ("hessian", "ggn")}
    assert set(drawn) == per_epoch | modes | run


def test_every_axis_is_labelled_and_every_title_says_what_it_is(drawn):
    for name, figure in drawn.items():
        title = figure.get_suptitle()
        assert "digits-convnet" in title
        assert "mean over data" in title
        assert ("Hessian" if "hessian" in name else "Gauss-Newton") in title
        assert "m = 12 Lanczos steps" in title
        assert "k = 4 probes" in title
        assert ("epoch 0 to epoch 2" if not name[-1].isdigit() else f"epoch {name[-1]}") in title
        for axes in figure.axes:
            if axes.get_label() == "<colorbar>":
                assert axes.get_ylabel(), name
                continue
            outer_left = axes.get_subplotspec().is_first_col() or "degeneracy" not in name
            shared = name.split("-")[0] in ("stems", "cumulative") or name.split("-")[1] == "training"
            outer_bottom = axes.get_subplotspec().is_last_row() or not shared
            named_rows = any(label.get_text() for label in axes.get_yticklabels()) and not axes.get_ylabel()
            assert axes.get_ylabel() or named_rows or not outer_left, name
            assert axes.get_xlabel() or not outer_bottom, name
            brackets_alone, reason = "negative" in name and axes.collections, "dimension" in name and axes.texts
            assert axes.lines or axes.patches or brackets_alone or reason, name


def test_both_modes_share_kernel_and_axis_so_that_a_difference_is_one_of_the_spectra(run, drawn):
    spectra = [run["ggn", mode].spectrum(2.0) for mode in ("eval", "train")]
    linear, asinh = drawn["density-ggn-epoch2"].axes
    sigma = max(spectrum.density().sigma for spectrum in spectra)
    s = max(spectrum.density(view="asinh").linear_threshold for spectrum in spectra)
    for index, spectrum in enumerate(spectra):
        np.testing.assert_allclose(linear.lines[index].get_ydata(), spectrum.density(sigma=sigma).values)
        expected = spectrum.density(view="asinh", linear_threshold=s)
        np.testing.assert_allclose(asinh.lines[index].get_ydata(), expected.values)
    assert to_hex(linear.lines[0].get_color()) != to_hex(linear.lines[1].get_color())
    assert linear.lines[0].get_linestyle() != linear.lines[1].get_linestyle()


def test_the_trajectory_has_every_estimate_with_its_interval_and_says_what_the_bars_are(run, drawn):
    figure = drawn["trajectory-ggn"]
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert len(panels) == 8
    for name, words in sheets.PANELS.items():
        if name in ("loss", "accuracy"):
            continue
        for container, mode in zip(panels[words].containers, ("eval", "train")):
            values = run["ggn", mode].values(name)
            assert values.resolved.all()
            np.testing.assert_allclose(container[0].get_ydata(), values.value)
            np.testing.assert_allclose(bars(container), np.transpose([values.lower, values.upper]))
            np.testing.assert_allclose(container[0].get_xdata(), [0, 1, 2], atol=0.1)
    caption = texts(figure)
    assert "95 % over probes" in caption
    assert "errors of neighbouring points are correlated" in caption


def test_failures_are_gaps_that_the_figures_state(drawn):
    words = "train mode at epoch 1 failed: NaN weights"
    for name in ("trajectory-hessian", "density-hessian-epoch1", "stems-hessian-epoch1", "layers-hessian-epoch1"):
        assert words in texts(drawn[name])
    assert "Gaps" not in texts(drawn["trajectory-ggn"])
    trace = next(axes for axes in drawn["trajectory-hessian"].axes if "trace" in axes.get_ylabel())
    assert np.isfinite(trace.containers[1][0].get_ydata()).tolist() == [True, False, True]
    assert len(drawn["density-hessian-epoch1"].axes[0].lines) == 1


def test_an_unresolved_degeneracy_is_no_point_in_the_trajectory():
    eigenvalues = np.random.default_rng(0).normal(size=500)
    wide = Spectrum(probes_of(eigenvalues, 10, 4, 0), 500, noise=1e-7)
    figure = finished(
        lambda: sheets.trajectory_figure(moments_of([make_record(0.0, spectrum=wide), make_record(1.0)], "hessian"))
    )
    panel = next(axes for axes in figure.axes if "fraction" in axes.get_ylabel())
    line, bracket = panel.containers
    assert np.isfinite(line[0].get_ydata()).tolist() == [False, True]
    estimate = wide.rank_degeneracy()
    np.testing.assert_allclose(bars(bracket), [[estimate.lower, estimate.upper]])


def test_a_single_probe_is_said_to_have_no_band():
    record = make_record(spectrum=make_spectrum(num_probes=1))
    figure = finished(lambda: sheets.density_figure(moments_of([record], "hessian")[0]))
    assert "none (a single probe)" in texts(figure)
    assert "k = 1 probe;" in texts(figure)


def test_many_tensors_are_cut_to_the_largest_and_the_figure_says_so():
    rng = np.random.default_rng(0)
    forms = rng.normal(size=(3, 80)) * np.arange(80)
    spectrum = Spectrum(
        probes_of(np.arange(100.0), 5, 3, 0), 100, tensor_sizes={f"t{i}": 1 for i in range(80)}, tensor_forms=forms
    )
    figure = finished(lambda: sheets.layer_figure(moments_of([make_record(spectrum=spectrum)], "hessian")[0]))
    assert "The 30 with the largest traces of 80 are shown" in texts(figure)
    value = np.abs(forms.mean(axis=0))
    kept = {f"t{i}" for i in np.argsort(-value)[:30]}
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == kept


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.zeros(40),
        np.array([3.0]),
        np.append(np.zeros(99), 5.0),
        1e15 * np.append(1e-6 * np.linspace(-1, 1, 50), [1, -0.5]),
    ],
    ids=["zero", "one row", "rank one", "huge"],
)
def test_degenerate_spectra_are_drawn_without_a_warning(eigenvalues, recwarn):
    spectrum = Spectrum(probes_of(eigenvalues, 8, 3, 0), eigenvalues.size, noise=1e-7)
    records = [make_record(0.0, bn_mode=mode, spectrum=spectrum) for mode in ("eval", "train")]
    with style():
        for sheet in figures.plan(Trajectory(records), what=["density", "degeneracy", "modes"]):
            sheet.draw().canvas.draw()
    assert not [str(warning.message) for warning in recwarn]


# --- saving -------------------------------------------------------------------------------------------------------


def test_files_of_every_format_are_written_and_are_the_same_each_time(tmp_path):
    run = Trajectory([make_record(2.0)])
    written = [
        figures.save_figures(run, tmp_path / name, figures.FORMATS, what=["layers"]) for name in ("first", "second")
    ]
    assert [path.name for path in written[0]] == [f"layers-hessian-epoch2.{form}" for form in figures.FORMATS]
    starts = {"png": PNG, "pdf": b"%PDF", "svg": b"<?xml"}
    for first, second in zip(*written):
        assert first.read_bytes().startswith(starts[first.suffix[1:]])
        assert first.read_bytes() == second.read_bytes()
    assert sorted((tmp_path / "first").iterdir()) == sorted(written[0])


def test_the_settings_of_matplotlib_are_left_as_found_and_do_not_matter(tmp_path):
    run = Trajectory([make_record(2.0)])
    plain = figures.save_figures(run, tmp_path / "plain", what=["stems"])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        before = dict(matplotlib.rcParams)
        other = figures.save_figures(run, tmp_path / "other", what=["stems"])
        assert dict(matplotlib.rcParams) == before
    assert plain[0].read_bytes() == other[0].read_bytes()


def test_neither_pyplot_nor_torch_is_imported():
    code = "import sys, spectra.figures.figures; print([m for m in ('matplotlib.pyplot', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_default_epochs_are_the_first_the_middle_and_the_last_that_are_complete():
    records = [make_record(float(epoch)) for epoch in range(1, 7)]
    run = Trajectory([failed_record(0.0), *records, failed_record(7.0)])
    names = [sheet.name for sheet in figures.plan(run, what=["density"])]
    assert names == [f"density-hessian-epoch{epoch}" for epoch in (1, 4, 6)]
    names = [sheet.name for sheet in figures.plan(run, what=["density"], epochs=[2.0, 5.0])]
    assert names == ["density-hessian-epoch2", "density-hessian-epoch5"]


def test_checkpoints_without_an_epoch_have_names_of_their_own():
    records = [
        make_record(epoch=None, step=None, checkpoint=f"{name}/best.pt", checkpoint_sha256=name) for name in ("a", "b")
    ]
    names = [sheet.name for sheet in figures.plan(Trajectory(records), what=["density"])]
    assert names == ["density-hessian-best.pt", "density-hessian-best.pt_2"]


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        ([], {}, "nothing to draw: it has no records"),
        ([failed_record(1.0)], {}, "nothing to draw: all 1 records failed; the first: NaN weights"),
        ([make_record(1.0)], {"epochs": [3.0]}, "epoch=3: no record has it; there are 1"),
        ([make_record(1.0), failed_record(2.0)], {"epochs": [2.0]}, "epoch=2: nothing to draw: .* failed: NaN weights"),
        ([make_record(1.0)], {"what": ["trajectory"]}, "trajectory needs at least 2 complete checkpoints"),
        ([make_record(1.0)], {"what": ["density", "modes"]}, "modes needs batch norm in eval and in train mode"),
        ([make_record(spectrum=Spectrum(probes_of(np.ones(3), 2, 2, 0), 3))], {"what": ["layers"]}, "layers needs"),
        ([make_record(1.0)], {"what": ["pie"]}, "what='pie': one of density, "),
        ([make_record(1.0)], {"formats": ["bmp"]}, "format='bmp': one of png, pdf, svg is needed"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line_and_leaves_no_folder(tmp_path, records, options, words):
    with pytest.raises(ArgumentError, match=words) as caught:
        figures.save_figures(Trajectory(records), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path):
    run = Trajectory([make_record(1.0)])
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file"):
        figures.save_figures(run, tmp_path / "file")
    with pytest.raises(StorageError, match="does not exist; create it first"):
        figures.save_figures(run, tmp_path / "a" / "b")
    with pytest.raises(StorageError, match="cannot be made"):
        figures.save_figures(run, tmp_path / "file" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_nothing_half_written(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(StorageError, match="no space left on device"):
        figures.save_figures(Trajectory([make_record(1.0)]), tmp_path / "out", what=["stems"])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_into_an_old_folder_leaves_the_old_figure(tmp_path, monkeypatch):
    run: Trajectory = Trajectory([make_record(1.0)])
    (path,) = figures.save_figures(run, tmp_path, what=["stems"])
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError):
        figures.save_figures(run, tmp_path, what=["stems"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_record_without_settings_is_drawn_too():
    record = Record(operator="empirical_fisher", bn_mode="recalibrated", spectrum=make_spectrum())
    figure = finished(lambda: sheets.density_figure(moments_of([record], "empirical_fisher")[0]))
    assert figure.get_suptitle().startswith("empirical Fisher matrix, checkpoint 1")


def test_the_title_has_the_name_of_the_task_without_its_arguments():
    record = make_record(0, settings={"task": "mnist-lenet(data='/a/long/path', seed=0)"})
    title, _ = frame._heading(moments_of([record], "hessian"))
    assert title.startswith("mnist-lenet, ")
    assert "path" not in title


@pytest.mark.parametrize("forms", [("png",), ("pdf", "png", "svg"), ("png", "pdf", "png")])
def test_a_figure_is_the_picture_of_savefig_and_a_png_is_drawn_once(run, monkeypatch, forms):
    draws = []
    real = Figure.draw

    def counting(self, renderer):
        draws.append(renderer)
        return real(self, renderer)

    def by_savefig(figure, form):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, metadata={"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form))
        return buffer.getvalue()

    sheet = next(sheet for sheet in figures.plan(run) if sheet.kind == "density-training")
    with style(), matplotlib.rc_context({"svg.hashsalt": "same"}):
        expected, figure = sheet.draw(), sheet.draw()
        right = [by_savefig(expected, form) for form in forms]
        monkeypatch.setattr(Figure, "draw", counting)
        assert [figures.rendered(figure, form) for form in forms] == right
        assert figure.dpi == expected.dpi
    assert len(draws) == sum(1 if form == "png" else 2 for form in forms)


def test_the_dpi_of_the_figure_is_used_where_nothing_else_is_set():
    figure = Figure(layout="constrained", dpi=40)
    figure.add_subplot().plot([0, 1])
    with matplotlib.rc_context({"savefig.dpi": "figure"}):
        picture = matplotlib.image.imread(io.BytesIO(figures.rendered(figure, "png")))
    assert picture.shape[:2] == tuple(int(40 * side) for side in reversed(figure.get_size_inches()))
