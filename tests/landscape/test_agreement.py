"""How far the parabola of a slice is said to hold, for losses of one variable in closed form."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from spectra.landscape.agreement import how_far
from spectra.results.slices import Line

FINE = np.linspace(0, 1, 4001)[1:]


def line_of(slope, curvature):
    return Line("top", "distance", 1.0, 2.0, slope, curvature)


def first_failure(loss, line, radius):
    """The smallest step at which the error exceeds a tenth of the largest change on its side, on a fine grid."""
    found = []
    for side in (1, -1):
        steps = FINE * radius
        losses = np.array([loss(side * t) for t in steps])
        largest = np.maximum.accumulate(np.abs(losses - line.loss))
        bad = np.abs(losses - line.parabola(side * steps)) > 0.1 * largest
        found += [steps[np.argmax(bad)]] if bad.any() else []
    return min(found, default=None)


@pytest.mark.parametrize("cubic", [0.05, 0.008])
@pytest.mark.parametrize("slope", [-0.0188, 0.0188, -0.3, 0.0, 1e-4])
@pytest.mark.parametrize("curvature", [-0.257, 0.257, 1.0])
@pytest.mark.parametrize("points", [5, 20])
def test_the_radius_of_a_cubic_loss(slope, curvature, cubic, points):
    """Also where the first step of the grid lies behind a turn of the loss, whose size the steps alone do not show."""
    line = line_of(slope, curvature)

    def loss(t):
        return line.parabola(t) + cubic * t**3

    holds, fails = how_far(loss, line, np.linspace(0, 3, points + 1)[1:], 1e-16)
    wanted = first_failure(loss, line, 3.0)
    if wanted is None:
        assert fails is None
    else:
        assert holds <= wanted * (1 + 1e-3)
        assert wanted <= fails * (1 + 1e-3)


@pytest.mark.parametrize("value", [inf, -inf, nan])
def test_a_loss_that_is_not_finite_is_no_parabola(value):
    line = line_of(0.1, 1.0)
    holds, fails = how_far(lambda t: value if t > 1 else line.parabola(t), line, np.linspace(0, 3, 11)[1:], 1e-16)
    assert holds <= 1 < fails < 1.1
