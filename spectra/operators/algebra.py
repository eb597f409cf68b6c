"""Operators built from other operators: shifted, scaled, summed and deflated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spectra.errors import ArgumentError
from spectra.operators.base import Combination, SymmetricOperator, norm_estimate, relative_noise, tensor_from
from spectra.operators.krylov_basis import Basis

# How far the vectors of a deflation may be from orthonormal: the largest entry of |V'V - I|.
_ORTHONORMAL = {torch.float32: 1e-5, torch.float64: 1e-10}


def shifted(operator: SymmetricOperator, sigma: float) -> SymmetricOperator:
    """``A + sigma I``: the same eigenvectors, every eigenvalue moved by ``sigma``.

    Args:
        operator: ``A``.
        sigma: a finite number.

    Raises:
        ArgumentError: ``sigma`` is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from spectra.operators.dense import DenseOperator
        >>> shifted(DenseOperator(np.diag([1.0, 2.0])), 10.0) @ np.ones(2)
        array([11., 12.])
    """
    return Combination([(1.0, operator)], shift=float(sigma))


def scaled(operator: SymmetricOperator, factor: float) -> SymmetricOperator:
    """``c A``, also written ``c * A``.

    Args:
        operator: ``A``.
        factor: ``c``, a finite number.

    Raises:
        ArgumentError: ``c`` is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from spectra.operators.dense import DenseOperator
        >>> scaled(DenseOperator(np.diag([1.0, 2.0])), -0.5) @ np.ones(2)
        array([-0.5, -1. ])
    """
    return Combination([(float(factor), operator)])


def summed(a: SymmetricOperator, b: SymmetricOperator) -> SymmetricOperator:
    """``A + B``, also written ``A + B``; ``H - G`` is the part of a Hessian that its Gauss-Newton matrix leaves out.

    If the two nearly cancel, the noise relative to the norm of the sum is larger than that of either operator. The
    ``noise`` of the sum accounts for this (formula in :class:`~spectra.operators.base.Combination`).

    Args:
        a: an operator.
        b: an operator of the same size, dtype and device.

    Raises:
        ArgumentError: they do not fit each other.

    Example:
        >>> import numpy as np
        >>> from spectra.operators.dense import DenseOperator
        >>> a, b = DenseOperator(np.diag([1.0, 2.0])), DenseOperator(np.eye(2))
        >>> summed(a, b) @ np.ones(2), (a - 0.5 * b) @ np.ones(2)
        (array([2., 3.]), array([0.5, 1.5]))
    """
    return Combination([(1.0, a), (1.0, b)])


def deflated(operator: SymmetricOperator, values: Any, vectors: Any, *, project: bool = False) -> SymmetricOperator:
    """``A - V diag(values) V'``, or ``P A P`` with ``P = I - V V'``.

    For exact eigenpairs of ``A`` the two matrices are equal: the given eigenvalues become 0, all others stay. For
    approximate eigenpairs they differ. The trace of the first is ``Tr A`` minus the sum of ``values``. The second
    always has the columns of ``V`` in its null space.

    Args:
        operator: ``A``.
        values: ``(r,)`` finite numbers. Not used with ``project=True``, where they may be None.
        vectors: ``V``, ``(n, r)``, NumPy or torch, with orthonormal columns: ``max |V'V - I|`` at most 1e-10 for a
            float64 operator and 1e-5 for a float32 one. They are copied in the operator's dtype.
        project: return ``P A P``.

    Returns:
        The deflated operator. Its noise is ``(eta |A|_2 + u max |values|) / |result|_2``. Both norms are estimated from
        below by ten products each, on the first access to ``noise``.

    Raises:
        ArgumentError: shapes that do not fit, numbers that are not finite, or vectors that are not orthonormal.

    Example:
        >>> import numpy as np
        >>> from spectra.operators.dense import DenseOperator
        >>> deflated(DenseOperator(np.diag([5.0, 2.0])), [5.0], np.array([[1.0], [0.0]])) @ np.ones(2)
        array([0., 2.])
    """
    frame = tensor_from(vectors)
    n = operator.n
    if frame.ndim != 2 or frame.shape[0] != n or frame.shape[1] > n:
        raise ArgumentError(f"vectors of shape {tuple(frame.shape)}: ({n}, r) with r at most {n} is needed")
    rank = frame.shape[1]
    eigenvalues: torch.Tensor | None = None
    if values is not None:
        eigenvalues = tensor_from(values, torch.float64)
        if tuple(eigenvalues.shape) != (rank,):
            raise ArgumentError(
                f"values of shape {tuple(eigenvalues.shape)}: one for each of the {rank} vectors is needed"
            )
        if not bool(torch.isfinite(eigenvalues).all()):
            raise ArgumentError("values hold NaN or infinity: the eigenvalues to deflate by are needed")
    elif not project:
        raise ArgumentError("values=None: the eigenvalues to subtract are needed, unless project=True")
    basis = Basis(rank, n, operator.torch_dtype, operator.device)
    for column in range(rank):
        basis.append(frame[:, column].to(operator.device, torch.float64))
    off = basis.loss_of_orthogonality() if rank else 0.0
    bound = _ORTHONORMAL[operator.torch_dtype]
    if not off <= bound:  # NaN included
        raise ArgumentError(
            f"the vectors are not orthonormal: max |V'V - I| is {off:.2g}, and at most {bound:g} is needed; "
            "orthonormalise them, with numpy.linalg.qr say"
        )
    return _Deflated(operator, basis, None if project or eigenvalues is None else eigenvalues.to(operator.device))


class _Deflated(SymmetricOperator):
    """``A - V diag(values) V'``, or ``P A P`` where there are no values. Made by :func:`deflated`."""

    def __init__(self, operator: SymmetricOperator, basis: Basis, values: torch.Tensor | None) -> None:
        super().__init__(operator.n, operator.torch_dtype, operator.device)
        self.operator = operator
        self._basis = basis
        self._values = values
        self._noise: float | None = None

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        # Each vector is a separate copy: a product must not depend on the block that its vector is part of.
        rows = [row.to(torch.float64, copy=True) for row in block]
        if self._values is None:
            for row in rows:
                self._basis.remove_from(row)
            block = torch.stack(rows).to(self.torch_dtype)
        results = []
        for row, product in zip(rows, self.operator.apply(block)):
            result = product.to(torch.float64, copy=True)
            if self._values is None:
                self._basis.remove_from(result)
            else:
                self._basis.subtract_from(result, self._values * self._basis.coefficients(row))
            results.append(result)
        return torch.stack(results).to(self.torch_dtype)

    @property
    def noise(self) -> float:
        if self._noise is None:
            with self.prepared():
                error = self.operator.noise * norm_estimate(self.operator)
                if self._values is not None and len(self._values):
                    error += super().noise * float(self._values.abs().max())
                self._noise = relative_noise(error, self)
        return self._noise

    @property
    def tensor_sizes(self) -> dict[str, int]:
        return self.operator.tensor_sizes

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Prepare the wrapped operator for the length of the block."""
        with self.operator.prepared():
            yield
