"""SymmetricOperator: a symmetric matrix known only by its products, and linear combinations of such matrices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch

from spectra.errors import ArgumentError

Vector = TypeVar("Vector", np.ndarray, torch.Tensor)

_POWER_STEPS = 10


@dataclass(frozen=True)
class BatchForms:
    """Per-batch quadratic forms of a block of vectors, without the l2 term; a batch may be a group of batches."""

    forms: np.ndarray  # (k, B) float64: the sum over the batches is q'A q
    weights: np.ndarray  # (B,) float64: the weight of each batch in the mean over the data


def tensor_from(numbers: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The numbers as a tensor without a graph. An array that is read-only or strided is copied."""
    if isinstance(numbers, np.ndarray):
        numbers = np.require(numbers, requirements=["C", "W"])
    return torch.as_tensor(numbers, dtype=dtype).detach()


class SymmetricOperator(ABC):
    """A real symmetric matrix of ``n`` rows, known by its products with vectors and blocks of vectors.

    ``op @ v`` takes a NumPy array or a torch tensor of shape ``(n,)`` or ``(n, k)`` and returns the product in the
    same container, on the same device and in the same dtype as the input; it is computed in the operator's own dtype.
    ``shape``, ``dtype`` (NumPy's), ``matvec`` and ``matmat`` are what SciPy asks for:
    ``scipy.sparse.linalg.eigsh(op)`` works on the operator as it is.

    ``A + B``, ``A - B``, ``-A``, ``c * A`` and ``A * c`` with a number ``c`` are operators too: :class:`Combination`.
    """

    __array_ufunc__ = None  # NumPy's numbers leave ``c * A`` to the operator

    def __init__(self, n: int, torch_dtype: torch.dtype, device: torch.device) -> None:
        self.n = n
        self.torch_dtype = torch_dtype
        self.device = device

    @abstractmethod
    def apply(self, block: torch.Tensor) -> torch.Tensor:
        """The products with the rows of ``block``, ``(k, n)`` in the operator's dtype and on its device."""

    def apply_in_parts(self, block: torch.Tensor) -> tuple[torch.Tensor, BatchForms | None]:
        """The products of :meth:`apply`, and the per-batch quadratic forms ``q'A q`` of its rows ``q``.

        The second entry is None for an operator that is not a sum over batches.
        """
        return self.apply(block), None

    @property
    def semidefinite(self) -> bool:
        """Whether the matrix is positive semidefinite by its construction."""
        return False

    @property
    def noise(self) -> float:
        """``eta``: the error of a product relative to ``|H|_2 |v|``; at least the unit roundoff."""
        return float(torch.finfo(self.torch_dtype).eps)

    @property
    def tensor_sizes(self) -> dict[str, int]:
        """The parameter tensors that make up a vector, in order: name to number of entries."""
        return {"all": self.n}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Keep data that make repeated products cheaper for the length of the block, and free them on exit."""
        yield

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.n)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(str(self.torch_dtype).removeprefix("torch."))

    def __matmul__(self, vectors: Vector) -> Vector:
        if isinstance(vectors, np.ndarray):
            floating = np.issubdtype(vectors.dtype, np.floating)
        elif isinstance(vectors, torch.Tensor):
            floating = vectors.is_floating_point()
        else:
            raise ArgumentError(f"a {type(vectors).__name__} cannot be multiplied: a NumPy array or tensor is needed")
        if not floating:
            raise ArgumentError(f"dtype={vectors.dtype}: real floating-point vectors are needed")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.n:
            raise ArgumentError(f"shape {tuple(vectors.shape)}: ({self.n},) or ({self.n}, k) is needed")
        return self._product(vectors)

    def matvec(self, vector: Vector) -> Vector:
        """The product with one vector, of shape ``(n,)`` or ``(n, 1)``, in the same shape."""
        return self @ vector

    def matmat(self, vectors: Vector) -> Vector:
        """The products with the columns of an ``(n, k)`` block."""
        return self @ vectors

    rmatvec = matvec
    rmatmat = matmat

    def _product(self, vectors: Vector) -> Vector:
        tensor = tensor_from(vectors)
        columns = tensor if tensor.ndim == 2 else tensor[:, None]
        block = columns.T.to(self.device, self.torch_dtype).contiguous()
        result = self.apply(block).T.to(tensor.device, tensor.dtype).reshape(tensor.shape)
        return result.contiguous().numpy() if isinstance(vectors, np.ndarray) else result

    def __add__(self, other: Any) -> Combination:
        return Combination([(1.0, self), (1.0, other)]) if isinstance(other, SymmetricOperator) else NotImplemented

    def __sub__(self, other: Any) -> Combination:
        return Combination([(1.0, self), (-1.0, other)]) if isinstance(other, SymmetricOperator) else NotImplemented

    def __mul__(self, factor: Any) -> Combination:
        return Combination([(float(factor), self)]) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Combination:
        return Combination([(-1.0, self)])


class Combination(SymmetricOperator):
    """``sum_i c_i A_i + sigma I``; the terms are summed in float64.

    Nested combinations are flattened into one. The noise is relative to the norm of the result, so it grows if terms
    cancel::

        eta = (sum_i |c_i| eta_i |A_i|_2 + u |sigma|) / |sum_i c_i A_i + sigma I|_2,    at least u, at most 1

    with ``u`` the unit roundoff of the dtype. The norms come from :func:`norm_estimate`, ten products each, on the
    first access to ``noise``; a single term without a shift needs none.

    Args:
        terms: the factors ``c_i`` and operators ``A_i``, at least one, all of one size, dtype and device.
        shift: ``sigma``.

    Raises:
        ArgumentError: a number that is not finite, or operators that do not fit each other.
    """

    terms: tuple[tuple[float, SymmetricOperator], ...]
    shift: float

    def __init__(self, terms: Sequence[tuple[float, SymmetricOperator]], shift: float = 0.0) -> None:
        flat: list[tuple[float, SymmetricOperator]] = []
        for factor, term in terms:
            if isinstance(term, Combination):
                flat += [(factor * inner, operator) for inner, operator in term.terms]
                shift += factor * term.shift
            else:
                flat.append((factor, term))
        first = flat[0][1]
        for number in (shift, *(factor for factor, _ in flat)):
            if not math.isfinite(number):
                raise ArgumentError(
                    f"an operator cannot be shifted or multiplied by {number}: a finite number is needed"
                )
        for _, term in flat[1:]:
            if (term.n, term.torch_dtype, term.device) != (first.n, first.torch_dtype, first.device):
                raise ArgumentError(
                    f"an operator of {first.n} rows, {first.dtype} on {first.device}, and one of {term.n} rows, "
                    f"{term.dtype} on {term.device}, cannot be added: give both the same params= and dtype=, on one "
                    "device"
                )
        super().__init__(first.n, first.torch_dtype, first.device)
        self.terms = tuple(flat)
        self.shift = float(shift)
        self._noise: float | None = None

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        total = self.shift * block.to(torch.float64)
        for factor, term in self.terms:
            total.add_(term.apply(block), alpha=factor)
        return total.to(self.torch_dtype)

    @property
    def noise(self) -> float:
        if self._noise is None:
            if len(self.terms) == 1 and self.shift == 0:
                self._noise = self.terms[0][1].noise
            else:
                with self.prepared():
                    error = super().noise * abs(self.shift)
                    error += sum(abs(c) * term.noise * norm_estimate(term) for c, term in self.terms if c)
                    self._noise = relative_noise(error, self)
        return self._noise

    @property
    def tensor_sizes(self) -> dict[str, int]:
        """The tensors of the terms if all terms agree on them, else ``{"all": n}``."""
        sizes = [term.tensor_sizes for _, term in self.terms]
        return sizes[0] if all(list(s.items()) == list(sizes[0].items()) for s in sizes) else super().tensor_sizes

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Prepare every term for the length of the block."""
        with ExitStack() as stack:
            for _, term in self.terms:
                stack.enter_context(term.prepared())
            yield


