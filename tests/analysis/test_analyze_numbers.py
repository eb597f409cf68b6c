"""The numbers of a record are those of the dense matrix within their errors; loss, gradient and accuracy are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import conv_batch_norm, dense_hessian, parameters
from small_nets import NETS, loss_in, make, wide_logistic
from torch import nn

from spectra import Task, analyze
from spectra.krylov.probes import draw_probe
from spectra.spectrum.traces import trace as plain_trace

pytestmark = pytest.mark.usefixtures("float64")

PROBES = 40


@pytest.fixture(scope="module", params=list(NETS))
def solved(request):
    """A net, its record with as many steps as parameters, and its eigenvalues from the dense Hessian."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    maker, mode = NETS[request.param]
    task, written = maker()
    matrix = dense_hessian(loss_in(written, mode), parameters(task)).numpy()
    (record,) = analyze(task, bn_modes=mode, lanczos_steps=len(matrix), num_probes=PROBES, seed=1)
    torch.set_default_dtype(before)
    return record, matrix


# -- the numbers


def test_every_number_is_that_of_the_dense_hessian_within_its_error(solved):
    record, matrix = solved
    values = np.linalg.eigvalsh(matrix)
    tau = record.estimates["rank_degeneracy"].tau
    truth = {
        "trace": values.sum(),
        "mean_eigenvalue": values.mean(),
        "second_moment": (values**2).mean(),
        "frobenius_norm": np.linalg.norm(values),
        "spectral_norm": np.abs(values).max(),
        "lambda_max": values.max(),
        "lambda_min": values.min(),
        "rank_degeneracy": (np.abs(values) <= tau).mean(),
    }
    rounding = 1e-13 * truth["spectral_norm"]  # of the reference, which is not exact either
    for name, value in truth.items():
        estimate = record.estimates[name]
        assert estimate.lower - rounding <= value <= estimate.upper + rounding, name
        assert estimate.num_probes == PROBES
    for name in ("spectral_norm", "lambda_max", "lambda_min"):  # all steps were taken: these are known to rounding
        assert record.estimates[name].upper - record.estimates[name].lower < 1e-8 * truth["spectral_norm"], name
    assert record.estimates["rank_degeneracy"].resolved


def test_every_probe_gives_its_own_quadratic_form_exactly(solved):
    """Without luck: ``q' H^p q`` of the probes that the seed stands for, by the dense matrix."""
    record, matrix = solved
    n = len(matrix)
    probes = [draw_probe(n, seed=1, index=index) for index in range(PROBES)]
    scale = np.abs(np.linalg.eigvalsh(matrix)).max()
    powers = [q.copy() for q in probes]
    for p in range(1, 7):
        powers = [matrix @ v for v in powers]
        exact = np.mean([q @ v for q, v in zip(probes, powers)])
        forms = [t.moment(p) for t in record.spectrum.tridiagonals]
        assert np.mean(forms) == pytest.approx(exact, abs=1e-9 * scale**p), p
    trace = n * np.array([q @ matrix @ q for q in probes])
    plain = plain_trace(record.spectrum.quadrature.with_nothing_known())
    assert plain.value == pytest.approx(trace.mean(), abs=1e-9 * scale * n)
    assert plain.stderr >= trace.std(ddof=1) / np.sqrt(PROBES) * (1 - 1e-6)


def test_every_eigenvalue_is_found_where_all_steps_are_taken(solved):
    record, matrix = solved
    values = np.linalg.eigvalsh(matrix)
    scale = np.abs(values).max()
    for nodes, weights in zip(record.spectrum.nodes, record.spectrum.weights):
        nodes = nodes[np.isfinite(nodes)]
        distance = np.abs(nodes[:, None] - values).min(1)
        assert distance.max() < 1e-8 * scale
        seen = np.abs(values[:, None] - nodes).min(1) < 1e-7 * scale
        assert seen[np.abs(values) > 1e-6 * scale].all()
        assert np.nansum(weights) == pytest.approx(1.0, abs=1e-12)


def test_the_density_has_the_moments_of_the_spectrum(solved):
    record, _ = solved
    density = record.spectrum.density()
    mass = np.trapezoid(density.values, density.grid)
    mean = np.trapezoid(density.values * density.grid, density.grid)
    square = np.trapezoid(density.values * density.grid**2, density.grid)
    scale = record.estimates["spectral_norm"].value
    assert mass == pytest.approx(1.0, abs=1e-6)
    assert mean == pytest.approx(record.estimates["mean_eigenvalue"].value, abs=1e-6 * scale)
    assert square == pytest.approx(record.estimates["second_moment"].value + density.sigma**2, abs=1e-6 * scale**2)


