"""The figure of the slices of a checkpoint: losses with parabolas, and what kinks add to the curvature."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from spectra.figures.frame import blank, wrapped
from spectra.figures.style import GREY, LOOKS, PALE, literal, shortened, style
from spectra.results.slices import TOLERANCE, Slice, Slices

_TITLES = {
    "top": "top eigenvector",
    "bottom": "bottom eigenvector",
    "gradient": "negative gradient",
    "random": "random direction",
    "filter": "filter-normalised random direction",
}
_LOSS, _TEST = LOOKS["eval"], LOOKS["train"]
_ROOM = 0.35  # of the range of the losses, that a parabola may leave on either side


def slices_png(found: Slices) -> bytes:
    """The figure of the slices as a PNG file: a row for each."""
    with style():
        buffer = io.BytesIO()
        draw_slices(found).savefig(buffer, format="png")
        return buffer.getvalue()


def draw_slices(found: Slices) -> Figure:
    """A row per slice: the loss with its parabola, the curvature by differences, and the units that switch, if any."""
    count, with_kinks = len(found.slices), any(each.kinks.pairs for each in found.slices)
    ratios = (1.5, 1, 1) if with_kinks else (1.5, 1)
    width = 10.5 if with_kinks else 7.8
    figure = blank(width, 2.45 * count + 1.2)
    for row, each in zip(figure.subplots(count, len(ratios), squeeze=False, width_ratios=ratios), found.slices):
        _draw_loss(row[0], each)
        _draw_curvature(row[1], each, str(found.header.get("product", "autograd")))
        if with_kinks:
            _draw_switches(row[2], each)
    header = found.header
    when = "" if header.get("epoch") is None else f", epoch {header['epoch']:g}"
    checkpoint = shortened(str(header.get("checkpoint")), 70)
    task = str(header.get("task") or "").partition("(")[0]
    title = literal(f"{shortened(task, 60)}, {checkpoint}{when}" if task else checkpoint + when)
    figure.suptitle(title, x=0.012, ha="left", fontsize=10.5)
    caption = (
        "Left: the loss along each direction, and its parabola at t = 0. Shaded: where the parabola is "
        f"right to {TOLERANCE:.0%} of the change of the loss. Next: the curvature by differences over the radius r, "
        "(L(r) - 2 L(0) + L(-r)) / r², with the rounding of the losses; the line is that of the parabola. "
    )
    caption += (
        "Right: the share of pairs of a sample and a unit whose piece (of ReLU, max pooling, ...) is another one at "
        "distance r."
        if with_kinks
        else "The network calls no piecewise-linear function: there are no kinks."
    )
    figure.supxlabel(wrapped(caption, width * 16.5), x=0.012, ha="left", fontsize=7.5, color="#444444")
    return figure


def _draw_loss(ax: Axes, each: Slice) -> None:
    t, line = each.steps, each.line
    finite = np.isfinite(each.losses)
    ax.axvspan(-each.holds, each.holds, color=PALE, linewidth=0, zorder=0)
    fine = np.linspace(t[0], t[-1], 201)
    ax.plot(fine, line.parabola(fine), linestyle="--", color=GREY, label="parabola")
    ax.plot(t, each.losses, marker=".", markersize=4, color=_LOSS.colour, label="loss")
    shown = [each.losses[finite]]
    if each.test_losses is not None:
        ax.plot(t, each.test_losses, marker=".", markersize=4, linestyle=":", color=_TEST.colour, label="test loss")
        shown.append(each.test_losses[np.isfinite(each.test_losses)])
    values = np.concatenate(shown)
    low, high = float(values.min()), float(values.max())
    room = _ROOM * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_ylim(low - room, high + room)
    if not finite.all():
        top = np.full(int((~finite).sum()), high + 0.9 * room)
        ax.plot(t[~finite], top, "x", color="black", markersize=5, label="not finite")
    critical = each.critical
    if critical is not None and critical.reason is None:
        unit = abs(line.slope) if line.name == "gradient" else 1.0
        where = 0.5 * (critical.holds + critical.exceeds) * unit
        if where <= each.radius:
            ax.axvline(where, color=GREY, linewidth=0.8, linestyle=":", label="critical step")
    ax.set_xlim(t[0], t[-1])
    ax.set_xlabel(f"t ({line.unit})")
    ax.set_ylabel("loss")
    name = _TITLES.get(line.name, f"towards {shortened(line.name, 40)}")
    mode = "" if each.bn_mode == "eval" else f", batch norm {each.bn_mode}"
    ax.set_title(literal(name + mode), loc="left")
    ax.legend(loc="best")


def _draw_curvature(ax: Axes, each: Slice, product: str) -> None:
    kinks, line = each.kinks, each.line
    resolved = np.isfinite(kinks.curvature) & (kinks.error <= np.maximum(np.abs(kinks.curvature), abs(line.curvature)))
    ax.axhline(
        line.curvature,
        color=GREY,
        linestyle="--",
        label="autograd" if product == "autograd" else "differences of gradients",
    )
    ax.errorbar(
        kinks.radii[resolved],
        kinks.curvature[resolved],
        kinks.error[resolved],
        marker="o",
        markersize=4,
        color=_LOSS.colour,
        label="differences of losses",
    )
    _radius_axis(ax, each)
    values = [line.curvature, *kinks.curvature[resolved]]
    span = max(values) - min(values)
    if span < 0.02 * abs(line.curvature):  # equal curves are not drawn as if they differed
        ax.set_ylim(*sorted((0.9 * line.curvature, 1.1 * line.curvature)))
    ax.set_ylabel("curvature d'Hd")
    ax.margins(y=0.25)  # room for the legend
    ax.set_title("curvature over a radius", loc="left")
    ax.legend(loc="best")


def _draw_switches(ax: Axes, each: Slice) -> None:
    ax.set_title("units that switch", loc="left")
    if not each.kinks.pairs:
        ax.text(0.5, 0.5, "no piecewise-linear function", ha="center", va="center", transform=ax.transAxes, color=GREY)
        ax.set_axis_off()
        return
    ax.plot(each.kinks.radii, 100 * each.kinks.switched, marker="o", markersize=4, color=_LOSS.colour)
    _radius_axis(ax, each)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("share of pairs, %")


def _radius_axis(ax: Axes, each: Slice) -> None:
    """Radii are halved from one to the next, so a tick at every second one is at a quarter of the one before."""
    radii = each.kinks.radii[::2]
    ax.set_xscale("log", base=2)
    ax.set_xticks(radii)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda r, _: f"{r:.2g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("radius r")
