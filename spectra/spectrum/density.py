"""The spectral density: the probes' quadrature rules, smoothed with a Gaussian, with a band over probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log, pi, sqrt

import numpy as np
from scipy.special import ndtr

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import t_quantile
from spectra.spectrum.quadrature import Quadrature

VIEWS = ("linear", "asinh")

# The width of the kernel in the asinh view: a tenth of a decade where asinh(x) is close to log(2x).
_DECADE = log(10.0)
WIDTH_PER_DECADE = 0.1

# The default grid: this many widths beyond both ends, this many points to a width, within these numbers of points.
_BEYOND = 6.0
_POINTS_PER_WIDTH = 5
_FEWEST, _MOST = 1024, 20_000

# The largest number of entries of a table of points and nodes; a table of this size fits in the processor's cache.
_TABLE = 2**16

# An exhausted recurrence resolves every eigenvalue, so its few steps must not make the kernel wide.
_FINE = 100


@dataclass(frozen=True, eq=False)
class Density:
    """A smoothed spectral density of total mass 1 over the plotted coordinate.

    The coordinate is the eigenvalue itself in the linear view and ``u = asinh(lambda / s)`` in the asinh view.
    ``values`` are per unit of that coordinate, so areas under the curve as it is drawn are fractions of the
    eigenvalues. The band is pointwise: each point has its 95 % Student-t interval over the probes, the curve as a whole
    has not.
    """

    grid: np.ndarray  # (G,) eigenvalues, ascending
    values: np.ndarray  # (G,) mean over probes
    stderr: np.ndarray | None  # (G,) over probes; None with one probe
    lower: np.ndarray | None  # (G,) pointwise, not below 0
    upper: np.ndarray | None  # (G,)
    sigma: float  # the width of the Gaussian, in units of the coordinate
    view: str  # "linear" or "asinh"
    linear_threshold: float | None  # s of the asinh view
    mass: float  # of the smoothed density between the ends of the grid
    num_probes: int

    @property
    def coordinate(self) -> np.ndarray:
        """The coordinates along the axis, (G,): ``grid``, or ``asinh(grid / s)``."""
        return self.grid if self.linear_threshold is None else np.asarray(np.arcsinh(self.grid / self.linear_threshold))


def smooth(
    q: Quadrature,
    *,
    view: str = "linear",
    sigma: float | None = None,
    grid: np.ndarray | None = None,
    points: int | None = None,
    linear_threshold: float | None = None,
) -> Density:
    """The density ``(1/k) sum_i sum_k tau_ik N(x; theta_ik, sigma^2)``, normalised to mass 1.

    An eigenvalue that has converged in every probe has the weight ``1/n`` in all of them, without error.

    The density keeps the mean of the quadrature rules and adds ``sigma^2`` to their second moment (in the coordinate of
    the view). The default width of the linear view is the range of the Ritz values over ``m``, the resolution of ``m``
    steps; that of the asinh view is a tenth of a decade.

    Args:
        q: the quadrature rules of the probes.
        view: ``"linear"``, or ``"asinh"``: smoothed in ``u = asinh(lambda / s)``, which is linear within ``s`` of 0
            and logarithmic beyond it, on both sides.
        sigma: the width, in units of the coordinate; ``pyhessian_sigma`` gives another convention.
        grid: (G,) eigenvalues, strictly ascending; by default it reaches six widths beyond both ends.
        points: of the default grid.
        linear_threshold: ``s``, needed in the asinh view.

    Raises:
        ArgumentError: an argument out of its range.

    References:
        L. Lin, Y. Saad, C. Yang, Approximating spectral densities of large matrices, SIAM Review 58 (2016); B.
        Ghorbani, S. Krishnan, Y. Xiao, An investigation into neural net optimization via Hessian eigenvalue density,
        ICML (2019).
    """
    _check_view(view)
    if view == "linear":
        scale = None
        nodes = [x for x, _ in q.rules]
    else:
        scale = _positive("linear_threshold", linear_threshold)
        nodes = [np.arcsinh(x / scale) for x, _ in q.rules]
    if sigma is not None:
        width = _positive("sigma", sigma)
    else:
        width = _resolution(q) if view == "linear" else WIDTH_PER_DECADE * _DECADE
    coordinate = _own_grid(grid, scale) if grid is not None else _default_grid(nodes, width, points)
    weights = [w for _, w in q.rules]
    curves = np.stack([kernel_sum(coordinate, x, w, width) for x, w in zip(nodes, weights)])
    mass = np.mean(
        [w @ (ndtr((coordinate[-1] - x) / width) - ndtr((coordinate[0] - x) / width)) for x, w in zip(nodes, weights)]
    )
    k = q.num_probes
    values = curves.mean(axis=0)
    stderr = lower = upper = None
    if k > 1:
        stderr = curves.std(axis=0, ddof=1) / sqrt(k)
        reach = t_quantile(k) * stderr
        lower, upper = np.maximum(values - reach, 0.0), values + reach
    eigenvalues = coordinate if scale is None else scale * np.sinh(coordinate)
    return Density(eigenvalues, values, stderr, lower, upper, width, view, scale, float(mass), k)


def span(q: Quadrature, linear_threshold: float) -> tuple[float, float]:
    """The ends of the default grid of the asinh view, as eigenvalues; nothing is smoothed."""
    nodes = [np.arcsinh(x / linear_threshold) for x, _ in q.rules]
    ends = _default_grid(nodes, WIDTH_PER_DECADE * _DECADE, 2)
    low, high = linear_threshold * np.sinh(ends)
    return float(low), float(high)


def _check_view(view: str) -> None:
    if view not in VIEWS:
        raise ArgumentError(f"view={view!r}: 'linear' (the default) or 'asinh' is needed")


def pyhessian_sigma(spread: float) -> float:
    """``sqrt(1e-5 max(1, spread))``: the width that PyHessian and its descendants use, for comparison with their plots.

    Their variance is ``1e-5`` of the range of the eigenvalues, or ``1e-5`` where the range is below 1. It depends on
    the unit of the eigenvalues, so it is an option here and not the default.

    Args:
        spread: ``lambda_max - lambda_min``.

    Example:
        >>> pyhessian_sigma(10.0)
        0.01
    """
    return sqrt(1e-5 * max(1.0, spread))


def _resolution(q: Quadrature) -> float:
    """The range of the Ritz values over ``m``; where all eigenvalues agree their size takes the range's place."""
    top = max(float(t.nodes[-1]) for t in q.tridiagonals)
    bottom = min(float(t.nodes[0]) for t in q.tridiagonals)
    size = max(abs(top), abs(bottom))
    spread = top - bottom if top - bottom > 1e-9 * size else size
    steps = max(t.steps for t in q.tridiagonals)
    if all(t.exhausted for t in q.tridiagonals):
        steps = max(steps, _FINE)
    return spread / steps if spread > 0 else 1.0 / _FINE