def test_the_traces_of_the_tensors_are_those_of_the_diagonal_blocks(solved):
    record, matrix = solved
    start = 0
    for name, estimate in record.spectrum.tensor_traces().items():
        stop = start + record.spectrum.tensor_sizes[name]
        block = np.trace(matrix[start:stop, start:stop])
        assert abs(estimate.value - block) <= 4 * estimate.stderr + 1e-10, name
        start = stop
    assert start == len(matrix)
    total = sum(estimate.value for estimate in record.spectrum.tensor_traces().values())
    plain = len(matrix) * np.mean([t.alphas[0] for t in record.spectrum.tridiagonals])
    assert total == pytest.approx(plain, rel=1e-10, abs=1e-12)


def test_the_degeneracy_of_a_known_rank():
    torch.manual_seed(3)
    task, _ = wide_logistic()
    (record,) = analyze(task, lanczos_steps=33, num_probes=60)
    degeneracy = record.estimates["rank_degeneracy"]
    assert degeneracy.resolved
    assert degeneracy.lower <= 23 / 33 <= degeneracy.upper
    assert degeneracy.upper - degeneracy.lower < 0.1
    assert abs(degeneracy.value - 23 / 33) < 4 * degeneracy.stderr


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_ggn_of_a_record_is_that_of_the_outputs(mode):
    """For softmax cross-entropy, ``G = sum_n J_n' (diag p - p p') J_n / N``, with the Jacobian taken row by row."""
    torch.manual_seed(3)
    task, _ = conv_batch_norm()
    (record,) = analyze(task, operators="ggn", bn_modes=mode, lanczos_steps=200, num_probes=PROBES)
    model, params = task.model, parameters(task)
    model.eval()
    model.bn.train(mode == "train")
    dense, rows = np.zeros((record.spectrum.n,) * 2), 0
    for x, _ in task.data:
        output = model(x)
        for row in output:
            jacobian = np.stack(
                [
                    torch.cat([g.reshape(-1) for g in torch.autograd.grad(entry, params, retain_graph=True)]).numpy()
                    for entry in row
                ]
            )
            p = row.softmax(0).detach().numpy()
            dense += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
            rows += 1
    values = np.linalg.eigvalsh(dense / rows)
    assert record.estimates["lambda_max"].value == pytest.approx(values.max(), rel=1e-9)
    for name, value in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
        assert record.estimates[name].lower <= value <= record.estimates[name].upper, name


# -- the facts


@pytest.mark.parametrize("name", list(NETS))
def test_loss_gradient_and_accuracy_are_those_computed_directly(name):
    torch.manual_seed(3)
    maker, mode = NETS[name]
    task, written = maker()
    (record,) = analyze(task, bn_modes=mode, lanczos_steps=1, num_probes=1)
    facts, params = record.facts, parameters(task)
    objective = loss_in(written, mode)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(objective, params)])
    weights = torch.cat([p.detach().reshape(-1) for p in params])
    assert facts["objective"] == pytest.approx(objective.item(), rel=1e-12)
    assert facts["loss"] == pytest.approx((objective - task.l2 / 2 * weights.square().sum()).item(), rel=1e-12)
    assert facts["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert facts["weight_norm"] == pytest.approx(float(weights.norm()), rel=1e-12)
    rows = sum(len(y) for _, y in task.data)
    assert (facts["n_parameters"], facts["n_samples"], facts["n_batches"]) == (len(weights), rows, len(task.data))
    assert facts["total_weight"] == rows
    if mode == "eval":
        task.model.eval()
        right = sum(int((task.model(x).argmax(1) == y).sum()) for x, y in task.data)
        assert facts["accuracy"] == right / rows


def test_the_heuristic_bound_and_what_it_is_made_of():
    (record,) = analyze(make(None), lanczos_steps=2, num_probes=1)
    assert {name: record.facts[name] for name in ("d_x", "d_y", "sum_of_widths", "rank_bound_ff")} == {
        "d_x": 4,
        "d_y": 3,
        "sum_of_widths": 9,
        "rank_bound_ff": 4 * 3 * (9 + 4),
    }


def test_a_regression_has_no_accuracy():
    x = torch.randn(6, 4)
    task = Task(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), nn.MSELoss(), [(x, torch.randn(6, 2))])
    (record,) = analyze(task, lanczos_steps=2, num_probes=1)
    assert record.facts["accuracy"] is None
    assert record.to_json()["facts"]["accuracy"] is None
