"""A bounded loss of orthogonality in Lanczos: its square is what Ritz values lose, and the quadrature nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectra import DenseOperator, slq
from spectra.krylov.lanczos import tridiagonalize
from spectra.krylov.probes import draw_probe
from spectra.operators.krylov_basis import Basis

N, STEPS = 400, 80
RANDOM = np.random.default_rng(0)
SPECTRA = {
    "spiked": np.concatenate([0.01 * RANDOM.normal(size=N - 10), [100, 50, 30, 20, 10, 5, 4, 3, 2, -1]]),
    "power law": 1 / np.arange(1.0, N + 1) ** 1.5,
    "network": np.concatenate([np.abs(1e-3 * RANDOM.standard_cauchy(N - 10)).clip(0, 0.3), np.linspace(1, 8, 10)]),
    "flat": np.linspace(-1, 3, N),
}
FUNCTIONS = [np.tanh, np.exp, lambda x: 1 / (1 + x**2), lambda x: np.exp(-((x / 0.1) ** 2))]


def hidden(name):
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((N, N)))
    matrix = (q * SPECTRA[name]) @ q.T
    return (matrix + matrix.T) / 2


def fully_orthogonal(matrix, start):
    """Nodes and weights of Lanczos with two Gram-Schmidt passes over the whole basis in every step."""
    basis, alphas, betas = [start], [], []
    for _ in range(STEPS):
        vector = matrix @ basis[-1]
        alphas.append(basis[-1] @ vector)
        q = np.array(basis)
        for _ in range(2):
            vector = vector - q.T @ (q @ vector)
        betas.append(np.linalg.norm(vector))
        basis.append(vector / betas[-1])
    nodes, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return nodes, vectors[0] ** 2


@pytest.mark.parametrize("limit", [0.0, 1e-8, 1e-5])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_result_is_that_of_full_orthogonalisation(name, limit):
    matrix, start = hidden(name), draw_probe(N, seed=1, index=0)
    scale = np.abs(SPECTRA[name]).max()
    (run,) = tridiagonalize(
        DenseOperator(matrix), [start], STEPS, tolerance=1e-12, semiorthogonal=limit, keep_basis=True
    )
    t, (nodes, weights) = run.tridiagonal, fully_orthogonal(matrix, start)
    assert t.steps == STEPS
    assert np.abs(t.nodes - nodes).max() <= (1e-13 + 2 * limit**2) * scale
    for function in FUNCTIONS:
        assert t.weights @ function(t.nodes / scale) == pytest.approx(weights @ function(nodes / scale), abs=1e-13)
    # the loss that is stated is the one there is
    assert run.basis.loss_of_orthogonality() <= t.orthogonality + 1e-14
    assert t.orthogonality <= max(1e-13, limit)


def test_without_any_correction_an_eigenvalue_appears_twice():
    """So the spiked spectrum does need what the other tests show."""
    matrix, start = hidden("spiked"), draw_probe(N, seed=1, index=0)
    (run,) = tridiagonalize(DenseOperator(matrix), [start], STEPS, tolerance=1e-12, semiorthogonal=1.0)
    assert (np.abs(run.tridiagonal.nodes - 100) < 1e-6).sum() > 1


@pytest.mark.parametrize("name", SPECTRA)
def test_float32_products_give_no_ghosts_and_the_stated_loss_is_true(name):
    matrix = hidden(name)
    operator = DenseOperator(matrix.astype(np.float32))
    scale = np.abs(SPECTRA[name]).max()
    spectrum = slq(operator, STEPS, 2)
    outliers = SPECTRA[name][SPECTRA[name] > 0.2 * scale] if name != "flat" else np.array([])
    for t in spectrum.tridiagonals:
        assert t.orthogonality <= 1.1e-5
        for value in outliers:
            assert (np.abs(t.nodes - value) < 1e-5 * scale).sum() == 1
    (run,) = tridiagonalize(
        operator, [draw_probe(N, seed=0, index=0)], STEPS, tolerance=1e-6, semiorthogonal=1e-5, keep_basis=True
    )
    assert run.tridiagonal.orthogonality <= 1e-5
    assert run.basis.loss_of_orthogonality() <= run.tridiagonal.orthogonality + 3e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vector_in_the_span_of_the_basis_keeps_nothing_but_rounding(dtype):
    """An exhausted Krylov space: the correction is larger than the vector, and is repeated."""
    q, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((50, 10)))
    basis = Basis(10, 50, dtype, torch.device("cpu"))
    for column in q.T:
        basis.append(torch.from_numpy(column.copy()))
    vector = torch.from_numpy(q @ np.arange(1.0, 11.0))
    norm, _ = basis.make_orthogonal(vector)
    assert norm <= 20 * 10 * torch.finfo(dtype).eps
    assert norm == pytest.approx(float(vector.norm()))
    zero = torch.zeros(50, dtype=torch.float64)
    assert basis.make_orthogonal(zero) == (0.0, 0.0)


def test_sizes_do_not_matter():
    """Norms that float32 cannot hold: the vector is scaled before it is measured."""
    basis = Basis(2, 4, torch.float32, torch.device("cpu"))
    basis.append(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    for size in (1e-60, 1.0, 1e60):
        vector = size * torch.tensor([1e-3, 1, 0, 0], dtype=torch.float64)
        norm, left = basis.make_orthogonal(vector)
        assert norm == pytest.approx(size, rel=1e-12)
        assert abs(float(vector[0])) <= 1e-9 * size
        assert left <= 2e-7
