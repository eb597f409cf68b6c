"""Draws functions of a spectrum: the cumulative distribution, counts over the tolerance, the effective dimension."""

from __future__ import annotations

import textwrap
from math import nan

import numpy as np
from matplotlib.axes import Axes

from spectra.figures.draw import reach
from spectra.figures.style import GREY, LOOKS, PALE, Look, asinh_axis, literal
from spectra.spectrum.cumulative import Cumulative
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.fractions import CountCurve
from spectra.spectrum.spectrum import Spectrum

# Number of grid points at which the bounds of the distribution are computed; they are constant between two points.
_POINTS = 81

# The tolerances of an effective dimension: |G|_2 times these.
_RIDGES = np.logspace(1, -6, 29)


def cumulative_grid(spectrum: Spectrum, points: int = _POINTS) -> np.ndarray:
    """An ascending grid for the distribution, even in ``asinh(lambda / s)``, slightly wider than the Ritz values."""
    s = spectrum.linear_threshold()
    low = min(float(t.nodes[0]) for t in spectrum.tridiagonals)
    high = max(float(t.nodes[-1]) for t in spectrum.tridiagonals)
    start, stop = float(np.arcsinh(low / s)), float(np.arcsinh(high / s))
    beyond = max(0.04 * (stop - start), 0.1)
    return np.asarray(s * np.sinh(np.linspace(start - beyond, stop + beyond, points)))


def draw_cumulative(
    ax: Axes,
    cumulative: Cumulative,
    spectrum: Spectrum,
    *,
    look: Look = LOOKS["eval"],
    threshold: float | None = None,
) -> None:
    """The fraction of eigenvalues up to each point: the Ritz mass as a step at each node, and its bounds.

    The dark band shows the Chebyshev-Markov-Stieltjes bounds of the probes' measures; the light band adds the error of
    the probes. The distribution is monotone. Between two grid points it lies between the lower bound at the left point
    and the upper bound at the right point, and the bands are drawn accordingly.

    Args:
        ax: the axes to draw on.
        cumulative: the distribution on an ascending grid.
        spectrum: its Ritz values give the steps.
        look: colour, marker and line.
        threshold: the axis is linear within this distance of 0.
    """
    x = np.repeat(cumulative.x, 2)[1:-1]
    for lower, upper, alpha, words in (
        (cumulative.lower, cumulative.upper, 0.18, f"with {cumulative.confidence:.0%} over probes".replace("%", " %")),
        (cumulative.bracket_lower, cumulative.bracket_upper, 0.38, "bounds from m steps"),
    ):
        lower_steps, upper_steps = np.repeat(lower[:-1], 2), np.repeat(upper[1:], 2)
        ax.fill_between(x, lower_steps, upper_steps, color=look.colour, alpha=alpha, linewidth=0, label=words)
    nodes = np.unique(np.concatenate([t.nodes for t in spectrum.tridiagonals]))
    ends = cumulative.x[[0, -1]]
    at = np.concatenate([ends[:1], nodes, ends[1:]])
    ax.step(at, spectrum.cdf(at), where="post", color=look.colour, linewidth=1.1, label="Ritz mass")
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("fraction of eigenvalues up to $\\lambda$")
    asinh_axis(ax, spectrum.linear_threshold() if threshold is None else threshold, float(ends[0]), float(ends[1]))


