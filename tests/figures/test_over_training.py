"""Figures over training and of a comparison hold the numbers that they claim to hold."""

from __future__ import annotations

import numpy as np
import pytest
from figure_parts import caption, drawn
from matplotlib.collections import QuadMesh
from reference import bulk_with_outliers, lanczos, sphere_starts
from run_files import failed_record, make_record

from spectra.errors import ArgumentError
from spectra.figures import figures, over_training
from spectra.figures.compared import comparison_figure
from spectra.figures.moments import moments_of
from spectra.results.comparison import Arm
from spectra.results.record import Record
from spectra.results.trajectory import Trajectory
from spectra.spectrum.spectrum import Spectrum

STARTS = sphere_starts(200, 4, 0)
FACTS = {"loss": 1.0, "n_samples": 10, "n_parameters": 200}


def spectrum(scale: float) -> Spectrum:
    values = bulk_with_outliers(200, 0) * scale
    forms = STARTS**2 * values
    return Spectrum(
        [lanczos(values, start, 14) for start in STARTS],
        200,
        seed=0,
        noise=1e-9,
        tensor_sizes={"w": 150, "b": 50},
        tensor_forms=np.stack([forms[:, :150].sum(1), forms[:, 150:].sum(1)], axis=1),
    )


def record(epoch: float, mode: str = "eval", **changes) -> Record:
    scale = (1 + epoch) * (0.5 if mode == "train" else 1.0)
    return make_record(epoch, bn_mode=mode, **({"spectrum": spectrum(scale), "facts": FACTS} | changes))


@pytest.fixture(scope="module")
def moments():
    """Epochs 0, 1, 2, 4; at epoch 2 both modes failed."""
    records = [record(epoch, mode) for epoch in (0.0, 1.0, 4.0) for mode in ("eval", "train")]
    return moments_of(Trajectory([*records, failed_record(2.0), failed_record(2.0, bn_mode="train")]), "hessian")


def test_each_strip_of_the_density_is_that_checkpoints_and_a_failed_one_is_blank(moments):
    figure = drawn(over_training.density_over_training, moments)
    eval_axes = figure.axes[0]
    (mesh,) = (child for child in eval_axes.get_children() if isinstance(child, QuadMesh))
    strips = mesh.get_array()
    assert strips.shape[0] == 4
    assert strips.mask[2].all()
    assert not strips.mask[[0, 1, 3]].all(axis=1).any()
    edges = mesh.get_coordinates()[:, 0, 1]
    np.testing.assert_allclose(edges, [-0.5, 0.5, 1.5, 3.0, 5.0])
    # A point in the middle of the strip of epoch 4 has the density of epoch 4 under the common kernel.
    own = [m.complete[mode].spectrum for m in moments for mode in m.complete]
    common = max(s.density(view="asinh").linear_threshold for s in own)
    sigma = max(s.density(view="asinh").sigma for s in own)
    across = np.arcsinh(mesh.get_coordinates()[0, 1:-1, 0])
    column = strips.shape[1] // 2
    at = np.sinh((across[column - 1] + across[column]) / 2)
    near = spectrum(5.0).density(view="asinh", sigma=sigma, linear_threshold=common, grid=np.array([at, at + 1e-6]))
    assert strips[3, column] == pytest.approx(near.values[0], rel=0.05)
    assert "linear for" in caption(figure)
    assert "95 % over probes" in caption(figure)


def test_the_ends_of_the_spectrum_are_marked_at_their_epochs(moments):
    figure = drawn(over_training.density_over_training, moments)
    marks = {line.get_label(): line for line in figure.axes[0].lines}
    top = marks[r"$\lambda_{\max}$"]
    np.testing.assert_array_equal(top.get_ydata(), [0, 1, 2, 4])
    assert top.get_xdata()[3] == spectrum(5.0).lambda_max().value
    assert np.isnan(top.get_xdata()[2])


def test_degeneracy_is_drawn_with_the_mass_and_the_size_of_the_ritz_values_taken_as_zero(moments):
    figure = drawn(over_training.degeneracy_over_training, moments)
    left, right = figure.axes[:2]
    found = spectrum(1.0)
    lines = [container[0] for container in left.containers]
    by_first = [line.get_ydata()[0] for line in lines[:1]]
    assert by_first == [found.rank_degeneracy().value]
    masses = [line.get_ydata()[0] for line in lines if line.get_label() != "not resolved: bracket only"]
    assert found.closest(1).mass.value in masses
    values = [container[0].get_ydata()[0] for container in right.containers]
    norm = found.spectral_norm().value
    assert values == pytest.approx([found.closest(1).value.value / norm, found.closest(2).value.value / norm])
    assert "Granziol (2020)" in caption(figure)
    assert "depend on m" in caption(figure)


