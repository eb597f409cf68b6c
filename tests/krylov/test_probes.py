"""Probes: unit length, fixed by seed and number, uniform in law."""

from __future__ import annotations

import numpy as np
import pytest

from spectra.errors import ArgumentError
from spectra.krylov.probes import draw_probe


@pytest.mark.parametrize("distribution", ["sphere", "rademacher"])
def test_a_probe_depends_on_its_seed_and_number_only(distribution):
    def draw(seed, index, n=1000):
        return draw_probe(n, seed=seed, index=index, distribution=distribution)

    assert np.linalg.norm(draw(0, 0)) == pytest.approx(1.0, abs=1e-14)
    assert np.array_equal(draw(3, 2), draw(3, 2))
    assert abs(draw(0, 0) @ draw(0, 1)) < 0.2
    assert abs(draw(0, 0) @ draw(1, 0)) < 0.2
    assert not np.array_equal(draw(0, 1), draw(1, 0))


@pytest.mark.parametrize("distribution", ["sphere", "rademacher"])
def test_n_times_the_mean_square_is_one_in_every_direction(distribution):
    n, draws = 6, 4000
    probes = np.array([draw_probe(n, seed=7, index=i, distribution=distribution) for i in range(draws)])
    second = n * probes.T @ probes / draws
    assert np.abs(second - np.eye(n)).max() < 6 * np.sqrt(2 / draws)
    assert np.abs(probes.mean(0)).max() < 6 / np.sqrt(n * draws)


def test_arguments_out_of_range():
    with pytest.raises(ArgumentError, match="distribution='gauss'"):
        draw_probe(3, seed=0, index=0, distribution="gauss")
    with pytest.raises(ArgumentError, match="seed=-1"):
        draw_probe(3, seed=-1, index=0)