def draw_degeneracy(
    ax: Axes,
    curve: CountCurve,
    scale: float,
    *,
    headline: Estimate | None = None,
    look: Look = LOOKS["eval"],
    label: str | None = None,
    counted: str = r"$|\lambda| \leq \tau$",
) -> None:
    """The fraction of eigenvalues within `tau` of 0, or another count, over ``tau / |H|_2``, with its bracket.

    If the bracket is too wide for a number, it is hatched and no number is drawn.

    Args:
        ax: the axes to draw on.
        curve: the fraction with its bracket at every tolerance.
        scale: ``|H|_2``, the unit of the tolerances.
        headline: the reported estimate, marked at its tolerance if it is resolved.
        look: colour, marker and line.
        label: for the legend.
        counted: which eigenvalues the curve counts.
    """
    ax.set_ylabel(f"fraction of eigenvalues with {counted}")
    ax.set_xlabel(r"tolerance $\tau\,/\,\|H\|_2$")
    ax.set_ylim(-0.02, 1.02)
    if scale <= 0 or len(curve) == 0:
        words = "every eigenvalue is 0" if scale <= 0 else "the noise of the products\nleaves no tolerance"
        ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color=GREY)
        return
    x = curve.tau / scale
    ax.set_xscale("log")
    # The hatching extends to the neighbours of an unresolved tolerance, so that there is no gap.
    open_ = ~curve.resolved
    near = open_ | np.append(open_[1:], False) | np.append(False, open_[:-1])
    if open_.any():
        ax.fill_between(
            x,
            curve.lower,
            curve.upper,
            where=near.tolist(),
            facecolor=PALE,
            edgecolor=GREY,
            hatch="////",
            linewidth=0,
            label="not resolved: bracket only",
        )
    ax.fill_between(
        x, curve.lower, curve.upper, where=curve.resolved.tolist(), color=look.colour, alpha=0.25, linewidth=0
    )
    if curve.resolved.any():
        shown = np.where(curve.resolved, curve.value, nan)
        ax.errorbar(
            x,
            shown,
            reach(shown, curve.lower, curve.upper),
            fmt=look.marker,
            linestyle=look.line,
            color=look.colour,
            markersize=3.2,
            label="resolved, with bracket and 95 % over probes" if label is None else label,
        )
    if headline is not None and headline.resolved and headline.tau:
        ax.plot(
            headline.tau / scale,
            headline.value,
            "*",
            markersize=12,
            color=look.colour,
            markeredgecolor="white",
            zorder=5,
            label=_at_tolerance(headline, scale),
        )
    ax.set_xlim(float(x.min()) / 1.3, float(x.max()) * 1.3)


def _at_tolerance(estimate: Estimate, scale: float) -> str:
    bracket = f" in [{estimate.lower:.3f}, {estimate.upper:.3f}]" if estimate.lower is not None else ""
    return rf"{estimate.value:.3f}{bracket} at $\tau$ = {(estimate.tau or 0.0) / scale:.2g} $\|H\|_2$"


def draw_dimension(ax: Axes, spectrum: Spectrum, *, look: Look = LOOKS["eval"], label: str | None = None) -> None:
    """The effective dimension ``sum lambda / (lambda + g)`` over ``g``, with its two-sided interval.

    The operator must be positive semidefinite. If a Ritz value contradicts this, or if every eigenvalue is 0, the
    reason is shown instead of the curve.
    """
    ax.set_xlabel(r"$g$ (in units of the eigenvalues: loss per squared parameter)")
    ax.set_ylabel("effective dimension\n$\\sum_i \\lambda_i/(\\lambda_i + g)$")
    scale = spectrum.quadrature.scale
    if scale == 0:
        _say(ax, ": ".join(filter(None, (label, "every eigenvalue is 0, and so is the effective dimension"))))
        return
    g = scale * _RIDGES
    estimates = [spectrum.effective_dimension(float(at), semidefinite=True) for at in g]
    value = np.array([estimate.value for estimate in estimates])
    if not np.isfinite(value).any():
        _say(ax, ": ".join(filter(None, (label, estimates[0].note))))
        return
    lower, upper = (
        np.array([nan if end is None else end for end in ends])
        for ends in ([e.lower for e in estimates], [e.upper for e in estimates])
    )
    open_ = np.isfinite(upper) & np.isnan(lower)  # g is within the noise
    ax.plot(g, np.where(open_, nan, value), look.line, color=look.colour, label=label)
    if open_.any():
        ax.plot(g, np.where(open_, value, nan), ":", color=look.colour, label="upper bound: g is within the noise")
    banded = np.isfinite(lower) & np.isfinite(upper)
    ax.fill_between(g, lower, upper, where=banded.tolist(), color=look.colour, alpha=0.22, linewidth=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    lowest = float(value.min())
    ax.set_ylim(bottom=max(ax.get_ylim()[0], lowest / 10))  # an interval that reaches 0 has no end on this axis


def _say(ax: Axes, words: str) -> None:
    """Write text in the upper right corner, where no curve is, below earlier text."""
    lines = textwrap.wrap(literal(words), 46)
    above = sum(text.get_text().count("\n") + 2 for text in ax.texts)
    ax.annotate(
        "\n".join(lines),
        (1, 1),
        xycoords="axes fraction",
        xytext=(-6, -6 - 12 * above),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GREY,
    )
