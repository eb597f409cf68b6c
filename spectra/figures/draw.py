"""Draws spectra and estimates on given Axes, in the style of `spectra.figures.style`.

pyplot is not used, so there is no current figure, no window and no global state to restore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.markers import CARETDOWNBASE, CARETLEFTBASE, CARETRIGHTBASE, CARETUPBASE

from spectra.figures.readable import Drawn, fit_scale
from spectra.figures.style import GREY, LOOKS, PALE, Look, asinh_axis, literal, shortened
from spectra.results.values import Values, values_of
from spectra.spectrum.density import Density
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

# A Ritz value has converged if its residual is below this fraction of the distance to its neighbours.
_CONVERGED = 0.1

#: The label of exact traces in a legend.
EXACT_TRACE = "exact trace"

# Series with more points use smaller markers.
_MANY = 25


# --- spectra ------------------------------------------------------------------------------------------------------


def draw_density(ax: Axes, density: Density, *, n: int, look: Look = LOOKS["eval"], label: str | None = None) -> None:
    """A smoothed density on a logarithmic axis with its pointwise band, in the view that it was smoothed in.

    The axis ends at the height of a hundredth of one eigenvalue in `n`, relative to the peak. In the asinh view, the
    linear strip of the axis, ``|lambda| <= s``, is shaded.
    """
    ax.plot(density.grid, density.values, linestyle=look.line, color=look.colour, label=label)
    if density.lower is not None and density.upper is not None:
        ax.fill_between(density.grid, density.lower, density.upper, color=look.colour, alpha=0.22, linewidth=0)
    peak = max(float(np.max(line.get_ydata())) for line in ax.lines)
    ax.set_yscale("log")
    ax.set_ylim(lowest_height(np.array(peak), n), peak * 4)
    low, high = float(density.grid[0]), float(density.grid[-1])
    if len(ax.lines) > 1:
        low, high = min(low, ax.get_xlim()[0]), max(high, ax.get_xlim()[1])
    if density.linear_threshold is None:
        ax.set_ylabel("density of eigenvalues (mass 1)")
    else:
        if len(ax.lines) == 1:
            ax.axvspan(-density.linear_threshold, density.linear_threshold, color=PALE, linewidth=0, zorder=0)
        asinh_axis(ax, density.linear_threshold, low, high)
        ax.set_ylabel(r"density per unit of asinh($\lambda/s$) (mass 1)")
    ax.set_xlim(low, high)


def lowest_height(densities: np.ndarray, n: int) -> float:
    """The lower end of a logarithmic axis of densities: the height of a hundredth of one eigenvalue in `n`."""
    return float(densities.max()) * min(max(0.01 / n, 1e-10), 1e-4)


def draw_heat(
    ax: Axes, position: np.ndarray, column: Sequence[Density | None], grid: np.ndarray, norm: LogNorm
) -> QuadMesh:
    """Densities over training as a heat map, one strip per checkpoint, which meet halfway between two checkpoints.

    Args:
        ax: the axes to draw on.
        position: (T,) epochs or steps; NaN entries are left out.
        column: T densities on `grid`; None is a blank strip.
        grid: (G,) ascending.
        norm: the range of the colours; values below it are white.
    """
    drawable = [index for index in np.argsort(position) if isfinite(position[index])]
    at = position[drawable]
    middle = (at[1:] + at[:-1]) / 2
    edges = np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
    heights = np.array([np.full(grid.size, nan) if (d := column[i]) is None else d.values for i in drawable])
    u = np.arcsinh(grid)
    across = np.sinh(np.concatenate([[u[0]], (u[1:] + u[:-1]) / 2, [u[-1]]]))
    ax.grid(False)
    ax.set_ylim(edges[0], edges[-1])
    # Values below the colour range are white, like a density of 0.
    shown = np.ma.masked_invalid(np.where(heights >= norm.vmin, heights, nan))
    return ax.pcolormesh(across, edges, shown, norm=norm, cmap="cividis_r", rasterized=True)


def draw_stems(ax: Axes, spectrum: Spectrum, *, look: Look = LOOKS["eval"], label: str | None = None) -> None:
    """Every probe's Ritz values against their weights, which sum to 1 per probe, on a logarithmic axis.

    A filled marker is a converged Ritz value: its residual is below a tenth of the distance to the probe's next Ritz
    value. An open marker represents the eigenvalues around it.
    """
    nodes = np.concatenate([t.nodes for t in spectrum.tridiagonals])
    weights = np.concatenate([t.weights for t in spectrum.tridiagonals])
    met = np.concatenate([converged(t) for t in spectrum.tridiagonals])
    shown_weights = weights > 0
    bottom = max(float(weights[shown_weights].min()) / 3, 1e-16)
    ax.vlines(nodes[shown_weights], bottom, weights[shown_weights], color=look.colour, linewidth=0.7, alpha=0.6)
    for shown, face, words in (
        (met & shown_weights, look.colour, "converged"),
        (~met & shown_weights, "white", "not converged"),
    ):
        ax.plot(
            nodes[shown],
            weights[shown],
            look.marker,
            markersize=3.8,
            markeredgewidth=0.9,
            markeredgecolor=look.colour,
            markerfacecolor=face,
            label=f"{label}, {words}" if label else words,
        )
    ax.set_yscale("log")
    ax.set_ylim(bottom, 2.0)
    ax.set_ylabel("weight of the Ritz value\n(sum 1 per probe)")


def converged(tridiagonal: Tridiagonal) -> np.ndarray:
    """Which Ritz values have a residual below a tenth of the distance to the next one, (m,) bool."""
    return np.asarray(tridiagonal.residuals <= _CONVERGED * _spacing(tridiagonal.nodes))


def _spacing(nodes: np.ndarray) -> np.ndarray:
    """The distance of each ascending node to its nearest neighbour, (m,); 0 for a single node."""
    if nodes.size == 1:
        return np.zeros(1)
    gaps = np.diff(nodes)
    return np.asarray(np.minimum(np.append(inf, gaps), np.append(gaps, inf)))


# --- estimates ----------------------------------------------------------------------------------------------------


def draw_series(
    ax: Axes, x: np.ndarray, values: Values, *, look: Look = LOOKS["eval"], label: str | None = None
) -> Drawn:
    """One estimate over training with its intervals. Missing values leave a gap.

    An unresolved value is an open bracket without a point. A missing bound is an arrow head at the value. An exact
    number is a point without a bar.

    Args:
        ax: the axes to draw on.
        x: (T,) epochs or steps.
        values: (T,).
        look: colour, marker and line.
        label: for the legend.

    Returns:
        The drawn numbers, for :func:`spectra.figures.readable.clip_intervals`.
    """
    point = np.where(values.resolved, values.value, nan)
    size = 4.5 if len(values) <= _MANY else 2.5
    ax.errorbar(
        x,
        point,
        reach(point, values.lower, values.upper),
        fmt=look.marker,
        linestyle=look.line,
        color=look.colour,
        markersize=size,
        markerfacecolor=look.face,
        elinewidth=0.2 * size,
        capsize=0.6 * size,
        label=label,
    )
    for marker, unbounded in zip((CARETUPBASE, CARETDOWNBASE), _unbounded(point, values.lower, values.upper)):
        if unbounded.any():
            ax.plot(x[unbounded], point[unbounded], marker=marker, linestyle="none", color=look.colour, markersize=9)
    bracket = ~values.resolved & np.isfinite(values.lower) & np.isfinite(values.upper)
    if bracket.any():
        middle = (values.lower + values.upper)[bracket] / 2
        ax.errorbar(
            x[bracket],
            middle,
            middle - values.lower[bracket],
            fmt="none",
            ecolor=look.colour,
            elinewidth=0.9,
            capsize=5,
            label="not resolved: bracket only",
        )[2][0].set_linestyle(":")
    fit_scale(ax)
    return Drawn.of(x, values, look.colour)


def draw_tensors(
    ax: Axes,
    traces: Mapping[str, Estimate],
    *,
    look: Look = LOOKS["eval"],
    label: str | None = None,
    place: int = 0,
    places: int = 1,
    exact: Mapping[str, float] | None = None,
) -> list[Drawn]:
    """The trace of each parameter tensor's diagonal block as a horizontal bar, the first tensor at the top.

    Args:
        ax: the axes to draw on.
        traces: the estimates, by the tensor's name.
        look: colour, marker and line.
        label: for the legend.
        place: the position of this bar among those that share a tensor's row.
        places: the number of bars in a row.
        exact: exact traces of some tensors, drawn as markers over the bars.

    Returns:
        The drawn numbers, for :func:`spectra.figures.readable.clip_intervals`.
    """
    height = 0.8 / places
    rows = np.arange(len(traces)) + (place - (places - 1) / 2) * height
    value, lower, upper = _columns(traces.values())
    ax.barh(
        rows,
        value,
        0.92 * height,
        xerr=reach(value, lower, upper),
        color=look.colour,
        alpha=0.8,
        label=label,
        hatch="" if place == 0 else "//",
        edgecolor="white",
        linewidth=0.4,
        error_kw={"elinewidth": 0.9, "ecolor": "black", "capsize": min(2.5, 6 * height)},
    )
    exact_values = np.array([nan if exact is None else exact.get(name, nan) for name in traces], dtype=np.float64)
    if np.isfinite(exact_values).any():
        looks: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4.5}
        ax.plot(exact_values, rows, "D", linestyle="none", zorder=5, label=EXACT_TRACE, **looks)
    ax.set_yticks(range(len(traces)), [literal(shortened(name)) for name in traces])
    ax.set_ylim(len(traces) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.axvline(0, color=GREY, linewidth=0.8)
    nothing = np.full(rows.size, nan)
    return [Drawn(rows, value, lower, upper, look.colour), Drawn(rows, exact_values, nothing, nothing, "black")]


def draw_rows(
    ax: Axes,
    estimates: Sequence[Estimate | None],
    names: Sequence[str],
    *,
    look: Look = LOOKS["eval"],
    label: str | None = None,
    place: int = 0,
    places: int = 1,
) -> None:
    """Estimates of several quantities, a row each, as points with their intervals; the first at the top."""
    rows = np.arange(len(estimates)) + (place - (places - 1) / 2) * 0.25
    value, lower, upper = _columns(estimates)
    ax.errorbar(
        value,
        rows,
        xerr=reach(value, lower, upper),
        fmt=look.marker,
        color=look.colour,
        markerfacecolor=look.face,
        linestyle="none",
        label=label,
    )
    for marker, unbounded in zip((CARETRIGHTBASE, CARETLEFTBASE), _unbounded(value, lower, upper)):
        if unbounded.any():
            ax.plot(value[unbounded], rows[unbounded], marker=marker, linestyle="none", color=look.colour, markersize=9)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(True, axis="y", linestyle=":")


def _columns(estimates: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays value, lower and upper, with NaN for missing entries and infinite bounds."""
    values = values_of(list(estimates))
    lower, upper = (np.where(np.isfinite(end), end, nan) for end in (values.lower, values.upper))
    return values.value, lower, upper


def reach(value: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The lengths of the interval below and above the value, (2, T); 0 on a side without a bound.

    NaN, which draws no bar, if both bounds are missing or the number is exact.
    """
    down, up = np.clip(value - lower, 0, inf), np.clip(upper - value, 0, inf)
    neither = (np.isnan(down) & np.isnan(up)) | ((down == 0) & (up == 0))
    return np.asarray(np.where(neither, nan, np.nan_to_num([down, up], nan=0.0)))


def _unbounded(value: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the intervals without an upper bound and without a lower bound, two (T,) bool arrays."""
    down, up, drawn = np.isfinite(lower), np.isfinite(upper), np.isfinite(value)
    return drawn & down & ~up, drawn & up & ~down
