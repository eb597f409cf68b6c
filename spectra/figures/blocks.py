"""Figures of the diagonal blocks of a record: their densities as rows, and the distances between them as a heat map."""

from __future__ import annotations

from math import ceil, floor, log10

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from spectra.figures.frame import blank, finished, matrix_at, mode_words
from spectra.figures.moments import Moment
from spectra.figures.style import GREY, PALE, asinh_axis, literal, look_of, shortened
from spectra.spectrum.block_spectra import BlockSpectra
from spectra.spectrum.heterogeneity import COORDINATE, THRESHOLD, shape_curves

_DECADES = 4  # of the density, below the peak of each block
_FEW = 14  # blocks whose distances are written into the cells


def modes_with_blocks(moment: Moment) -> list[str]:
    """The batch-norm modes of a checkpoint whose records have spectra of blocks."""
    return [mode for mode, record in moment.complete.items() if record.blocks is not None]


def density_rows(moment: Moment, mode: str) -> Figure:
    """The densities of the blocks, a row each, by eigenvalues relative to the block's norm; and the norms."""
    blocks = _blocks(moment, mode)
    count, size = len(blocks), _font(len(blocks))
    figure = blank(9.6, 2.1 + max(1.2, (0.3 if count <= _FEW else 0.19) * count))
    left, right = figure.subplots(1, 2, width_ratios=(3.2, 1), sharey=True)
    colour, grid = look_of(mode).colour, THRESHOLD * np.sinh(COORDINATE)
    left.axvspan(-THRESHOLD, THRESHOLD, color=PALE, linewidth=0, zorder=0)
    for row, spectrum in enumerate(blocks.values()):
        density = shape_curves(spectrum.quadrature).mean(axis=0)
        heights = np.clip(1 + np.log10(np.maximum(density / density.max(), 1e-300)) / _DECADES, 0.0, 1.0)
        left.fill_between(grid, row, row - 0.92 * heights, color=colour, alpha=0.35, linewidth=0)
        left.plot(grid, row - 0.92 * heights, color=colour, linewidth=0.8)
    asinh_axis(left, THRESHOLD, float(grid[0]), float(grid[-1]))
    left.set_yticks(range(count), _names(blocks), fontsize=size)
    left.set_ylim(count - 0.6, -1.1)
    left.grid(False, axis="y")
    left.set_xlabel(r"eigenvalue / spectral norm of the block, $\lambda / \|H_b\|_2$")
    left.set_title(f"densities, {mode_words(mode)}", loc="left")
    norms = [spectrum.spectral_norm() for spectrum in blocks.values()]
    shown = [row for row, norm in enumerate(norms) if norm.value > 0]
    right.plot([norms[row].value for row in shown], shown, "o", color=colour, markersize=3.5)
    if shown:
        right.set_xscale("log")  # over whole decades, so that there are ticks
        powers = [log10(norms[row].value) for row in shown]
        right.set_xlim(10.0 ** floor(min(powers) - 0.1), 10.0 ** ceil(max(powers) + 0.1))
        right.xaxis.set_minor_formatter(NullFormatter())
    right.tick_params(labelleft=False)
    right.set_xlabel(r"spectral norm $\|H_b\|_2$")
    right.set_title("size", loc="left")
    caption = (
        f"Diagonal blocks of the {matrix_at(moment)}, in the order of the network. Each row: the density on a "
        f"logarithmic axis of {_DECADES} decades below its peak, smoothed with a Gaussian of a tenth of a decade. The "
        f"axis is linear in the shaded strip, within {THRESHOLD:g} of the norm. Right: the largest |Ritz value|, a "
        "lower bound of the norm." + _left_out(blocks)
    )
    return finished(figure, [moment], caption)


def distance_map(moment: Moment, mode: str) -> Figure:
    """The Jensen-Shannon distances between the densities of the blocks, as a heat map."""
    blocks = _blocks(moment, mode)
    count, size, found = len(blocks), _font(len(blocks)), blocks.distances
    side = max(3.4, (0.42 if count <= _FEW else 0.17) * count)
    figure = blank(side + 2.8, side + 2.6)
    ax = figure.subplots()
    image = ax.imshow(found.value, cmap="cividis", vmin=0, vmax=1)
    names = _names(blocks)
    ax.set_xticks(range(count), names, rotation=90, fontsize=size)
    ax.set_yticks(range(count), names, fontsize=size)
    ax.grid(False)
    ax.set_title(f"distances, {mode_words(mode)}", loc="left")
    if count <= _FEW:
        _write_cells(ax, found.value)
    figure.colorbar(image, ax=ax, shrink=0.75, label="Jensen-Shannon distance")
    mean = blocks.heterogeneity
    words = (
        ""
        if mean is None
        else f" Mean of all pairs: {mean}"
        + ("." if mean.lower is None else f", 95 % interval {mean.lower:.3f} to {mean.upper:.3f}.")
    )
    caption = (
        f"Distances between the shapes of the spectra of the blocks of the {matrix_at(moment)}: 0 for equal shapes, 1 "
        f"for no overlap. Eigenvalues are relative to the norm of the block.{words}{_left_out(blocks)}"
    )
    return finished(figure, [moment], caption)


def _blocks(moment: Moment, mode: str) -> BlockSpectra:
    blocks = moment.complete[mode].blocks
    assert blocks is not None
    return blocks


def _write_cells(ax: Axes, values: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(values):
        if row != column:
            colour = "white" if value < 0.5 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    for index in range(len(values)):
        ax.plot(index, index, "_", color=GREY, markersize=5)


def _names(blocks: BlockSpectra) -> list[str]:
    return [literal(shortened(name, 30)) for name in blocks]


def _font(count: int) -> float:
    """The size of the names, in points."""
    return 8 if count <= _FEW else 6.5


def _left_out(blocks: BlockSpectra) -> str:
    count = len(blocks.left_out)
    return f" Parameter tensors in no block: {count}." if count else ""
