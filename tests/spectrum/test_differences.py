"""Differences of two spectra: paired where the probes are shared, and right whether that helps or not."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from reference import bulk_with_outliers, lanczos, probes_of, sphere_starts
from scipy import stats

from spectra.errors import ArgumentError
from spectra.spectrum.count_differences import common_tolerance
from spectra.spectrum.differences import difference, tensor_differences
from spectra.spectrum.pairing import p_of, welch_dof, why_not_paired
from spectra.spectrum.spectrum import Spectrum

N = 200


def spectrum(eigenvalues, *, steps: int = 20, probes: int = 6, seed: int = 0, **changes) -> Spectrum:
    options = {"seed": seed, "noise": 0.0} | changes
    return Spectrum(probes_of(np.asarray(eigenvalues, dtype=float), steps, probes, seed), len(eigenvalues), **options)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return bulk_with_outliers(N, 0)


def test_the_paired_error_of_a_trace_is_that_of_the_trace_of_the_difference(values):
    """By linearity in H: the samples of both sides, subtracted, are those of H_a - H_b."""
    other = values + np.random.default_rng(1).normal(0, 0.1, N)
    found = difference(spectrum(other, steps=1), spectrum(values, steps=1))
    direct = spectrum(other - values, steps=1).trace()
    assert found.paired
    assert found.value == pytest.approx(direct.value)
    assert found.stderr == pytest.approx(direct.stderr)
    assert (found.lower, found.upper) == pytest.approx((direct.lower, direct.upper))
    assert found.stderr < 0.2 * found.unpaired_stderr


def test_the_variance_of_a_paired_difference_is_that_of_the_formula_also_where_pairing_makes_it_larger(values):
    """Per probe 2n/(n+2) (|D|_F^2 - (tr D)^2/n) with D = H_a - H_b; twice the unpaired one for H_b = -H_a."""
    for factor in (0.9, -1.0):
        a, b = (spectrum(v, steps=1, probes=3000) for v in (values, factor * values))
        found = difference(a, b)
        gap = (1 - factor) * values
        expected = 2 * N / (N + 2) * ((gap**2).sum() - gap.sum() ** 2 / N)
        assert 3000 * found.stderr**2 == pytest.approx(expected, rel=0.15)
        assert (found.stderr > found.unpaired_stderr) == (factor < 0)


@pytest.mark.parametrize(
    ("name", "options", "truth"),
    [
        ("trace", {}, lambda x: x.sum()),
        ("mean_eigenvalue", {}, lambda x: x.mean()),
        ("second_moment", {}, lambda x: (x**2).mean()),
        ("moment", {"p": 3}, lambda x: (x**3).mean()),
        ("frobenius_square", {}, lambda x: (x**2).sum()),
        ("frobenius_norm", {}, lambda x: sqrt((x**2).sum())),
        ("rank_degeneracy", {"tau": 0.02}, lambda x: (abs(x) <= 0.02).mean()),
        ("negative_mass", {"tau": 0.02}, lambda x: (x < -0.02).mean()),
        ("lambda_max", {}, max),
        ("lambda_min", {}, min),
        ("spectral_norm", {}, lambda x: abs(x).max()),
        ("participation_rank", {}, lambda x: abs(x).sum() ** 2 / (x**2).sum()),
    ],
)
def test_intervals_hold_the_true_difference(values, name, options, truth):
    """Over 40 draws of the probes, paired and not: 95 % intervals fail 8 times with a probability below 1 in 1,000."""
    other = values * np.where(np.abs(values) > 0.01, 1.3, 1.0) + 1e-4
    expected = truth(other) - truth(values)
    for shift in (0, 1000):
        held = 0
        for draw in range(40):
            a, b = spectrum(other, seed=draw, probes=5), spectrum(values, seed=draw + shift, probes=5)
            found = difference(a, b, name, **options)
            assert found.lower <= found.value <= found.upper
            held += found.lower <= expected <= found.upper
        assert held > 32, (shift, held)


def test_two_sides_that_are_the_same_differ_by_exactly_nothing(values):
    a = spectrum(values)
    for name in ("trace", "frobenius_norm", "second_moment"):
        found = difference(a, a, name)
        assert (found.value, found.stderr, found.p_value, found.excludes_zero) == (0.0, 0.0, 1.0, False)
    count = difference(a, a, "rank_degeneracy", tau=0.02)
    assert count.value == count.stderr == 0.0
    assert not count.excludes_zero


def test_a_difference_within_the_arithmetic_is_none(values):
    a, b = (spectrum(v, noise=1e-3) for v in (1 + 0.1 * values, (1 + 0.1 * values) * (1 + 1e-4)))
    found = difference(b, a)
    assert found.stderr < abs(found.value)
    assert found.p_value == 1.0
    assert not found.excludes_zero


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 0 and 1"),
        ({"seed": None}, "seed of the probes is not known"),
        ({"distribution": "rademacher"}, "distribution is sphere and rademacher"),
        ({"n": N + 1}, f"n is {N} and {N + 1}"),
        ({"probes": 5}, "num_probes is 6 and 5"),
        ({"tensor_sizes": {"b": N}, "tensor_forms": np.ones((6, 1))}, "tensors differ"),
    ],
)
def test_probes_that_are_not_shared_are_not_paired_and_it_is_said_why(values, changes, words):
    a = spectrum(values, tensor_sizes={"a": N}, tensor_forms=np.ones((6, 1)))
    tridiagonals = probes_of(values, 20, changes.pop("probes", 6), 0)
    b = Spectrum(tridiagonals, changes.pop("n", N), **({"seed": 0} | changes))
    assert words in why_not_paired(a, b)
    found = difference(a, b)
    assert not found.paired
    assert words in found.why_not
    assert found.stderr == found.unpaired_stderr == pytest.approx(sqrt(a.trace().stderr ** 2 + b.trace().stderr ** 2))


def test_the_unpaired_test_is_welchs():
    """Against SciPy's own test on the same samples."""
    random = np.random.default_rng(0)
    a, b = (spectrum(random.normal(m, 1, 50), steps=1, probes=k, seed=k) for m, k in ((0, 5), (0.3, 8)))
    found = difference(a, b)
    samples = [50 * np.array([t.alphas[0] for t in s.tridiagonals]) for s in (a, b)]
    expected = stats.ttest_ind(*samples, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.dof == pytest.approx(expected.df)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high))


