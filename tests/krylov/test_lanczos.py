"""Lanczos against what it must satisfy exactly, on matrices whose spectra are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectra import DenseOperator
from spectra.errors import NumericsError
from spectra.krylov.lanczos import tridiagonalize
from spectra.krylov.probes import draw_probe
from spectra.operators.base import SymmetricOperator


def hidden(eigenvalues, seed=0):
    """A matrix with these eigenvalues behind a random orthogonal basis."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    matrix = (q * np.asarray(eigenvalues)) @ q.T
    return (matrix + matrix.T) / 2


SPECTRA = {
    "even": np.linspace(-1, 3, 60),
    "outliers": np.concatenate([np.linspace(-0.01, 0.01, 55), [-2.0, 1.0, 5.0, 5.001, 40.0]]),
    "tiny": 1e-12 * np.linspace(1, 2, 60),
    "huge": 1e12 * np.linspace(-1, 2, 60),
}


def run(matrix, steps, index=0, tolerance=1e-10, dtype=np.float64, **options):
    operator = DenseOperator(matrix.astype(dtype))
    start = draw_probe(operator.n, seed=4, index=index)
    return start, tridiagonalize(operator, [start], steps, tolerance=tolerance, keep_basis=True, **options)[0]


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 2, 20, 59])
def test_the_recurrence_holds_and_the_basis_is_orthonormal(name, steps):
    """A Q = Q T + beta_m q_{m+1} e_m', with q_{m+1} of unit length and orthogonal to Q."""
    matrix = hidden(SPECTRA[name])
    scale = np.abs(SPECTRA[name]).max()
    _, found = run(matrix, steps)
    t = found.tridiagonal
    q = found.basis.rows.numpy().T
    assert q.shape == (60, t.steps) == (60, steps)
    assert np.abs(q.T @ q - np.eye(steps)).max() < 1e-13
    assert t.orthogonality < 1e-13
    residual = matrix @ q - q @ t.matrix()
    assert np.abs(residual[:, :-1]).max(initial=0.0) < 1e-13 * scale
    assert np.linalg.norm(residual[:, -1]) == pytest.approx(t.betas[-1], rel=1e-8, abs=1e-13 * scale)
    assert np.abs(q.T @ residual[:, -1]).max() < 1e-13 * scale


@pytest.mark.parametrize("name", SPECTRA)
def test_moments_are_exact_to_twice_the_steps_less_one_and_no_further(name):
    eigenvalues = SPECTRA[name] / np.abs(SPECTRA[name]).max()
    matrix = hidden(eigenvalues)
    start, found = run(matrix, 4)
    t = found.tridiagonal
    power = start.copy()
    for degree in range(9):
        gauss = float(t.weights @ t.nodes**degree)
        exact = float(start @ power)
        if degree <= 7:
            assert gauss == pytest.approx(exact, rel=1e-10, abs=1e-14)
        else:
            assert abs(gauss - exact) > 1e-8 * abs(exact)
        power = matrix @ power


def test_residuals_are_those_of_the_ritz_vectors():
    matrix = hidden(SPECTRA["outliers"])
    _, found = run(matrix, 12)
    t = found.tridiagonal
    theta, s = np.linalg.eigh(t.matrix())
    ritz = found.basis.rows.numpy().T @ s
    assert np.linalg.norm(matrix @ ritz - ritz * theta, axis=0) == pytest.approx(t.residuals, rel=1e-6, abs=1e-12)
    assert theta.min() >= SPECTRA["outliers"].min() - 1e-12
    assert theta.max() <= SPECTRA["outliers"].max() + 1e-12


@pytest.mark.parametrize("steps", [60, 61, 500])
def test_all_steps_give_the_whole_spectrum_and_more_are_not_taken(steps):
    eigenvalues = SPECTRA["even"]
    _, found = run(hidden(eigenvalues), steps)
    t = found.tridiagonal
    assert t.steps == 60
    assert t.exhausted
    assert t.nodes == pytest.approx(eigenvalues, abs=1e-12)


@pytest.mark.parametrize(
    ("eigenvalues", "distinct"),
    [
        (np.zeros(30), 1),
        (np.full(30, 2.5), 1),
        (np.r_[np.zeros(29), 3.0], 2),
        (np.r_[np.zeros(20), np.full(10, -1.0)], 2),
        (np.r_[np.zeros(55), 1.0, 2.0, 3.0, 5.0, 5.0], 5),
    ],
    ids=["zero", "a multiple of the identity", "rank one", "a projector", "rank five"],
)
def test_an_invariant_subspace_ends_the_recurrence_with_an_exact_rule(eigenvalues, distinct):
    matrix = hidden(eigenvalues)
    start, found = run(matrix, 50)
    t = found.tridiagonal
    assert t.exhausted
    assert t.steps == distinct
    assert t.nodes == pytest.approx(np.unique(eigenvalues), abs=1e-12)
    values, vectors = np.linalg.eigh(matrix)
    for node, weight in zip(t.nodes, t.weights):
        mass = ((start @ vectors)[np.abs(values - node) < 1e-9] ** 2).sum()
        assert weight == pytest.approx(mass, abs=1e-12)


