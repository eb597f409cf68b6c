"""Readable axes: limits that one huge interval does not dominate, a fitting scale, and few enough rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from spectra.results.values import Values
from spectra.spectrum.estimates import Estimate

#: Positive values that span more than this factor use a logarithmic axis.
WIDE = 30.0

# An axis is clipped where the whole of the intervals is this many times as long as the clipped part.
_FAR_BEYOND = 2.5

# Ticks of a logarithmic axis are at powers of ten where it spans more decades than this.
_MANY_DECADES = 3.0

#: The caption's note on a clipped axis.
CLIPPED = "A triangle at the edge of a panel: the interval goes on beyond it."


@dataclass(frozen=True)
class Drawn:
    """Drawn numbers with intervals, their positions along the other axis, and their colour."""

    at: np.ndarray  # (T,)
    value: np.ndarray  # (T,) NaN where there is no point
    lower: np.ndarray  # (T,) NaN where there is no bound
    upper: np.ndarray  # (T,)
    colour: str

    @classmethod
    def of(cls, at: np.ndarray, values: Values, colour: str) -> Drawn:
        """A series; unresolved values have no point."""
        return cls(at, np.where(values.resolved, values.value, np.nan), values.lower, values.upper, colour)

    @classmethod
    def points(cls, at: np.ndarray, values: Values, colour: str) -> Drawn:
        """A series of points that are drawn without intervals."""
        nothing = np.full(values.value.size, np.nan)
        return cls(at, np.where(values.resolved, values.value, np.nan), nothing, nothing, colour)


def largest_tensors(names: Sequence[str], traces: Sequence[Mapping[str, Estimate]], most: int) -> list[str]:
    """The names of the tensors with the largest traces in any mapping, `most` at the most, in the given order."""
    size = {name: max(abs(found[name].value) for found in traces if name in found) for name in names}
    largest = set(sorted(names, key=lambda name: -size[name])[:most])
    return [name for name in names if name in largest]


def fit_scale(ax: Axes) -> None:
    """Fit the scale of the vertical axis to the points of all error bars that were drawn on it.

    Logarithmic for positive points over decades, unless more than a quarter of the intervals reach 0; linear near 0
    and logarithmic beyond where these do, and for points of both signs, or below 0, over decades; else linear.
    """
    bars = [container for container in ax.containers if isinstance(container, ErrorbarContainer)]
    points = _heights([container[0] for container in bars if container[0] is not None])
    ends = _heights([cap for container in bars for cap in container[1]])
    size = np.abs(points[points != 0])
    if size.size < 2 or size.max() <= WIDE * (size.min() if (points > 0).all() else float(np.median(size))):
        ax.set_yscale("linear")
    elif (points > 0).all() and (ends <= 0).sum() <= ends.size / 8:  # an interval has two ends
        ax.set_yscale("log")
    else:
        ax.set_yscale("symlog", linthresh=10.0 ** floor(log10(float(np.median(size)))))


def _heights(lines: Sequence[Any]) -> np.ndarray:
    """Where lines are, along the vertical axis; finite numbers only."""
    heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in lines]) if lines else np.empty(0)
    return np.asarray(heights[np.isfinite(heights)])


def plain_ticks(ax: Axes) -> None:
    """Label a logarithmic vertical axis of few decades by 1, 2 and 5 times powers of ten, as plain numbers."""
    low, high = ax.get_ylim()
    if ax.get_yscale() != "log" or not 0 < low < high or log10(high / low) > _MANY_DECADES:
        return
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    if len(ticks) < 2:
        return
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def clip_intervals(ax: Axes, drawn: Sequence[Drawn], *, along: str = "y") -> bool:
    """Limit an axis to its points and typical intervals if some are far longer, and mark those that are cut off.

    Every point stays on the axis. The margin is the typical (median) length of the intervals, or half the range of the
    points, whichever is larger. The axis does not change if the effect would be small.

    Args:
        ax: the axes.
        drawn: the numbers with intervals that were drawn on it.
        along: ``"y"`` or ``"x"``, the axis of the values.

    Returns:
        Whether an interval is cut off.
    """
    log = (ax.get_yscale() if along == "y" else ax.get_xscale()) == "log"
    low, middle, high = (np.concatenate([part(d, log) for d in drawn]) if drawn else np.empty(0) for part in _PARTS)
    points = middle[np.isfinite(middle)]
    reaches = np.concatenate([middle - low, high - middle])
    reaches = np.sort(reaches[reaches > 0])  # NaN is not above 0
    if points.size == 0 or reaches.size == 0:
        return False
    least, most = float(points.min()), float(points.max())
    bounded = reaches[np.isfinite(reaches)]
    typical = float(bounded[(bounded.size - 1) // 2]) if bounded.size else 0.0
    spare = max(1.5 * typical, 0.5 * (most - least))
    ends = min(least, float(np.nanmin(low, initial=inf))), max(most, float(np.nanmax(high, initial=-inf)))
    limits = max(ends[0], least - spare), min(ends[1], most + spare)
    if not ends[1] - ends[0] > _FAR_BEYOND * (limits[1] - limits[0]) > 0:
        return False
    margin = 0.05 * (limits[1] - limits[0])
    shown = [10.0**end if log else end for end in (limits[0] - margin, limits[1] + margin)]
    (ax.set_ylim if along == "y" else ax.set_xlim)(*shown)
    for d in drawn:
        for beyond, edge in ((_high(d, log) > limits[1], 1), (_low(d, log) < limits[0], 0)):
            _mark(ax, d.at[beyond & np.isfinite(_middle(d, log))], edge, along, d.colour)
    return True


def _mark(ax: Axes, at: np.ndarray, edge: int, along: str, colour: str) -> None:
    """Triangles at an edge of the axes, 1 for the upper or right one, that point outwards."""
    edge_position = np.full(at.size, 0.985 if edge else 0.015)
    looks: dict[str, Any] = {"linestyle": "none", "color": colour, "markersize": 5, "clip_on": False, "zorder": 6}
    if along == "y":
        lines = ax.plot(at, edge_position, "^" if edge else "v", transform=ax.get_xaxis_transform(), **looks)
    else:
        lines = ax.plot(edge_position, at, ">" if edge else "<", transform=ax.get_yaxis_transform(), **looks)
    for line in lines:
        line.set_in_layout(False)


def _scaled(numbers: np.ndarray, log: bool) -> np.ndarray:
    """The numbers on the scale of the axis; on a logarithmic axis non-positive ones lie below its lower end."""
    if not log:
        return numbers
    positive = numbers > 0
    return np.where(positive, np.log10(np.where(positive, numbers, 1.0)), np.where(np.isnan(numbers), np.nan, -inf))


def _low(d: Drawn, log: bool) -> np.ndarray:
    return _scaled(d.lower, log)


def _high(d: Drawn, log: bool) -> np.ndarray:
    return _scaled(d.upper, log)


def _middle(d: Drawn, log: bool) -> np.ndarray:
    """The point, else the middle of the bracket."""
    return _scaled(np.where(np.isnan(d.value), (d.lower + d.upper) / 2, d.value), log)


_PARTS = (_low, _middle, _high)
