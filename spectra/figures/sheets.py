"""Complete figures with title and caption, composed from the drawing functions of `spectra.figures.draw`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectra.figures import draw
from spectra.figures.moments import Moment, axis_of, has_exact, values_over
from spectra.figures.readable import CLIPPED, clip_intervals, plain_ticks
from spectra.figures.style import asinh_axis, literal, look_of, shortened
from spectra.results.record import Record
from spectra.spectrum.density import Density

#: The largest number of tensors that stays readable in one figure.
_MOST_TENSORS = 30
_MOST_GAPS = 4

_HEADING = 10.5  # points

_MATRICES = {
    "hessian": "loss Hessian",
    "ggn": "Gauss-Newton matrix",
    "empirical_fisher": "empirical Fisher matrix",
}
_LAMBDA = {"lambda_max": r"$\lambda_{\max}$", "lambda_min": r"$\lambda_{\min}$"}
PANELS = {  # of the trajectory: name of the number -> label of its axis
    "loss": "loss",
    "accuracy": "accuracy",
    "trace": r"trace $\mathrm{Tr}\,H$",
    "frobenius_norm": r"Frobenius norm $\|H\|_F$",
    "spectral_norm": r"spectral norm $\|H\|_2$",
    "lambda_max": r"largest eigenvalue $\lambda_{\max}$",
    "lambda_min": r"smallest eigenvalue $\lambda_{\min}$",
    "rank_degeneracy": r"fraction with $|\lambda| \leq \tau$",
}
_ROWS = {
    "trace": r"$\mathrm{Tr}\,H$",
    "frobenius_norm": r"$\|H\|_F$",
    "spectral_norm": r"$\|H\|_2$",
    **_LAMBDA,
}


# --- one checkpoint -----------------------------------------------------------------------------------------------


def density_figure(moment: Moment) -> Figure:
    """The density of the eigenvalues of one checkpoint, on a linear and on an asinh axis."""
    figure = blank(9.6, 4.4)
    left, right = figure.subplots(1, 2)
    linear, asinh = _draw_densities(left, moment, "linear"), _draw_densities(right, moment, "asinh")
    left.set_title("linear axis")
    right.set_title("asinh axis: logarithmic on both sides of 0")
    caption = (
        f"Band: {band_of(moment)}, pointwise. Smoothed with a Gaussian: left of width {linear.sigma:.2g}, the range "
        f"over m; right of a tenth of a decade. Right, the axis is linear in the shaded strip |λ| ≤ s = "
        f"{asinh.linear_threshold:.2g}."
    )
    return finished(figure, [moment], caption, legend=[left])


def _draw_densities(ax: Axes, moment: Moment, view: str) -> Density:
    """Draw the densities of all modes with one kernel and one axis, so that differences come from the spectra."""
    spectra = {mode: record.spectrum for mode, record in moment.complete.items() if record.spectrum is not None}
    own = [spectrum.density(view=view) for spectrum in spectra.values()]
    common: dict[str, Any] = {"sigma": max(density.sigma for density in own)}
    if view == "asinh":
        common["linear_threshold"] = max(density.linear_threshold or 0.0 for density in own)
    for mode, spectrum in spectra.items():
        density = spectrum.density(view=view, **common)
        draw.draw_density(ax, density, n=spectrum.n, look=look_of(mode), label=mode_words(mode))
    ax.set_xlabel(rf"eigenvalue $\lambda$ of the {matrix_at(moment)}")
    return density


def stem_figure(moment: Moment) -> Figure:
    """The Ritz values and weights of every probe at one checkpoint, one panel per batch-norm mode."""
    modes = moment.complete
    figure = blank(8.0, 1.6 + 2.5 * len(modes))
    axes = figure.subplots(len(modes), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (mode, record) in zip(axes, modes.items()):
        assert record.spectrum is not None
        draw.draw_stems(ax, record.spectrum, look=look_of(mode))
        ax.set_title(mode_words(mode), loc="left")
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.1)
    axes[-1].set_xlabel(rf"Ritz value (eigenvalue $\lambda$ of the {matrix_at(moment)})")
    caption = (
        "Each probe has its own stems, and their weights sum to 1. Converged: the residual is below a tenth of the "
        "distance to the probe's next Ritz value, an eigenvalue is there. The others stand for eigenvalues around them."
    )
    return finished(figure, [moment], caption)


def degeneracy_figure(moment: Moment) -> Figure:
    """The fraction of eigenvalues near 0 over the tolerance at one checkpoint, one panel per batch-norm mode."""
    modes = moment.complete
    figure = blank(2.4 + 3.7 * len(modes), 4.6)
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for ax, (mode, record) in zip(axes, modes.items()):
        spectrum = record.spectrum
        assert spectrum is not None
        draw.draw_degeneracy(
            ax,
            spectrum.degeneracy_curve(),
            record.estimates["spectral_norm"].value,
            headline=record.estimates["rank_degeneracy"],
            look=look_of(mode),
        )
        if ax.get_legend_handles_labels()[0]:
            place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.1}
            ax.legend(title=mode_words(mode), alignment="left", **place)
        else:
            ax.set_title(mode_words(mode), loc="left")
        ax.label_outer()
    caption = (
        "Resolved: the Gauss-Radau bracket of m steps is narrower than 0.02; the bars and the band are the bracket "
        "with 95 % over probes. The star is the smallest resolved tolerance. Hatched: m steps cannot tell."
    )
    return finished(figure, [moment], caption)


def layer_figure(moment: Moment) -> Figure:
    """The trace of each tensor's block at one checkpoint: estimates as bars, exact traces as markers."""
    estimates_by_mode = {
        mode: record.spectrum.tensor_traces() for mode, record in moment.complete.items() if record.spectrum is not None
    }
    headlines = {mode: record.headline_tensor_traces() for mode, record in moment.complete.items()}
    exact = {mode: {n: h.value for n, h in traces.items() if h.exact} for mode, traces in headlines.items()}
    names = list(dict.fromkeys(name for traces in estimates_by_mode.values() for name in traces))
    size = {name: max(abs(traces[name].value) for traces in headlines.values() if name in traces) for name in names}
    largest = set(sorted(names, key=lambda name: -size[name])[:_MOST_TENSORS])
    shown = [name for name in names if name in largest]
    figure = blank(8.0, 2.0 + len(shown) * (0.14 + 0.1 * len(estimates_by_mode)))
    ax = figure.subplots()
    parts = []
    for place, (mode, traces) in enumerate(estimates_by_mode.items()):
        drawn = {name: traces[name] for name in shown if name in traces}
        if drawn:
            where: dict[str, Any] = {"place": place, "places": len(estimates_by_mode), "exact": exact[mode]}
            parts += draw.draw_tensors(ax, drawn, look=look_of(mode), label=mode_words(mode), **where)
    clipped = clip_intervals(ax, parts, along="x")
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0.0), max(high, 0.0))  # where bars begin
    ax.set_xlabel(f"trace of the tensor's block of the {matrix_at(moment)}")
    diamonds = "Diamonds: exact traces. " if any(exact.values()) else ""
    caption = (
        f"{diamonds}Coloured bars: estimates; black bars: {band_of(moment)}. The tensors are in the order of the "
        "network." + f" {CLIPPED}" * clipped
    )
    if len(names) > len(shown):
        caption += (
            f" The {len(shown)} with the largest traces of {len(names)} are shown; {_rest_in_words(moment, largest)}."
        )
    return finished(figure, [moment], caption, legend=[ax])


