"""The smallest trace over rescalings: the convex problem behind minimum sharpness.

A rescaling of a positively homogeneous network multiplies parameter tensor ``g`` by ``exp(a_g . u)`` for free
log-scales ``u``, and the trace ``T_g`` of its curvature block by ``exp(-2 a_g . u)``. The smallest total is::

    F* = inf_u  sum_g T_g exp(-2 a_g . u)

which is convex in ``u``. Blocks that some direction drives to 0 without making another grow are dropped first (the
infimum is then not attained). The remaining problem has a minimiser, found by damped Newton steps and certified by its
gradient.

References:
    Ibayashi et al., "Minimum sharpness", 2021 (Theorem 1; the rescaling of biases in its section 4). The paper's
    optimal scales are printed as ``geomean(T) / T_d``, which is ``alpha_d^-2``: they are ``sqrt(T_d / geomean(T))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spectra.errors import ArgumentError, NumericsError

Array = npt.NDArray[np.float64]

CERTIFIED = 1e-9  # the largest relative gradient that is still called a minimum
_PRICE = 1e-6  # cost of moving a log-scale, relative to the gain of lowering a block by 1
_LARGEST_STEP = 10.0  # no exponent moves further than this in one step


@dataclass(frozen=True)
class Rescaled:
    """The infimum over rescalings, with its certificate."""

    value: float
    attained: bool  # whether some rescaling reaches it; otherwise it is approached along `recession`
    log_scales: Array  # (s,) a minimiser u of the blocks that are not dropped
    blocks: Array  # (G,) each trace at it, 0 where dropped
    certificate: float  # max_k |sum_g t_g a_gk| / sum_g t_g, 0 at the minimum
    dropped: tuple[int, ...]  # blocks above 0 that are driven to 0, or taken for 0
    recession: Array  # (s,) the direction that drives them there; zeros if there is none
    note: str | None = None


def bias_free_minimum(traces: npt.ArrayLike) -> float:
    """``D (T_1 T_2 ... T_D)^(1/D)`` in logarithms: the minimum of a chain of ``D`` layers without biases.

    Args:
        traces: (D,) of the layers' curvature blocks, none negative.

    Raises:
        ArgumentError: no trace, or one that is negative or not finite.

    References:
        Ibayashi et al. (2021), Theorem 1.

    Example:
        >>> round(bias_free_minimum([1.0, 2.0, 4.0]), 12)
        6.0
    """
    blocks = _checked(traces, None)
    if not blocks.all():
        return 0.0
    return float(len(blocks) * np.exp(np.mean(np.log(blocks))))


def chain_exponents(layers: int, biases: bool = True) -> Array:
    """The exponents of a chain in cumulative log-scales ``c_1 .. c_{D-1}``: weights first, then biases.

    ``W_d`` scales by ``exp(c_d - c_{d-1})`` and ``b_d`` by ``exp(c_d)``, with ``c_0 = c_D = 0``.

    Returns:
        (D, D - 1), or (2 D, D - 1) with biases.
    """
    steps = np.diff(np.eye(layers + 1)[:, 1:layers], axis=0)
    return np.concatenate([steps, np.eye(layers + 1)[1:, 1:layers]]) if biases else steps


def chain_minimum(traces: npt.ArrayLike, biases: npt.ArrayLike) -> Rescaled:
    """The minimum of a chain of ``D`` layers with biases, by Newton on the cumulative log-scales.

    ``F(c) = sum_d T_d exp(-2 (c_d - c_{d-1})) + sum_{d<D} B_d exp(-2 c_d) + B_D``; at the minimum the rescaled blocks
    satisfy ``t_{d+1} = t_d + b_d``, which is the certificate.

    Args:
        traces: (D,) of the weights' blocks.
        biases: (D,) of the biases' blocks; 0 where a layer has none.

    Example:
        >>> round(chain_minimum([3.0, 5.0], [2.0, 7.0]).value, 12)
        17.0
    """
    t, b = np.atleast_1d(np.asarray(traces, float)), np.atleast_1d(np.asarray(biases, float))
    if t.shape != b.shape or t.ndim != 1:
        raise ArgumentError(f"traces of shape {t.shape} and biases of shape {b.shape}: one of each per layer is needed")
    return minimise_rescaled(np.concatenate([t, b]), chain_exponents(len(t)))


def minimise_rescaled(
    traces: npt.ArrayLike,
    exponents: npt.ArrayLike,
    names: Sequence[str] | None = None,
    zero_tolerance: float = 0.0,
) -> Rescaled:
    """``inf_u sum_g T_g exp(-2 a_g . u)`` over all ``u`` in R^s.

    Args:
        traces: (G,) block traces, none negative.
        exponents: (G, s) the exponents ``a_g``.
        names: (G,) of the blocks, for messages.
        zero_tolerance: blocks at or below this times the total are taken for 0. A layer with a dead path has a block
            that is 0 but for rounding; nothing is taken for 0 unless this is asked for. 1e-14 is the usual choice.

    Raises:
        ArgumentError: a trace that is negative or not finite, or shapes that do not fit.
        NumericsError: the minimum could not be certified.
    """
    blocks = _checked(traces, names)
    a = np.asarray(exponents, float)
    if a.ndim != 2 or len(a) != len(blocks) or not np.isfinite(a).all():
        raise ArgumentError(f"exponents of shape {a.shape}: finite numbers, one row per block ({len(blocks)}) needed")
    if not 0 <= zero_tolerance < 1:
        raise ArgumentError(f"zero_tolerance={zero_tolerance}: a number of at least 0 and below 1 is needed")
    tiny = (blocks > 0) & (blocks <= zero_tolerance * blocks.sum())
    note = None
    if tiny.any():
        tiny_names = ", ".join(str(names[i] if names is not None else i) for i in map(int, np.flatnonzero(tiny)))
        note = f"taken for 0, below {zero_tolerance:g} of the total: {tiny_names} (a dead layer?)"
    kept = (blocks > 0) & ~tiny
    recession = np.zeros(a.shape[1])
    while True:  # one round finds all of them; the next one shows that none is left
        direction, falling = _recession(a[kept])
        if not falling.any():
            break
        # A large multiple of the earlier direction keeps what it drives to 0 falling.
        reach = max(0.0, float(np.max(-(a @ direction), initial=0.0)))
        recession = direction if not recession.any() else recession * (1 + reach) + direction
        kept[np.flatnonzero(kept)[falling]] = False
    active = a[kept]
    u, value, certificate = _newton(np.log(blocks[kept]), active)
    scaled = np.zeros(len(blocks))
    scaled[kept] = np.exp(np.log(blocks[kept]) - 2 * active @ u)
    dropped = tuple(int(i) for i in np.flatnonzero((blocks > 0) & ~kept))
    attained = not bool(((blocks > 0) & ~kept & ~tiny).any())
    return Rescaled(value, attained, u, scaled, certificate, dropped, recession, note)


def relative_gradient(blocks: Array, exponents: Array) -> float:
    """The certificate of rescaled blocks: ``max_k |sum_g t_g a_gk| / sum_g t_g``; 0 exactly at the minimum.

    For a chain its entries are ``t_d + b_d - t_{d+1}``. Blocks that are dropped must be given as 0.
    """
    total = float(blocks.sum())
    if total == 0 or not exponents.size:
        return 0.0
    return float(np.max(np.abs(blocks @ exponents))) / total


def _checked(traces: npt.ArrayLike, names: Sequence[str] | None) -> Array:
    blocks = np.atleast_1d(np.asarray(traces, float))
    if blocks.ndim != 1 or not len(blocks):
        raise ArgumentError(f"traces of shape {blocks.shape}: one number per block is needed")
    for i in map(int, np.flatnonzero(~np.isfinite(blocks) | (blocks < 0))):
        name = names[i] if names is not None else f"block {i}"
        raise ArgumentError(
            f"the trace of {name} is {blocks[i]:.6g}: a finite number of at least 0 is needed, since a negative block "
            "can be scaled to minus infinity; take the traces of the Gauss-Newton matrix"
        )
    return blocks


def _recession(a: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """A direction with ``a_g . r >= 0`` for all rows that is above 0 for as many as possible, and for which.

    Directions add, so one linear program finds them all: ``max sum_g s_g`` with ``0 <= s_g <= 1``, ``s_g <= a_g . r``
    has every ``s_g`` at 1 or at 0.
    """
    from scipy.optimize import linprog

    rows, s = a.shape
    if rows == 0 or s == 0:
        return np.zeros(s), np.zeros(rows, bool)
    # Exponents that fail to cancel only by rounding are no direction: moving so far has a price.
    cost = np.concatenate([np.full(2 * s, _PRICE), -np.ones(rows)])
    bound = np.concatenate([-a, a, np.eye(rows)], axis=1)  # of the parts of r above and below 0, and of s
    limits = [(0, None)] * (2 * s) + [(0, 1)] * rows
    result = linprog(cost, A_ub=bound, b_ub=np.zeros(rows), bounds=limits, method="highs")
    if result.status != 0:
        raise NumericsError(f"the directions along which blocks vanish could not be found: {result.message}")
    return result.x[:s] - result.x[s : 2 * s], result.x[2 * s :] > 0.5


def _newton(logs: Array, a: Array) -> tuple[Array, float, float]:
    """(u, value, certificate) of ``min_u sum exp(logs - 2 a u)``, which is coercive on the span of the rows of a."""
    from scipy.linalg import cho_factor, cho_solve, qr

    u = np.zeros(a.shape[1])
    if not len(logs):
        return u, 0.0, 0.0
    if not a.any():
        return u, float(np.exp(logs).sum()), 0.0
    # Independent columns: the other log-scales stay at 0, so that every remaining direction changes the value.
    _, r, order = qr(a, mode="economic", pivoting=True)
    pivots = np.abs(np.diag(r))
    columns = np.sort(order[: int((pivots > 1e-10 * pivots[0]).sum())])
    free = a[:, columns]
    # All blocks as nearly equal as they can be: the minimum itself where there are no biases.
    centred = free - free.mean(axis=0)
    c = np.linalg.lstsq(2 * centred, logs - logs.mean(), rcond=None)[0]
    shift = float(np.max(logs - 2 * free @ c))
    logs = logs - shift  # the value is exp(shift) times that of the problem solved here
    for _ in range(2000):
        t = np.exp(np.minimum(logs - 2 * free @ c, 600.0))
        value = float(t.sum())
        gradient = -2 * (t @ free)
        hessian = 4 * (free.T * t) @ free
        # Scaled to a unit diagonal: blocks of very different sizes make it ill-conditioned otherwise.
        size = np.sqrt(np.maximum(np.diag(hessian), 1e-300))
        unit = hessian / np.outer(size, size)
        unit[np.diag_indices_from(unit)] += 1e-15
        try:
            step = -cho_solve(cho_factor(unit), gradient / size) / size
        except np.linalg.LinAlgError:
            step = -np.linalg.lstsq(unit, gradient / size, rcond=1e-15)[0] / size
        slope = float(gradient @ step)
        if -slope <= 1e-28 * value:  # the value is off by half of this, relative
            break
        step *= min(1.0, _LARGEST_STEP / float(np.max(np.abs(2 * free @ step))))
        slope, length = float(gradient @ step), 1.0
        while length > 1e-12:
            moved = float(np.exp(np.minimum(logs - 2 * free @ (c + length * step), 600.0)).sum())
            if moved <= value + 1e-4 * length * slope:
                break
            length /= 2
        if moved >= value:  # rounding hides what a step gains; the gradient still tells
            terms = np.exp(np.minimum(logs - 2 * free @ (c + step), 600.0))
            if relative_gradient(terms, free) < relative_gradient(t, free):
                c = c + step
            break
        c = c + length * step
    t = np.exp(logs - 2 * free @ c)
    certificate = relative_gradient(t, a)
    if not certificate <= CERTIFIED:
        raise NumericsError(
            f"the minimum over rescalings is not certified: relative gradient {certificate:.1e}, {CERTIFIED:g} needed; "
            "blocks that are 0 but for rounding are taken for 0 with zero_tolerance=1e-14"
        )
    u[columns] = c
    return u, float(np.exp(shift + np.log(t.sum()))), certificate
