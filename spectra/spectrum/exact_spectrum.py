"""GGNSpectrum: all eigenvalues of a Gauss-Newton matrix, and the exact numbers that follow from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, log, log1p, sqrt
from typing import Any

import numpy as np

from spectra.errors import ArgumentError
from spectra.spectrum.density import Density, kernel_density


@dataclass(frozen=True, kw_only=True, eq=False)
class GGNSpectrum:
    """All ``n`` eigenvalues of a Gauss-Newton matrix: those in ``eigenvalues``; all others are equal to ``l2``.

    Example:
        >>> found = GGNSpectrum(eigenvalues=np.array([4.0, 1.0, 0.0]), n=10, num_samples=3, rank_bound=3)
        >>> found.trace, found.rank(), found.degeneracy(0.5), found.num_zero
        (5.0, 2, 0.8, 7)
    """

    eigenvalues: np.ndarray  # (at most min(n, R),) float64, descending, with l2; some may be l2 to rounding
    n: int
    num_samples: int
    rank_bound: int  # min(n, R): by counting alone, R = N (C - 1) for softmax cross-entropy
    l2: float = 0.0
    noise: float = 2.220446e-16  # error of an eigenvalue relative to the largest
    bn_mode: str = "eval"
    data: str | None = None  # fingerprint of the data
    settings: Mapping[str, Any] = field(default_factory=dict)  # how the samples were chosen; JSON-able

    @property
    def num_zero(self) -> int:
        """How many eigenvalues are ``l2`` by counting alone."""
        return self.n - self.eigenvalues.size

    @property
    def trace(self) -> float:
        """``Tr G``, with ``n l2``."""
        return float(self.eigenvalues.sum()) + self.num_zero * self.l2

    @property
    def frobenius_norm(self) -> float:
        """``|G|_F``."""
        return sqrt(float(np.sum(self.eigenvalues**2)) + self.num_zero * self.l2**2)

    @property
    def spectral_norm(self) -> float:
        """``|G|_2``."""
        return max(float(np.abs(self.eigenvalues).max(initial=0.0)), abs(self.l2) if self.num_zero else 0.0)

    def rank(self, tolerance: float | None = None) -> int:
        """The numerical rank of ``G - l2 I``: eigenvalues above ``tolerance`` times the largest in magnitude.

        Args:
            tolerance: relative; by default ten times the noise of the arithmetic.

        Raises:
            ArgumentError: a negative tolerance.
        """
        relative = 10 * self.noise if tolerance is None else tolerance
        if not (isfinite(relative) and relative >= 0):
            raise ArgumentError(f"tolerance={tolerance}: a finite number of at least 0 is needed")
        size = np.abs(self.eigenvalues - self.l2)
        return int((size > relative * size.max()).sum()) if size.size else 0

    def degeneracy(self, tau: float) -> float:
        """The fraction of all ``n`` eigenvalues in ``[-tau, tau]``, exactly."""
        inside = int((np.abs(self.eigenvalues) <= tau).sum()) + (self.num_zero if abs(self.l2) <= tau else 0)
        return inside / self.n

    def cdf(self, x: np.ndarray | float) -> np.ndarray:
        """The fraction of eigenvalues at or below each ``x``; same shape."""
        at = np.asarray(x, dtype=np.float64)
        below = np.searchsorted(np.sort(self.eigenvalues), at, side="right")
        return np.asarray((below + self.num_zero * (at >= self.l2)) / self.n)

    def log_determinant(self, g: float) -> float:
        """``log det(G + g I)``.

        Raises:
            ArgumentError: ``g`` is not above minus the smallest eigenvalue, where the determinant is not positive.
        """
        self._check_shift(g)
        return float(np.log(self.eigenvalues + g).sum()) + self.num_zero * log(self.l2 + g)

    def evidence(self, g: float) -> float:
        """``sum log((lambda + g) / g)``."""
        self._check_shift(g)
        return float(np.log1p(self.eigenvalues / g).sum()) + self.num_zero * log1p(self.l2 / g)

    def effective_dimension(self, g: float) -> float:
        """``sum lambda / (lambda + g)``."""
        self._check_shift(g)
        return float(np.sum(self.eigenvalues / (self.eigenvalues + g))) + self.num_zero * self.l2 / (self.l2 + g)

    def density(self, like: Density) -> np.ndarray:
        """The density on the grid and with the kernel of another one, so that both can be drawn over each other."""
        nodes = np.append(self.eigenvalues, self.l2)
        weights = np.append(np.full(self.eigenvalues.size, 1 / self.n), self.num_zero / self.n)
        return kernel_density(like, nodes, weights)

    def to_json(self) -> dict[str, Any]:
        """The numbers for JSON: the eigenvalues, and what follows from them."""
        return {
            "eigenvalues": self.eigenvalues.tolist(),
            "n": self.n,
            "num_zero": self.num_zero,
            "num_samples": self.num_samples,
            "rank": self.rank(),
            "rank_bound": self.rank_bound,
            "trace": self.trace,
            "frobenius_norm": self.frobenius_norm,
            "spectral_norm": self.spectral_norm,
            "l2": self.l2,
            "noise": self.noise,
            "bn_mode": self.bn_mode,
            "settings": dict(self.settings),
        }

    def _check_shift(self, g: float) -> None:
        least = min(float(self.eigenvalues.min()), self.l2 if self.num_zero else np.inf)
        if not (isfinite(g) and g > 0 and g > -least + 10 * self.noise * self.spectral_norm * (least < 0)):
            raise ArgumentError(f"g={g}: a number above 0 and above {-least:.3g} is needed, or G + g I is not positive")