def _rest_in_words(moment: Moment, shown: set[str]) -> str:
    """The sum of the tensors that are not shown, with its standard error, in each mode, in words."""
    sums = []
    for mode, record in moment.complete.items():
        traces = {name: trace for name, trace in record.headline_tensor_traces().items() if name not in shown}
        if all(trace.exact for trace in traces.values()):
            total = f"{sum(trace.value for trace in traces.values()):.4g} (exact)"
        elif record.spectrum is not None and record.spectrum.tensor_forms is not None:
            total = str(record.spectrum.trace_of_tensors(traces.keys()))
        else:
            continue
        sums.append(f"{total} in {mode} mode" if len(moment.complete) > 1 else total)
    return f"the others sum to {', '.join(sums)}"


def mode_figure(moment: Moment) -> Figure:
    """Density and estimates of one checkpoint, batch norm in eval against train mode."""
    figure = blank(9.6, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    density = _draw_densities(left, moment, "asinh")
    left.set_title("density")
    size = []
    for place, (mode, record) in enumerate(moment.complete.items()):
        estimates = [record.headlines.get(name) for name in _ROWS]
        look = look_of(mode)
        draw.draw_rows(right, estimates, list(_ROWS.values()), look=look, place=place, places=len(moment.complete))
        size += [abs(e.value) for e in estimates if e is not None and e.value]
    low, high = right.get_xlim()
    if size:
        asinh_axis(right, max(min(size) / 2, 1e-3 * max(size)), min(low, 0.0), 1.4 * high)
    right.set_title("estimates")
    right.set_xlabel("value (asinh axis)")
    caption = (
        f"Band and bars: {band_of(moment)}; of the extremes and the spectral norm: an interval that holds with 95 %, "
        f"an arrow head where a side has no bound.{exact_words([moment])} Both modes have the same probes, so their "
        "errors are correlated. The axis of the density is linear in the shaded strip |λ| ≤ s = "
        f"{density.linear_threshold:.2g}."
    )
    return finished(figure, [moment], caption, legend=[left])


# --- a run --------------------------------------------------------------------------------------------------------


def trajectory_figure(moments: list[Moment]) -> Figure:
    """Loss, accuracy and the main estimates over training, one panel each."""
    position, words = axis_of(moments)
    shown = [moment for moment in moments if moment.complete]
    modes = [mode for mode in moments[0].modes if any(mode in moment.complete for moment in moments)]
    panels = {name: {mode: values_over(moments, mode, name) for mode in modes} for name in PANELS}
    panels = {
        name: columns
        for name, columns in panels.items()
        if any(np.isfinite(values.value).any() for values in columns.values())
    }
    figure = blank(11.5, 6.4)
    axes = figure.subplots(2, (len(panels) + 1) // 2, squeeze=False).ravel()
    # A little to the side, so that the bars of one mode do not hide those of the other.
    distances = np.diff(np.unique(position[np.isfinite(position)]))
    aside = 0.07 * float(distances.min()) if distances.size else 0.0
    clipped = False
    for ax, (name, columns) in zip(axes, panels.items()):
        parts = []
        for index, (mode, values) in enumerate(columns.items()):
            x = position + (index - (len(modes) - 1) / 2) * aside
            parts.append(draw.draw_series(ax, x, values, look=look_of(mode), label=mode_words(mode)))
        clipped |= clip_intervals(ax, parts)
        plain_ticks(ax)
        ax.set_ylabel(PANELS[name])
        ax.set_xlabel(words)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=bool((position == np.round(position)).all())))
    for ax in axes[len(panels) :]:
        ax.remove()
    caption = (
        f"Bars: of trace and Frobenius norm {band_of(*shown)}; of the extremes and the spectral norm an interval that "
        "holds with 95 %, an arrow head where a side has no bound; of the fraction its bracket with 95 % over "
        f"probes{_tolerances(shown)}. Loss and accuracy have none.{exact_words(shown)} The probes are the same at "
        "every checkpoint, so the errors of neighbouring points are correlated." + f" {CLIPPED}" * clipped
    )
    return finished(figure, moments, caption, legend=list(axes[: len(panels)]))


def exact_words(moments: Sequence[Moment]) -> str:
    """The caption's note on exact traces, empty if there are none."""
    return " A trace without a bar is exact." if has_exact(moments) else ""


def _tolerances(moments: Sequence[Moment]) -> str:
    """The range of tolerances of a run's fractions, in words; they differ between checkpoints."""
    pairs = [
        (record.estimates.get("rank_degeneracy"), record.estimates.get("spectral_norm"))
        for moment in moments
        for record in moment.complete.values()
    ]
    ratios = [d.tau / s.value for d, s in pairs if d and s and d.tau and d.resolved and s.value > 0]
    if not ratios:
        return ""
    low, high = f"{min(ratios):.1e}", f"{max(ratios):.1e}"
    return (
        f" (τ: the smallest that is resolved, here {low if low == high else f'{low} to {high}'} of the spectral norm)"
    )


# --- words --------------------------------------------------------------------------------------------------------


def matrix_words(record: Record) -> str:
    """The matrix of a record and its normalisation, in words."""
    reduction = record.settings.get("reduction")
    words = _MATRICES.get(record.operator, record.operator.replace("_", " "))
    if reduction in ("mean", "sum"):
        words += f", {reduction} over data"
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
