"""Eigenpairs from the command line to the file and back: settings, record, storage, table."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from cases import batches_of, dense_hessian, parameters
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from spectra import Task, analyze, load_trajectory
from spectra.analysis.settings import Settings
from spectra.errors import ArgumentError, StorageError
from spectra.results.storage.runfile import RunFile
from spectra_cli.main import main

TASK = """
import torch, spectra
from torch import nn
def task():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    return spectra.Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), [(x, y)])
"""


@pytest.fixture
def small(float64):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 7, 5))
    dense = dense_hessian(F.cross_entropy(model(x), y), parameters(task)).numpy()
    return task, dense


def save(path, record):
    with RunFile.open(path, record.settings) as run:
        run.append(record)
    return load_trajectory(path)[0]


def test_a_record_has_the_largest_eigenvalues_and_better_estimates(small):
    task, dense = small
    truth = np.linalg.eigvalsh(dense)
    record = analyze(task, eigenpairs=4, num_probes=6, lanczos_steps=12)[0]
    pairs = record.spectrum.eigenpairs
    assert np.abs(pairs.values) == pytest.approx(np.sort(np.abs(truth))[::-1][:4], rel=1e-6)
    assert pairs.vectors is None
    assert record.settings["eigenpairs"] == 4
    assert record.provenance["products"] == 6 * 12 + pairs.products
    for name, value in (("trace_deflated", truth.sum()), ("frobenius_norm_deflated", np.linalg.norm(truth))):
        estimate = record.estimates[name]
        assert estimate.lower <= value <= estimate.upper
    entry = record.to_json()["eigenpairs"]
    assert entry["values"] == pairs.values.tolist()
    assert all(low <= value <= high for low, value, high in zip(entry["lower"], entry["values"], entry["upper"]))
    plain = analyze(task, num_probes=6, lanczos_steps=12)[0]
    assert "eigenpairs" not in plain.to_json()
    assert "eigenpairs" not in plain.settings
    assert "trace_deflated" not in plain.estimates
    assert plain.estimates["trace"] == record.estimates["trace"], "the probes must not depend on the search"


@pytest.mark.parametrize("vectors", [False, True])
def test_the_file_gives_them_back(small, tmp_path, vectors):
    task, dense = small
    record = analyze(task, eigenpairs=3, num_probes=3, lanczos_steps=8, save_eigenvectors=vectors)[0]
    back = save(tmp_path / "run.h5", record)
    mine, theirs = record.spectrum.eigenpairs, back.spectrum.eigenpairs
    assert mine.to_json() == theirs.to_json()
    assert (record.spectrum.overlaps == back.spectrum.overlaps).all()
    assert back.spectrum.estimates() == record.spectrum.estimates()
    if vectors:
        assert theirs.vectors.dtype == np.float32
        assert dense @ theirs.vectors == pytest.approx(theirs.vectors * theirs.values, abs=1e-5 * mine.scale)
        with h5py.File(tmp_path / "run.h5") as file:
            stored = file["records/000000/spectrum/eigenpairs/vectors"]
            assert (stored.shape, stored.compression) == ((3, record.spectrum.n), "gzip")
    else:
        assert theirs.vectors is None


def test_a_file_is_not_continued_with_another_number_of_them(small, tmp_path):
    record = analyze(small[0], eigenpairs=2, num_probes=2, lanczos_steps=4)[0]
    save(tmp_path / "run.h5", record)
    with pytest.raises(StorageError, match="eigenpairs is 2 in the file, 3 now"):
        RunFile.open(tmp_path / "run.h5", dict(record.settings) | {"eigenpairs": 3})


def test_damage_to_them_is_noticed(small, tmp_path):
    record = analyze(small[0], eigenpairs=2, num_probes=2, lanczos_steps=4)[0]
    path = tmp_path / "run.h5"
    save(path, record)
    content = path.read_bytes()
    path.write_bytes(content[:-85])  # without the seal of the whole file: the checksums of the groups remain
    with h5py.File(path, "r+") as file:
        file["records/000000/spectrum/eigenpairs/values"][0] = 99.0
    with pytest.raises(StorageError, match="checksum"):
        load_trajectory(path)


def test_more_than_there_are_is_all_of_them_and_what_is_not_complete_is_a_note(small, monkeypatch):
    task, dense = small
    n = len(dense)
    record = analyze(task, eigenpairs=10 * n, num_probes=2, lanczos_steps=4)[0]
    assert np.sort(record.spectrum.eigenpairs.values) == pytest.approx(np.linalg.eigvalsh(dense), abs=1e-6)
    assert record.estimates["trace_deflated"].value == pytest.approx(np.trace(dense))
    import spectra.analysis.measuring

    search = spectra.analysis.measuring.eigsh
    monkeypatch.setattr(
        spectra.analysis.measuring, "eigsh", lambda *args, **options: search(*args, max_steps=5, **options)
    )
    short = analyze(task, eigenpairs=3, num_probes=2, lanczos_steps=4)[0]
    assert any("not known to be complete: max_steps=5" in note for note in short.notes)


def test_the_progress_counts_both_parts(small):
    seen = []
    record = analyze(
        small[0],
        eigenpairs=3,
        num_probes=2,
        lanczos_steps=4,
        progress=lambda operator, mode, done, total: seen.append((done, total)),
    )[0]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (record.provenance["products"],) * 2
    assert all(done <= total for done, total in seen)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ArgumentError, match="eigenpairs=-1: at least 0"):
        Settings(eigenpairs=-1)
    with pytest.raises(ArgumentError, match="save_eigenvectors without eigenpairs"):
        Settings(save_eigenvectors=True)


def test_the_command_line_finds_stores_and_shows_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs_task.py").write_text(TASK)
    torch.manual_seed(0)
    torch.save(nn.Linear(4, 3).state_dict(), "net.pt")
    common = ["analyze", "net.pt", "--task", "pairs_task.py:task", "-m", "6", "-k", "3", "--out"]
    done = CliRunner().invoke(main, [*common, "a.h5", "--eigenpairs", "3", "--save-eigenvectors", "--quiet", "--all"])
    assert done.exit_code == 0, done.output
    assert "largest eigenvalues in magnitude" in done.output
    assert "trace_deflated" in done.output
    shown = json.loads(CliRunner().invoke(main, ["show", "a.h5", "--json"]).output)[0]["eigenpairs"]
    assert len(shown["values"]) == 3
    assert shown["complete"]
    assert shown["vectors"]
    rows = CliRunner().invoke(main, ["show", "a.h5", "--csv"]).output
    assert ",frobenius_norm_deflated," in rows
    plain = CliRunner().invoke(main, [*common, "b.h5", "--quiet"])
    assert plain.exit_code == 0
    assert "eigenvalues in magnitude" not in plain.output
    refused = CliRunner().invoke(main, [*common, "a.h5", "--eigenpairs", "2"])
    assert refused.exit_code != 0
