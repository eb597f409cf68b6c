"""The sharpness along a direction, from the changes of the loss alone: closed forms and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spectra.errors import ArgumentError
from spectra.sharpness.interval import Interval


@pytest.mark.parametrize("nodes", [2, 8, 16])
def test_a_linear_loss_of_slope_3_has_the_square_6(nodes):
    interval = Interval(1e-3, 2, nodes)
    assert interval.value(3 * interval.t) ** 2 == pytest.approx(6, rel=1e-14)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7, math.inf])
def test_a_linear_loss_has_its_closed_form_for_every_p(p):
    interval = Interval(0.2, p, 16)
    expected = 3 * (2 / (p + 1)) ** (1 / p) if p != math.inf else 3
    assert interval.value(-3 * interval.t) == pytest.approx(expected, rel=1e-13)


def test_a_quadratic_change_is_integrated_exactly():
    interval, a, b = Interval(0.3, 2, 8), 1.7, -2.1
    exact = 2 * a**2 / 3 + 2 * b**2 * 0.3**2 / 5
    assert interval.value(a * interval.t + b * interval.t**2) ** 2 == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_a_stationary_point_has_its_closed_form_for_every_p(p):
    interval, bend = Interval(1e-2, p, 16), 5.0
    expected = 1e-2 * (2 / (2 * p + 1)) ** (1 / p) * bend / 2
    assert interval.value(bend / 2 * interval.t**2) == pytest.approx(expected, rel=1e-13)


def test_large_p_tends_to_the_maximum():
    def changes(t):
        return 1.7 * t - 4 * t**2

    limit = Interval(0.1, math.inf, 64)
    most = limit.value(changes(limit.t))
    assert most == pytest.approx((1.7 * 0.1 + 4 * 0.01) / 0.1, rel=1e-14)  # at t = -delta
    errors = []
    for p in (10, 100, 1000):
        interval = Interval(0.1, p, 128)
        errors.append(abs(interval.value(changes(interval.t)) / most - 1))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
def test_the_shares_are_the_derivatives_of_the_value(p):
    interval = Interval(0.1, p, 8)
    changes = np.random.default_rng(0).standard_normal(8)
    shares, step = interval.shares(changes), 1e-6
    for j in range(8):
        move = step * np.eye(8)[j]
        slope = (interval.value(changes + move) - interval.value(changes - move)) / (2 * step)
        assert shares[j] == pytest.approx(slope, rel=1e-7, abs=1e-7)


def test_no_change_is_no_sharpness_and_has_no_slope():
    interval = Interval(0.1, 2, 8)
    assert interval.value(np.zeros(8)) == 0
    assert not interval.shares(np.zeros(8)).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 2, 8), "delta=0.0: a positive number"),
        ((math.nan, 2, 8), "delta=nan"),
        ((1e-3, 1.5, 8), "p=1.5: an integer of at least 1, or inf"),
        ((1e-3, 0, 8), "p=0"),
        ((1e-3, 2, 7), "nodes=7: an even number"),
        ((1e-3, 2, 0), "nodes=0"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        Interval(*arguments)
