"""Figures are planned from what the records allow, and saved whole or not at all."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from reference import probes_of
from run_files import failed_record, make_record

from spectra.errors import ArgumentError, StorageError
from spectra.figures import figures
from spectra.figures.style import style
from spectra.results.trajectory import Trajectory
from spectra.spectrum.spectrum import Spectrum

PNG = b"\x89PNG\r\n\x1a\n"


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
