"""Operators made of operators, against the same sums of dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import batches_of, mlp_ragged
from scipy.sparse.linalg import eigsh
from torch import nn

from spectra import DenseOperator, GGNOperator, HessianOperator, Task, deflated, scaled, shifted, slq, summed
from spectra.errors import ArgumentError
from spectra.operators.base import SymmetricOperator

pytestmark = pytest.mark.usefixtures("float64")


def matrix(n=12, seed=0):
    a = np.random.default_rng(seed).standard_normal((n, n))
    return a + a.T


def dense(operator):
    return operator @ np.eye(operator.n)


def curvatures():
    task, _ = mlp_ragged()
    return HessianOperator(task), GGNOperator(task)


def eigenpairs(operator, r):
    """The r eigenvalues of largest magnitude, and their vectors."""
    values, vectors = np.linalg.eigh(dense(operator))
    order = np.argsort(-np.abs(values))[:r]
    return values[order], vectors[:, order]


class Noisy(DenseOperator):
    """A matrix whose products are said to be noisier than they are."""

    @property
    def noise(self):
        return 1e-6


# -- shift, scale, sum


def test_shifted_scaled_and_summed_are_the_dense_ones():
    a, b = matrix(seed=0), matrix(seed=1)
    A, B, eye = DenseOperator(a), DenseOperator(b), np.eye(12)
    for operator, expected in [
        (shifted(A, 0.7), a + 0.7 * eye),
        (scaled(A, -3), -3 * a),
        (summed(A, B), a + b),
        (A + B, a + b),
        (A - B, a - b),
        (-A, -a),
        (A * 2, 2 * a),
        (np.float64(0.5) * A, 0.5 * a),
        (np.float32(0.5) * A, 0.5 * a),
        (A + 0.1 * B, a + 0.1 * b),
        (2 * shifted(A - 0.5 * B, 3.0) - A, a - b + 6 * eye),
    ]:
        assert isinstance(operator, SymmetricOperator)
        assert np.allclose(dense(operator), expected, rtol=0, atol=1e-14 * np.linalg.norm(expected))


def test_combinations_of_combinations_are_one():
    A, B = DenseOperator(matrix(seed=0)), DenseOperator(matrix(seed=1))
    nested = 2 * shifted(A - 0.5 * B, 3.0) - scaled(A, 4)
    assert [(factor, term) for factor, term in nested.terms] == [(2, A), (-1, B), (-4, A)]
    assert nested.shift == 6


def test_the_spectrum_of_what_the_ggn_leaves_out_has_the_dense_moments_and_ends():
    H, G = curvatures()
    E = H - G
    eigenvalues = np.linalg.eigvalsh(dense(H) - dense(G))
    assert np.abs(eigenvalues).max() > 1e-2
    n = E.n
    spectrum = slq(E, lanczos_steps=n, num_probes=3, seed=1)
    for nodes, weights in zip(spectrum.nodes, spectrum.weights):
        met = nodes[np.isfinite(nodes) & (weights > 1e-12)]
        assert np.abs(met[:, None] - eigenvalues).min(1).max() < 1e-8 * np.abs(eigenvalues).max()
    assert spectrum.lambda_max().value == pytest.approx(eigenvalues[-1], rel=1e-9)
    assert spectrum.lambda_min().value == pytest.approx(eigenvalues[0], rel=1e-9)
    # the same probes: what is linear in the operator is the difference of what H and G give
    parts = [slq(operator, lanczos_steps=1, num_probes=3, seed=1).tensor_forms for operator in (H, G)]
    assert np.allclose(spectrum.tensor_forms, parts[0] - parts[1], rtol=0, atol=1e-14)
    assert list(spectrum.tensor_sizes) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_scipy_and_torch_take_combinations_as_they_take_operators():
    H, G = curvatures()
    operator = H + 0.1 * G
    assert (operator.shape, operator.dtype) == ((operator.n, operator.n), np.dtype("float64"))
    top = eigsh(operator, k=3, which="LA", return_eigenvectors=False)
    assert np.sort(top) == pytest.approx(np.linalg.eigvalsh(dense(H) + 0.1 * dense(G))[-3:], rel=1e-9)
    values, vectors = eigenpairs(H, 2)
    rest = eigsh(deflated(H, values, vectors), k=1, which="LM", return_eigenvectors=False)
    assert abs(rest[0]) == pytest.approx(np.sort(np.abs(np.linalg.eigvalsh(dense(H))))[-3], rel=1e-9)
    block = torch.randn(operator.n, 3, dtype=torch.float32)
    assert (operator @ block).dtype == torch.float32


@pytest.mark.parametrize("project", [False, True])
def test_products_are_the_same_alone_and_in_company_to_the_last_bit(project):
    H, G = curvatures()
    operator = deflated(shifted(H - 0.5 * G, 0.1), *eigenpairs(H, 3), project=project)
    block = torch.randn(H.n, 4)
    together = operator @ block
    for column in range(4):
        assert torch.equal(together[:, column], operator @ block[:, column])


def test_prepared_is_that_of_every_wrapped_operator():
    task, _ = mlp_ragged()
    passes = 0

    class Counted(list):
        def __iter__(self):
            nonlocal passes
            passes += 1
            return super().__iter__()

    counted = Task(task.model, task.criterion, Counted(task.data))
    H, G = HessianOperator(counted), GGNOperator(counted)
    operator = deflated(H - G, np.ones(1), np.eye(H.n, 1))
    v = torch.randn(H.n)
    plain = operator @ v
    start = passes
    with operator.prepared():
        assert torch.equal(operator @ v, plain)
        assert torch.equal(operator @ v, plain)
    assert passes == start + 2  # one of H, one of G
    assert (H.passes.held, G.passes.held) == (None, None)


# -- noise


def test_noise_is_relative_to_the_norm_of_the_result():
    a = np.diag(np.r_[100.0, np.linspace(-1, 1, 11)])
    A, B = Noisy(a), DenseOperator(np.diag(np.r_[99.0, np.zeros(11)]))
    assert scaled(A, -7).noise == 1e-6
    for operator, expected in [
        (shifted(A, 300.0), 1e-6 * 100 / 400),
        (summed(A, B), 1e-6 * 100 / 199),
        (A - B, 1e-6 * 100 / 1),
        (deflated(A, [100.0], np.eye(12, 1)), 1e-6 * 100 / 1),
        (deflated(A, None, np.eye(12, 1), project=True), 1e-6 * 100 / 1),
    ]:  # the norm of the result comes from the power method, which is from below
        assert expected * (1 - 1e-3) <= operator.noise < 1.3 * expected


def test_noise_bounds_the_error_of_a_float32_difference():
    task, _ = mlp_ragged()
    task.model.float()
    single = Task(task.model, nn.CrossEntropyLoss(), [(x.float(), y) for x, y in task.data])
    E = HessianOperator(single) - GGNOperator(single)
    exact = dense(HessianOperator(single, dtype="float64")) - dense(GGNOperator(single, dtype="float64"))
    error = np.linalg.norm(dense(E) - exact, 2) / np.linalg.norm(exact, 2)
    assert E.dtype == np.dtype("float32")
    assert 0.05 * E.noise < error < 5 * E.noise < 1e-4


def test_where_everything_cancels_the_products_are_called_noise_and_the_spectrum_is_small():
    """H = G for a linear model: what is left is rounding, and no eigenvalue of it means anything."""
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    task = Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), batches_of(x, y, 13, 7))
    E = HessianOperator(task) - GGNOperator(task)
    assert E.noise > 0.05
    spectrum = slq(E, num_probes=2)
    assert abs(spectrum.lambda_max().value) < 1e-14
    assert spectrum.trace().value == pytest.approx(0, abs=1e-13)
    A = DenseOperator(matrix())
    assert (A - A).noise == 1.0
    assert not dense(A - A).any()


# -- deflation


def test_deflation_removes_exactly_the_given_eigenvalues():
    a = matrix()
    values, vectors = np.linalg.eigh(a)
    gone, kept = [0, 5, 11], [i for i in range(12) if i not in (0, 5, 11)]
    expected = np.sort(np.r_[values[kept], 0, 0, 0])
    for project in (False, True):
        rest = deflated(DenseOperator(a), values[gone], vectors[:, gone], project=project)
        assert np.linalg.eigvalsh(dense(rest)) == pytest.approx(expected, abs=1e-13)
        spectrum = slq(rest, lanczos_steps=12, num_probes=2)
        assert spectrum.lambda_max().value == pytest.approx(expected[-1], rel=1e-10)
        assert spectrum.lambda_min().value == pytest.approx(expected[0], rel=1e-10)


def test_what_is_subtracted_is_what_was_given_even_if_it_is_no_eigenpair():
    a = matrix()
    q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((12, 4)))
    values, p = np.array([1.0, -2.0, 0.5, 7.0]), np.eye(12) - q @ q.T
    subtracted = deflated(DenseOperator(a), values, torch.from_numpy(q))
    assert np.allclose(dense(subtracted), a - q * values @ q.T, rtol=0, atol=1e-13)
    assert np.trace(a) == pytest.approx(np.trace(dense(subtracted)) + values.sum(), rel=1e-13)
    projected = deflated(DenseOperator(a), None, q, project=True)
    assert np.allclose(dense(projected), p @ a @ p, rtol=0, atol=1e-13)
    assert np.abs(projected @ q).max() < 1e-14


def test_deflating_nothing_changes_nothing_and_everything_leaves_zero():
    A = DenseOperator(matrix())
    assert np.array_equal(dense(deflated(A, np.zeros(0), np.zeros((12, 0)))), dense(A))
    values, vectors = np.linalg.eigh(A.matrix.numpy())
    assert np.abs(dense(deflated(A, values, vectors))).max() < 1e-13
    assert np.abs(dense(deflated(A, values, vectors, project=True))).max() < 1e-13


def test_deflation_of_a_float32_operator_takes_vectors_as_good_as_float32():
    a = matrix()
    values, vectors = np.linalg.eigh(a)
    rest = deflated(DenseOperator(a.astype(np.float32)), values[-2:], vectors[:, -2:].astype(np.float32))
    assert np.linalg.eigvalsh(dense(rest))[-1] == pytest.approx(values[-3], rel=1e-5)


# -- refusals


def test_operators_that_do_not_fit_cannot_be_added():
    A = DenseOperator(matrix())
    with pytest.raises(ArgumentError, match="12 rows, float64 on cpu, and one of 5 rows, float64 on cpu"):
        summed(A, DenseOperator(np.eye(5)))
    with pytest.raises(ArgumentError, match=r"12 rows, float32 .* params= and dtype="):
        A - DenseOperator(np.eye(12, dtype=np.float32))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    A = DenseOperator(matrix())
    for make in (lambda: shifted(A, bad), lambda: scaled(A, bad), lambda: bad * A):
        with pytest.raises(ArgumentError, match="finite number is needed"):
            make()


@pytest.mark.parametrize("other", [2.0, np.ones(12), "A"])
def test_only_operators_are_added_and_only_numbers_multiply(other):
    A = DenseOperator(matrix())
    with pytest.raises(TypeError):
        A + other
    with pytest.raises(TypeError):
        other - A
    with pytest.raises(TypeError):
        A * A
    if not isinstance(other, float):
        with pytest.raises(TypeError):
            other * A


def test_a_deflation_by_what_is_no_frame_is_refused():
    A, q = DenseOperator(matrix()), np.linalg.qr(np.random.default_rng(3).standard_normal((12, 3)))[0]
    for values, vectors, match in [
        (np.ones(3), q.T, r"shape \(3, 12\): \(12, r\)"),
        (np.ones(12), q[:, 0], r"shape \(12,\): \(12, r\)"),
        (np.ones(2), q, r"shape \(2,\): one for each of the 3 vectors"),
        ([1.0, np.nan, 1.0], q, "NaN or infinity"),
        (None, q, "unless project=True"),
        (np.ones(3), q + 1e-6, r"not orthonormal: .* at most 1e-10 is needed"),
        (np.ones(3), 2 * q, r"\|V'V - I\| is 3,"),
        (np.ones(3), q * np.nan, "not orthonormal"),
        (np.ones(2), np.repeat(q[:, :1], 2, axis=1), r"\|V'V - I\| is 1,"),
    ]:
        with pytest.raises(ArgumentError, match=match):
            deflated(A, values, vectors)


@pytest.mark.filterwarnings("error")
def test_arrays_that_cannot_be_written_to_are_taken_without_a_warning():
    """The values and vectors of `eigsh` are such arrays."""
    a = matrix()
    values, vectors = np.linalg.eigh(a)
    pair = values[-1:].copy(), vectors[:, -1:].copy()
    for array in (a, *pair):
        array.flags.writeable = False
    operator = DenseOperator(a)
    np.testing.assert_allclose(operator @ a, a @ a)
    np.testing.assert_allclose(operator @ a[0], a @ a[0])
    np.testing.assert_allclose(dense(deflated(operator, *pair)), a - pair[0] * pair[1] @ pair[1].T, atol=1e-12)
