"""The edge of stability in the trajectory figure."""

from __future__ import annotations

import dataclasses

import numpy as np
from figure_parts import drawn, texts
from run_files import make_record

from spectra.figures import sheets
from spectra.figures.edges import LABEL
from spectra.figures.moments import moments_of
from spectra.results.optimizer import OptimizerSettings


def _figure(rates):
    records = []
    for epoch, rate in enumerate(rates):
        optimizer = None if rate is None else OptimizerSettings("sgd", ({"lr": rate},))
        records.append(dataclasses.replace(make_record(float(epoch)), optimizer=optimizer))
    return drawn(sheets.trajectory_figure, moments_of(records, "hessian"))


def test_the_edge_of_every_checkpoint_is_a_line_in_the_panel_of_the_largest_eigenvalue():
    figure = _figure([0.1, None, 1e-3])
    lines = [(ax, line) for ax in figure.axes for line in ax.lines if line.get_label() == LABEL]
    ((ax, line),) = lines
    assert "lambda_{\\max}" in ax.get_ylabel()
    np.testing.assert_allclose(line.get_ydata(), [20.0, np.nan, 2000.0])
    low, high = ax.get_ylim()
    assert low < 9.0  # the eigenvalues stay in view
    assert high > 2000.0
    assert [text.get_text() for text in figure.legends[0].get_texts()].count(LABEL) == 1
    assert "edge of stability of full-batch training, 2 / lr" in texts(figure)


def test_without_an_optimizer_the_figure_has_no_edge():
    figure = _figure([None, None])
    assert not any(line.get_label() == LABEL for ax in figure.axes for line in ax.lines)
    assert "edge of stability" not in texts(figure)
