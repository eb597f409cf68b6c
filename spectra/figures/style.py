"""The style of every figure: readable in print and by the colour-blind, and suited to vector output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of one series, so that series differ also without colour."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]
    face: str  # of the marker: one that is open does not hide what is below it


# The colours of M. Okabe and K. Ito, Color Universal Design (2008): distinct for the colour-blind and in print.
LOOKS = {
    "eval": Look("#0072B2", "o", "-", "#0072B2"),
    "train": Look("#D55E00", "s", "--", "none"),
    "recalibrated": Look("#009E73", "^", "-.", "none"),
}
OTHER = Look("#CC79A7", "D", ":", "none")
#: Arms of a comparison, in the order in which they are given; from the same list of colours.
ARMS = (
    Look("#0072B2", "o", "-", "#0072B2"),
    Look("#D55E00", "s", "--", "none"),
    Look("#009E73", "^", "-.", "none"),
    Look("#CC79A7", "D", ":", "none"),
    Look("#000000", "v", (0, (5, 1)), "none"),
    Look("#E69F00", "P", (0, (3, 1, 1, 1, 1, 1)), "#E69F00"),
)
GREY, PALE = "#666666", "#E6E6E6"

_STYLE: dict[str, Any] = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # letters stay letters, which journals ask for
    "svg.hashsalt": "spectra",  # the same figure is the same file
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's parameters for a figure and restore the user's own on exit."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


def look_of(bn_mode: str) -> Look:
    """The colour, marker and line of a batch-norm mode."""
    return LOOKS.get(bn_mode, OTHER)


def literal(text: str) -> str:
    """The text with escaped dollar signs, so that a name does not start a formula.

    Example:
        >>> literal("cost$ and $more")
        'cost\\\\$ and \\\\$more'
    """
    return " ".join(text.split()).replace("$", r"\$")


def asinh_axis(ax: Axes, threshold: float, low: float, high: float) -> None:
    """Make the horizontal axis linear within `threshold` of 0 and logarithmic beyond, with ticks at powers of ten."""
    ax.set_xscale("asinh", linear_width=threshold)
    powers = range(floor(log10(threshold)), ceil(log10(max(-low, high, threshold))) + 1)
    beyond = [10.0**power for power in powers if 10.0**power > 1.4 * threshold]  # nearer ones would touch the 0
    signed = [sign * x for sign in (-1, 1) for x in beyond if low <= sign * x <= high]
    if len(signed) > 2:
        every = ceil(len(beyond) / 4)
        labelled = {sign * x: f"${sign * 10}^{{{round(log10(x))}}}$" for x in beyond[::-every] for sign in (-1, 1)}
    else:
        steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        labelled = {sign * x: f"{sign * x:g}" for x in steps if x > 1.4 * threshold for sign in (-1, 1)}
    ax.xaxis.set_major_locator(FixedLocator([*labelled, 0.0]))
    ax.xaxis.set_major_formatter(FixedFormatter([*labelled.values(), "0"]))
    small = [digit * 10.0**power for power in powers for digit in range(1, 10) if digit * 10.0**power >= threshold]
    ax.xaxis.set_minor_locator(FixedLocator([sign * x for x in small for sign in (-1, 1)]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(low, high)


def shortened(name: str, width: int = 38) -> str:
    """A long name without its middle.

    Example:
        >>> shortened("features.denseblock4.denselayer32.conv2.weight", 24)
        'features.de…conv2.weight'
    """
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[len(name) - width // 2 :]}"
