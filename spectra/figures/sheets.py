"""Complete figures with title and caption, composed from the drawing functions of `spectra.figures.draw`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectra.figures import draw
from spectra.figures.edges import draw_edges
from spectra.figures.frame import band_of, blank, exact_words, finished, matrix_at, mode_words, time_axis
from spectra.figures.moments import Moment, axis_of, values_over
from spectra.figures.readable import CLIPPED, clip_intervals, largest_tensors, plain_ticks
from spectra.figures.style import asinh_axis, look_of
from spectra.spectrum.density import Density

#: The largest number of tensors that stays readable in one figure.
_MOST_TENSORS = 30

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


def layer_figure(moment: Moment) -> Figure:
    """The trace of each tensor's block at one checkpoint: estimates as bars, exact traces as markers."""
    estimates_by_mode = {
        mode: record.spectrum.tensor_traces() for mode, record in moment.complete.items() if record.spectrum is not None
    }
    headlines = {mode: record.headline_tensor_traces() for mode, record in moment.complete.items()}
    exact = {mode: {n: h.value for n, h in traces.items() if h.exact} for mode, traces in headlines.items()}
    names = list(dict.fromkeys(name for traces in estimates_by_mode.values() for name in traces))
    shown = largest_tensors(names, list(headlines.values()), _MOST_TENSORS)
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
            f" The {len(shown)} with the largest traces of {len(names)} are shown; {_rest_in_words(moment, shown)}."
        )
    return finished(figure, [moment], caption, legend=[ax])


def _rest_in_words(moment: Moment, shown: Sequence[str]) -> str:
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
    clipped, edges = False, ""
    for ax, (name, columns) in zip(axes, panels.items()):
        parts = []
        for index, (mode, values) in enumerate(columns.items()):
            x = position + (index - (len(modes) - 1) / 2) * aside
            parts.append(draw.draw_series(ax, x, values, look=look_of(mode), label=mode_words(mode)))
        clipped |= clip_intervals(ax, parts)
        edges += draw_edges(ax, position, moments) if name == "lambda_max" else ""
        plain_ticks(ax)
        ax.set_ylabel(PANELS[name])
        time_axis(ax, position, words)
    for ax in axes[len(panels) :]:
        ax.remove()
    caption = (
        f"Bars: of trace and Frobenius norm {band_of(*shown)}; of the extremes and the spectral norm an interval that "
        "holds with 95 %, an arrow head where a side has no bound; of the fraction its bracket with 95 % over "
        f"probes{_tolerances(shown)}. Loss and accuracy have none.{exact_words(shown)} The probes are the same at "
        "every checkpoint, so the errors of neighbouring points are correlated." + edges + f" {CLIPPED}" * clipped
    )
    return finished(figure, moments, caption, legend=list(axes[: len(panels)]))


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
