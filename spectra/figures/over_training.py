"""Figures over training: the density, the degeneracy as in Granziol (2020), the tensors and the modes."""

from __future__ import annotations

from collections.abc import Sequence
from math import asinh, ceil, nan

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from spectra.figures import draw
from spectra.figures.frame import band_of, blank, finished, matrix_at, mode_words, time_axis, time_ticks
from spectra.figures.moments import Moment, axis_of, has_exact, values_over
from spectra.figures.readable import CLIPPED, clip_intervals, largest_tensors
from spectra.figures.style import GREY, LOOKS, asinh_axis, literal, look_of, shortened
from spectra.results.headline_difference import headline_difference
from spectra.results.record import Record
from spectra.results.values import Values, values_of
from spectra.spectrum.count_differences import common_tolerance
from spectra.spectrum.density import Density, span
from spectra.spectrum.spectrum import Spectrum

#: The largest number of tensors that stays readable in one figure.
_MOST_TENSORS = 12

# The colour scale of a density spans this factor below its peak, or down to a hundredth of one eigenvalue.
_DECADES = 1e-6


def modes_over(moments: Sequence[Moment]) -> list[str]:
    """The batch-norm modes that are complete at two checkpoints or more."""
    return [mode for mode in moments[0].modes if sum(mode in moment.complete for moment in moments) > 1]


def tensors_over(moments: Sequence[Moment]) -> bool:
    """Whether the traces of the tensors are known at two checkpoints or more, in one mode."""
    return any(
        sum(_forms_at(moment, mode) is not None for moment in moments) > 1
        for mode in (moments[0].modes if moments else ())
    )


def _forms_at(moment: Moment, mode: str) -> Spectrum | None:
    record = moment.complete.get(mode)
    return (
        None if record is None or record.spectrum is None or record.spectrum.tensor_forms is None else record.spectrum
    )


def pairs_over(moments: Sequence[Moment]) -> tuple[str, str] | None:
    """The pair of batch-norm modes that most checkpoints have; at least two checkpoints are needed."""
    modes = moments[0].modes
    for other in modes[1:]:
        if sum({modes[0], other} <= set(moment.complete) for moment in moments) > 1:
            return modes[0], other
    return None


# --- density ------------------------------------------------------------------------------------------------------


def density_over_training(moments: list[Moment]) -> Figure:
    """The density of the eigenvalues over training as a heat map, one panel per batch-norm mode."""
    position, words = axis_of(moments)
    modes = modes_over(moments)
    complete = [record for moment in moments for record in moment.complete.values()]
    spectra = [record.spectrum for record in complete if record.spectrum is not None]
    thresholds = [record.linear_threshold() for record in complete]
    threshold = max(thresholds)
    spans = [span(spectrum.quadrature, own) for spectrum, own in zip(spectra, thresholds)]
    ends = [[asinh(ends[end] / threshold) for ends in spans] for end in (0, 1)]
    grid = threshold * np.sinh(np.linspace(min(ends[0]), max(ends[1]), 700))
    densities = {mode: [_density(moment.complete.get(mode), grid, threshold) for moment in moments] for mode in modes}
    peak = max(float(d.values.max()) for column in densities.values() for d in column if d is not None)
    norm = LogNorm(peak * max(_DECADES, min(0.01 / max(s.n for s in spectra), 1e-4)), peak)
    figure = blank(2.2 + 4.6 * len(modes), 5.0)
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for ax, (mode, column) in zip(axes, densities.items()):
        mesh = draw.draw_heat(ax, position, column, grid, norm)
        for name, label in (("lambda_min", r"$\lambda_{\min}$"), ("lambda_max", r"$\lambda_{\max}$")):
            end = values_over(moments, mode, name)
            marker = "4" if name == "lambda_min" else "3"
            ax.plot(end.value, position, marker, color="black", markersize=5, linestyle="none", label=label)
        asinh_axis(ax, threshold, float(grid[0]), float(grid[-1]))
        ax.set_title(mode_words(mode), loc="left")
        ax.set_xlabel(rf"eigenvalue $\lambda$ of the {literal(matrix_at(next(m for m in moments if m.complete)))}")
        known_positions = position[np.isfinite(position)]
        ax.yaxis.set_major_locator(
            FixedLocator(known_positions.tolist()) if known_positions.size <= 12 else time_ticks(position, 9)
        )
        ax.set_ylabel(words)
    bar = figure.colorbar(mesh, ax=list(axes), pad=0.015)
    bar.set_label(r"density per unit of asinh($\lambda/s$) (mass 1)")
    shown = [d for column in densities.values() for d in column if d is not None]
    caption = (
        f"One Gaussian of a tenth of a decade for all; the axis is linear for |λ| ≤ s = {threshold:.2g}. Black: the "
        f"outermost Ritz values. {_width_of(shown)} The probes are the same at every checkpoint. A blank strip is a "
        "gap."
    )
    return finished(figure, moments, caption)


