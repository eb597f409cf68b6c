"""Conjugate gradients for a symmetric positive semidefinite matrix that is known by its products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def conjugate_gradients(product: Callable[[Array], Array], target: Array, steps: int) -> Array:
    """``x`` with ``product(x) = target``, from zero, to a relative residual of 1e-10.

    It stops earlier after the last step, or where the matrix has no curvature along the direction.

    Args:
        product: the product with the matrix, ``(n,)`` to ``(n,)``.
        target: ``(n,)``.
        steps: at most.
    """
    x, r = np.zeros_like(target), target.copy()
    d, rr = r.copy(), float(r @ r)
    goal = 1e-20 * rr
    for _ in range(steps):
        if rr <= goal or rr == 0:
            break
        q = product(d)
        curvature = float(d @ q)
        if curvature <= 1e-16 * float(d @ d):
            break
        x += rr / curvature * d
        r -= rr / curvature * q
        rr, before = float(r @ r), rr
        d = r + rr / before * d
    return x
