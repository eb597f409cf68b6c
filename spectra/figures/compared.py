"""Figures that compare runs: the densities of several arms, and their estimates over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectra.figures.draw import draw_density
from spectra.figures.frame import blank, matrix_words, wrapped
from spectra.figures.readable import CLIPPED, WIDE, Drawn, clip_intervals, plain_ticks
from spectra.figures.sheets import PANELS
from spectra.figures.style import ARMS, Look, literal, shortened
from spectra.results.comparison import Arm
from spectra.results.series import Series
from spectra.results.values import Values
from spectra.spectrum.count_differences import common_tolerance
from spectra.spectrum.density import Density
from spectra.spectrum.estimators import COUNTS

_SHOWN = ("trace", "lambda_max", "rank_degeneracy")


def comparison_figure(arms: Sequence[Arm], series: Mapping[str, Sequence[Series]] | None = None) -> Figure:
    """Densities of all arms on one asinh axis, and below them trace, largest eigenvalue and degeneracy over training.

    Args:
        arms: each with its records at the compared checkpoint; a density is the mean over the runs of an arm.
        series: the complete runs by the label of their arm. Without them, or if no run has two checkpoints, the figure
            shows the densities only.
    """
    looks = {arm.label: ARMS[index % len(ARMS)] for index, arm in enumerate(arms)}
    runs = {
        label: [run_series for run_series in arm_series if np.isfinite(run_series.epochs).sum() > 1]
        for label, arm_series in (series or {}).items()
    }
    over_training = any(runs.values())
    figure = blank(10.0, 7.4 if over_training else 4.6)
    axes = figure.subplot_mosaic([["density"] * 3, list(_SHOWN)] if over_training else [["density"]])
    densities = _draw_densities(axes["density"], arms, looks)
    kind = matrix_words(arms[0].records[0])
    axes["density"].set_xlabel(rf"eigenvalue $\lambda$ of the {literal(kind)}")
    tau, clipped = None, False
    if over_training:
        spectra = [
            r.spectrum
            for arm_series in runs.values()
            for run_series in arm_series
            for r in run_series
            if r.spectrum is not None
        ]
        tau = common_tolerance(spectra)
        for name in _SHOWN:
            clipped |= _draw_runs(axes[name], runs, name, looks, tau)
    several = any(len(arm.records) > 1 for arm in arms)
    band = "95 % over probes, pointwise" if densities[0].lower is not None else "none (a single probe)"
    if several:
        band += ", and of an arm of several runs from the least to the largest, around their mean"
    caption = (
        f"Density: band {band}; one Gaussian of a tenth of a decade for all; the axis is linear for |λ| ≤ s = "
        f"{densities[0].linear_threshold:.2g}."
    )
    if over_training:
        caption += (
            " Over training, bands: of the trace 95 % over probes, none where it is exact; of the largest eigenvalue "
            "an interval that holds with 95 %, of the fraction its bracket with 95 % over probes"
            + (", of several runs from the least to the largest" if several else "")
            + ". The probes are the same at every checkpoint, so the errors along a line are correlated"
            + ("" if tau is not None else "; τ is the smallest that is resolved at each checkpoint, and differs")
            + "."
            + f" {CLIPPED}" * clipped
        )
    handles, labels = axes["density"].get_legend_handles_labels()
    names = ", ".join(shortened(arm.label, 30) for arm in arms)
    figure.suptitle(wrapped(f"{names}: {kind}", 115) + "\n ", x=0.012, ha="left", fontsize=10.5)
    place = (0.004, 1 - 19 / (72 * figure.get_figheight()))
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=place, ncols=min(len(arms), 5))
    figure.supxlabel(wrapped(caption, 165), x=0.012, ha="left", fontsize=7.5, color="#444444")
    return figure


def _draw_densities(ax: Axes, arms: Sequence[Arm], looks: Mapping[str, Look]) -> list[Density]:
    """Draw all densities with one kernel and one grid, so that differences come from the spectra."""
    spectra = [spectrum for arm in arms for spectrum in arm.spectra]
    own = [spectrum.density(view="asinh") for spectrum in spectra]
    common: dict[str, Any] = {
        "sigma": max(density.sigma for density in own),
        "linear_threshold": max(density.linear_threshold or 0.0 for density in own),
    }
    again = [spectrum.density(view="asinh", **common) for spectrum in spectra]
    ends = min(d.coordinate[0] for d in again), max(d.coordinate[-1] for d in again)
    grid = common["linear_threshold"] * np.sinh(np.linspace(*ends, max(d.grid.size for d in again)))
    drawn = []
    for arm in arms:
        densities = [spectrum.density(view="asinh", grid=grid, **common) for spectrum in arm.spectra]
        density = densities[0] if len(densities) == 1 else _pooled(densities)
        words = shortened(arm.label, 30) + (f" ({len(densities)} runs)" if len(densities) > 1 else "")
        draw_density(ax, density, n=max(s.n for s in spectra), look=looks[arm.label], label=literal(words))
        drawn.append(density)
    return drawn


def _pooled(densities: Sequence[Density]) -> Density:
    """The mean of the runs' densities, with the range from the smallest to the largest as its band."""
    values = np.stack([density.values for density in densities])
    first = densities[0]
    return Density(
        first.grid,
        values.mean(0),
        None,
        values.min(0),
        values.max(0),
        first.sigma,
        first.view,
        first.linear_threshold,
        float(np.mean([density.mass for density in densities])),
        first.num_probes,
    )


