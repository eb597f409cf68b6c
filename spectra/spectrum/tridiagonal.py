"""Tridiagonal: the Lanczos matrix of one probe, and the Gauss and Gauss-Radau rules that follow from it; float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan

import numpy as np
from scipy.linalg import LinAlgError, eigh_tridiagonal

from spectra.errors import ArgumentError, NumericsError

_EPS, _TINY = float(np.finfo(float).eps), float(np.finfo(float).tiny)

# Above this multiple of the matrix's scale, the extra entry of a bordered matrix makes rounding spoil its small nodes.
_LARGEST_BORDER = 1e4


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """The Lanczos matrix ``T_m = tridiag(alphas, betas[:-1])`` of one probe ``q``, and ``beta_m``.

    With ``T_m = S diag(theta) S'`` the nodes ``theta_k`` and weights ``tau_k = S[0, k]^2`` are the Gauss rule of the
    probe's spectral measure: ``q' f(H) q = sum_k tau_k f(theta_k)`` for every polynomial of degree at most ``2m - 1``.

    Raises:
        ArgumentError: no steps, arrays of different lengths, or a negative beta.
        NumericsError: NaN or infinity among the numbers.

    References:
        G. Golub, G. Meurant, Matrices, Moments and Quadrature with Applications (2010), chapters 4 and 6.

    Example:
        >>> rule = Tridiagonal([2.0, 2.0], [1.0, 0.0], exhausted=True)
        >>> rule.nodes.round(12).tolist(), rule.weights.round(12).tolist()
        ([1.0, 3.0], [0.5, 0.5])
    """

    alphas: np.ndarray  # (m,) float64
    betas: np.ndarray  # (m,) float64; betas[j] is the norm of the residual after step j + 1; betas[-1] is outside T_m
    exhausted: bool = False  # an invariant subspace was reached: the rule is exact and betas[-1] counts as 0
    orthogonality: float = nan  # max |Q Q' - I| of the basis

    def __post_init__(self) -> None:
        for name in ("alphas", "betas"):
            # A copy, so that later changes of the caller's array do not change this one.
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or values.size == 0:
                raise ArgumentError(
                    f"{name} has shape {values.shape}: a vector with an entry per Lanczos step is needed"
                )
            if not np.isfinite(values).all():
                raise NumericsError(f"{name}[{int(np.argmin(np.isfinite(values)))}] is NaN or infinite")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if self.alphas.size != self.betas.size:
            raise ArgumentError(
                f"{self.alphas.size} alphas and {self.betas.size} betas: one of each per step is needed"
            )
        if (self.betas < 0).any():
            raise ArgumentError(f"betas has a negative entry ({self.betas.min():g}): they are norms")
        # A last beta of 0 means an invariant subspace, whatever ``exhausted`` was given.
        object.__setattr__(self, "exhausted", bool(self.exhausted) or float(self.betas[-1]) == 0)
        object.__setattr__(self, "orthogonality", float(self.orthogonality))

    @property
    def steps(self) -> int:
        """The number of Lanczos steps ``m``."""
        return int(self.alphas.size)

    @property
    def last_beta(self) -> float:
        """``beta_m``, which is 0 where an invariant subspace was reached."""
        return 0.0 if self.exhausted else float(self.betas[-1])

    @property
    def defect(self) -> float:
        """The coupling that was neglected where the recurrence was declared exhausted, else 0.

        The invariant subspace is exactly that of a matrix within ``betas[-1]`` of the operator in the spectral norm.
        """
        return float(self.betas[-1]) if self.exhausted else 0.0

    def matrix(self) -> np.ndarray:
        """``T_m``, dense, (m, m)."""
        return _dense(self.alphas, self.betas[:-1])

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray]:
        return _solve(self.alphas, self.betas[:-1])

    @property
    def nodes(self) -> np.ndarray:
        """The Ritz values ``theta_k``, ascending, (m,)."""
        return self._solved[0]

    @cached_property
    def weights(self) -> np.ndarray:
        """``tau_k = S[0, k]^2``, (m,); they sum to 1."""
        return _weights(self._solved[1])

    @cached_property
    def residuals(self) -> np.ndarray:
        """``|H y_k - theta_k y_k| = |beta_m S[m-1, k]|``, (m,): some eigenvalue lies within it of ``theta_k``."""
        return np.asarray(np.abs(self.last_beta * self._solved[1][-1]))

    def ritz_vectors(self) -> np.ndarray:
        """``S``, (m, m): the Ritz vectors in coordinates of the Krylov basis, a column for each node."""
        return _solve(self.alphas, self.betas[:-1], ends_only=False)[1]

    @property
    def scale(self) -> float:
        """The largest ``|theta_k|``: a lower bound of the spectral norm, close to it after some tens of steps."""
        return float(np.abs(self.nodes[[0, -1]]).max())

    def moment(self, p: int) -> float:
        """``q' H^p q``, exact for ``p <= 2m``, and for every ``p`` where exhausted.

        Nodes and weights alone are exact up to ``2m - 1``; ``beta_m`` gives one more, since
        ``q' H^2m q = |H^m q|^2``.

        Raises:
            ArgumentError: ``p`` is negative or beyond what the steps determine.
        """
        if p < 0 or (p > 2 * self.steps and not self.exhausted):
            raise ArgumentError(
                f"moment {p}: {self.steps} Lanczos steps determine 0 to {2 * self.steps}; take more steps"
            )
        # The matrix of one more step: no power up to 2m depends on its last diagonal entry, which is unknown.
        extended = _dense(np.append(self.alphas, 0.0), np.append(self.betas[:-1], self.last_beta))
        half = np.zeros(self.steps + 1)
        half[0] = 1.0
        for _ in range(p // 2):
            half = extended @ half
        return float(half @ half if p % 2 == 0 else half @ extended @ half)

    def radau(self, x: float) -> tuple[np.ndarray, np.ndarray, int]:
        """The Gauss-Radau rule with a node at ``x``: ``m + 1`` nodes, exact to degree ``2m``.

        The last row of the bordered matrix ``[[T_m, beta_m e_m], [beta_m e_m', c]]`` has
        ``c = x + beta_m^2 [(T_m - x)^-1]_mm``. Next to a Ritz value ``c`` grows without bound; there the rule of one
        step less is used (``m`` nodes, exact to degree ``2m - 2``), which at the Ritz value itself is the Gauss rule.

        Args:
            x: any number.

        Returns:
            Nodes (ascending), weights, and the index of the node that is ``x``.

        References:
            G. Golub, Some modified matrix eigenvalue problems, SIAM Review 15 (1973), section 7.
        """
        if not isfinite(x):
            raise ArgumentError(f"x={x}: a finite number is needed")
        scale = max(self.scale, float(self.betas.max()), abs(x), _TINY)
        # Pivots of T - x I: pivot_j = alpha_j - x - border_{j-1}, border_j = beta_j^2 / pivot_j = beta_j^2 [...]_jj.
        border, before = 0.0, 0.0
        for alpha, beta in zip(self.alphas, self.betas):
            pivot = alpha - x - border
            if abs(pivot) < _EPS * scale:
                pivot = _EPS * scale
            before, border = border, beta * (beta / pivot)
        if abs(border) <= _LARGEST_BORDER * scale:
            diagonal, off = np.append(self.alphas, x + border), self.betas
        else:
            diagonal, off = np.append(self.alphas[:-1], x + before), self.betas[:-1]
        nodes, vectors = _solve(diagonal, off)
        return nodes, _weights(vectors), int(np.argmin(np.abs(nodes - x)))

    def distribution_bounds(self, x: float) -> tuple[float, float]:
        """A lower bound of ``mu((-inf, x))`` and an upper bound of ``mu((-inf, x])``, ``mu`` the probe's measure.

        Both are sharp for the moments that the steps determine: the sum of the Radau weights below ``x``, without and
        with that of ``x`` itself (Chebyshev, Markov, Stieltjes). Where exhausted they are equal, but for an atom at
        ``x``. A node within rounding of ``x`` counts as one at ``x``.

        References:
            G. Golub, G. Meurant (2010), section 6.4; N. Akhiezer, The Classical Moment Problem (1965), chapter 2.
        """
        known = self._bounds.get(x)  # every count evaluates the same points
        if known is None:
            if self.exhausted:
                nodes, weights, at = self.nodes, self.weights, np.abs(self.nodes - x) <= _rounding(self.nodes)
            else:
                nodes, weights, index = self.radau(x)
                at = np.abs(nodes - x) <= _rounding(nodes)
                at[index] = True
            below = float(weights[(nodes < x) & ~at].sum())
            known = self._bounds[x] = below, min(1.0, below + float(weights[at].sum()))
        return known

    @cached_property
    def _bounds(self) -> dict[float, tuple[float, float]]:
        return {}

    def mass(self, a: float, b: float) -> float:
        """The Ritz mass of ``[a, b]``: ``sum tau_k`` over ``a <= theta_k <= b``. An estimate, not a bound."""
        inside = (self.nodes >= a) & (self.nodes <= b)
        return min(1.0, float(self.weights[inside].sum()))

    def bracket(self, a: float, b: float) -> tuple[float, float]:
        """Rigorous bounds of ``mu([a, b])``, ``a <= b``, from the Radau rules at both ends."""
        if a > b:
            raise ArgumentError(f"[{a:g}, {b:g}]: the left end lies right of the right one")
        if self.exhausted:
            blur = _rounding(self.nodes)
            return self.mass(a + blur, b - blur), self.mass(a - blur, b + blur)
        below_a, upto_a = self.distribution_bounds(a)
        below_b, upto_b = self.distribution_bounds(b)
        # At least: the mass surely below b less the mass possibly up to a. At most: the converse.
        return max(0.0, below_b - upto_a), min(1.0, max(0.0, upto_b - below_a))


def _dense(diagonal: np.ndarray, off: np.ndarray) -> np.ndarray:
    return np.asarray(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))


def _solve(diagonal: np.ndarray, off: np.ndarray, ends_only: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors; by default only the first and last components of these, (2, m)."""
    # A power of two brings the matrix to order one exactly, so that 1e-200 and 1e200 are solved alike.
    size = max(float(np.abs(diagonal).max()), float(np.abs(off).max(initial=0.0)))
    unit = 2.0 ** np.frexp(size)[1] if size > 0 else 1.0
    # Relatively robust representations: no matrix products, so threads waiting for each other cannot slow it down.
    problem = diagonal / unit, off / unit
    try:
        nodes, vectors = eigh_tridiagonal(*problem, check_finite=False, lapack_driver="stemr")
    except LinAlgError:  # the QR iteration is slower and always converges
        nodes, vectors = eigh_tridiagonal(*problem, check_finite=False, lapack_driver="stev")
    return np.asarray(nodes * unit), np.asarray(vectors[[0, -1]] if ends_only else vectors)


def _rounding(nodes: np.ndarray) -> float:
    """The error of eigenvalues computed in float64."""
    return 16 * _EPS * float(np.abs(nodes).max())


def _weights(ends: np.ndarray) -> np.ndarray:
    squares = ends[0] ** 2
    return np.asarray(squares / squares.sum())