def _density(record: Record | None, grid: np.ndarray, threshold: float) -> Density | None:
    if record is None or record.spectrum is None:
        return None
    return record.spectrum.density(view="asinh", grid=grid, linear_threshold=threshold)


def _width_of(shown: Sequence[Density]) -> str:
    """The mean relative half width of the bands, weighted by the mass, in words; a heat map cannot show the bands."""
    widths = [
        float(((d.upper - d.values) * (d.values > 0)).sum() / d.values.sum()) for d in shown if d.upper is not None
    ]
    if not widths:
        return "One probe has no band."
    return f"Colours have errors too: 95 % over probes, pointwise, on average ±{np.mean(widths):.0%} of the value."


# --- degeneracy ---------------------------------------------------------------------------------------------------


def degeneracy_over_training(moments: list[Moment]) -> Figure:
    """The fraction near zero, with the mass of the Ritz values closest to zero and the size of these values."""
    position, words = axis_of(moments)
    modes = modes_over(moments)
    figure = blank(9.8, 1.9 + 2.7 * len(modes))
    axes = figure.subplots(len(modes), 2, sharex=True, squeeze=False)
    lines: list[str] = []
    for (left, right), mode in zip(axes, modes):
        left.set_title(mode_words(mode), loc="left")
        columns = (
            ("rank_degeneracy", LOOKS["eval"], r"$|\lambda| \leq \tau$, smallest resolved $\tau$"),
            ("closest_one_mass", LOOKS["train"], "mass of the Ritz value closest to 0"),
            ("closest_two_mass", LOOKS["recalibrated"], "mass of the two closest"),
        )
        for name, look, label in columns:
            draw.draw_series(left, position, values_over(moments, mode, name), look=look, label=label)
        lines = _draw_bounds(left, moments, mode) or lines
        left.set_ylabel("fraction of all n eigenvalues")
        scale = values_over(moments, mode, "spectral_norm").value
        for name, look in (("closest_one_value", LOOKS["train"]), ("closest_two_value", LOOKS["recalibrated"])):
            draw.draw_series(right, position, _relative(values_over(moments, mode, name), scale), look=look)
        right.set_yscale("linear")
        noise = [r.spectrum.noise for m in moments if (r := m.complete.get(mode)) and r.spectrum is not None]
        right.axhspan(-max(noise), max(noise), color=GREY, alpha=0.35, linewidth=0)
        right.axhline(0, color=GREY, linewidth=0.8)
        right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        right.set_ylabel("Ritz value taken as zero,\nin units of $\\|H\\|_2$")
    for ax in axes[-1]:
        time_axis(ax, position, words, 9)
    shown = [moment for moment in moments if moment.complete]
    bound = f" {' '.join(lines)}" if lines else ""
    caption = (
        f"Bars: {band_of(*shown)}, of |λ| ≤ τ with its bracket. Mass and value of the Ritz values closest to 0 (values "
        "within the noise of each other are one) are the procedure of Granziol (2020), figures 11 to 14; they depend "
        "on m, and the mean of two values is small also where their signs cancel. Grey strip: the noise of the "
        f"products, within which nothing differs from 0.{bound} The probes are the same at every checkpoint, so the "
        "errors of neighbouring points are correlated."
    )
    return finished(figure, moments, caption, legend=[axes[0][0]])


def _draw_bounds(ax: Axes, moments: Sequence[Moment], mode: str) -> list[str]:
    """Draw the line of Granziol's rank formula and, for a small rank, the counting bound; returns captions."""
    records = [record for moment in moments if (record := moment.complete.get(mode)) is not None]
    sizes = {record.spectrum.n for record in records if record.spectrum is not None}
    if len(sizes) != 1:
        return []
    n, facts, sentences = sizes.pop(), records[-1].facts, []
    rank, most = facts.get("rank_bound_ff"), facts.get("rank_bound_counting")
    if rank is not None and 0 < rank < n:
        ax.axhline(1 - rank / n, color="black", linestyle=(0, (5, 1)), linewidth=1, label="1 - rank formula / n")
        sentences.append(
            f"Dashed: 1 - 4 d_y (sum N_l + d_x) / n = {1 - rank / n:.4g}, a heuristic for the rank, no bound."
        )
    if most is not None and most < n and not records[-1].settings.get("l2"):  # with l2 they are at l2, not at 0
        ax.axhline(1 - most / n, color="black", linestyle=":", linewidth=1.2, label="at least, by counting")
        sentences.append(f"Dotted: {1 - most / n:.4g}, the least that counting samples and outputs allows.")
    return sentences


