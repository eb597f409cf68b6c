"""SymmetricOperator: what Lanczos sees. A symmetric matrix known by its products alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from spectra.errors import ArgumentError

Vector = TypeVar("Vector", np.ndarray, torch.Tensor)


class SymmetricOperator(ABC):
    """A real symmetric matrix of ``n`` rows, known by its products with vectors and blocks of vectors.

    ``op @ v`` takes a NumPy array or a torch tensor of shape ``(n,)`` or ``(n, k)`` and returns the product in the
    same container, on the same device and in the same dtype as the input; it is computed in the operator's own dtype.
    ``shape``, ``dtype`` (NumPy's), ``matvec`` and ``matmat`` are what SciPy asks for:
    ``scipy.sparse.linalg.eigsh(op)`` works on the operator as it is.
    """

    def __init__(self, n: int, torch_dtype: torch.dtype, device: torch.device) -> None:
        self.n = n
        self.torch_dtype = torch_dtype
        self.device = device

    @abstractmethod
    def apply(self, block: torch.Tensor) -> torch.Tensor:
        """The products with the rows of ``block``, ``(k, n)`` in the operator's dtype and on its device."""

    @property
    def noise(self) -> float:
        """``eta``: the error of a product relative to ``|H|_2 |v|``; at least the unit roundoff."""
        return float(torch.finfo(self.torch_dtype).eps)

    @property
    def tensor_sizes(self) -> dict[str, int]:
        """The named pieces that a vector is made of, in order, with their lengths."""
        return {"all": self.n}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Hold what makes many products cheaper than single ones, and drop it on leaving."""
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
        given = torch.from_numpy(np.ascontiguousarray(vectors)) if isinstance(vectors, np.ndarray) else vectors.detach()
        columns = given if given.ndim == 2 else given[:, None]
        block = columns.T.to(self.device, self.torch_dtype).contiguous()
        result = self.apply(block).T.to(given.device, given.dtype).reshape(given.shape)
        return result.contiguous().numpy() if isinstance(vectors, np.ndarray) else result