def _default_grid(nodes: Sequence[np.ndarray], width: float, points: int | None) -> np.ndarray:
    low = min(float(x.min()) for x in nodes) - _BEYOND * width
    high = max(float(x.max()) for x in nodes) + _BEYOND * width
    if points is None:
        count = int(min(max(_FEWEST, _POINTS_PER_WIDTH * (high - low) / width), _MOST))
    else:
        count = points
        if count < 2:
            raise ArgumentError(f"points={points}: at least 2 are needed; about {_FEWEST} is the default")
    return np.linspace(low, high, count)


def kernel_density(like: Density, eigenvalues: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The density of known eigenvalues on the grid, in the coordinate and with the kernel of another density, (G,).

    Args:
        like: the other density.
        eigenvalues: (K,).
        weights: (K,), of sum 1.
    """
    s = like.linear_threshold
    nodes = eigenvalues if s is None else np.arcsinh(eigenvalues / s)
    return kernel_sum(like.coordinate, nodes, weights, like.sigma)


def _own_grid(grid: np.ndarray, scale: float | None) -> np.ndarray:
    own = np.array(grid, dtype=np.float64)
    if own.ndim != 1 or own.size < 2 or not np.isfinite(own).all() or not (np.diff(own) > 0).all():
        raise ArgumentError("grid: at least 2 finite, strictly ascending eigenvalues are needed")
    return own if scale is None else np.asarray(np.arcsinh(own / scale))


def kernel_sum(at: np.ndarray, nodes: np.ndarray, weights: np.ndarray, width: float) -> np.ndarray:
    """``sum_k weights_k N(at; nodes_k, width^2)``, (G,)."""
    total = np.zeros(at.size)
    some = max(1, _TABLE // at.size)  # nodes at once: a table of all points and nodes could be large
    for start in range(0, len(nodes), some):
        distances = (at - nodes[start : start + some, None]) / width
        distances *= distances
        distances *= -0.5
        total += weights[start : start + some] @ np.exp(distances, out=distances)
    return np.asarray(total / (width * sqrt(2 * pi)))


def _positive(name: str, value: float | None) -> float:
    if value is None or not isfinite(value) or value <= 0:
        raise ArgumentError(f"{name}={value}: a finite number above 0 is needed")
    return float(value)
