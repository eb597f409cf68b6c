"""Whole figures hold the numbers that they claim to hold, and say in words what the bars are and what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from figure_parts import bars, drawn, texts
from matplotlib.colors import to_hex
from reference import probes_of
from run_files import make_record, make_spectrum

from spectra.figures import figures, frame, sheets
from spectra.figures.moments import moments_of
from spectra.figures.style import style
from spectra.results.record import Record
from spectra.results.trajectory import Trajectory
from spectra.spectrum.spectrum import Spectrum


@pytest.fixture(scope="module")
def figure_of(run):
    """Every figure of the run, by its name."""
    with style():
        return {sheet.name: sheet.draw() for sheet in figures.plan(run)}


def test_all_that_the_records_allow_is_planned(figure_of):
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
    assert set(figure_of) == per_epoch | modes | run


def test_every_axis_is_labelled_and_every_title_says_what_it_is(figure_of):
    for name, figure in figure_of.items():
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


def test_both_modes_share_kernel_and_axis_so_that_a_difference_is_one_of_the_spectra(run, figure_of):
    spectra = [run["ggn", mode].spectrum(2.0) for mode in ("eval", "train")]
    linear, asinh = figure_of["density-ggn-epoch2"].axes
    sigma = max(spectrum.density().sigma for spectrum in spectra)
    s = max(spectrum.density(view="asinh").linear_threshold for spectrum in spectra)
    for index, spectrum in enumerate(spectra):
        np.testing.assert_allclose(linear.lines[index].get_ydata(), spectrum.density(sigma=sigma).values)
        expected = spectrum.density(view="asinh", linear_threshold=s)
        np.testing.assert_allclose(asinh.lines[index].get_ydata(), expected.values)
    assert to_hex(linear.lines[0].get_color()) != to_hex(linear.lines[1].get_color())
    assert linear.lines[0].get_linestyle() != linear.lines[1].get_linestyle()


def test_the_trajectory_has_every_estimate_with_its_interval_and_says_what_the_bars_are(run, figure_of):
    figure = figure_of["trajectory-ggn"]
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


def test_failures_are_gaps_that_the_figures_state(figure_of):
    words = "train mode at epoch 1 failed: NaN weights"
    for name in ("trajectory-hessian", "density-hessian-epoch1", "stems-hessian-epoch1", "layers-hessian-epoch1"):
        assert words in texts(figure_of[name])
    assert "Gaps" not in texts(figure_of["trajectory-ggn"])
    trace = next(axes for axes in figure_of["trajectory-hessian"].axes if "trace" in axes.get_ylabel())
    assert np.isfinite(trace.containers[1][0].get_ydata()).tolist() == [True, False, True]
    assert len(figure_of["density-hessian-epoch1"].axes[0].lines) == 1


def test_an_unresolved_degeneracy_is_no_point_in_the_trajectory():
    eigenvalues = np.random.default_rng(0).normal(size=500)
    wide = Spectrum(probes_of(eigenvalues, 10, 4, 0), 500, noise=1e-7)
    figure = drawn(sheets.trajectory_figure, moments_of([make_record(0.0, spectrum=wide), make_record(1.0)], "hessian"))
    panel = next(axes for axes in figure.axes if "fraction" in axes.get_ylabel())
    line, bracket = panel.containers
    assert np.isfinite(line[0].get_ydata()).tolist() == [False, True]
    estimate = wide.rank_degeneracy()
    np.testing.assert_allclose(bars(bracket), [[estimate.lower, estimate.upper]])


def test_a_single_probe_is_said_to_have_no_band():
    record = make_record(spectrum=make_spectrum(num_probes=1))
    figure = drawn(sheets.density_figure, moments_of([record], "hessian")[0])
    assert "none (a single probe)" in texts(figure)
    assert "k = 1 probe;" in texts(figure)


def test_many_tensors_are_cut_to_the_largest_and_the_figure_says_so():
    rng = np.random.default_rng(0)
    forms = rng.normal(size=(3, 80)) * np.arange(80)
    spectrum = Spectrum(
        probes_of(np.arange(100.0), 5, 3, 0), 100, tensor_sizes={f"t{i}": 1 for i in range(80)}, tensor_forms=forms
    )
    figure = drawn(sheets.layer_figure, moments_of([make_record(spectrum=spectrum)], "hessian")[0])
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


def test_a_record_without_settings_is_drawn_too():
    record = Record(operator="empirical_fisher", bn_mode="recalibrated", spectrum=make_spectrum())
    figure = drawn(sheets.density_figure, moments_of([record], "empirical_fisher")[0])
    assert figure.get_suptitle().startswith("empirical Fisher matrix, checkpoint 1")


def test_the_title_has_the_name_of_the_task_without_its_arguments():
    record = make_record(0, settings={"task": "mnist-lenet(data='/a/long/path', seed=0)"})
    title, _ = frame._heading(moments_of([record], "hessian"))
    assert title.startswith("mnist-lenet, ")
    assert "path" not in title
