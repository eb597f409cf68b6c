"""Stable, participation and entropy rank: closed forms, and what their intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from reference import bulk_with_outliers, probes_of

from spectra.spectrum import ranks
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

ETA = 2.2e-16


def all_ranks(t, n, noise=ETA, distribution="sphere"):
    return (
        ranks.stable_rank(Quadrature(t, n, noise, distribution)),
        ranks.participation_rank(Quadrature(t, n, noise, distribution)),
        ranks.entropy_rank(Quadrature(t, n, noise, distribution)),
    )


def truths(eigenvalues):
    size = np.abs(eigenvalues)
    p = size[size > 0] / size.sum()
    return (size**2).sum() / size.max() ** 2, size.sum() ** 2 / (size**2).sum(), np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("value", [1.0, -3.0, 1e-30, 1e30])
def test_equal_eigenvalues_have_their_number_as_every_rank(value):
    identity = [Tridiagonal(np.array([value]), np.zeros(1), True)] * 3
    for e in all_ranks(identity, 40):
        assert e.value == pytest.approx(40)
        assert e.stderr == pytest.approx(0, abs=1e-6)
    signs = probes_of(value * np.repeat([1.0, -1.0, 0.0], [10, 15, 75]), 10, 400, seed=0)
    for e in all_ranks(signs, 100):  # the projector on 25 of 100, with signs
        assert e.lower <= 25 <= e.upper
        assert e.value == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize("power", [130, 300, 512, 516, 600, 1000, -130, -300, -540, -1000])
@pytest.mark.parametrize("name", ["bulk", "bulk with outliers", "one outlier"])
@pytest.mark.filterwarnings("error")
def test_no_rank_changes_where_the_operator_is_scaled_to_the_ends_of_float64(name, power):
    """The squares of eigenvalues above 1e154 are no float64, nor are those below 1e-162 other than 0."""
    values = np.append(0.01 * SPECTRA["bulk"], 50.0) if name == "one outlier" else SPECTRA[name]
    rules = probes_of(values, 10, 4, seed=3)
    scaled = [Tridiagonal(np.ldexp(t.alphas, power), np.ldexp(t.betas, power), t.exhausted) for t in rules]
    for e, expected in zip(all_ranks(scaled, values.size), all_ranks(rules, values.size)):
        assert np.isfinite(e.value)
        for part in ("value", "stderr", "lower", "upper"):
            assert getattr(e, part) == pytest.approx(getattr(expected, part), rel=1e-9)


@pytest.mark.filterwarnings("error")
def test_the_exact_trace_is_scaled_along():
    values = SPECTRA["bulk"]
    rules, trace = probes_of(values, 10, 4, seed=3), float(values.sum())
    for rank in (ranks.stable_rank, ranks.participation_rank, ranks.entropy_rank):
        e, expected = (
            rank(
                Quadrature(
                    [Tridiagonal(np.ldexp(t.alphas, p), np.ldexp(t.betas, p)) for t in rules],
                    values.size,
                    ETA,
                    exact_trace=float(np.ldexp(trace, p)),
                )
            )
            for p in (700, 0)
        )
        assert (e.value, e.stderr) == pytest.approx((expected.value, expected.stderr), rel=1e-9)


def test_one_eigenvalue_has_rank_one_by_all_three():
    t = probes_of(np.concatenate([[4.0], np.zeros(30)]), 10, 50, seed=0)
    for e in all_ranks(t, 31):
        assert e.lower == 1
        assert e.value == pytest.approx(1, abs=0.3)
        assert e.lower <= e.value <= e.upper


SPECTRA = {
    "bulk": np.random.default_rng(7).normal(0.1, 1, 300),
    "bulk with outliers": bulk_with_outliers(300),
    "decades": np.random.default_rng(8).choice([-1, 1], 300) * 10 ** np.random.default_rng(9).uniform(-6, 0, 300),
}


@pytest.mark.parametrize(
    "name", [n if n == "bulk with outliers" else pytest.param(n, marks=pytest.mark.slow) for n in SPECTRA]
)
def test_the_intervals_cover_95_percent_where_no_eigenvalue_dominates(name):
    """Eight probes, 20 steps. Measured in 1000 runs of stable, participation and entropy rank, in percent: 98.6, 99.8,
    100 (bulk); 96.5, 95.1, 96.8 (bulk with outliers); 97.4, 99.9, 100 (decades). Above 95 where the error of the
    quadrature counts, and for the stable rank by the bound on the norm.
    """
    eigenvalues, runs = SPECTRA[name], 200
    truth, hits = truths(eigenvalues), np.zeros(3)
    for seed in range(runs):
        found = all_ranks(probes_of(eigenvalues, 20, 8, seed), 300)
        hits += [e.lower <= x <= e.upper for e, x in zip(found, truth)]
    assert (hits / runs > 0.90).all()


def test_one_dominant_eigenvalue_is_said_to_narrow_the_intervals_of_rademacher_probes_alone():
    eigenvalues = np.concatenate([[30.0], np.full(299, 0.01)])
    t = probes_of(eigenvalues, 20, 8, seed=0)
    for rank in (ranks.stable_rank, ranks.participation_rank, ranks.entropy_rank):
        assert "one eigenvalue carries" in rank(Quadrature(t, 300, ETA, "rademacher")).note
    for e, truth in zip(all_ranks(t, 300), truths(eigenvalues)):
        assert e.note is None
        assert e.value == pytest.approx(truth, rel=1e-9)  # both eigenvalues are found, one apart


@pytest.mark.slow
def test_the_standard_error_is_the_scatter_over_runs():
    runs = [all_ranks(probes_of(SPECTRA["bulk"], 60, 8, seed), 300) for seed in range(150)]
    for estimates, truth in zip(zip(*runs), truths(SPECTRA["bulk"])):
        assert np.mean([e.value for e in estimates]) == pytest.approx(truth, rel=0.02)
        scatter = np.std([e.value for e in estimates])
        assert np.mean([e.stderr for e in estimates]) == pytest.approx(scatter, rel=0.2)


def test_the_interval_holds_what_few_steps_leave_open():
    """Two steps of a spectrum over six decades: the quadrature is off by far more than the probes scatter."""
    eigenvalues = SPECTRA["decades"]
    truth = truths(eigenvalues)
    for seed in range(20):
        _, participation, entropy = all_ranks(probes_of(eigenvalues, 2, 40, seed), 300)
        assert abs(participation.value - truth[1]) > 3 * participation.stderr
        assert participation.lower <= truth[1] <= participation.upper
        assert entropy.lower <= truth[2] <= entropy.upper


def test_the_noise_of_the_products_widens_every_interval():
    t = probes_of(SPECTRA["bulk with outliers"], 20, 8, seed=0)
    # Of rules in which no eigenvalue is known apart: how many are depends on the noise.
    for exact, noisy in zip(*(all_ranks(t, 300, noise, "rademacher")[1:] for noise in (0.0, 1e-3))):
        assert noisy.value == exact.value
        assert noisy.lower < exact.lower
        assert noisy.upper > exact.upper


def test_the_stable_rank_has_the_interval_of_a_quotient_of_two_bounds():
    t = probes_of(SPECTRA["bulk"], 30, 8, seed=0)
    s = Spectrum(t, 300)
    e, f, norm = s.stable_rank(), s.frobenius_norm(), s.spectral_norm()
    assert e.value == pytest.approx((f.value / norm.value) ** 2)
    assert e.upper > (f.upper / norm.value) ** 2  # each bound has to hold with more than 95 %
    assert e.lower < (f.lower / norm.upper) ** 2
    # nothing bounds the norm of Rademacher probes, but no rank is below 1
    assert ranks.stable_rank(Quadrature(t, 300, ETA, "rademacher")).lower == 1


def test_one_probe_has_values_and_no_error():
    t = probes_of(SPECTRA["bulk"], 20, 1, seed=0)
    for e in all_ranks(t, 300):
        assert 1 < e.value < 300
        assert (e.stderr, e.lower, e.upper, e.num_probes) == (None, None, None, 1)


def test_the_zero_operator_has_no_rank_and_the_reason():
    zero = [Tridiagonal(np.zeros(1), np.zeros(1), True)] * 3
    for e in all_ranks(zero, 10):
        assert np.isnan(e.value)
        assert (e.stderr, e.lower, e.upper) == (None, None, None)
        assert e.note == "the operator is zero, and 0/0 is no number"
        assert str(e) == "not computed: the operator is zero, and 0/0 is no number"
        assert e.to_json()["value"] is None


def test_few_steps_have_few_nodes_and_a_wide_interval():
    flat = [Tridiagonal(np.array([0.0]), np.array([1.0]))] * 2  # its one node is 0
    for e in all_ranks(flat, 9):
        assert np.isnan(e.value)
        assert e.note == "the rules of m = 1 steps have no mass off 0: take more steps"
    one = [Tridiagonal(np.array([1.0]), np.array([0.5]))] * 2  # one step: |x| and x^2 of a single node
    assert ranks.participation_rank(Quadrature(one, 9, ETA)).value == pytest.approx(9 / 1.25)
    assert ranks.stable_rank(Quadrature(one, 9, ETA, "sphere")).value == 9  # 9 * 1.25 / 1, and no more than n
    assert ranks.entropy_rank(Quadrature(one, 9, ETA)).value == pytest.approx(9)
    zero_trace = [Tridiagonal(np.array([0.0, 0.0]), np.array([1.0, 0.5]))] * 2
    for e in (
        ranks.participation_rank(Quadrature(zero_trace, 9, ETA)),
        ranks.entropy_rank(Quadrature(zero_trace, 9, ETA)),
    ):  # nodes 1 and -1
        assert e.value == pytest.approx(9)
        assert (e.lower, e.upper) == (1, 9)  # one step less has no mass off 0: all is open
