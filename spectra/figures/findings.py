"""Figures of the checks of a record, and of its sharpness measures over training."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectra.figures.draw import draw_series
from spectra.figures.frame import blank, finished, mode_words, time_axis
from spectra.figures.moments import Moment, axis_of
from spectra.figures.readable import CLIPPED, clip_intervals, plain_ticks
from spectra.figures.style import GREY, PALE, asinh_axis, literal, look_of, shortened
from spectra.results.trace_checks import Check, can_tell
from spectra.results.values import Values

#: The largest number of rows that stays readable.
_MOST_CHECKS = 40

_VERDICTS = {  # marker, colour, face: distinguishable without colour too
    "agrees": ("o", "#0072B2", "#0072B2"),
    "inconclusive": ("s", GREY, "white"),
    "disagrees": ("X", "#D55E00", "#D55E00"),
}


def check_figure(moment: Moment) -> Figure:
    """The comparisons with exact values, one panel per batch-norm mode with conclusive comparisons."""
    records = {mode: record for mode, record in moment.complete.items() if can_tell(record.checks)}
    checks_by_mode = {mode: record.checks for mode, record in records.items()}
    shown = {mode: _most_telling(checks) for mode, checks in checks_by_mode.items()}
    most = sum(len(checks) for checks in shown.values())
    figure = blank(9.6, 1.9 + 0.7 * len(shown) + 0.2 * most)
    axes = figure.subplots(
        len(shown), 2, width_ratios=(1.5, 1), squeeze=False, height_ratios=[len(c) + 2 for c in shown.values()]
    )
    for (left, right), (mode, checks) in zip(axes, shown.items()):
        right.sharey(left)
        draw_checks(left, right, checks, moment.operator)
        right.tick_params(labelleft=False)
        left.set_title(mode_words(mode), loc="left")
    drawn = any(record.exact is not None and record.exact.drawn for record in records.values())
    dropped = sum(len(checks) for checks in checks_by_mode.values()) - most
    caption = (
        f"Numbers by probes against {'those of a Monte-Carlo trace' if drawn else 'exact ones'}, traces by tensor. "
        "Grey band: agreement, Student's t, corrected for the number of comparisons; beyond it the comparison fails. "
        "Right: the smallest discrepancy that is found with a chance of 80 %; beyond the dashed line an error as large "
        "as the value itself may go unnoticed (inconclusive)."
    )
    if dropped:
        caption += f" Failed ones and those with the largest |z| are shown, without {dropped} others."
    return finished(figure, [moment], caption, legend=axes[:, 0].tolist())


def _most_telling(checks: tuple[Check, ...]) -> list[Check]:
    """A readable number of checks in their original order: failed ones first, then those with the largest |z|."""
    first = sorted(range(len(checks)), key=lambda i: (not checks[i].failed, -abs(checks[i].z)))[:_MOST_CHECKS]
    return [checks[i] for i in sorted(first)]


def sharpness_figure(moments: list[Moment]) -> Figure:
    """The sharpness measures over training, one panel per measure."""
    position, words = axis_of(moments)
    modes = [mode for mode in moments[0].modes if any(mode in moment.complete for moment in moments)]
    columns = {name: {mode: _measures(moments, mode, name) for mode in modes} for name in measures_of(moments)}
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    figure = blank(0.8 + 3.6 * across, 1.5 + 2.4 * down)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    clipped = False
    for ax, (name, column) in zip(axes, columns.items()):
        parts = []
        for mode, values in column.items():
            if np.isfinite(values.value).any():
                parts.append(draw_series(ax, position, values, look=look_of(mode), label=mode_words(mode)))
        clipped |= clip_intervals(ax, parts)
        plain_ticks(ax)
        ax.set_ylabel(name.replace("_", " ").replace(" of ", "\nof "))
        time_axis(ax, position, words)
    for ax in axes[len(columns) :]:
        ax.remove()
    caption = (
        "Bars: 1.96 standard errors where a measure is drawn at random; the others have no such error. A measure that "
        "does not exist at a checkpoint is a gap." + f" {CLIPPED}" * clipped
    )
    return finished(figure, moments, caption, legend=list(axes[: len(columns)]))


def measures_of(moments: list[Moment]) -> list[str]:
    """The names of the measures with a value at two or more checkpoints."""
    counts: dict[str, int] = {}
    for moment in moments:
        having = {n for record in moment.complete.values() for n, m in record.sharpness.items() if np.isfinite(m.value)}
        for name in sorted(having):
            counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count > 1]


def _measures(moments: list[Moment], mode: str, name: str) -> Values:
    measures = [moment.complete[mode].sharpness.get(name) if mode in moment.complete else None for moment in moments]
    value = np.array([np.nan if m is None else m.value for m in measures])
    stderr = np.array([np.nan if m is None or m.stderr is None else m.stderr for m in measures])
    return Values(value, stderr, value - 1.96 * stderr, value + 1.96 * stderr, np.isfinite(value))


def draw_checks(left: Axes, right: Axes, checks: Sequence[Check], operator: str) -> None:
    """One row per comparison: its z with the band of agreement, and the smallest discrepancy that it detects.

    Args:
        left: of z, on an axis that is linear near 0 and logarithmic beyond.
        right: of the smallest discrepancy noticed, relative to the exact value, on a logarithmic axis.
        checks: the comparisons.
        operator: of the record; a comparison of another matrix says so.
    """
    critical = np.array([check.critical for check in checks])
    finite = [abs(check.z) for check in checks if isfinite(check.z)]
    end = 1.6 * max([*finite, *critical[np.isfinite(critical)], 1.0])
    for row, limit in enumerate(critical):
        if isfinite(limit):
            left.barh(row, 2 * limit, 0.8, left=-limit, color=PALE, zorder=0)
    for verdict, (marker, colour, face) in _VERDICTS.items():
        rows = [row for row, check in enumerate(checks) if check.verdict == verdict]
        if not rows:
            continue
        looks: dict[str, Any] = {"linestyle": "none", "color": colour, "markerfacecolor": face}
        size = 9 if verdict == "disagrees" else 5
        z = [check.z if isfinite(check.z) else copysign(0.9 * end, check.z) for check in (checks[row] for row in rows)]
        left.plot(z, rows, marker, markersize=size, label=verdict, zorder=4, **looks)
        # A distance has no exact value that an error could be compared with, only what it is on average.
        detectable_rows = [row for row in rows if not checks[row].name.startswith("wasserstein")]
        drawn_rows = [row for row in detectable_rows if checks[row].exact and checks[row].detectable > 0]
        right.plot(
            [checks[r].detectable / abs(checks[r].exact) for r in drawn_rows],
            drawn_rows,
            marker,
            markersize=size,
            zorder=4,
            **looks,
        )
    left.axvline(0, color=GREY, linewidth=0.8)
    asinh_axis(left, 1.0, -end, end)
    left.set_xlabel("z of the comparison (standard errors)")
    left.set_yticks(range(len(checks)), [_row_of(check, operator) for check in checks])
    left.set_ylim(len(checks) - 0.4, -0.6)
    right.set_xscale("log")
    right.axvline(1, color=GREY, linewidth=0.9, linestyle="--")
    ends = [0.5, 2.0, *(c.detectable / abs(c.exact) for c in checks if c.exact and c.detectable > 0)]
    right.set_xlim(min(ends) / 1.5, 1.5 * max(ends))
    right.set_xlabel("smallest discrepancy noticed\n(relative to the value compared with)")
    for ax in (left, right):
        ax.grid(False, axis="y")


def _row_of(check: Check, operator: str) -> str:
    name = check.name.removeprefix("trace of ").replace("(exact spectrum)", "(eigenvalues)").replace("_", " ")
    return literal(shortened(name if check.of == operator else f"{name} ({check.of})"))
