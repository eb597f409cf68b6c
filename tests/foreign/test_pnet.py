"""MTCNN's P-Net with its published weights, some of its tensors free: every number beside the dense matrices.

`benchmarks/pnet.py` has the network, its loss written twice, and the same for all 6,632 parameters.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from spectra import GGNOperator, HessianOperator, Task, exact_trace, slq
from spectra_cli.main import main

FILE = Path(__file__).parents[2] / "benchmarks" / "pnet.py"
FEW = ("prelu*", "conv*.bias", "conv4_*")
FREE = (*FEW, "conv1.weight")
KINDS = {"hessian": HessianOperator, "ggn": GGNOperator}


@pytest.fixture(scope="module")
def pnet():
    spec = importlib.util.spec_from_file_location("benchmark_of_pnet", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(pnet):
    path = pnet.published_weights()
    if path is None:
        pytest.skip("facenet-pytorch, which has the weights, is not installed: make foreign installs it")
    return path


def problem(pnet, state, samples, free):
    """The task, its dense curvature, and the number of free parameters."""
    pytest.importorskip("sklearn", reason="the photographs come with scikit-learn")
    model = pnet.PNet()
    model.load_state_dict(state)
    batches = pnet.patches(samples, [samples - samples // 4, samples // 4])
    names = list(HessianOperator(Task(model, pnet.loss_of, batches), params=free).function.names)
    return Task(model, pnet.loss_of, batches), pnet.Dense(state, batches, names)


@pytest.mark.parametrize("kind", KINDS)
def test_with_random_weights_the_products_are_those_of_the_dense_matrix(pnet, kind):
    torch.manual_seed(0)
    task, dense = problem(pnet, pnet.PNet().state_dict(), 8, FEW)
    operator = KINDS[kind](task, params=FEW, dtype="float64")
    matrix = getattr(dense, kind)()
    v = torch.randn(operator.n, 3, dtype=torch.float64)
    assert operator.n == len(matrix) == 2 * (10 + 16 + 32) + 66 + 132
    assert float(matrix.norm()) > 1e-2
    assert float((operator @ v - matrix @ v).norm()) <= 1e-12 * float((matrix @ v).norm())


@pytest.mark.foreign
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_published_weights_every_interval_holds_the_number_of_the_dense_matrix(pnet, weights, kind):
    task, dense = problem(pnet, torch.load(weights, weights_only=True), 32, FREE)
    matrix = getattr(dense, kind)()
    operator = KINDS[kind](task, params=FREE, dtype="float64")
    v = torch.randn(operator.n, 3, dtype=torch.float64)
    assert float((operator @ v - matrix @ v).norm()) <= 1e-12 * float((matrix @ v).norm())
    exact = exact_trace(task)
    assert exact.applies  # PReLU and maxima: the outputs are affine in every tensor, slopes included
    named = (exact.by_layer[name] for name in operator.function.names)
    assert sum(named) == pytest.approx(float(matrix.trace()), rel=1e-5)
    spectrum = slq(KINDS[kind](task, params=FREE), lanczos_steps=60, num_probes=8)  # float32, as by default
    rows = list(pnet.rows_of(np.linalg.eigvalsh(matrix.numpy()), spectrum))
    assert len(rows) == 4 + 2 * len(pnet.TAUS) + 3
    for row in rows:
        # An interval of the probes misses in one case of twenty; four standard errors are no chance.
        near = row.stated.stderr is not None and abs(row.stated.value - row.truth) < 4 * row.stated.stderr
        assert row.covers is not False or near, row


@pytest.mark.foreign
def test_the_published_file_is_analysed_from_the_command_line(pnet, weights, tmp_path, monkeypatch):
    (tmp_path / "task.py").write_text(
        f"""
import importlib.util, spectra
spec = importlib.util.spec_from_file_location("pnet_of_task", {str(FILE)!r})
pnet = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pnet)

def task():
    return spectra.Task(pnet.PNet(), pnet.loss_of, pnet.patches(32, [24, 8]))
"""
    )
    monkeypatch.chdir(tmp_path)
    asked = ["analyze", str(weights), "--task", "task.py:task", "--params", "conv4_*", "--out", "pnet.h5"]
    ran = CliRunner().invoke(main, [*asked, "-m", "20", "-k", "8", "--metrics", "none"])
    assert ran.exit_code == 0, ran.output
    (record,) = json.loads(CliRunner().invoke(main, ["show", "pnet.h5", "--json"]).stdout)
    model, batches = pnet.PNet(), pnet.patches(32, [24, 8])
    names = [name for name, _ in model.named_parameters() if name.startswith("conv4_")]
    truth = np.linalg.eigvalsh(pnet.Dense(torch.load(weights, weights_only=True), batches, names).hessian())
    stated = record["estimates"]
    for name, value in (("trace", truth.sum()), ("lambda_max", truth[-1]), ("lambda_min", truth[0])):
        assert stated[name]["lower"] - 1e-5 * truth[-1] <= value <= stated[name]["upper"] + 1e-5 * truth[-1]
