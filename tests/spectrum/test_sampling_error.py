"""The error from the data is what other samples of the population change in the trace, and has no probe noise in it."""

from __future__ import annotations

import numpy as np
import pytest
from reference import sphere_starts

from spectra.spectrum.sampling_error import population_error


def design(random: np.random.Generator, shape: tuple[int, ...], d: int) -> np.ndarray:
    """Inputs of a linear regression, of unequal variances."""
    return random.standard_normal((*shape, d)) * np.sqrt(np.linspace(0.2, 2.0, d))


def contributions(x: np.ndarray, starts: np.ndarray, sizes: list[int]) -> np.ndarray:
    """What each batch adds to ``q' H q``, ``H = (2/N) X'X``; (k, B)."""
    squares = 2 * (x @ starts.T) ** 2 / len(x)
    return np.add.reduceat(squares, np.cumsum([0, *sizes[:-1]]), axis=0).T


@pytest.mark.parametrize("sizes", [[20] * 12, [10, 40] * 5, [25] * 9 + [5]], ids=["equal", "two sizes", "short last"])
def test_over_data_sets_the_error_is_that_of_the_trace_and_with_fixed_probes_that_of_the_estimate(sizes):
    """Population: x ~ N(0, S), H = 2 S. Var(Tr H) = 8 Tr S^2 / N by the fourth moments; the fixed probes' by q' S q."""
    d, k, trials, weights = 6, 8, 4000, np.array(sizes, dtype=float)
    variances, total = np.linspace(0.2, 2.0, d), sum(sizes)
    starts = sphere_starts(d, k, 3)
    random = np.random.default_rng(0)
    trace, estimate, unbiased, fixed = [], [], [], []
    for _ in range(trials):
        x = design(random, (total,), d)
        forms = contributions(x, starts, sizes)
        trace.append(2 * float((x**2).sum()) / total / d)
        estimate.append(float(forms.sum(1).mean()))
        found = population_error(forms, weights)
        fixed.append(found.fixed_probes**2)
        # The mean of C off its diagonal, before it is asked whether it can be told from 0.
        shares = weights / weights.sum()
        e = forms - np.outer(forms.sum(1), shares)
        c = e @ e.T / (1 - shares @ shares)
        unbiased.append((c.sum() - np.trace(c)) / (k * (k - 1)))
        if found.stderr is not None:
            assert found.stderr**2 == pytest.approx(unbiased[-1], rel=1e-9)
    # For fixed probes: Cov(q'xx'q, p'xx'p) = 2 (q'Sp)^2.
    inner = (starts * variances) @ starts.T
    assert np.var(estimate) == pytest.approx(8 * float((inner**2).mean()) / total, rel=0.08)
    assert np.mean(fixed) == pytest.approx(8 * float((inner**2).mean()) / total, rel=0.04)
    # Off the diagonal, for these probes; its mean over probes is the variance of the trace over d^2.
    off = float((inner**2).sum() - (np.diag(inner) ** 2).sum()) / (k * (k - 1))
    assert np.mean(unbiased) == pytest.approx(8 * off / total, rel=0.06)
    assert np.var(trace) == pytest.approx(8 * float((variances**2).sum()) / total / d**2, rel=0.08)


@pytest.mark.slow
def test_over_probes_too_its_square_is_the_variance_of_the_trace_where_the_fixed_probes_overstate_it():
    """30 directions, 4 probes: with them the variance is (d + k - 1) / k = 8.25 times that of the trace."""
    d, k, trials, sizes = 30, 4, 10000, [20] * 20
    random = np.random.default_rng(1)
    unbiased, fixed = [], []
    for trial in range(trials):
        forms = contributions(random.standard_normal((400, d)), sphere_starts(d, k, trial), sizes)
        e = forms - forms.mean(1, keepdims=True)
        c = e @ e.T * 20 / 19
        unbiased.append((c.sum() - np.trace(c)) / (k * (k - 1)))
        fixed.append(c.sum() / k**2)
        if (found := population_error(forms, np.full(20, 20.0))).fixed_probes is not None:
            assert found.fixed_probes**2 == pytest.approx(fixed[-1], rel=1e-9)
    truth = 8 / (400 * d)  # Var(2 mean |x|^2) / d^2
    assert np.mean(unbiased) == pytest.approx(truth, abs=4 * np.std(unbiased) / np.sqrt(trials))
    assert np.std(unbiased) / np.sqrt(trials) < 0.05 * truth
    assert np.mean(fixed) == pytest.approx(8 / 400 * (1 / k + (k - 1) / k / d), rel=0.03)
    assert np.mean(fixed) > 7 * truth


def test_what_the_probes_miss_of_the_mean_is_no_error_from_the_data():
    """Every batch has the same H: the probes scatter and the data change nothing."""
    forms = np.tile(np.array([[1.0], [5.0], [-2.0]]), 10)
    found = population_error(forms, np.ones(10))
    assert found.fixed_probes == pytest.approx(0.0, abs=1e-15)
    assert found.stderr == pytest.approx(0.0, abs=1e-15)


def test_what_differs_between_probes_alone_is_refused_with_its_bound():
    random = np.random.default_rng(2)
    told = 0
    for _ in range(200):
        found = population_error(random.standard_normal((8, 20)), np.ones(20))
        told += found.stderr is not None
        if found.stderr is None:
            assert "which the scatter of the probes hides" in found.reason
    assert told <= 20


@pytest.mark.parametrize(
    ("forms", "weights", "words"),
    [
        (np.ones((4, 4)), np.ones(4), "too few batches (4 batches"),
        (np.ones((4, 1)), np.ones(1), "too few batches (1 batch,"),
        (np.ones((4, 6)), np.array([100.0, 1, 1, 1, 1, 1]), "too few batches"),
        (np.arange(12.0)[None] % 5, np.ones(12), "with one probe"),
        (np.repeat([[0.0, 1, 2, 3]] * 4, 8, axis=1), np.ones(32), "neighbouring batches are alike"),
    ],
    ids=["four", "one", "one is nearly all", "one probe", "sorted"],
)
def test_it_is_refused_with_a_reason_where_it_would_not_be_right(forms, weights, words):
    found = population_error(forms, weights)
    assert found.stderr is None
    assert words in found.reason


def test_random_batches_are_called_alike_in_one_case_in_a_hundred_at_most():
    random = np.random.default_rng(4)
    trials = [population_error(np.tile(random.standard_normal(30), (3, 1)), np.ones(30)) for _ in range(1000)]
    assert sum("alike" in (found.reason or "") for found in trials) <= 10
