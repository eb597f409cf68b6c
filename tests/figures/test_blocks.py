"""Figures of diagonal blocks: a row and a cell for each, readable for few and for many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from reference import probes_of
from run_files import make_record

from spectra.figures.blocks import density_rows, distance_map, modes_with_blocks
from spectra.figures.figures import plan, rendered
from spectra.figures.moments import moments_of
from spectra.figures.style import style
from spectra.results.trajectory import Trajectory
from spectra.spectrum.block_spectra import BlockSpectra
from spectra.spectrum.spectrum import Spectrum


def blocks_of(count, left_out=()):
    random = np.random.default_rng(0)
    spectra = {}
    for index in range(count):
        values = np.append(10.0 ** -(index % 4) * random.standard_normal(80), np.ones(index % 3))
        spectra[f"transformer.h.{index}.a_rather_long$name"] = Spectrum(probes_of(values, 12, 3, index), values.size)
    return BlockSpectra("layer", spectra, left_out)


def moment_with(blocks, mode="eval"):
    (moment,) = moments_of([make_record(3.0, bn_mode=mode, blocks=blocks)], "hessian")
    return moment


@pytest.mark.parametrize("count", [1, 4, 14, 60])
def test_no_name_touches_the_next(count):
    moment = moment_with(blocks_of(count, left_out=("free",)))
    for make in (density_rows, distance_map):
        with style():
            figure = make(moment, "eval")
            rendered(figure, "png")
            renderer = figure.canvas.get_renderer()
            ax = figure.axes[0]
            boxes = [label.get_window_extent(renderer) for label in ax.get_yticklabels()]
            assert len(boxes) == count
            heights = sorted((box.y0, box.y1) for box in boxes)
            assert all(below[1] <= above[0] for below, above in itertools.pairwise(heights))
            assert min(box.x0 for box in boxes) >= 0
            assert "Parameter tensors in no block: 1." in figure.get_supxlabel().replace("\n", " ")


def test_the_cells_are_the_distances_and_a_row_ends_where_its_spectrum_does():
    blocks = blocks_of(4)
    with style():
        figure = distance_map(moment_with(blocks), "eval")
        (image,) = figure.axes[0].images
        np.testing.assert_array_equal(image.get_array(), blocks.distances.value)
        assert image.get_clim() == (0, 1)
        written = [float(text.get_text()) for text in figure.axes[0].texts]
        assert written[:3] == [round(float(value), 2) for value in blocks.distances.value[0, 1:]]
        rows = density_rows(moment_with(blocks), "eval")
        for index, line in enumerate(rows.axes[0].lines):
            heights = index - line.get_ydata()
            assert heights.min() == 0
            assert heights.max() == pytest.approx(0.92)
        sizes = rows.axes[1].lines[0].get_xdata()
        np.testing.assert_allclose(sizes, [spectrum.spectral_norm().value for spectrum in blocks.values()])


def test_a_block_of_zeros_has_a_row_and_no_size():
    from spectra.spectrum.tridiagonal import Tridiagonal

    zero = Spectrum([Tridiagonal([0.0], [0.0], exhausted=True)] * 2, 5)
    with style():
        figure = density_rows(moment_with(BlockSpectra("layer", {"idle": zero})), "eval")
        rendered(figure, "png")
    assert figure.axes[1].lines[0].get_xdata().size == 0


def test_what_the_records_allow_is_planned():
    with_both = [make_record(0.0, bn_mode=mode, blocks=blocks_of(2)) for mode in ("eval", "train")]
    names = [sheet.name for sheet in plan(Trajectory(with_both)) if "block" in sheet.kind]
    assert names == [
        *("blocks-hessian-epoch0-eval", "blocks-hessian-epoch0-train"),
        *("block-distances-hessian-epoch0-eval", "block-distances-hessian-epoch0-train"),
    ]
    kinds = [sheet.kind for sheet in plan(Trajectory([make_record(0.0, blocks=blocks_of(1))]))]
    assert "blocks" in kinds
    assert "block-distances" not in kinds
    assert modes_with_blocks(moment_with(None)) == []
