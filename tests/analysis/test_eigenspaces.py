"""Eigenvectors of consecutive checkpoints compared: right, kept, the same after an interruption, and a warm start."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from spectra import HessianOperator, Task, Tracker, load_trajectory, save_checkpoint
from spectra.analysis.run import Listener, analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import ArgumentError
from spectra.krylov.eigsh import eigsh
from spectra.operators.dense import DenseOperator
from spectra.spectrum.overlap import Overlap, overlap_of

ASKED = {"lanczos_steps": 5, "num_probes": 2, "width": 1, "check": False, "metrics": "none", "eigenpairs": 3}


def task() -> Task:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=draw), torch.randint(3, (30,), generator=draw)
    return Task(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), nn.CrossEntropyLoss(),
                [(x.double(), y)])  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Three checkpoints, each a step of gradient descent from the one before."""
    torch.manual_seed(0)
    made = task()
    sgd = torch.optim.SGD(made.model.parameters(), lr=0.5)
    paths = []
    for epoch in range(3):
        paths.append(tmp_path / f"net_{epoch}.pt")
        save_checkpoint(paths[-1], made.model, epoch=epoch)
        sgd.zero_grad()
        made.loss_of(made.data[0]).backward()
        sgd.step()
    return paths


def analysed(paths, out, listener=None, **options):
    made = task()
    analyze_run(paths, lambda _: made, Settings(**(ASKED | options)), out=out, listener=listener)
    return load_trajectory(out)


def dense_vectors(path) -> np.ndarray:
    made = task()
    made.model.load_state_dict(torch.load(path, weights_only=True)["model"])
    operator = HessianOperator(made)
    values, vectors = np.linalg.eigh(operator @ np.eye(operator.shape[0]))
    return vectors[:, np.argsort(-np.abs(values))[:3]]


def test_the_overlap_is_that_of_the_dense_eigenvectors(tmp_path, run):
    series = analysed(run, tmp_path / "run.h5")["hessian", "eval"]
    assert series.records[0].overlap is None
    for before, now, record in zip(run, run[1:], series.records[1:]):
        expected = np.abs(dense_vectors(before).T @ dense_vectors(now))
        np.testing.assert_allclose(record.overlap.matrix, expected, atol=2e-5)
        assert record.overlap.before == str(before)
        assert record.overlap.value == pytest.approx((expected**2).sum() / 3, abs=1e-5)
    assert np.isnan(series.subspace_overlap[0])
    assert (series.subspace_overlap[1:] > 0.5).all()
    assert not list(tmp_path.glob("*.vectors"))
    entry = json.loads(json.dumps(series.records[1].to_json()))["overlap"]
    assert entry["value"] == pytest.approx(series.subspace_overlap[1])


def test_the_value_does_not_depend_on_the_basis_and_is_between_0_and_1():
    random = np.random.default_rng(0)
    v, w = (np.linalg.qr(random.normal(size=(40, k)))[0] for k in (3, 5))
    turn = np.linalg.qr(random.normal(size=(5, 5)))[0]
    one, other = overlap_of(v, w, "a"), overlap_of(v, w @ turn, "a")
    assert one.value == pytest.approx(other.value, rel=1e-12)
    assert overlap_of(w[:, :3], w, "a").value == pytest.approx(1)
    assert overlap_of(v, np.linalg.qr(np.c_[v, w])[0][:, 3:], "a").value == pytest.approx(0, abs=1e-12)
    assert np.isnan(Overlap("a", reason="not kept").value)
    with pytest.raises(ArgumentError, match="columns of one length"):
        overlap_of(v, w[:-1], "a")


