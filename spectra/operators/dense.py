"""DenseOperator: a matrix that is known entry by entry, as an operator. For tests and for small references."""

from __future__ import annotations

from typing import Any

import torch

from spectra.errors import ArgumentError, NumericsError
from spectra.operators.base import SymmetricOperator, tensor_from


class DenseOperator(SymmetricOperator):
    """The operator of a symmetric matrix.

    Args:
        matrix: ``(n, n)``, NumPy or torch, float32 or float64, symmetric to rounding.

    Raises:
        ArgumentError: it is not square, not of floating-point numbers, or not symmetric.
        NumericsError: it holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> op = DenseOperator(np.diag([1.0, 2.0]))
        >>> op @ np.ones(2)
        array([1., 2.])
    """

    def __init__(self, matrix: Any) -> None:
        dense = tensor_from(matrix)
        if dense.ndim != 2 or dense.shape[0] != dense.shape[1]:
            raise ArgumentError(f"shape {tuple(dense.shape)}: a square matrix is needed")
        if dense.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f"dtype={dense.dtype}: float32 or float64 is needed")
        if not bool(torch.isfinite(dense).all()):
            raise NumericsError("the matrix holds NaN or infinity")
        scale = float(dense.abs().max()) if dense.numel() else 0.0
        if scale > 0 and float((dense - dense.T).abs().max()) > 100 * torch.finfo(dense.dtype).eps * scale:
            raise ArgumentError("the matrix is not symmetric")
        super().__init__(dense.shape[0], dense.dtype, dense.device)
        self.matrix = dense

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        return block @ self.matrix