def _relative(values: Values, scale: np.ndarray) -> Values:
    unit = np.where(scale > 0, scale, nan)
    parts = (values.value, values.stderr, values.lower, values.upper)
    value, stderr, lower, upper = (part / unit for part in parts)
    return Values(value, stderr, lower, upper, values.resolved & np.isfinite(value))


# --- tensors ------------------------------------------------------------------------------------------------------


def layers_over_training(moments: list[Moment]) -> Figure:
    """The trace of each tensor's block over training, a panel each, in the order of the network."""
    position, words = axis_of(moments)
    columns = {
        mode: [moment.complete[mode].headline_tensor_traces() if _forms_at(moment, mode) else {} for moment in moments]
        for mode in moments[0].modes
    }
    columns = {mode: column for mode, column in columns.items() if any(column)}
    found = [traces for column in columns.values() for traces in column]
    names = list(dict.fromkeys(name for traces in found for name in traces))
    shown = largest_tensors(names, found, _MOST_TENSORS)
    down = ceil(len(shown) / 4)
    across = ceil(len(shown) / down)
    figure = blank(2.8 * across + (2.4 if across < 3 else 0.6), 1.6 + 2.0 * down)
    axes = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    clipped = False
    for index, (ax, name) in enumerate(zip(axes, shown)):
        parts = []
        for mode, column in columns.items():
            values = values_of([traces.get(name) for traces in column])
            parts.append(draw.draw_series(ax, position, values, look=look_of(mode), label=mode_words(mode)))
        ax.set_yscale("linear")  # one kind of axis for all
        clipped |= clip_intervals(ax, parts)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_title(literal(shortened(name, 30)), loc="left", fontsize=8.5)
        ax.set_ylabel("trace of the block")
        ax.xaxis.set_major_locator(time_ticks(position, 5))
        if index >= len(shown) - across:
            ax.set_xlabel(words)
            ax.tick_params(labelbottom=True)
    for ax in axes[len(shown) :]:
        ax.remove()
    complete = [moment for moment in moments if moment.complete]
    exact = any(trace.exact for traces in found for trace in traces.values())
    caption = (
        f"Bars: {band_of(*complete)}. Traces of the tensors' blocks of the {matrix_at(complete[0])}. Each "
        "panel has its own scale. The probes are the same at every checkpoint, so neighbouring errors are correlated."
        + " A trace without a bar is exact." * exact
        + f" {CLIPPED}" * clipped
    )
    if len(names) > len(shown):
        caption += f" The {len(shown)} with the largest traces of {len(names)} are shown."
    return finished(figure, moments, caption, legend=[axes[0]])


# --- modes --------------------------------------------------------------------------------------------------------

_DIFFERENCES = {
    "trace": r"difference of $\mathrm{Tr}\,H$",
    "frobenius_norm": r"difference of $\|H\|_F$",
    "lambda_max": r"difference of $\lambda_{\max}$",
    "rank_degeneracy": r"difference of the fraction $|\lambda| \leq \tau$",
}


def modes_over_training(moments: list[Moment]) -> Figure:
    """The paired differences between two batch-norm modes over training, with their errors."""
    position, words = axis_of(moments)
    pair = pairs_over(moments)
    assert pair is not None
    base, other = pair
    both = [[m.complete[mode] for mode in pair] if set(pair) <= set(m.complete) else [] for m in moments]
    tau = common_tolerance([r.spectrum for records in both for r in records if r.spectrum is not None])
    panels = [name for name in _DIFFERENCES if name != "rank_degeneracy" or tau is not None]
    figure = blank(2.9 * len(panels) + 0.4, 4.0)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    clipped = False
    for ax, name in zip(axes, panels):
        options = {"tau": tau} if name == "rank_degeneracy" else {}
        values = values_of([headline_difference(r[1], r[0], name, **options) if r else None for r in both])
        drawn = draw.draw_series(ax, position, values, look=look_of(other))
        ax.set_yscale("linear")
        clipped |= clip_intervals(ax, [drawn])
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_ylabel(_DIFFERENCES[name])
        time_axis(ax, position, words, 6)
    kind = matrix_at(next(m for m in moments if m.complete))
    fraction = "" if tau is None else f"; of the fraction (τ = {tau:.2g} throughout) the brackets with 95 % over probes"
    caption = (
        f"{mode_words(other)[0].upper()}{mode_words(other)[1:]} less {base} mode, of the {kind}. Bars: of trace and "
        "Frobenius norm 95 % over the probes, which both modes share (paired); of the largest eigenvalue what both "
        f"intervals allow{fraction}. The probes are the same at every checkpoint, so neighbouring errors are "
        "correlated."
        + " Where the trace of one mode is exact, the bar is the error of the other alone." * has_exact(moments)
        + f" {CLIPPED}" * clipped
    )
    return finished(figure, moments, caption)
