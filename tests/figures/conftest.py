"""What the tests of figures draw on, and the run that they draw."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from reference import bulk_with_outliers, probes_of
from run_files import failed_record, make_record

from spectra.figures.style import style
from spectra.results.trajectory import Trajectory
from spectra.spectrum.spectrum import Spectrum


@pytest.fixture
def ax():
    with style():
        figure = Figure()
        FigureCanvasAgg(figure)
        yield figure.subplots()


@pytest.fixture(scope="session")
def spectrum():
    return Spectrum(probes_of(bulk_with_outliers(600), 30, 5, 0), 600, noise=1e-7)


@pytest.fixture(scope="session")
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