@pytest.mark.parametrize("saved", [False, True])
def test_after_an_interruption_the_overlaps_are_those_of_a_run_without(tmp_path, run, saved):
    class Interrupting(Listener):
        def __init__(self, at):
            self.at, self.path = at, ""

        def checkpoint(self, index, total, path):
            self.path = path.name

        def progress(self, operator, bn_mode, done, total):
            if self.path == self.at and done > 6:
                raise KeyboardInterrupt

    whole = analysed(run, tmp_path / "whole.h5", save_eigenvectors=saved)["hessian", "eval"]
    for at in ("net_1.pt", "net_2.pt"):
        with pytest.raises(KeyboardInterrupt):
            analysed(run, tmp_path / "run.h5", Interrupting(at), save_eigenvectors=saved)
        assert (tmp_path / "run.h5.vectors").exists()
    found = analysed(run, tmp_path / "run.h5", save_eigenvectors=saved)["hessian", "eval"]
    for one, other in zip(found.records[1:], whole.records[1:], strict=True):
        np.testing.assert_array_equal(one.overlap.matrix, other.overlap.matrix)
        assert one.overlap.before == other.overlap.before
    assert not list(tmp_path.glob("*.vectors"))


def test_a_run_that_has_grown_knows_the_overlap_where_the_vectors_were_saved(tmp_path, run):
    analysed(run[:2], tmp_path / "a.h5")
    record = analysed(run, tmp_path / "a.h5")["hessian", "eval"].records[2]
    assert np.isnan(record.overlap.value)
    assert record.overlap.reason.endswith("--save-eigenvectors keeps them")
    analysed(run[:2], tmp_path / "b.h5", save_eigenvectors=True)
    grown = analysed(run, tmp_path / "b.h5", save_eigenvectors=True)["hessian", "eval"]
    whole = analysed(run, tmp_path / "c.h5")["hessian", "eval"]
    np.testing.assert_array_equal(grown.records[2].overlap.matrix, whole.records[2].overlap.matrix)
    far = grown.overlap(0, 2)
    np.testing.assert_allclose(far.matrix, np.abs(dense_vectors(run[0]).T @ dense_vectors(run[2])), atol=2e-5)
    with pytest.raises(ArgumentError, match="epoch=0: its eigenvectors were not saved"):
        whole.overlap(0, 2)


def test_a_tracker_keeps_the_overlaps_too(tmp_path, run):
    made = task()
    with Tracker(made, out=tmp_path / "run.h5", **ASKED) as tracker:
        for epoch, path in enumerate(run):
            made.model.load_state_dict(torch.load(path, weights_only=True)["model"])
            tracker(epoch=epoch)
        assert (tmp_path / "run.h5.vectors").exists()
    whole = analysed(run, tmp_path / "whole.h5")["hessian", "eval"]
    np.testing.assert_allclose(tracker.trajectory["hessian", "eval"].subspace_overlap, whole.subspace_overlap)
    assert tracker.trajectory[1].overlap.before == "epoch 0"
    assert not list(tmp_path.glob("*.vectors"))


def test_a_warm_start_finds_the_same_pairs_with_fewer_products(tmp_path, run):
    cold = analysed(run, tmp_path / "cold.h5")
    warm = analysed(run, tmp_path / "warm.h5", warm_start=True)
    for one, other in zip(cold, warm, strict=True):
        np.testing.assert_allclose(one.spectrum.eigenpairs.values, other.spectrum.eigenpairs.values, rtol=1e-9)
        np.testing.assert_array_equal(one.spectrum.nodes, other.spectrum.nodes)  # the probes are none of its business
    assert warm.settings["warm_start"] is True
    with pytest.raises(ArgumentError, match="warm_start without eigenpairs"):
        Settings(warm_start=True)


def test_near_vectors_save_products_and_wrong_ones_lose_no_eigenvalue():
    random = np.random.default_rng(0)
    n = 400
    basis = np.linalg.qr(random.normal(size=(n, n)))[0]
    values = np.concatenate([[10.0, 8.0, 6.0, 5.0], np.linspace(3.0, 0.0, n - 4)])
    operator = DenseOperator((basis * values) @ basis.T)
    cold = eigsh(operator, 4, tol=1e-8)
    near = basis[:, :4] + 1e-3 * random.normal(size=(n, 4))
    warm = eigsh(operator, 4, tol=1e-8, nearby=near)
    wrong = eigsh(operator, 4, tol=1e-8, nearby=basis[:, 4:8])
    for found in (cold, warm, wrong):
        np.testing.assert_allclose(found.values, [10, 8, 6, 5], rtol=1e-10)
        assert found.complete
    assert warm.products < cold.products
    with pytest.raises(ArgumentError, match="nearby has shape"):
        eigsh(operator, 4, nearby=near[:-1])
