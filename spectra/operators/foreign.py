"""as_operator: turns a matrix, or an operator of another library, into a SymmetricOperator."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse

from spectra.errors import ArgumentError, NumericsError
from spectra.operators.base import SymmetricOperator
from spectra.operators.dense import DenseOperator
from spectra.task.user_errors import calling, words_of

# Two products that must be equal differ by more than this only if something other than rounding is wrong.
_FAULT = 1e-3
# Tolerance for |u'Av - v'Au| relative to |Av|, beyond the measured error of the products, by precision.
_ASYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-7}


def as_operator(matrix: Any) -> SymmetricOperator:
    """A real symmetric matrix in whatever form, as an operator.

    Args:
        matrix: an operator of spectra, which is returned as it is; a NumPy or torch matrix; a SciPy sparse matrix; or
            any object with ``shape`` and ``@``, such as a SciPy ``LinearOperator`` or an operator of curvlinops
            (``size``, the number of rows, may replace ``shape``). Products may take NumPy arrays or torch tensors, of
            shape ``(n,)`` or ``(n, k)``; the supported form is found by trying. Vectors have the ``device`` and the
            ``dtype`` of the object, if it has these attributes.

    Returns:
        The operator. If only products are available, five products with random vectors test repeatability, linearity
        and symmetry. The ``noise`` is the largest error measured, and at least the unit roundoff.

    Raises:
        ArgumentError: it is no such object, not square, complex, not linear, or not symmetric.
        NumericsError: it, or a product with it, holds NaN or infinity.

    Example:
        >>> from scipy.sparse.linalg import aslinearoperator
        >>> as_operator(aslinearoperator(np.diag([1.0, 2.0]))) @ np.ones(2)
        array([1., 2.])
    """
    if isinstance(matrix, SymmetricOperator):
        return matrix
    size = getattr(matrix, "size", None)
    shape = getattr(matrix, "shape", (size, size) if isinstance(size, int) else None)
    if not isinstance(shape, tuple) or not hasattr(type(matrix), "__matmul__"):
        raise ArgumentError(
            f"a {type(matrix).__name__} is no matrix: an operator (spectra.HessianOperator(task) is one), a NumPy, "
            "torch or SciPy matrix, or an object with .shape and @ is needed"
        )
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ArgumentError(f"shape {tuple(shape)}: a square matrix is needed")
    dtype = getattr(matrix, "dtype", None)
    if dtype is not None and "complex" in str(dtype):
        raise ArgumentError(f"dtype={dtype}: a real symmetric matrix is needed")
    if isinstance(matrix, np.ndarray):
        return DenseOperator(np.asarray(matrix, np.float32 if matrix.dtype in (np.float16, np.float32) else np.float64))
    if isinstance(matrix, torch.Tensor) and matrix.layout is torch.strided:
        low = matrix.dtype in (torch.float16, torch.bfloat16, torch.float32)
        return DenseOperator(matrix.to(torch.float32 if low else torch.float64))
    if sparse.issparse(matrix):
        matrix = matrix.tocsr().astype(np.float32 if matrix.dtype == np.float32 else np.float64)
        if not np.isfinite(matrix.data).all():
            raise NumericsError("the matrix holds NaN or infinity")
        _check_sparse(matrix)
    return ForeignOperator(matrix, int(shape[0]))


class ForeignOperator(SymmetricOperator):
    """The operator of an object with ``n`` rows and ``@``. Made by :func:`as_operator`."""

    def __init__(self, matrix: Any, n: int) -> None:
        self._name = type(matrix).__name__
        self._product_of, dtype, self._precision, device = _find_product(matrix, n, self._name)
        super().__init__(n, dtype, device)
        self._noise = self._tested()

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        with calling(f"a product with the {self._name}", ArgumentError):
            return self._product_of(block.T.contiguous()).T.to(self.device, self.torch_dtype).contiguous()

    @property
    def noise(self) -> float:
        return self._noise

    def _tested(self) -> float:
        """The noise of the products, measured on five products with random vectors."""
        generator = torch.Generator().manual_seed(2)
        u, v = torch.randn(2, self.n, generator=generator, dtype=torch.float64)
        u, v = u / u.norm(), v / v.norm()
        length = float((u + v).norm()) or 1.0
        au, av, both = self._products(torch.stack([u, v, (u + v) / length]))
        size = max(float(au.norm()), float(av.norm()))
        unit = torch.finfo(self._precision).eps * (8 if self._precision == torch.float64 else 1)
        if size == 0:
            return unit
        change = float((self._products(u[None])[0] - au).norm())
        nonlinearity = float((both - (au + av) / length).norm())
        forms = float(v @ au), float(u @ av)
        off = abs(forms[0] - forms[1])
        if change > _FAULT * size:
            raise ArgumentError(f"two products of the {self._name} with one vector differ by {change / size:.1%}")
        if nonlinearity > _FAULT * size:
            raise ArgumentError(
                f"the {self._name} is not linear: A(u + v) and Au + Av differ by {nonlinearity / size:.1%}"
            )
        if off > _ASYMMETRY[self._precision] * size + 10 * (change + nonlinearity):
            raise ArgumentError(
                f"the {self._name} is not symmetric: v'Au = {forms[0]:.6g} and u'Av = {forms[1]:.6g} for random u and v"
            )
        scale = max(size, float(self._products((au / au.norm())[None])[0].norm()) if bool(au.any()) else 0.0)
        # A random vector sees a share of 1 / sqrt(n) of the error of a product; two random vectors are used.
        return min(1.0, max(unit, max(change, nonlinearity, off * math.sqrt(self.n / 2)) / scale))

    def _products(self, rows: torch.Tensor) -> torch.Tensor:
        products = self.apply(rows.to(self.device, self.torch_dtype)).to("cpu", torch.float64)
        if not bool(torch.isfinite(products).all()):
            raise NumericsError(f"a product with the {self._name} holds NaN or infinity")
        return products


Product = Callable[[torch.Tensor], torch.Tensor]  # (n, k) to (n, k)


def _find_product(matrix: Any, n: int, name: str) -> tuple[Product, torch.dtype, torch.dtype, torch.device]:
    """The first form of product that works with an object.

    Blocks are tried before vectors. The container (NumPy or torch) and the dtype suggested by the object's attributes
    are tried before the other ones.

    Returns:
        The product, the dtype and the device of its vectors, and the precision of its results.

    Raises:
        ArgumentError: no form of product works, or the results are complex.
    """
    stated, device = getattr(matrix, "dtype", None), getattr(matrix, "device", None)
    of_torch = isinstance(stated, torch.dtype) or isinstance(device, torch.device)
    target_device = torch.device(device) if isinstance(device, (torch.device, str)) else torch.device("cpu")
    dtypes = [torch.float32, torch.float64] if "float32" in str(stated) else [torch.float64, torch.float32]
    generator = torch.Generator().manual_seed(1)
    columns = torch.randn(n, 3 if n == 2 else 2, generator=generator, dtype=torch.float64)
    failure: Exception | None = None
    for dtype, tensors, form in itertools.product(dtypes, (of_torch, not of_torch), ("block", "vectors", "columns")):
        block = columns.to(target_device if tensors else "cpu", dtype)
        product = functools.partial(_product, matrix, tensors, form)
        try:
            result = product(block)
        except Exception as error:  # objects raise various errors for input of an unsupported form
            failure = failure or error
            continue
        if result.is_complex():
            raise ArgumentError(f"the products of the {name} are complex: a real symmetric matrix is needed")
        if form == "block":
            _check_block(product, functools.partial(_product, matrix, tensors, "vectors"), block, name)
        single = torch.float32 in (dtype, result.dtype) or result.dtype in (torch.float16, torch.bfloat16)
        return product, dtype, torch.float32 if single else torch.float64, block.device
    assert failure is not None
    raise ArgumentError(f"products with the {name} fail: {words_of(failure)}") from failure


def _product(matrix: Any, tensors: bool, form: str, columns: torch.Tensor) -> torch.Tensor:
    """The products with ``(n, k)`` columns, passed as one block, as vectors ``(n,)``, or as columns ``(n, 1)``."""
    if form == "block":
        parts = [columns]
    else:
        parts = [column.clone() if form == "vectors" else column[:, None].clone() for column in columns.T]
    results = [matrix @ (part if tensors else part.cpu().numpy()) for part in parts]
    pieces = [r.detach() if isinstance(r, torch.Tensor) else torch.from_numpy(np.array(r)) for r in results]
    for part, piece in zip(parts, pieces):
        if piece.shape != part.shape:
            raise ValueError(f"the product with a {tuple(part.shape)} array has the shape {tuple(piece.shape)}")
    return torch.cat([piece.reshape(len(columns), -1) for piece in pieces], 1)


def _check_block(block: Product, vectors: Product, columns: torch.Tensor, name: str) -> None:
    """Refuse an object whose product with a block differs from the products with its columns.

    An object that accepts blocks only passes the check.
    """
    try:
        alone = vectors(columns[:, :1])
    except Exception:
        return
    first, again = block(columns)[:, :1], block(columns)[:, :1]
    allowed = _FAULT * float(first.norm())
    if float((first - again).norm()) > allowed:
        raise ArgumentError(f"two products of the {name} with one block differ: products must repeat")
    if float((first - alone).norm()) > allowed:
        raise ArgumentError(f"the product of the {name} with a block is not that with its columns")


def _check_sparse(matrix: Any) -> None:
    gap, size = abs(matrix - matrix.T).max(), abs(matrix).max()
    if gap > 100 * np.finfo(matrix.dtype).eps * size:
        raise ArgumentError(f"the matrix is not symmetric: entries differ by {gap:.2g} from those across the diagonal")
