"""Eigenpairs against dense eigenvalues and SciPy's: which, multiplicities, clusters, ends of the work, memory."""

from __future__ import annotations

import numpy as np
import pytest
from cases import dense_hessian, mlp_ragged, parameters
from scipy.sparse.linalg import eigsh as scipys

from spectra import DenseOperator, HessianOperator, eigsh
from spectra.errors import ArgumentError, OutOfMemory
from spectra.krylov import eigsh as eigsh_room
from spectra.krylov.probes import draw_probe, draw_start

RANDOM = np.random.default_rng(0)
SPECTRA = {
    "indefinite": RANDOM.normal(size=80),
    "outliers": np.concatenate([np.zeros(100), np.linspace(-0.3, 1.0, 26), [3.0, 5.0, 6.0, 10.0]]),
    "multiple": np.concatenate([np.zeros(60), np.full(4, 5.0), np.full(2, 2.0), np.full(3, -7.0)]),
    "clustered": np.concatenate([0.1 * RANDOM.normal(size=70), 1 + 1e-8 * np.arange(4), [1 + 1e-4]]),
    "power law": 1 / np.arange(1.0, 121.0),
    "zero": np.zeros(12),
    "identity": np.ones(12),
    "one row": np.array([-2.0]),
}


def hidden(eigenvalues, dtype=np.float64):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((n, n)))
    matrix = (q * eigenvalues) @ q.T
    return DenseOperator(((matrix + matrix.T) / 2).astype(dtype))