def test_the_paired_test_is_students():
    a, b = (spectrum(v, probes=7) for v in (np.linspace(-1, 3, 60), np.linspace(-1, 2, 60)))
    samples = [60 * np.array([t.alphas[0] for t in s.tridiagonals]) for s in (a, b)]
    expected = stats.ttest_rel(*samples)
    assert difference(a, b).p_value == pytest.approx(expected.pvalue)


def test_the_ends_differ_by_what_both_their_intervals_allow(values):
    a, b = spectrum(2 * values, steps=8), spectrum(values, steps=8)
    found = difference(a, b, "lambda_max")
    assert (found.stderr, found.p_value, found.confidence) == (None, None, 0.95)
    assert found.upper - found.lower > a.lambda_max().upper - a.lambda_max().lower
    assert found.value == a.lambda_max().value - b.lambda_max().value


def test_other_estimates_say_that_their_interval_holds_with_90_percent(values):
    found = difference(spectrum(2 * values), spectrum(values), "entropy_rank")
    assert (found.stderr, found.confidence) == (None, 0.9)


def test_counts_are_taken_at_one_tolerance_that_both_resolve(values):
    a, b = spectrum(3 * values, steps=40), spectrum(values, steps=40)
    tau = common_tolerance([a, b])
    found = difference(a, b, "rank_degeneracy")
    assert found.tau == tau
    finer = [t for t in a.degeneracy_curve().tau if t < tau * (1 - 1e-9)]  # a is the wider one: its grid is taken
    assert finer
    assert not any(a.rank_degeneracy(t).resolved and b.rank_degeneracy(t).resolved for t in finer)
    assert a.rank_degeneracy(tau).resolved
    assert b.rank_degeneracy(tau).resolved
    assert found.resolved


def test_a_count_that_is_not_resolved_has_a_bracket_and_no_error():
    line = np.linspace(-1, 1, N)
    found = difference(spectrum(line, steps=4), spectrum(2 * line, steps=4), "rank_degeneracy", tau=0.01)
    assert not found.resolved
    assert (found.stderr, found.p_value) == (None, None)
    assert found.lower <= 0.005 <= found.upper
    nowhere = difference(spectrum(line, steps=3), spectrum(2 * line, steps=3), "rank_degeneracy")
    assert (nowhere.resolved, nowhere.lower, nowhere.upper) == (False, -1.0, 1.0)


