"""The figure of slices: what is in its panels, also where a loss is not finite or there are no kinks."""

from __future__ import annotations

import numpy as np

from spectra.figures.slices import draw_slices, slices_png
from spectra.figures.style import style
from spectra.results.slices import CriticalSharpness, Kinks, Line, Slice, Slices

STEPS = np.linspace(-1, 1, 9)
RADII = 2.0 ** -np.arange(9)


def made(losses=None, pairs=50, critical=None, name="gradient"):
    line = Line(name, "distance", 1.0, 1.0, -0.5, 1.0)
    kinks = Kinks(pairs, RADII, 0.1 * RADII * bool(pairs), 1 + 0.2 * RADII, 1e-14 / RADII**2)
    losses = line.parabola(STEPS) + STEPS**3 / 9 if losses is None else losses
    return Slice(line, "eval", STEPS, losses, "as given", 0.3, 0.4, 1e-16, kinks, critical)


def panels(*slices):
    with style():
        return draw_slices(Slices({"checkpoint": "a$b.pt", "task": "t", "epoch": 3.0}, slices)).axes


def labels(ax):
    return ax.get_legend_handles_labels()[1]


def test_a_row_has_the_loss_the_curvature_and_the_switches():
    critical = CriticalSharpness(1.9, 2.0, 9, "the loss")  # at t = 0.5 * 1.95
    left, middle, right = panels(made(critical=critical))
    assert labels(left) == ["parabola", "loss", "critical step"]
    assert labels(middle) == ["autograd", "differences of losses"]
    assert np.allclose(right.lines[0].get_ydata(), 10 * RADII)
    step = left.lines[-1].get_xdata()
    assert np.allclose(step, 0.975)


def test_losses_that_are_not_finite_are_marked_and_the_axis_is_that_of_the_others():
    losses = np.where(np.abs(STEPS) > 0.8, np.inf, 1 + STEPS**2)
    left = panels(made(losses))[0]
    assert "not finite" in labels(left)
    marks = next(line for line in left.lines if line.get_label() == "not finite")
    assert list(marks.get_xdata()) == [-1.0, 1.0]
    assert np.isfinite(left.get_ylim()).all()
    assert marks.get_ydata()[0] < left.get_ylim()[1] < 3


def test_without_kinks_the_panel_says_so():
    right = panels(made(pairs=0), made())[2]
    assert [text.get_text() for text in right.texts] == ["no piecewise-linear function"]


def test_a_network_without_kinks_has_no_panels_of_them():
    figure = draw_slices(Slices({"checkpoint": "a.pt"}, (made(pairs=0), made(pairs=0))))
    assert len(figure.axes) == 4
    assert "there are no kinks" in " ".join(figure.get_supxlabel().split())


def test_the_file_is_a_png():
    assert slices_png(Slices({"checkpoint": "a.pt"}, (made(),))).startswith(b"\x89PNG")