def wanted(eigenvalues, k, which):
    """By definition, from all eigenvalues; LM as magnitudes, since the order of a and -a is open."""
    up = np.sort(eigenvalues)
    if which == "LM":
        return np.sort(np.abs(up))[::-1][:k]
    if which == "BE":
        return np.sort(np.concatenate([up[::-1][: (k + 1) // 2], up[: k // 2]]))[::-1]
    return up[:k] if which == "SA" else up[::-1][:k]


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_values_are_the_dense_ones_with_their_multiplicities(name, which):
    eigenvalues = SPECTRA[name]
    for dtype, bound in ((np.float64, 1e-6), (np.float32, 3e-6)):
        operator = hidden(eigenvalues, dtype)
        for k in {1, min(6, len(eigenvalues))}:
            pairs = eigsh(operator, k, which)
            found = np.abs(pairs.values) if which == "LM" else pairs.values
            assert np.abs(found - wanted(eigenvalues, k, which)).max() <= bound * np.abs(eigenvalues).max()
            assert pairs.complete
            assert pairs.converged.all()
            assert pairs.note is None
            assert pairs.vectors.shape == (len(eigenvalues), k)
            assert pairs.vectors.dtype == dtype


@pytest.mark.parametrize("name", ["outliers", "multiple", "zero", "identity"])
def test_all_eigenpairs_of_a_matrix_can_be_asked_for(name):
    n = len(SPECTRA[name])
    pairs = eigsh(hidden(SPECTRA[name]), n, "SA")
    assert np.abs(pairs.values - np.sort(SPECTRA[name])).max() < 1e-6 * max(1.0, pairs.scale)
    assert pairs.complete
    assert pairs.completeness == "the vectors found span the whole space"
    assert np.abs(pairs.vectors.T @ pairs.vectors - np.eye(n)).max() < 1e-10


def test_a_single_krylov_space_would_miss_what_the_restarts_find():
    """Each distinct eigenvalue once: of 5, 5, 5, 5, 2, 2 a single recurrence sees two values."""
    pairs = eigsh(hidden(SPECTRA["multiple"]), 6)
    assert pairs.values == pytest.approx([5, 5, 5, 5, 2, 2], abs=1e-9)


def test_the_residuals_are_what_a_product_gives_and_the_intervals_hold_an_eigenvalue():
    operator = hidden(SPECTRA["indefinite"])
    truth = np.linalg.eigvalsh(operator.matrix.numpy())
    pairs = eigsh(operator, 5, "BE", tol=1e-3)
    direct = np.linalg.norm(operator @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
    assert pairs.residuals == pytest.approx(direct, rel=1e-6, abs=1e-14)
    assert (pairs.residuals > 1e-12).any(), "the tolerance was meant to be felt"
    for i in range(5):
        low, high = pairs.interval(i)
        assert ((truth >= low) & (truth <= high)).any()
        assert (high - low) / 2 == pytest.approx(pairs.residuals[i] + pairs.noise * pairs.scale)
    # Rayleigh quotients on orthonormal vectors
    assert pairs.vectors.T @ (operator @ pairs.vectors) == pytest.approx(np.diag(pairs.values), abs=1e-13)


def test_the_hessian_of_a_network(float64):
    task, written = mlp_ragged()
    operator = HessianOperator(task)
    dense = dense_hessian(written(), parameters(task)).numpy()
    for which in ("LA", "SA", "LM", "BE"):
        pairs = eigsh(operator, 4, which)
        mine = np.sort(np.abs(pairs.values) if which == "LM" else pairs.values)
        assert mine == pytest.approx(np.sort(wanted(np.linalg.eigvalsh(dense), 4, which)), abs=1e-6 * pairs.scale)
        theirs = np.sort(scipys(operator, k=4, which=which, return_eigenvectors=False))
        assert np.sort(pairs.values) == pytest.approx(theirs, abs=1e-6 * pairs.scale)
        assert dense @ pairs.vectors == pytest.approx(pairs.vectors * pairs.values, abs=1e-5 * pairs.scale)


def test_the_best_of_the_rest_is_looked_at_and_kept():
    pairs = eigsh(hidden(SPECTRA["outliers"]), 3, "LM")
    assert pairs.values == pytest.approx([10, 6, 5])
    assert np.abs(pairs.rest).max() == pytest.approx(3.0, abs=0.05)
    assert "met nothing better than 3" in pairs.completeness or "met nothing better than 2.99" in pairs.completeness


def test_what_has_not_converged_is_never_claimed():
    operator = hidden(SPECTRA["indefinite"])
    few = eigsh(operator, 4, max_steps=6)
    assert not few.converged.all()
    assert not few.complete
    assert "have not converged" in few.note
    assert "max_steps=6" in few.note
    for i in np.flatnonzero(~few.converged):
        assert few.residuals[i] > few.tolerance * few.scale
    # Converged, and still not known to be all: there were no steps left to look.
    pairs = eigsh(hidden(SPECTRA["outliers"]), 2)
    enough = next(
        p for p in (eigsh(hidden(SPECTRA["outliers"]), 2, max_steps=s) for s in range(10, 60)) if p.converged.all()
    )
    assert enough.values == pytest.approx(pairs.values)
    assert not enough.complete
    assert "not known to be complete" in enough.note


def test_the_seed_gives_the_same_bits_again_and_its_stream_is_not_that_of_the_probes():
    operator = hidden(SPECTRA["outliers"])
    first, again, other = (eigsh(operator, 3, seed=seed) for seed in (1, 1, 2))
    assert (first.vectors == again.vectors).all()
    assert (first.vectors != other.vectors).any()
    starts = [draw_start(50, seed=3, index=i) for i in range(6)]
    probes = [draw_probe(50, seed=3, index=i) for i in range(6)]
    assert max(abs(s @ p) for s in starts for p in probes) < 0.7


def test_the_progress_counts_the_steps():
    seen = []
    pairs = eigsh(hidden(SPECTRA["outliers"]), 3, progress=lambda done, most: seen.append((done, most)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {most for _, most in seen} == {360}
    assert pairs.products == len(seen) + 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k=0: from 1 to n=12"),
        ({"k": 13}, "k=13: from 1 to n=12"),
        ({"which": "SM"}, "which='SM': one of 'LA', 'SA', 'LM', 'BE'"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"seed": -1}, "seed=-1"),
        ({"k": 4, "max_steps": 3}, "max_steps=3: at least k=4"),
    ],
)
def test_an_argument_out_of_range_is_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        eigsh(hidden(SPECTRA["zero"]), **options)


def test_too_little_memory_is_said_or_ends_the_search(monkeypatch):
    operator = hidden(SPECTRA["indefinite"])
    row = 80 * 8
    monkeypatch.setattr(eigsh_room, "available_bytes", lambda device: 2 * (6 * row + 5 * row))
    with pytest.raises(OutOfMemory, match="4 eigenpairs of 80 numbers each"):
        eigsh(operator, 4)
    monkeypatch.setattr(eigsh_room, "available_bytes", lambda device: 2 * (6 * row + 9 * row))
    pairs = eigsh(operator, 4)
    assert not pairs.complete
    assert "memory for 9 vectors" in pairs.note


class Counted(DenseOperator):
    """Counts the products."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.products = 0

    def apply(self, block):
        self.products += len(block)
        return super().apply(block)


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_a_single_eigenvalue_to_few_digits_takes_one_start(which):
    """A spectrum like a network's: outliers over a bulk. The error is within the residual, and that within the aim."""
    eigenvalues = np.concatenate([np.linspace(-0.2, 1.0, 190), [1.5, 2.0, 2.8, 4.0, -1.0]])
    fast, full = Counted(hidden(eigenvalues).matrix), Counted(hidden(eigenvalues).matrix)
    loose = eigsh(fast, 1, which, tol=1e-3)
    checked = eigsh(full, 1, which, tol=1e-3, complete=True)
    assert loose.values[0] == pytest.approx(wanted(eigenvalues, 1, which)[0], abs=loose.residuals[0])
    assert loose.residuals[0] <= 1e-3 * 4.0
    assert loose.converged.all()
    assert fast.products == loose.products <= 25
    assert full.products >= fast.products + 9
    assert not loose.complete
    assert "complete=True" in loose.completeness
    assert checked.complete


@pytest.mark.parametrize(("k", "tol", "complete"), [(1, 1e-4, False), (1, 9e-5, True), (2, 1e-3, True)])
def test_completeness_is_the_default_except_for_one_eigenvalue_to_few_digits(k, tol, complete):
    operator = hidden(SPECTRA["outliers"])
    assert eigsh(operator, k, tol=tol).complete is complete
    assert not eigsh(operator, k, tol=tol, complete=False).complete
    assert eigsh(operator, k, tol=tol, complete=True).complete


def test_without_a_look_for_equal_eigenvalues_there_are_as_many_as_asked_for():
    """One Krylov space shows a multiple eigenvalue once, so the search goes on until there are k pairs."""
    pairs = eigsh(hidden(SPECTRA["multiple"]), 3, "LA", complete=False)
    assert len(pairs.values) == 3
    assert pairs.values[0] == pytest.approx(5.0)
