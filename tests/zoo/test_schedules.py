"""The schedules have the values of their formulas, equations 12 and 13 of Granziol (2020) among them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from spectra.zoo.options import training_options
from spectra.zoo.schedules import rate_factor


def factor(done, **options):
    return rate_factor(done, training_options({"schedule": "linear", **options}))


@pytest.mark.parametrize(
    ("done", "rate"),
    [(0, 0.1), (149, 0.1), (150, 0.1), (180, 0.07525), (210, 0.0505), (240, 0.02575), (270, 0.001), (299, 0.001)],
)
def test_the_linear_schedule_has_its_printed_values(done, rate):
    """T = 300 and a = 0.1: constant to 150, on the line between (150, 0.1) and (270, 0.001), then constant."""
    assert 0.1 * factor(done, epochs=300) == pytest.approx(rate, rel=1e-12)
    assert factor(done, epochs=300, schedule="constant") == 1.0


def test_the_linear_schedule_never_rises_and_ends_at_a_hundredth():
    for epochs in (1, 2, 3, 7, 10, 50):
        rates = [factor(done, epochs=epochs) for done in range(epochs + 1)]
        assert all(a >= b for a, b in pairwise(rates))
        assert (rates[0], rates[-1]) == (1.0, 0.01)


@pytest.mark.parametrize(("done", "expected"), [(0, 1), (100, 1), (140, 0.75), (180, 0.5), (181, 0.5), (299, 0.5)])
def test_with_an_average_the_ramp_ends_at_half_the_rate_before_the_average_begins(done, expected):
    """Equation 13 with ``t / T_avg`` in the ramp: no jump at 0.9 T_avg = 180, for T = 300 and T_avg = 200."""
    options = {"epochs": 300, "average": "epoch", "average_from": 200}
    assert factor(done, **options) == pytest.approx(expected, rel=1e-12)
    assert factor(done, epochs=300, optimizer="gadam") == factor(done, **options)  # the defaults of Gadam
    assert factor(299, **options, final_fraction=0.2) == 0.2


@pytest.mark.parametrize(
    ("done", "expected"), [(0, 1), (59, 1), (60, 0.1), (119, 0.1), (120, 0.01), (160, 0.001), (199, 0.001)]
)
def test_steps_are_taken_after_the_milestones(done, expected):
    assert factor(done, schedule="step", epochs=200) == pytest.approx(expected, rel=1e-12)
    assert factor(done, schedule="step", epochs=200, milestones="60", factor=0.5) == (1.0 if done < 60 else 0.5)
