"""What reading and drawing a long run costs, counted in operations: seconds depend on the machine."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from run_files import SETTINGS, make_record, make_spectrum

import spectra.figures.moments
import spectra.spectrum.tridiagonal
from spectra.figures.figures import save_figures
from spectra.figures.moments import moments_of
from spectra.figures.sheets import layer_figure
from spectra.results.storage.contents import Contents
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.density import span
from spectra.spectrum.spectrum import Spectrum
from spectra_cli.main import main


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.h5"
    run = RunFile.open(path, SETTINGS)
    for epoch in range(6):
        run.append(make_record(epoch))
    return path


@pytest.fixture
def counted(monkeypatch):
    """How often estimates are computed and a matrix is diagonalised."""
    counts = {"estimates": 0, "eigh": 0}
    estimates, eigh = Spectrum.estimates, spectra.spectrum.tridiagonal.eigh_tridiagonal

    def count_estimates(self):
        counts["estimates"] += 1
        return estimates(self)

    def count_eigh(*arguments, **options):
        counts["eigh"] += 1
        return eigh(*arguments, **options)

    monkeypatch.setattr(Spectrum, "estimates", count_estimates)
    monkeypatch.setattr(spectra.spectrum.tridiagonal, "eigh_tridiagonal", count_eigh)
    return counts


def test_the_table_of_a_run_computes_nothing(path, counted):
    done = CliRunner().invoke(main, ["show", str(path)])
    assert done.exit_code == 0, done.output
    assert counted == {"estimates": 0, "eigh": 0}


def test_a_checkpoint_is_compared_with_those_of_its_own_time_alone(path, monkeypatch):
    compared = []
    same = spectra.figures.moments._is_of

    def counting(record, moment):
        compared.append((record.epoch, moment.epoch))
        return same(record, moment)

    monkeypatch.setattr(spectra.figures.moments, "_is_of", counting)
    records = load_trajectory(path).records
    assert len(moments_of([*records, *records], "hessian")) == 6
    assert compared == [(epoch, epoch) for epoch in range(6)]


def test_the_density_over_training_diagonalises_each_probe_once(path, counted, tmp_path):
    save_figures(load_trajectory(path), tmp_path / "figures", what=["density-training"])
    assert counted == {"estimates": 0, "eigh": 6 * 4}


def test_the_axis_of_stored_estimates_is_that_of_the_spectrum(path):
    for record in load_trajectory(path):
        assert record.linear_threshold() == record.spectrum.linear_threshold()
        density = record.spectrum.density(view="asinh")
        assert span(record.spectrum.quadrature, density.linear_threshold) == (density.grid[0], density.grid[-1])


def with_tensors(path, count):
    forms = np.random.default_rng(0).standard_normal((4, count))
    sizes = {f"layers.{i}.weight": 1 for i in range(count)}
    probes = make_spectrum(0).tridiagonals
    spectrum = Spectrum(probes, count, noise=1e-7, seed=0, tensor_sizes=sizes, tensor_forms=forms)
    RunFile.open(path, SETTINGS).append(make_record(0, spectrum=spectrum))
    return path


def test_so_many_tensors_are_no_more_objects_of_the_file(tmp_path, monkeypatch):
    opened = []
    real = Contents._dataset

    def counting(self, where, dataset, keep):
        opened.append(h5py.h5i.get_name(dataset))
        return real(self, where, dataset, keep)

    monkeypatch.setattr(Contents, "_dataset", counting)
    numbers, sizes = [], []
    for count in (400, 800):
        opened.clear()
        file = with_tensors(tmp_path / f"{count}.h5", count)
        assert load_trajectory(file)[0].facts
        numbers.append(len(opened))
        sizes.append(file.stat().st_size)
    assert numbers[0] == numbers[1]
    assert sizes[1] < 2 * sizes[0]


def test_tensors_that_are_not_drawn_are_summed_up_in_words(tmp_path):
    record = load_trajectory(with_tensors(tmp_path / "run.h5", 400))[0]
    figure = layer_figure(moments_of([record], "hessian")[0])
    words = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    traces = record.spectrum.tensor_traces()
    shown = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    rest = record.spectrum.trace_of_tensors(traces.keys() - shown)
    assert len(shown) == 30
    assert rest.value == pytest.approx(sum(trace.value for name, trace in traces.items() if name not in shown))
    whole = record.spectrum.trace_of_tensors(traces.keys())
    assert whole.value == pytest.approx(400 * record.spectrum.tensor_forms.sum(axis=1).mean())
    assert f"The 30 with the largest traces of 400 are shown; the others sum to {rest}." in words


def calls_of(function):
    """How many functions are called, of Python and of C."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("command", [["show"], ["show", "--all"], ["show", "--json"], ["plot", "--what", "layers"]])
def test_twice_the_tensors_are_no_more_than_twice_the_work(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)

    def run(count):
        done = CliRunner().invoke(main, [command[0], f"{count}.h5", *command[1:]])
        assert done.exit_code == 0, done.output

    for count in (400, 800):
        with_tensors(tmp_path / f"{count}.h5", count)
    run(400)  # imports, and what matplotlib remembers
    assert calls_of(lambda: run(800)) < 2.6 * calls_of(lambda: run(400))
