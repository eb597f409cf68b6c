"""Normalized sharpness of one weight matrix, and the parameter-wise sums that it is compared with.

For a matrix with ``h1`` rows (outputs) and ``h2`` columns (inputs): ``H_ij >= 0`` is the diagonal of the curvature,
negative entries taken for 0, and ``U_ij = W_ij^2``; of a convolution both are summed over the positions of the kernel,
because its scales belong to channels. Everything here is invariant under node-wise rescaling, except
:func:`matrix_normalized`, which is so only layer by layer.

References:
    [NA] Tsuzuku, Sato and Sugiyama, "Normalized flat minima: exploring scale invariant definition of flat minima for
    neural networks using PAC-Bayesian analysis", arXiv:1901.04653 (2019).
    [NI] the same authors and title, ICML 2020. Its equation (35) is not what its derivation gives, and not [NA] (17):
    the forms must not be mixed in one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spectra.errors import ArgumentError, NumericsError
from spectra.sharpness.balancing import Array, Link, balance

FORMS = ("arxiv", "pacbayes", "icml")
SIDES = ("output", "input")
_SLACK = 1e-9  # rounding allowed in inequalities that hold exactly


@dataclass(frozen=True)
class MatrixSharpness:
    """The value of one matrix, with the certificate of the infimum."""

    value: float
    attained: bool
    certificate: float  # the largest difference between the two sums of a row or column, relative to the value
    log_scales: tuple[Array, Array]  # x (h1,) and y (h2,): the scale of entry (i, j) is exp(x_i + y_j)
    factor: float = 1.0  # of the sum that is minimised

    def slope(self, change: npt.ArrayLike) -> float:
        """The change of the value with the entries of the diagonal, to first order; not that of the printed (35).

        The scales are at their best, so that to first order they do not change.
        """
        change, (x, y) = np.asarray(change, float), self.log_scales
        moved = change != 0  # where an entry and its change are 0 the scale may be anything
        return self.factor * float(np.sum(change[moved] * np.exp(x[:, None] + y[None, :])[moved]))


def normalized_matrix(
    h: npt.ArrayLike, u: npt.ArrayLike, form: str = "arxiv", lam: float = 0.5, side: str = "output"
) -> MatrixSharpness:
    """Normalized sharpness of one matrix.

    - ``"arxiv"``, [NA] (17): ``S = (2 lam)^(-1/2) min_{x,y} sum_ij H_ij e^(x_i+y_j) + U_ij e^-(x_i+y_j)``. The paper
      has ``lam = 1/2`` in its body and 1 in its appendix C.
    - ``"pacbayes"``: half of it, which is what the derivation of [NI] gives:
      ``min_x sum_j sqrt((sum_i H_ij e^x_i) (sum_i U_ij e^-x_i))`` at ``lam = 1/2``.
    - ``"icml"``, [NI] (35) as printed: ``sqrt(min_g sum_ij e^g_i (H U')_ij e^-g_j)``, with the sum inside the root and
      scales on one side only. It is at most ``S/2`` and at least ``S/2 / sqrt(h2)`` (``lam = 1/2``), and changes when
      the matrix is transposed, hence ``side``.

    Args:
        h: (h1, h2) the diagonal of the curvature, not negative.
        u: (h1, h2) squared weights.
        form: which of the three.
        lam: the weight of the noise's entropy in [NA]; not part of the printed (35).
        side: ``"output"`` or ``"input"``, of ``"icml"``.

    Raises:
        ArgumentError: negative or non-finite entries, shapes that differ, or an option outside its range.
        NumericsError: the infimum could not be certified.

    Example:
        >>> normalized_matrix([[1, 0], [0, 1]], [[0, 1], [1, 0]]).value
        4.0
    """
    check_options(form, lam, side)
    h, u = _pair(h, u)
    if form == "icml":
        product = h @ u.T if side == "output" else h.T @ u
        balanced = balance([Link(0, 0, product)], [len(product)])
        other = np.zeros(h.shape[1] if side == "output" else h.shape[0])
        scales = (balanced.potentials[0], other) if side == "output" else (other, balanced.potentials[0])
        return MatrixSharpness(math.sqrt(balanced.value), balanced.attained, balanced.certificate, scales)
    balanced = balance([Link(0, 1, h), Link(1, 0, u.T)], list(h.shape))
    check_between(h, u, balanced.value / 2)
    factor = (2 * lam) ** -0.5 * (0.5 if form == "pacbayes" else 1.0)
    scales = (balanced.potentials[0], -balanced.potentials[1])
    return MatrixSharpness(factor * balanced.value, balanced.attained, balanced.certificate, scales, factor)


def check_options(form: str, lam: float, side: str) -> None:
    """Raise ArgumentError if an option of :func:`normalized_matrix` is outside its range."""
    if form not in FORMS:
        raise ArgumentError(f"form={form!r}: one of {', '.join(map(repr, FORMS))} is needed")
    if side not in SIDES:
        raise ArgumentError(f"side={side!r}: one of {', '.join(map(repr, SIDES))} is needed")
    if not (math.isfinite(lam) and lam > 0):
        raise ArgumentError(f"lam={lam}: a finite number above 0 is needed; 0.5 is the default")


def check_between(h: Array, u: Array, half: float) -> None:
    """Check half the normalized sharpness against bounds that hold for every matrix.

    ``sum_ij sqrt(H_ij U_ij) <= S/2 <= sqrt(sum H sum U)``: a scale per entry below, one for the matrix above.

    Raises:
        NumericsError: it is not between them, so one of the numbers is wrong.
    """
    low, high = parameter_wise(h, u), matrix_normalized(float(h.sum()), float(u.sum()))
    if not low * (1 - _SLACK) <= half <= high * (1 + _SLACK):
        raise NumericsError(f"half the normalized sharpness is {half:.12g}, outside [{low:.12g}, {high:.12g}]")


def matrix_normalized(trace: float, squares: float) -> float:
    """``sqrt(|W|_F^2 T)``: one scale for the whole matrix, [NA] (13); NaN if the trace of its block is negative."""
    return math.sqrt(squares) * math.sqrt(trace) if trace >= 0 else math.nan


def parameter_wise(h: npt.ArrayLike, u: npt.ArrayLike) -> float:
    """``NS1 = sum_i sqrt(H_ii) |w_i|``: one scale per parameter, [NI] (19), from ``u_i = w_i^2``."""
    h, u = _pair(h, u)
    return float(np.sum(np.sqrt(h) * np.sqrt(u)))


def fisher_rao_from_diagonal(h: npt.ArrayLike, u: npt.ArrayLike) -> float:
    """``FR = sum_i H_ii w_i^2``, [NI] (16), from ``u_i = w_i^2``."""
    h, u = _pair(h, u)
    return float(np.sum(h * u))


@dataclass(frozen=True)
class Penalised:
    """``NS'(lambda')`` with the log-scales that reach it."""

    value: float
    log_scales: Array  # sigma, of the shape of the entries
    certificate: float  # the largest derivative in sigma of an entry's terms, relative to the sum of their sizes


def penalised_parameter_wise(
    h: npt.ArrayLike, u: npt.ArrayLike, lam: float, grid: tuple[float, float] | npt.ArrayLike = (-math.inf, math.inf)
) -> Penalised:
    """``NS'(lambda')``, which lets every parameter have a scale of its own at a price.

    ``sum_i min_{sigma, beta in B} H_ii e^(2 sigma) + w_i^2 e^(-2 sigma) + (sigma - beta)^2 / lambda'``, [NI] (17).
    ``B`` is the set of log-scales that the prior may have: an interval, or the points of a grid. For
    ``lambda' -> inf``, and for an interval that is the whole line, it is ``2 NS1``. Every entry is a convex problem in
    one variable (two for a grid, its points on either side), solved by Newton steps kept inside a bracket of the root.

    Args:
        h: the diagonal of the curvature, not negative, of any shape.
        u: squared weights, of the same shape.
        lam: lambda', above 0.
        grid: ``(lower, upper)`` as a tuple for an interval; any array for a grid of points.

    Raises:
        ArgumentError: an argument outside its range.
    """
    h, u = _pair(h, u)
    if not lam > 0:
        raise ArgumentError(f"lam={lam}: a number above 0 is needed")
    shape, h, u = h.shape, h.ravel(), u.ravel()
    if isinstance(grid, tuple) and len(grid) == 2:
        low, high = map(float, grid)
        if not low <= high or low == math.inf or high == -math.inf:
            raise ArgumentError(f"grid={grid}: an interval (lower, upper) is needed, its lower end not above the upper")
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = (np.log(u) - np.log(h)) / 4  # without the penalty; an infinite one drives a lone term to 0
        sigma = np.where(np.isnan(sigma), np.clip(0.0, low, high), sigma)
        beta = np.clip(sigma, low, high)
        outside = beta != sigma
        values = 2 * np.sqrt(h) * np.sqrt(u)
        sigma[outside], values[outside] = _best_scale(h[outside], u[outside], beta[outside], lam)
        slope = _slope(h[outside], u[outside], sigma[outside], (sigma - beta)[outside], lam)
        return Penalised(float(values.sum()), sigma.reshape(shape), float(np.max(slope, initial=0.0)))
    points = np.atleast_1d(np.asarray(grid, float)).ravel()
    if not points.size or not np.isfinite(points).all():
        raise ArgumentError("grid: finite points are needed; pass a tuple (lower, upper) for an interval")
    # After sigma a convex function of beta remains, least where the exponentials balance: of all points only the
    # neighbours of that value can be the best.
    points = np.sort(points)
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = np.nan_to_num((np.log(u) - np.log(h)) / 4, nan=0.0, posinf=np.inf, neginf=-np.inf)
    above = np.searchsorted(points, balanced)
    before, after = points[np.maximum(above - 1, 0)], points[np.minimum(above, len(points) - 1)]
    (left, lower), (right, upper) = (_best_scale(h, u, beta, lam) for beta in (before, after))
    sigma, beta = np.where(lower <= upper, left, right), np.where(lower <= upper, before, after)
    slope = _slope(h, u, sigma, sigma - beta, lam)
    value = float(np.minimum(lower, upper).sum())
    return Penalised(value, sigma.reshape(shape), float(np.max(slope, initial=0.0)))


def _slope(h: Array, u: Array, sigma: Array, gap: Array, lam: float) -> Array:
    up, down = h * np.exp(2 * sigma), u * np.exp(-2 * sigma)
    size = up + down + np.abs(gap) / lam
    return np.abs(up - down + gap / lam) / np.where(size > 0, size, 1.0)


def _best_scale(h: Array, u: Array, beta: Array, lam: float) -> tuple[Array, Array]:
    """(sigma, value) of ``min_sigma h e^(2 sigma) + u e^(-2 sigma) + (sigma - beta)^2 / lam`` for each entry.

    The derivative rises, so its root lies between beta and where the two exponentials balance. Where one of them is 0
    it lies within ``log(1 + z) / 2`` of beta, ``z = 2 lam (the other at beta)``, by ``W(z) <= log(1 + z)``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.logaddexp(0, np.log(2 * h) + np.log(lam) + 2 * beta) / 2
        down = np.logaddexp(0, np.log(2 * u) + np.log(lam) - 2 * beta) / 2
        balanced = np.nan_to_num((np.log(u) - np.log(h)) / 4, nan=0.0, posinf=np.inf, neginf=-np.inf)
    low = np.where(balanced < beta, np.maximum(balanced, beta - up), beta)
    high = np.where(balanced > beta, np.minimum(balanced, beta + down), beta)
    low, high = np.minimum(low, high), np.maximum(low, high)
    sigma = (low + high) / 2
    for _ in range(200):
        rise, fall = h * np.exp(2 * sigma), u * np.exp(-2 * sigma)
        slope = rise - fall + (sigma - beta) / lam
        low, high = np.where(slope < 0, sigma, low), np.where(slope > 0, sigma, high)
        newton = sigma - slope / (2 * rise + 2 * fall + 1 / lam)
        after = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
        after = np.where(slope == 0, sigma, after)
        still = np.abs(after - sigma) > 1e-16 * (1 + np.abs(sigma))
        sigma = after
        if not still.any():
            break
    value = h * np.exp(2 * sigma) + u * np.exp(-2 * sigma) + (sigma - beta) ** 2 / lam
    return sigma, value


def _pair(h: npt.ArrayLike, u: npt.ArrayLike) -> tuple[Array, Array]:
    h, u = np.asarray(h, float), np.asarray(u, float)
    if h.shape != u.shape:
        raise ArgumentError(f"a diagonal of shape {h.shape}, weights of shape {u.shape}: one entry for each is needed")
    for name, values in (("diagonal", h), ("squared weights", u)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise ArgumentError(f"the {name} has an entry that is negative or not finite: clip it first, and say so")
    return h, u