def test_one_probe_has_a_value_and_no_error(values):
    found = difference(spectrum(values, probes=1), spectrum(2 * values, probes=1))
    assert (found.stderr, found.lower, found.p_value, found.excludes_zero) == (None, None, None, None)
    assert found.note == "one probe has no error"


def test_differences_by_tensor_sum_to_that_of_the_trace_and_are_paired(values):
    starts = sphere_starts(N, 5, 0)

    def made(eigenvalues, names=("w", "b")):
        forms = starts**2 * eigenvalues
        parts = {"w": forms[:, :150].sum(1), "b": forms[:, 150:].sum(1)}
        return Spectrum(
            [lanczos(eigenvalues, start, 5) for start in starts],
            N,
            seed=0,
            tensor_sizes={name: {"w": 150, "b": 50}[name] for name in names},
            tensor_forms=np.stack([parts[name] for name in names], axis=1),
        )

    a, b = made(1.1 * values), made(values)
    found = tensor_differences(a, b)
    assert sum(d.value for d in found.values()) == pytest.approx(difference(a, b).value)
    assert found["w"].paired
    assert found["w"].stderr == pytest.approx(0.1 * b.tensor_traces()["w"].stderr)
    crossed = tensor_differences(a, made(values, ("b", "w")))  # the same tensors in another order: other probes
    assert crossed["w"].value == pytest.approx(found["w"].value)
    assert not crossed["w"].paired
    with pytest.raises(ArgumentError, match="were not kept"):
        tensor_differences(a, spectrum(values))
    with pytest.raises(ArgumentError, match="not the same"):
        tensor_differences(a, made(values, ("w", "b")[:1]))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("pie", {}, "no estimate 'pie': there are frobenius_square"),
        ("density", {}, "no estimate 'density'"),
        ("_curve", {}, "no estimate '_curve'"),
        ("moment", {"p": 99}, "moment 99"),
        ("rank_degeneracy", {"tau": -1.0}, "tau=-1"),
    ],
)
def test_what_has_no_difference_is_refused(values, name, options, words):
    with pytest.raises(ArgumentError, match=words):
        difference(spectrum(values), spectrum(values), name, **options)


def test_welch_and_p_at_their_limits():
    assert welch_dof([1.0, 1.0], [5, 5]) == pytest.approx(8)
    assert welch_dof([1.0, 0.0], [5, 9]) == pytest.approx(4)
    assert welch_dof([0.0, 0.0], [5, 9]) == 4
    assert p_of(0.0, 0.0, 3) == 1.0
    assert p_of(1.0, 0.0, 3) == 0.0
    assert p_of(2.0, 1.0, 3) == pytest.approx(2 * stats.t.sf(2, 3))


def test_the_difference_is_that_of_the_two_numbers_unless_the_plain_samples_surely_scatter_less():
    """Few probes scatter little by chance: a choice by their scatter alone took 1.26 for a difference of 0.43."""
    rng = np.random.default_rng(0)
    base = np.concatenate([[3.0, 1.2, 0.6], rng.normal(0.0, 0.2, 60)])
    other = np.concatenate([[2.0, 1.3, 0.7], rng.normal(0.0, 0.2, 60)])
    different_counts = 0
    for seed in range(60):
        a = Spectrum(probes_of(base, 8, 3, seed), base.size, seed=seed).with_exact_trace(float(base.sum()))
        b = Spectrum(probes_of(other, 8, 3, seed), other.size, seed=seed).with_exact_trace(float(other.sum()))
        found = difference(a, b, "second_moment")
        assert found.value == pytest.approx(a.moment(2).value - b.moment(2).value, abs=1e-12)
        different_counts += a.quadrature.converged.count != b.quadrature.converged.count
    assert different_counts > 5


def test_nearly_equal_matrices_cancel_though_an_eigenvalue_has_converged_on_one_side_only():
    rng = np.random.default_rng(0)
    bulk = rng.normal(0.0, 0.3, 200)
    few, more = np.append(bulk, 2.0), np.append(bulk, 2.00002)  # by 6 steps and by 12
    counts = []
    for seed in range(6):
        a, b = (Spectrum(probes_of(values, m, 8, seed), 201, seed=seed) for values, m in ((few, 6), (more, 12)))
        counts.append((a.quadrature.converged.count, b.quadrature.converged.count))
        found = difference(a, b, "second_moment")
        assert found.stderr < 1e-4 * found.unpaired_stderr
    assert (0, 1) in counts