def _draw_runs(
    ax: Axes, runs: Mapping[str, Sequence[Series]], name: str, looks: Mapping[str, Look], tau: float | None
) -> bool:
    """Draw one run of an arm with its band, or several as thin lines with a band from the smallest to the largest.

    Returns:
        Whether the axis cuts off a band.
    """
    positive: list[float] = []
    parts: list[Drawn] = []
    for label, found in runs.items():
        drawn = []
        for one in found:
            values = one.estimate(name, tau=tau) if name in COUNTS and tau is not None else one.headline(name)
            drawn.append((one.epochs, values))
            positive += [float(v) for v in values.value[values.resolved]]
        if len(drawn) == 1:
            draw_band(ax, *drawn[0], looks[label])
            parts.append(Drawn.of(*drawn[0], looks[label].colour))
        elif drawn:
            _draw_bundle(ax, drawn, looks[label])
            parts += [Drawn.points(x, values, looks[label].colour) for x, values in drawn]
    if positive and min(positive) > 0 and max(positive) > WIDE * min(positive):
        ax.set_yscale("log")
    clipped = clip_intervals(ax, parts)
    plain_ticks(ax)
    ax.set_ylabel(PANELS[name] if name not in COUNTS or tau is None else PANELS[name] + rf", $\tau$ = {tau:.2g}")
    ax.set_xlabel("epoch")
    return clipped


def _draw_bundle(ax: Axes, drawn: Sequence[tuple[np.ndarray, Values]], look: Look) -> None:
    shared = [set(x[np.isfinite(x) & values.resolved]) for x, values in drawn]
    common = sorted(set.intersection(*shared))
    heights = np.array([[values.value[list(x).index(epoch)] for epoch in common] for x, values in drawn])
    for x, values in drawn:
        line = np.where(values.resolved, values.value, np.nan)
        ax.plot(x, line, linestyle=look.line, color=look.colour, linewidth=0.7, marker=look.marker, markersize=2)
    if len(common) > 1:
        ax.fill_between(common, heights.min(0), heights.max(0), color=look.colour, alpha=0.2, linewidth=0)


def draw_band(ax: Axes, x: np.ndarray, values: Values, look: Look, label: str | None = None) -> None:
    """An estimate over training as a line with a band; an unresolved value is a bracket without a line.

    Args:
        ax: the axes to draw on.
        x: (T,) epochs; NaN entries are left out.
        values: (T,).
        look: colour, marker and line.
        label: for the legend.
    """
    known = np.isfinite(x)
    at, line = x[known], np.where(values.resolved, values.value, np.nan)[known]
    marks: dict[str, Any] = {
        "marker": look.marker,
        "markerfacecolor": look.face,
        "markersize": 4.5 if at.size <= 25 else 2.5,
    }
    ax.plot(at, line, linestyle=look.line, color=look.colour, label=label, **marks)
    lower, upper = values.lower[known], values.upper[known]
    if np.isfinite(lower).any() and np.isfinite(upper).any():
        ax.fill_between(at, lower, upper, color=look.colour, alpha=0.2, linewidth=0)
    open_ = ~values.resolved[known] & np.isfinite(lower) & np.isfinite(upper)
    if open_.any():
        ax.vlines(at[open_], lower[open_], upper[open_], color=look.colour, linewidth=0.9, linestyle=":")
