"""The edge of stability over training, as a line in the panel of the largest eigenvalue."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
from matplotlib.axes import Axes

from spectra.figures.moments import Moment

LABEL = "edge of stability"


def draw_edges(ax: Axes, position: np.ndarray, moments: Sequence[Moment]) -> str:
    """Draw the edge at every checkpoint whose optimizer has one, within the limits of the axis.

    Args:
        ax: the axes, with the largest eigenvalue drawn.
        position: (T,) of the checkpoints.
        moments: the checkpoints.

    Returns:
        A sentence for the caption; empty where no edge is known.
    """
    found = [next((record.edge for record in moment.complete.values()), None) for moment in moments]
    values = np.array([nan if edge is None or edge.value is None else edge.value for edge in found])
    known = np.isfinite(values)
    if not known.any():
        return ""
    low, high = ax.get_ylim()
    ax.plot(
        position, values, color="black", linestyle=(0, (4, 2)), linewidth=1.1, marker="_", markersize=2.5, label=LABEL
    )
    ends = min(low, float(values[known].min())), max(high, float(values[known].max()))
    if ax.get_yscale() == "log":
        ax.set_ylim(low if ends[0] == low else ends[0] / 1.1, high if ends[1] == high else ends[1] * 1.1)
    else:
        margin = 0.05 * (ends[1] - ends[0])
        ax.set_ylim(low if ends[0] == low else ends[0] - margin, high if ends[1] == high else ends[1] + margin)
    formulas = list(dict.fromkeys(edge.words for edge in found if edge is not None and edge.value is not None))
    return f" Dashed: the edge of stability of full-batch training, {' or '.join(formulas[:3])}."
