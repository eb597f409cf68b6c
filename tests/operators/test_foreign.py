"""Matrices and operators of other libraries: taken for what they are, with honest noise, or refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import dense_hessian, mlp_ragged, parameters
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import spectra
from spectra import HessianOperator, as_operator, eigsh, hutchpp, slq
from spectra.errors import ArgumentError, NumericsError

N = 40


def matrix(n=N, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    a = (q * np.concatenate([np.linspace(-1, 2, n - 2), [5.0, 9.0]])) @ q.T
    return (a + a.T) / 2


A = matrix()


class Holding:
    """An object with ``shape`` and ``@`` and nothing else, which takes what its function takes."""

    def __init__(self, multiply, n=N, **attributes):
        self.shape, self.multiply = (n, n), multiply
        for name, value in attributes.items():
            setattr(self, name, value)

    def __matmul__(self, vectors):
        return self.multiply(vectors)


class Sized:
    size, device = N, torch.device("cpu")

    def __matmul__(self, vector):
        return T @ vector


def only(condition, multiply):
    def checked(vectors):
        if not condition(vectors):
            raise TypeError(f"not {type(vectors).__name__} of shape {tuple(vectors.shape)}")
        return multiply(vectors)

    return checked


def numpy_of(dimensions, dtype=None):
    return lambda v: isinstance(v, np.ndarray) and v.ndim in dimensions and (dtype is None or v.dtype == dtype)


def torch_of(dimensions, dtype=None):
    return lambda v: isinstance(v, torch.Tensor) and v.ndim in dimensions and (dtype is None or v.dtype == dtype)


T = torch.from_numpy(A)

FORMS = {
    "NumPy": lambda: A,
    "NumPy in Fortran order": lambda: np.asfortranarray(A),
    "np.matrix": lambda: np.asmatrix(A),
    "torch": lambda: T,
    "torch with a gradient": lambda: T.clone().requires_grad_(),
    "torch sparse": lambda: T.to_sparse_csr(),
    "torch sparse COO": lambda: T.to_sparse(),
    "SciPy sparse matrix": lambda: sparse.csr_matrix(A),
    "SciPy sparse array": lambda: sparse.coo_array(A),
    "LinearOperator": lambda: aslinearoperator(A),
    "LinearOperator of matvec": lambda: LinearOperator((N, N), matvec=lambda v: A @ v),
    "LinearOperator of both": lambda: LinearOperator((N, N), lambda v: A @ v, matmat=lambda v: A @ v, dtype=float),
    "sum of LinearOperators": lambda: aslinearoperator(A / 2) + aslinearoperator(A / 2),
    "any object": lambda: Holding(lambda v: A @ v),
    "vectors only": lambda: Holding(only(numpy_of([1]), lambda v: A @ v)),
    "blocks only": lambda: Holding(only(numpy_of([2]), lambda v: A @ v)),
    "columns only": lambda: Holding(only(lambda v: v.ndim == 2 and v.shape[1] == 1, lambda v: A @ v)),
    "tensors only": lambda: Holding(only(torch_of([1, 2]), lambda v: T @ v)),
    "vectors as tensors only": lambda: Holding(only(torch_of([1]), lambda v: T @ v)),
    "tensors, with a dtype": lambda: Holding(only(torch_of([1, 2]), lambda v: T @ v), dtype=torch.float64,
                                             device=torch.device("cpu")),
    "a size in place of a shape": lambda: Sized(),
    "lists returned": lambda: Holding(only(numpy_of([1]), lambda v: (A @ v).tolist())),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the matrix subclass", "ignore:Sparse")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_one_matrix_has_its_spectrum(form):
    given = FORMS[form]()
    operator = as_operator(given)
    assert operator.shape == (N, N)
    assert operator.dtype == np.float64
    assert 2e-16 < operator.noise < 1e-13
    assert np.abs(operator @ np.eye(N) - A).max() < 1e-13
    assert np.abs((operator @ torch.eye(N, dtype=torch.float64)[:, 0]).numpy() - A[:, 0]).max() < 1e-13
    spectrum = slq(given, lanczos_steps=N, num_probes=3)
    assert spectrum.lambda_max().value == pytest.approx(9.0, rel=1e-11)
    assert spectrum.lambda_min().value == pytest.approx(-1.0, rel=1e-9)
    pairs = eigsh(given, k=3)
    assert pairs.values == pytest.approx(np.linalg.eigvalsh(A)[:-4:-1], rel=1e-10)
    assert pairs.complete
    assert hutchpp(given, products=3 * N).value == pytest.approx(np.trace(A), rel=1e-10)


def test_the_numbers_are_those_of_the_operator_itself():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        task, loss = mlp_ragged()
        own = HessianOperator(task)
        wrapped = LinearOperator(own.shape, matvec=lambda v: own @ v, dtype=np.float64)
        dense = dense_hessian(loss(), parameters(task)).numpy()
        spectra_of = [slq(each, 20, 3, seed=2) for each in (own, wrapped, dense, aslinearoperator(own))]
    finally:
        torch.set_default_dtype(torch.float32)
    for other in spectra_of[1:]:
        assert other.nodes == pytest.approx(spectra_of[0].nodes, abs=1e-10)
    assert as_operator(own) is own


@pytest.mark.parametrize("form", ["NumPy", "torch", "sparse", "LinearOperator", "tensors"])
def test_float32_stays_float32_and_has_its_noise(form):
    a = A.astype(np.float32)
    given = {
        "NumPy": a,
        "torch": torch.from_numpy(a),
        "sparse": sparse.csr_array(a),
        "LinearOperator": aslinearoperator(a),
        "tensors": Holding(only(torch_of([1, 2], torch.float32), lambda v: torch.from_numpy(a) @ v)),
    }[form]
    operator = as_operator(given)
    assert operator.dtype == np.float32
    assert 1e-7 < operator.noise < 2e-6
    assert slq(given, N, 2).lambda_max().value == pytest.approx(9.0, rel=1e-5)


def test_float64_vectors_of_a_product_in_float32_have_the_noise_of_float32():
    """A product that converts to float32 and back, whatever dtype it claims to have."""
    a = A.astype(np.float32)

    def multiply(v):
        return (a @ v.astype(np.float32)).astype(np.float64)

    vectors = np.random.default_rng(3).standard_normal((N, 50))
    vectors /= np.linalg.norm(vectors, axis=0)
    error = np.linalg.norm(multiply(vectors) - A @ vectors, axis=0).max() / 9
    for given in (LinearOperator((N, N), matvec=multiply, dtype=np.float64), Holding(multiply)):
        operator = as_operator(given)
        assert 0.3 * error < operator.noise < 30 * error
    assert as_operator(Holding(lambda v: a @ v.astype(np.float32))).noise >= 1e-7


@pytest.mark.parametrize(("dtype", "expected"), [(np.int64, np.float64), (bool, np.float64), (np.float16, np.float32),
                                                 (np.longdouble, np.float64)])  # fmt: skip
def test_other_real_numbers_are_converted(dtype, expected):
    a = np.eye(6, dtype=dtype)
    assert as_operator(a).dtype == expected
    assert as_operator(a) @ np.ones(6) == pytest.approx(np.ones(6))
    if dtype is not np.float16 and dtype is not np.longdouble:
        assert as_operator(sparse.csr_array(a)).dtype == expected
        assert as_operator(torch.from_numpy(a)).dtype == expected
    assert as_operator(torch.eye(3, dtype=torch.bfloat16)).dtype == np.float32


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("form", ["NumPy", "LinearOperator", "vectors", "blocks"])
def test_the_smallest_matrices(n, form):
    a = np.diag(np.arange(1.0, n + 1))
    given = {
        "NumPy": a,
        "LinearOperator": aslinearoperator(a),
        "vectors": Holding(only(numpy_of([1]), lambda v: a @ v), n),
        "blocks": Holding(only(numpy_of([2]), lambda v: a @ v), n),
    }[form]
    assert slq(given, 5, 2).lambda_max().value == pytest.approx(n)
    assert eigsh(given, k=1).values == pytest.approx([n])


def test_zero_is_a_matrix_too():
    for given in (np.zeros((5, 5)), sparse.csr_array((5, 5)), Holding(lambda v: 0 * v, 5)):
        assert slq(given, 5, 2).spectral_norm().value == 0


BROKEN = A.copy()
BROKEN[3, 5] += 0.01
HOLED = A.copy()
HOLED[2, 2] = np.nan


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (A[:, :5], ArgumentError, r"shape \(40, 5\): a square matrix is needed"),
        (np.ones(5), ArgumentError, r"shape \(5,\): a square"),
        (np.zeros((0, 0)), ArgumentError, r"shape \(0, 0\): a square"),
        (aslinearoperator(A[:, :5]), ArgumentError, "square"),
        (sparse.csr_array(A[:, :5]), ArgumentError, "square"),
        (A + 0j, ArgumentError, "dtype=complex128: a real symmetric"),
        (torch.from_numpy(A + 0j), ArgumentError, "dtype=torch.complex128"),
        (sparse.csr_array(A + 0j), ArgumentError, "complex"),
        (aslinearoperator(A + 0j), ArgumentError, "complex"),
        (Holding(lambda v: A @ v + 0j), ArgumentError, "the products of the Holding are complex"),
        (BROKEN, ArgumentError, "not symmetric"),
        (torch.from_numpy(BROKEN), ArgumentError, "not symmetric"),
        (sparse.csr_array(BROKEN), ArgumentError, "not symmetric: entries differ by 0.01"),
        (aslinearoperator(BROKEN), ArgumentError, "not symmetric: v'Au = .* and u'Av = "),
        (torch.from_numpy(BROKEN).to_sparse(), ArgumentError, "not symmetric"),
        (Holding(lambda v: BROKEN @ v), ArgumentError, "the Holding is not symmetric"),
        (Holding(lambda v: np.triu(A) @ v), ArgumentError, "not symmetric"),
        (HOLED, NumericsError, "NaN"),
        (torch.from_numpy(HOLED), NumericsError, "NaN"),
        (sparse.csr_array(HOLED), NumericsError, "NaN"),
        (aslinearoperator(HOLED), NumericsError, "a product with the .* holds NaN"),
        (Holding(lambda v: A @ v + 1), ArgumentError, "not linear"),
        (Holding(lambda v: np.abs(A @ v)), ArgumentError, "not linear"),
        (Holding(lambda v: A @ v + np.random.standard_normal(v.shape)), ArgumentError, "differ"),  # noqa: NPY002
        (Holding(lambda v: (A @ v)[:-1]), ArgumentError, r"the product with a \(40, 2\) array has the shape \(39, 2\)"),
        (Holding(lambda v: A @ v if v.ndim == 1 else A @ v[:, ::-1]), ArgumentError, "not that with its columns"),
        (
            Holding(only(lambda v: False, None)),
            ArgumentError,
            r"products with the Holding fail: TypeError: not ndarray",
        ),
        (A.tolist(), ArgumentError, "a list is no matrix"),
        (lambda v: A @ v, ArgumentError, "a function is no matrix"),
        (torch.nn.Linear(3, 3), ArgumentError, r"a Linear is no matrix.*HessianOperator\(task\)"),
        (None, ArgumentError, "a NoneType is no matrix"),
    ],
)
def test_what_is_no_real_symmetric_matrix_is_refused_in_one_line(given, error, words):
    for use in (as_operator, slq, eigsh, hutchpp):
        with pytest.raises(error, match=words) as caught:
            use(given)
        assert "\n" not in str(caught.value)


def test_an_error_in_a_later_product_names_its_place():
    calls = 0

    def multiply(v):
        nonlocal calls
        calls += 1
        if calls > 20:
            raise ZeroDivisionError("late")
        return A @ v

    with pytest.raises(
        ArgumentError, match=r"a product with the Holding fails at .*multiply in test_foreign.py line"
    ) as e:
        slq(Holding(multiply), 30, 2)
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_a_slightly_noisy_matrix_says_how_noisy_it_is():
    rng = np.random.default_rng(0)

    def multiply(v):
        return A @ v + 1e-6 * rng.standard_normal(v.shape)

    operator = as_operator(Holding(multiply))
    assert 1e-7 < operator.noise < 1e-5
    assert slq(operator, N, 2).lambda_max().value == pytest.approx(9.0, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_stay_on_their_device():
    a = T.cuda()
    for given in (
        a,
        a.to_sparse_csr(),
        Holding(only(lambda v: v.is_cuda, lambda v: a @ v), dtype=a.dtype, device=a.device),
    ):
        operator = as_operator(given)
        assert operator.device.type == "cuda"
        assert slq(operator, N, 2).lambda_max().value == pytest.approx(9.0, rel=1e-10)


def test_it_is_a_public_name():
    assert spectra.as_operator is as_operator
