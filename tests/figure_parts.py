"""Draws a figure, and reads what it holds: the ends of its error bars, its title and its caption as text."""

from __future__ import annotations

from math import nan

import numpy as np
from matplotlib.figure import Figure

from spectra.figures.style import style


def drawn(draw, *arguments) -> Figure:
    """The figure of these arguments in the style of the package, laid out."""
    with style():
        figure = draw(*arguments)
        figure.draw_without_rendering()
        return figure


def bars(container) -> np.ndarray:
    """The ends of error bars, (T, 2)."""
    (segments,) = container[2]
    return np.array([[*segment[:, 1]] if len(segment) else [nan, nan] for segment in segments.get_segments()])


def texts(figure: Figure) -> str:
    return " ".join(f"{figure.get_suptitle()} {figure.get_supxlabel()}".split())


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())
