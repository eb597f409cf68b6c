"""What all figures share: an empty figure, its title, caption and legend, and the words for what it shows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectra.figures.moments import Moment, has_exact
from spectra.figures.style import literal, shortened
from spectra.results.record import Record

_MOST_GAPS = 4

_HEADING = 10.5  # points

_MATRICES = {
    "hessian": "loss Hessian",
    "ggn": "Gauss-Newton matrix",
    "residual": "Hessian less its Gauss-Newton matrix",
    "empirical_fisher": "empirical Fisher matrix",
}


# --- words --------------------------------------------------------------------------------------------------------


def matrix_words(record: Record) -> str:
    """The matrix of a record and its normalisation, in words."""
    reduction = record.settings.get("reduction")
    words = _MATRICES.get(record.operator, record.operator.replace("_", " "))
    if reduction in ("mean", "sum"):
        words += f", {reduction} over data"
    words += ", preconditioned by the optimizer" if record.settings.get("precondition") else ""
    return words + (f", with l2 = {record.settings['l2']:g}" if record.settings.get("l2") else "")


def matrix_at(moment: Moment) -> str:
    """The matrix of a checkpoint's records, which all share it, in words."""
    return matrix_words(next(iter(moment.complete.values())))


def mode_words(mode: str) -> str:
    """The batch-norm mode in words."""
    return "batch norm with recalibrated statistics" if mode == "recalibrated" else f"batch norm in {mode} mode"


def band_of(*moments: Moment) -> str:
    """The meaning of the error bars of means over probes, in words."""
    counts = {r.spectrum.num_probes for m in moments for r in m.complete.values() if r.spectrum is not None}
    return "none (a single probe)" if counts == {1} else "95 % over probes"


def exact_words(moments: Sequence[Moment]) -> str:
    """The caption's note on exact traces, empty if there are none."""
    return " A trace without a bar is exact." if has_exact(moments) else ""


def _heading(moments: Sequence[Moment]) -> tuple[str, str]:
    """The title and the line below it."""
    records = [record for moment in moments for record in moment.complete.values()]
    record, settings = records[-1], records[-1].settings
    when = f"{moments[0].label} to {moments[-1].label}" if len(moments) > 1 else moments[0].label
    task = str(settings.get("task") or "").partition("(")[0]  # its arguments are in the record: paths make no title
    title = ", ".join(filter(None, (shortened(task, 60), matrix_words(record), when)))
    spectra = [record.spectrum for record in records if record.spectrum is not None]
    parts = [
        f"m = {_span(s.lanczos_steps for s in spectra)} Lanczos steps",
        f"k = {_span(s.num_probes for s in spectra)} probe{'' if {s.num_probes for s in spectra} == {1} else 's'}",
        f"n = {_span(s.n for s in spectra)} parameters",
    ]
    if params := settings.get("params"):
        parts[-1] += f" ({params if isinstance(params, str) else ', '.join(map(str, params))})"
    if samples := record.facts.get("n_samples"):
        parts.append(f"N = {samples:,} samples")
    return title, "; ".join(parts)


def _span(numbers: Iterable[int]) -> str:
    values = sorted(set(numbers))
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


# --- the sheet ----------------------------------------------------------------------------------------------------


def blank(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def finished(figure: Figure, moments: Sequence[Moment], caption: str, *, legend: Sequence[Axes] = ()) -> Figure:
    """Add the title, the caption with the list of gaps, and a legend in a free place."""
    gaps = [gap for moment in moments for gap in moment.gaps]
    if gaps:
        more = f"; and {len(gaps) - _MOST_GAPS} more" if len(gaps) > _MOST_GAPS else ""
        caption += f" Gaps: {'; '.join(textwrap.shorten(gap, 110) for gap in gaps[:_MOST_GAPS])}{more}."
    width = figure.get_figwidth()
    title, line = _heading([moment for moment in moments if moment.complete])
    heading = f"{wrapped(title, width * 11.5)}\n{wrapped(line, width * 11.5)}"
    entries = {label: handle for ax in legend for handle, label in zip(*ax.get_legend_handles_labels())}
    if entries:  # in a separate line below the heading
        below = (heading.count("\n") + 1) * 1.25 * _HEADING + 4
        place = (0.004, 1 - below / (72 * figure.get_figheight()))
        rows = -(-sum(len(label) + 7 for label in entries) // int(width * 13.5))
        columns = -(-len(entries) // rows)
        figure.legend(list(entries.values()), list(entries), loc="upper left", bbox_to_anchor=place, ncols=columns)
        heading += "\n " * rows
    figure.suptitle(heading, x=0.012, ha="left", fontsize=_HEADING)
    figure.supxlabel(wrapped(caption, width * 16.5), x=0.012, ha="left", fontsize=7.5, color="#444444")
    return figure


def wrapped(text: str, width: float) -> str:
    """The text with line breaks, for a width in inches."""
    return "\n".join(literal(line) for line in textwrap.wrap(" ".join(text.split()), int(width)))


def time_axis(ax: Axes, position: np.ndarray, words: str, most: int | Literal["auto"] = "auto") -> None:
    """Label the horizontal axis of training time, with at most `most` ticks, at whole numbers if all positions are."""
    ax.set_xlabel(words)
    ax.xaxis.set_major_locator(time_ticks(position, most))


def time_ticks(position: np.ndarray, most: int | Literal["auto"]) -> MaxNLocator:
    """At most `most` ticks for these positions, at whole numbers if all positions are."""
    return MaxNLocator(most, integer=bool((position == np.round(position)).all()))
