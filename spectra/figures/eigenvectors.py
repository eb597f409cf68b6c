"""Figures of the leading eigenvectors of a record, as heat maps: their tensors, and the classes that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectra.figures.frame import blank, finished, matrix_at, mode_words
from spectra.figures.moments import Moment
from spectra.figures.style import literal, look_of, shortened
from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis

_FEW = 14  # rows or columns whose shares are written into the cells
_MOST_ROWS = 60  # the rows of the largest shares are drawn


def modes_with_tensors(moment: Moment) -> list[str]:
    """The batch-norm modes of a checkpoint whose records have an analysis of eigenvectors."""
    return [mode for mode, record in moment.complete.items() if record.eigenvector_analysis is not None]


def modes_with_classes(moment: Moment) -> list[str]:
    """The batch-norm modes of a checkpoint whose records have the classes of the eigenvectors."""
    return [mode for mode in modes_with_tensors(moment) if _analysis(moment, mode).class_forms is not None]


def tensor_map(moment: Moment, mode: str) -> Figure:
    """The share of each parameter tensor in each eigenvector; above it the share of the gradient in their span."""
    found = _analysis(moment, mode)
    names, shares = _leading(found.tensors, found.tensor_shares)
    figure, top, ax = _two_panels(len(names), shares.shape[1])
    _heat_map(figure, ax, shares, [literal(shortened(name, 30)) for name in names], "share of the squared norm")
    k, cumulative = np.arange(shares.shape[1]), found.gradient_cumulative
    top.plot(k, cumulative, "o-", color=look_of(mode).colour, markersize=3.5)
    top.set_ylim(-0.03, 1.03)
    top.set_ylabel(r"$\|V_k'g\|^2/\|g\|^2$")
    top.set_title(f"gradient in the first k eigenvectors, {mode_words(mode)}", loc="left")
    left_out = len(found.tensors) - len(names)
    caption = (
        f"Computed eigenvectors of the {matrix_at(moment)}, by |eigenvalue|. Below: each column sums to 1. Above: the "
        "share of the gradient in the span of the first k eigenvectors."
        + (f" Tensors of the smallest shares, not drawn: {left_out}." if left_out else "")
    )
    return finished(figure, [moment], caption)


def class_map(moment: Moment, mode: str) -> Figure:
    """The share of each class in ``v'Gv`` of each eigenvector; above it ``v'Gv`` and the eigenvalues."""
    found, pairs = _analysis(moment, mode), moment.complete[mode].spectrum
    assert found.labels is not None
    assert found.class_forms is not None
    assert found.class_shares is not None
    assert pairs is not None
    assert pairs.eigenpairs is not None
    names, shares = _leading([str(label) for label in found.labels], found.class_shares)
    figure, top, ax = _two_panels(len(names), shares.shape[1])
    _heat_map(figure, ax, shares, names, "share of $v'Gv$")
    ax.set_ylabel("class of the target")
    k, colour = np.arange(shares.shape[1]), look_of(mode).colour
    top.axhline(0, color="black", linewidth=0.6)
    top.bar(k, found.class_forms.sum(axis=0), 0.6, color=colour, alpha=0.35, label="$v'Gv$, without l2")
    top.plot(k, pairs.eigenpairs.values, "o", color=colour, markersize=4, label="eigenvalue")
    top.legend(loc="best")
    top.set_title(f"eigenvalues and their Gauss-Newton part, {mode_words(mode)}", loc="left")
    left_out = len(found.labels) - len(names)
    caption = (
        f"Computed eigenvectors of the {matrix_at(moment)}, by |eigenvalue|. Below: the part of v'Gv from the targets "
        "of each class, G the Gauss-Newton matrix; each column sums to 1."
        + (f" Classes of the smallest shares, not drawn: {left_out}." if left_out else "")
    )
    return finished(figure, [moment], caption)


def _analysis(moment: Moment, mode: str) -> EigenvectorAnalysis:
    found = moment.complete[mode].eigenvector_analysis
    assert found is not None
    return found


def _leading(names: Sequence[str], shares: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The rows to draw, in their order: all, or those of the largest shares."""
    chosen = np.sort(np.argsort(-np.nan_to_num(shares).max(axis=1), kind="stable")[:_MOST_ROWS])
    return [names[index] for index in chosen], shares[chosen]


def _two_panels(rows: int, columns: int) -> tuple[Figure, Axes, Axes]:
    """A figure with a low panel above and a heat map below, of one horizontal axis."""
    height = max(1.5, (0.3 if rows <= _FEW else 0.17) * rows)
    figure = blank(max(6.4, 3.2 + 0.42 * min(columns, 30)), 3.4 + height)
    top, ax = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, height))
    return figure, top, ax


def _heat_map(figure: Figure, ax: Axes, shares: np.ndarray, names: Sequence[str], words: str) -> None:
    rows, columns = shares.shape
    top = ceil(10 * min(1.0, float(np.nan_to_num(shares).max(initial=0.1)))) / 10  # of the colours: a tenth, or more
    image = ax.imshow(shares, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    ax.set_yticks(range(rows), names, fontsize=8 if rows <= _FEW else 6.5)
    step = -(-columns // 20)
    ax.set_xticks(range(0, columns, step), [str(k + 1) for k in range(0, columns, step)])
    ax.grid(False)
    ax.set_xlabel("eigenvector k")
    if max(rows, columns) <= _FEW:
        for (row, column), value in np.ndenumerate(shares):
            if np.isfinite(value) and value >= 0.005:
                colour = "white" if value < 0.5 * top else "black"
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    figure.colorbar(image, ax=ax, label=words, fraction=0.05, pad=0.02)