def norm_estimate(operator: SymmetricOperator) -> float:
    """A lower estimate of ``|A|_2``: ten steps of the power method from a fixed random start.

    ``|A v|`` for a unit vector ``v`` never exceeds ``|A|_2`` and grows from step to step. Precise enough to scale an
    error, and used for nothing else.

    Example:
        >>> from spectra.operators.dense import DenseOperator
        >>> round(norm_estimate(DenseOperator(np.diag([1.0, -3.0]))), 6)
        3.0
    """
    generator = torch.Generator().manual_seed(5)
    vector = torch.randn(operator.n, generator=generator, dtype=torch.float64)
    row, length = vector.to(operator.device), 0.0
    with operator.prepared():
        for _ in range(_POWER_STEPS):
            row = operator.apply((row / row.norm()).to(operator.torch_dtype)[None])[0].to(torch.float64)
            length = float(row.norm())
            if length == 0:
                break
    return length


def relative_noise(error: float, operator: SymmetricOperator) -> float:
    """The error of products with unit vectors divided by the operator's norm, between the unit roundoff and 1.

    The value 1 means that the products are pure noise, for example the difference of two equal matrices.
    """
    norm = norm_estimate(operator)
    least = float(torch.finfo(operator.torch_dtype).eps)
    return 1.0 if error >= norm else max(least, error / norm)