def test_no_ghosts_where_unprotected_lanczos_has_them():
    """59 steps on 60 dimensions with a far outlier, which shows up several times without re-orthogonalisation."""
    eigenvalues = np.r_[np.linspace(0, 1, 59), 100.0]
    _, found = run(hidden(eigenvalues), 59)
    assert (np.abs(found.tridiagonal.nodes - 100.0) < 1.0).sum() == 1


def test_scaling_the_matrix_scales_the_result_alone():
    """Breakdown is judged in the matrix's own scale: tiny losses have spectra too."""
    matrix = hidden(SPECTRA["outliers"])
    _, reference = run(matrix, 25)
    for factor in (2.0**-60, 2.0**60):
        _, found = run(matrix * factor, 25)
        assert np.array_equal(found.tridiagonal.alphas, reference.tridiagonal.alphas * factor)
        assert np.array_equal(found.tridiagonal.betas, reference.tridiagonal.betas * factor)


def test_lockstep_gives_the_same_bits_as_one_probe_at_a_time():
    operator = DenseOperator(hidden(SPECTRA["outliers"]))

    class RowByRow(SymmetricOperator):
        """A matrix-free operator: each row of a block is a product of its own."""

        def apply(self, block):
            return torch.stack([operator.matrix @ row.clone() for row in block])

    free = RowByRow(60, torch.float64, torch.device("cpu"))
    starts = [draw_probe(60, seed=0, index=i) for i in range(3)]
    together = tridiagonalize(free, starts, 20, tolerance=1e-10)
    for start, found in zip(starts, together):
        alone = tridiagonalize(free, [start], 20, tolerance=1e-10)[0]
        assert np.array_equal(alone.tridiagonal.alphas, found.tridiagonal.alphas)
        assert np.array_equal(alone.tridiagonal.betas, found.tridiagonal.betas)
        assert np.array_equal(alone.forms, found.forms)


def test_probes_that_end_early_leave_the_others_running():
    matrix = hidden(SPECTRA["even"])
    _, vectors = np.linalg.eigh(matrix)
    operator = DenseOperator(matrix)
    counted = []
    short, long = tridiagonalize(
        operator,
        [vectors[:, 3], draw_probe(60, seed=0, index=0)],
        10,
        tolerance=1e-10,
        tick=counted.append,
    )
    assert (short.tridiagonal.steps, short.tridiagonal.exhausted) == (1, True)
    assert (long.tridiagonal.steps, long.tridiagonal.exhausted) == (10, False)
    assert counted == [2] + [1] * 9


@pytest.mark.parametrize("steps", [5, 40, 59])
def test_float32_products_keep_a_basis_orthonormal_to_its_own_rounding(steps):
    matrix = hidden(SPECTRA["outliers"])
    _, found = run(matrix, steps, tolerance=1e-6, dtype=np.float32)
    t = found.tridiagonal
    assert found.basis.rows.dtype == torch.float32
    assert t.orthogonality < 2e-6
    top = float(t.nodes.max())
    assert abs(top - 40.0) < 1e-5 * 40 or steps < 10
    assert (np.abs(t.nodes - 40.0) < 1).sum() == 1


def test_wide_vectors_are_orthogonalised_in_pieces_without_loss():
    """n above the size of one piece: the pieces must add up to the whole."""
    n = 70_000
    diagonal = torch.linspace(-1, 1, n, dtype=torch.float32)

    class Diagonal(SymmetricOperator):
        def apply(self, block):
            return block * diagonal

    operator = Diagonal(n, torch.float32, torch.device("cpu"))
    found = tridiagonalize(operator, [draw_probe(n, seed=0, index=0)], 30, tolerance=1e-7)[0]
    assert found.tridiagonal.orthogonality < 2e-6
    # The semicircle-like law of a uniform spectrum: alphas near 0, betas near 1/2.
    assert np.abs(found.tridiagonal.alphas).max() < 0.02
    assert found.tridiagonal.betas[5:] == pytest.approx(np.full(25, 0.5), abs=0.03)


def test_the_first_form_is_the_quadratic_form_by_tensor():
    matrix = hidden(SPECTRA["even"])

    class Pieces(DenseOperator):
        @property
        def tensor_sizes(self):
            return {"a": 25, "b": 5, "c": 30}

    start = draw_probe(60, seed=0, index=0)
    found = tridiagonalize(Pieces(matrix), [start], 3, tolerance=1e-10)[0]
    terms = start * (matrix @ start)
    assert found.forms == pytest.approx([terms[:25].sum(), terms[25:30].sum(), terms[30:].sum()], abs=1e-14)
    assert found.forms.sum() == pytest.approx(found.tridiagonal.alphas[0], abs=1e-14)


def test_products_that_are_not_finite_are_an_error():
    class Broken(SymmetricOperator):
        def apply(self, block):
            return block * float("nan")

    operator = Broken(5, torch.float64, torch.device("cpu"))
    with pytest.raises(NumericsError, match="step 1"):
        tridiagonalize(operator, [draw_probe(5, seed=0, index=0)], 3, tolerance=1e-10)