@pytest.mark.parametrize(
    ("facts", "l2", "heights"),
    [
        ({}, 0.0, []),
        ({"rank_bound_ff": 60}, 0.0, [0.7]),
        ({"rank_bound_ff": 60, "rank_bound_counting": 90}, 0.0, [0.7, 0.55]),
        ({"rank_bound_ff": 60, "rank_bound_counting": 90}, 0.1, [0.7]),  # with l2 they are at l2, not at 0
        ({"rank_bound_ff": 900, "rank_bound_counting": 200}, 0.0, []),  # says nothing
    ],
)
def test_bound_lines_are_drawn_where_they_say_something(facts, l2, heights):
    base = record(0.0)
    changes = {"facts": FACTS | facts, "settings": dict(base.settings) | {"l2": l2}}
    run = moments_of([record(epoch, **changes) for epoch in (0.0, 1.0)], "hessian")
    figure = drawn(over_training.degeneracy_over_training, run)
    labels = ("1 - rank formula / n", "at least, by counting")
    found = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_label() in labels]
    assert found == pytest.approx(heights)
    assert ("no bound" in caption(figure)) == (0.7 in heights)


def test_tensors_have_a_panel_each_in_the_order_of_the_network(moments):
    figure = drawn(over_training.layers_over_training, moments)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["w", "b"]
    line = figure.axes[1].containers[0][0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 4])
    assert line.get_ydata()[3] == spectrum(5.0).tensor_traces()["b"].value
    assert np.isnan(line.get_ydata()[2])


def test_what_the_mode_changes_has_the_error_of_shared_probes(moments):
    figure = drawn(over_training.modes_over_training, moments)
    trace = figure.axes[0]
    container = trace.containers[0]
    expected = spectrum(2.5).difference(spectrum(5.0))
    assert expected.paired
    assert container[0].get_ydata()[3] == pytest.approx(expected.value)
    (bars,) = container[2]
    ends = [segment[:, 1] for segment in bars.get_segments() if len(segment)]
    np.testing.assert_allclose(ends[-1], [expected.lower, expected.upper])
    assert "train mode less eval mode" in caption(figure)
    assert "paired" in caption(figure)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_any_number_of_checkpoints_is_drawn_or_said_to_be_too_few(count, recwarn):
    one = spectrum(1.0)
    run = Trajectory([record(float(e), mode, spectrum=one) for e in range(count) for mode in ("eval", "train")])
    names = ["density-training", "degeneracy-training", "layers-training", "modes-training"]
    if count == 1:
        for name in names:
            with pytest.raises(ArgumentError, match=f"{name} needs"):
                figures.plan(run, what=[name])
        return
    for sheet in figures.plan(run, what=names):
        drawn(sheet.draw)
    assert not recwarn.list


def test_arms_have_one_kernel_and_differ_in_colour_and_line():
    arms = [Arm("sgd", (record(0.0),)), Arm("adam", (record(4.0),))]
    figure = drawn(comparison_figure, arms)
    (ax,) = figure.axes
    first, second = ax.lines
    np.testing.assert_array_equal(first.get_xdata(), second.get_xdata())
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert "sgd, adam: loss Hessian, mean over data" in " ".join(figure.get_suptitle().split())
    assert "95 % over probes, pointwise" in caption(figure)


def test_runs_over_training_are_drawn_with_a_common_tolerance():
    runs = {
        "sgd": [Trajectory([record(0.0), record(1.0)])["hessian", "eval"]],
        "adam": [
            Trajectory([record(e, spectrum=spectrum(2 + e + seed)) for e in (0.0, 1.0)])["hessian", "eval"]
            for seed in (0, 1)
        ],
    }
    arms = [Arm(label, tuple(one.records[-1] for one in found)) for label, found in runs.items()]
    figure = drawn(comparison_figure, arms, runs)
    panels = {ax.get_ylabel(): ax for ax in figure.axes}
    trace = panels[r"trace $\mathrm{Tr}\,H$"]
    assert len(trace.lines) == 3
    np.testing.assert_array_equal(trace.lines[0].get_ydata(), runs["sgd"][0].trace.value)
    assert any(r"$\tau$ = " in name for name in panels)
    assert "from the least to the largest" in caption(figure)
    assert "adam (2 runs)" in [text.get_text() for text in figure.legends[0].get_texts()]
