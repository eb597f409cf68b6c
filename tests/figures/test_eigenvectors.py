"""Figures of eigenvectors: cells that are the stored shares, readable for few and for many."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
from run_files import make_record

from spectra.errors import ArgumentError
from spectra.figures.eigenvectors import class_map, tensor_map
from spectra.figures.figures import plan, rendered
from spectra.figures.moments import moments_of
from spectra.figures.style import style
from spectra.results.trajectory import Trajectory
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis


def record_with(tensors=4, classes=3, pairs=5, **options):
    random = np.random.default_rng(0)
    shares = random.random((tensors, pairs)) ** 3
    found = EigenvectorAnalysis(
        tensors=tuple(f"transformer.h.{index}.a_rather_long$name" for index in range(tensors)),
        tensor_shares=shares / shares.sum(axis=0),
        gradient_norm=1.0,
        gradient_shares=np.full(pairs, 0.5 / pairs),
        gradient_bounds=np.full(pairs, np.nan),
        gradient_curvature=1.0,
        curvature_error=1e-9,
        labels=np.arange(classes) if classes else None,
        label_weights=np.full(classes, 1 / classes) if classes else None,
        class_forms=random.random((classes, pairs)) if classes else None,
    )
    record = make_record(3.0, eigenvector_analysis=found, **options)
    values = np.linspace(3, -1, pairs)
    spectrum = copy.copy(record.spectrum)  # which other records have too
    spectrum.eigenpairs = Eigenpairs(values, 0 * values, values > -9)
    return replace(record, spectrum=spectrum)


def moment_with(**options):
    (moment,) = moments_of([record_with(**options)], "hessian")
    return moment


@pytest.mark.parametrize(
    ("rows", "pairs"), [(1, 1), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((14, 14), (90, 40)))]
)
def test_no_name_touches_the_next(rows, pairs):
    moment = moment_with(tensors=rows, classes=rows, pairs=pairs)
    for draw in (tensor_map, class_map):
        with style():
            figure = draw(moment, "eval")
            rendered(figure, "png")
            renderer = figure.canvas.get_renderer()
            ax = figure.axes[1]
            boxes = [label.get_window_extent(renderer) for label in ax.get_yticklabels()]
            assert len(boxes) == min(rows, 60)
            heights = sorted((box.y0, box.y1) for box in boxes)
            assert all(below[1] <= above[0] for below, above in itertools.pairwise(heights))
            widths = sorted((box.x0, box.x1) for box in (t.get_window_extent(renderer) for t in ax.get_xticklabels()))
            assert all(left[1] <= right[0] for left, right in itertools.pairwise(widths))
            assert ("not drawn: 30." in figure.get_supxlabel().replace("\n", " ")) == (rows == 90)


def test_the_cells_are_the_shares():
    moment = moment_with()
    found = moment.complete["eval"].eigenvector_analysis
    with style():
        for draw, shares in ((tensor_map, found.tensor_shares), (class_map, found.class_shares)):
            figure = draw(moment, "eval")
            (image,) = figure.axes[1].images
            np.testing.assert_array_equal(image.get_array(), shares)
            least, most = image.get_clim()
            assert least == 0
            assert shares.max() <= most <= min(1.0, shares.max() + 0.1)
            written = [float(text.get_text()) for text in figure.axes[1].texts]
            assert written == [round(float(v), 2) for v in shares.ravel() if v >= 0.005]


def test_they_are_planned_where_there_are_eigenvectors_only():
    with_classes, without = Trajectory([record_with()]), Trajectory([record_with(classes=0)])
    kinds = ("eigenvectors", "eigenvector-classes")
    names = [sheet.name for sheet in plan(with_classes) if sheet.kind in kinds]
    assert names == ["eigenvectors-hessian-epoch3", "eigenvector-classes-hessian-epoch3"]
    assert [sheet.kind for sheet in plan(without) if sheet.kind in kinds] == ["eigenvectors"]
    with pytest.raises(ArgumentError, match=r"class targets: analyze it with --eigenpairs"):
        plan(without, what=["eigenvector-classes"])
    with pytest.raises(ArgumentError, match="--eigenpairs 10"):
        plan(Trajectory([make_record(1.0)]), what=["eigenvectors"])
