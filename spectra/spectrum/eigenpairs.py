"""Eigenpairs: eigenvalues with eigenvectors, residuals that bound their errors, and a statement of completeness.

``spectra.krylov.eigsh`` computes them; this file needs neither torch nor the operator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, NumericsError

WHICH = ("LA", "SA", "LM", "BE")


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Approximate eigenvalues ``theta_i`` and unit vectors ``y_i``, with ``|H y_i - theta_i y_i|`` of each.

    The vectors are orthonormal and ``theta_i = y_i' H y_i``. Some eigenvalue lies within ``residuals[i]`` of
    ``theta_i``; the products it was measured with are inexact by ``noise |H|_2``, so :meth:`interval` adds that. That
    the pairs are the wanted ones, and that none is missing, is another question: ``complete`` and ``completeness``
    answer it.

    Raises:
        ArgumentError: shapes that do not belong together, or an unknown ``which``.
        NumericsError: NaN or infinity among the values or residuals.

    References:
        B. Parlett, The Symmetric Eigenvalue Problem (1998), section 4.5: the residual bound.

    Example:
        >>> pairs = Eigenpairs(np.array([3.0]), np.array([0.1]), np.array([True]), noise=0.0, scale=3.0, products=7)
        >>> pairs.interval(0)
        (2.9, 3.1)
    """

    values: np.ndarray  # (k,) float64: descending for LA and BE, ascending for SA, by |theta| for LM
    residuals: np.ndarray  # (k,) float64, measured with a product
    converged: np.ndarray  # (k,) bool: the residual is below the tolerance
    vectors: np.ndarray | None = None  # (n, k) float32 or float64, orthonormal columns
    which: str = "LM"
    noise: float = 2.220446e-16  # eta, the error of a product relative to |H|_2
    scale: float = 0.0  # the largest |Ritz value| of the search: a lower bound of |H|_2
    tolerance: float = 0.0  # of the residuals, relative to the scale: the requested one, or ten times the noise
    products: int = 0
    seed: int | None = None
    complete: bool = False  # no eigenvalue before the last of these is missing, as far as a random start can tell
    completeness: str = "not checked"  # how that is known, or why it is not
    rest: np.ndarray | None = None  # Ritz values of the space orthogonal to these vectors; None: not computed

    def __post_init__(self) -> None:
        if self.which not in WHICH:
            raise ArgumentError(f"which={self.which!r}: one of {', '.join(map(repr, WHICH))} is needed")
        for name, kind in (("values", np.float64), ("residuals", np.float64), ("converged", np.bool_)):
            array = np.array(getattr(self, name), dtype=kind)
            if array.ndim != 1 or array.shape != np.shape(self.values):
                raise ArgumentError(f"{name} has shape {array.shape}: one entry per eigenvalue is needed")
            if not np.isfinite(array).all():
                raise NumericsError(f"{name} has NaN or infinite entries")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.rest is not None:
            object.__setattr__(self, "rest", np.array(self.rest, dtype=np.float64))
            if not np.isfinite(self.rest).all():
                raise NumericsError("rest has NaN or infinite entries")
        if self.vectors is not None and (self.vectors.ndim != 2 or self.vectors.shape[1] != self.count):
            raise ArgumentError(f"vectors has shape {self.vectors.shape}: (n, {self.count}) is needed")
        for name in ("noise", "scale"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ArgumentError(f"{name}={getattr(self, name)}: a finite number of at least 0 is needed")

    @property
    def count(self) -> int:
        """The number of pairs."""
        return int(self.values.size)

    def interval(self, index: int) -> tuple[float, float]:
        """An interval that holds an eigenvalue: ``theta -+ (residual + eta |H|_2)``.

        Args:
            index: which pair.
        """
        value = float(self.values[index])
        reach = float(self.residuals[index]) + self.noise * self.scale
        return value - reach, value + reach

    @property
    def note(self) -> str | None:
        """The warning to print with the values: pairs that did not converge, or that may not be all; else None."""
        missing = int((~self.converged).sum())
        parts = [f"{missing} of {self.count} eigenpairs have not converged"] if missing else []
        if not self.complete:
            parts.append(f"not known to be complete: {self.completeness}")
        return "; ".join(parts) or None

    def without_vectors(self) -> Eigenpairs:
        """A copy without the vectors, which a record keeps only on request."""
        return replace(self, vectors=None)

    def to_json(self) -> dict[str, Any]:
        """Everything but the vectors, as a dictionary for JSON."""
        ends = [self.interval(i) for i in range(self.count)]
        return {
            "which": self.which,
            "values": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "lower": [low for low, _ in ends],
            "upper": [high for _, high in ends],
            "converged": self.converged.tolist(),
            "complete": self.complete,
            "completeness": self.completeness,
            "rest": None if self.rest is None else self.rest.tolist(),
            "noise": self.noise,
            "scale": self.scale,
            "tolerance": self.tolerance,
            "products": self.products,
            "seed": self.seed,
            "vectors": self.vectors is not None,
        }
