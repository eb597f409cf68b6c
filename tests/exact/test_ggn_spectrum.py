"""All eigenvalues of the Gauss-Newton matrix against dense ones, and Lanczos against all eigenvalues."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from exact_networks import NETWORKS
from torch import nn

from spectra import GGNOperator, Task, exact_ggn_spectrum, exact_trace, slq
from spectra.errors import ArgumentError, TaskError
from spectra.exact.normalized import normalized_cross_entropy
from spectra.spectrum.exact_spectrum import GGNSpectrum


def dense(task: Task, **options) -> np.ndarray:
    """The eigenvalues of the operator's own matrix, descending; the operator is held against dense ones elsewhere."""
    operator = GGNOperator(task, dtype="float64", **options)
    matrix = operator @ torch.eye(operator.n, dtype=torch.float64)
    return torch.linalg.eigvalsh(0.5 * (matrix + matrix.T)).numpy()[::-1]


def whole(found) -> np.ndarray:
    return np.sort(np.concatenate([found.eigenvalues, np.full(found.num_zero, found.l2)]))[::-1]


def network(classes: int = 3, width: int = 6, samples: int = 12) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, classes)).double()
    x, y = torch.randn(samples, 5, dtype=torch.float64), torch.randint(classes, (samples,))
    return Task(model, nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_the_eigenvalues_are_those_of_the_dense_matrix(case):
    task = case.make()
    found = exact_ggn_spectrum(task)
    expected = dense(task)
    np.testing.assert_allclose(whole(found), expected, atol=1e-10 * abs(expected).max(), rtol=0)
    assert found.trace == pytest.approx(expected.sum(), rel=1e-9)
    assert found.trace == pytest.approx(exact_trace(task).total, rel=1e-9)
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert found.rank() <= found.rank_bound


def test_batches_that_make_other_calls_are_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(torch.relu(self.first(x))) if len(x) > 2 else self.second(x.repeat(1, 2)[:, :4])

    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    with pytest.raises(TaskError, match="other calls for one batch than for another"):
        exact_ggn_spectrum(Task(Odd(), nn.CrossEntropyLoss(), [(x[:3], y[:3]), (x[3:], y[3:])]))


def test_softmax_regression_has_the_eigenvalues_of_a_kronecker_product():
    """One point, uniform probabilities: ``A = I/C - 11'/C^2`` times ``|x|^2``."""
    model = nn.Linear(3, 4, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
    found = exact_ggn_spectrum(Task(model, nn.CrossEntropyLoss(), [(x, torch.tensor([1]))]))
    np.testing.assert_allclose(found.eigenvalues, [9 / 4] * 3)
    assert (found.n, found.num_zero, found.rank(), found.rank_bound) == (12, 9, 3, 3)


@pytest.mark.parametrize(("width", "samples", "expected"), [(60, 12, 24), (2, 40, None)])
def test_the_rank_is_bounded_by_counting_samples_or_parameters(width, samples, expected):
    task = network(width=width, samples=samples)
    found = exact_ggn_spectrum(task)
    assert found.rank_bound == min(found.n, 2 * samples)
    assert found.rank() <= found.rank_bound
    if expected is not None:
        assert found.rank() == expected == found.rank_bound
    values = dense(task)
    for tolerance in (1e-1, 1e-3, 1e-6):
        assert found.rank(tolerance) == int((values > tolerance * values[0]).sum())


def test_an_indefinite_criterion_has_its_negative_eigenvalues():
    task = network(classes=4)
    plain = Task(task.model, normalized_cross_entropy, task.data, weight=lambda batch: len(batch[1]))
    expected = dense(plain)
    assert expected[-1] < -1e-3 * expected[0]
    np.testing.assert_allclose(whole(exact_ggn_spectrum(plain)), expected, atol=1e-10 * expected[0])


def test_weight_decay_moves_every_eigenvalue():
    task = network()
    plain, moved = exact_ggn_spectrum(task), exact_ggn_spectrum(Task(task.model, task.criterion, task.data, l2=0.3))
    np.testing.assert_allclose(moved.eigenvalues, plain.eigenvalues + 0.3)
    assert moved.trace == pytest.approx(plain.trace + 0.3 * plain.n)
    assert moved.rank() == plain.rank()
    assert moved.degeneracy(0.1) == 0.0
    assert moved.degeneracy(0.3 + 1e-9) >= plain.num_zero / plain.n


def test_determinants_and_counts_are_those_of_the_dense_matrix():
    task = network()
    found, values = exact_ggn_spectrum(task), dense(task).clip(min=0)
    for g in (1e-3, 1.0):
        assert found.log_determinant(g) == pytest.approx(np.log(values + g).sum(), rel=1e-9)
        assert found.evidence(g) == pytest.approx(np.log1p(values / g).sum(), rel=1e-7)
        assert found.effective_dimension(g) == pytest.approx((values / (values + g)).sum(), rel=1e-7)
    for x in (1e-3, 0.01, 0.1):
        assert found.degeneracy(x) == (values <= x).mean() == found.cdf(x)
    assert found.cdf(np.array([-1.0, 1e9])).tolist() == [0.0, 1.0]
    with pytest.raises(ArgumentError, match="g=0"):
        found.log_determinant(0.0)


def test_chosen_parameters_a_subset_and_recalibrated_statistics():
    task = network()
    chosen = exact_ggn_spectrum(task, params="2.*")
    np.testing.assert_allclose(whole(chosen), dense(task, params="2.*"), atol=1e-12)
    few = exact_ggn_spectrum(task, samples=4, seed=3)
    np.testing.assert_allclose(whole(few), dense(task.subset(4, 3)), atol=1e-12)
    assert few.num_samples == 4
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    task = Task(normed, nn.CrossEntropyLoss(), task.data)
    np.testing.assert_allclose(
        whole(exact_ggn_spectrum(task, bn_mode="recalibrated")), dense(task, bn_mode="recalibrated"), atol=1e-12
    )
    with pytest.raises(TaskError, match="couples the samples"):
        exact_ggn_spectrum(task, bn_mode="train")


def test_too_many_columns_are_refused_with_what_would_do():
    with pytest.raises(ArgumentError, match=r"more than 10 columns: 2 for each of 12 samples; take at most samples=5"):
        exact_ggn_spectrum(network(), limit=10)
    assert exact_ggn_spectrum(network(), limit=10, samples=5).rank_bound == 10


def test_small_blocks_change_no_number(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    x, y = torch.randn(5, 2, 6, 6, dtype=torch.float64), torch.randint(3, (5,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    before = exact_ggn_spectrum(task).eigenvalues
    monkeypatch.setattr("spectra.exact.ggn_spectrum._BLOCK_BYTES", 1)
    monkeypatch.setattr("spectra.exact.ggn_spectrum._groups", lambda parts, uses: ([i] for i in range(len(uses[0]))))
    np.testing.assert_allclose(exact_ggn_spectrum(task).eigenvalues, before, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_lanczos_brackets_the_exact_degeneracy_and_finds_trace_and_ends(seed):
    task = network(classes=5, width=20, samples=30)
    found = exact_ggn_spectrum(task)
    spectrum = slq(GGNOperator(task), 30, 8, seed=seed)
    for tau in (1e-3, 1e-2, 1e-1):
        estimate = spectrum.rank_degeneracy(tau * found.spectral_norm)
        assert estimate.lower <= found.degeneracy(tau * found.spectral_norm) <= estimate.upper
    assert spectrum.spectral_norm().lower <= found.spectral_norm * (1 + 1e-9)
    assert found.spectral_norm <= spectrum.spectral_norm().upper * (1 + 1e-9)
    bounds = spectrum.cumulative(np.array([1e-4, 1e-2, 0.1]))
    exact = found.cdf(bounds.x)
    assert ((bounds.lower <= exact) & (exact <= bounds.upper)).all()


def test_the_density_is_that_of_lanczos_where_all_steps_are_taken():
    """Averaged over many probes with the same kernel; the mass is 1."""
    task = network()
    operator = GGNOperator(task)
    found, density = exact_ggn_spectrum(task), slq(operator, operator.n, 100).density()
    mine = found.density(density)
    assert np.trapezoid(mine, density.grid) == pytest.approx(1.0, abs=0.01)
    outside = (mine < density.lower - 1e-9) | (mine > density.upper + 1e-9)
    assert outside.mean() < 0.15  # pointwise 95 % bands, correlated along the grid


def test_the_numbers_go_to_json():
    entries = json.loads(json.dumps(exact_ggn_spectrum(network()).to_json(), allow_nan=False))
    assert entries["rank"] <= entries["rank_bound"] == 24
    assert len(entries["eigenvalues"]) + entries["num_zero"] == entries["n"]


def test_a_matrix_without_computed_eigenvalues_has_the_norm_of_its_null_space():
    """All of its eigenvalues are then at l2."""
    empty = {"eigenvalues": np.empty(0), "n": 4, "num_samples": 1, "rank_bound": 2}
    assert GGNSpectrum(**empty).spectral_norm == 0.0
    assert GGNSpectrum(**empty, l2=0.5).to_json()["spectral_norm"] == 0.5
