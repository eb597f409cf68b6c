"""Figure of the class structure of the Gauss-Newton matrix: shares of its trace, and eigenvalues between classes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectra.figures.frame import blank, finished, matrix_at, mode_words
from spectra.figures.moments import Moment
from spectra.figures.style import GREY, look_of

_PARTS = ("class means", "class means,\nof the class itself", "cross-class\nmeans", "within\nclasses")


def modes_with_structure(moment: Moment) -> list[str]:
    """The batch-norm modes of a checkpoint whose records have a class structure."""
    return [mode for mode, record in moment.complete.items() if record.class_structure is not None]


def structure_figure(moment: Moment, mode: str) -> Figure:
    """Bars of the shares of the trace, and the eigenvalues between classes under those of the whole matrix."""
    record = moment.complete[mode]
    found = record.class_structure
    assert found is not None
    assert record.spectrum is not None
    figure = blank(9.6, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    colour, shares = look_of(mode).colour, np.array(list(found.shares.values()))
    bars = left.bar(range(4), shares, 0.65, color=[colour, colour, colour, GREY], alpha=0.75)
    left.bar_label(bars, [f"{share:.3f}" for share in shares], fontsize=8, padding=2)
    left.set_xticks(range(4), _PARTS, fontsize=7)
    left.set_ylim(min(0.0, 1.15 * float(shares.min())), 1.12 * float(shares.max()))
    left.grid(False, axis="x")
    left.set_title(f"shares of the trace, {mode_words(mode)}", loc="left")
    k = np.arange(len(found.labels)) + 1
    pairs = record.spectrum.eigenpairs
    if pairs is not None:
        whole = pairs.values - float(record.settings.get("l2") or 0.0)
        right.plot(np.arange(whole.size) + 1, whole, "o", color="black", markersize=4, label="whole matrix")
    right.plot(k, found.eigenvalues, "D-", color=colour, markersize=4, linewidth=0.8, label="between classes")
    right.plot(k, found.class_eigenvalues, "x", color=colour, markersize=5, label="class means alone")
    right.set_ylim(bottom=min(0.0, right.get_ylim()[0]))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("number of the eigenvalue")
    right.legend(loc="upper right")
    right.set_title("eigenvalues", loc="left")
    drawn = "" if found.total_error == 0 else " The whole trace is estimated by probes, and with it the shares."
    caption = (
        f"Parts of the {matrix_at(moment)}, by means of the gradients of the outputs over the {len(found.labels)} "
        "classes; l2 is subtracted. Between classes: both parts of class means. The k-th of its eigenvalues is at most "
        f"the k-th of the whole matrix.{drawn}"
    )
    return finished(figure, [moment], caption)
