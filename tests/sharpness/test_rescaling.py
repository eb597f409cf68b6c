"""The convex problem behind minimum sharpness: closed forms, certificates, zero blocks, against scipy's minimisers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from spectra.errors import ArgumentError
from spectra.sharpness.rescaling import (
    bias_free_minimum,
    chain_exponents,
    chain_minimum,
    minimise_rescaled,
    relative_gradient,
)


def objective(traces, exponents):
    return lambda u: float(np.sum(traces * np.exp(-2 * exponents @ u)))


def test_without_biases_the_minimum_is_d_times_the_geometric_mean():
    traces = np.array([1.0, 2.0, 4.0])
    found = minimise_rescaled(traces, chain_exponents(3, biases=False))
    assert found.value == pytest.approx(6.0, rel=1e-14)
    assert bias_free_minimum(traces) == pytest.approx(6.0, rel=1e-14)
    assert found.attained
    assert found.blocks == pytest.approx([2.0, 2.0, 2.0])  # all rescaled blocks are equal


def test_the_optimal_scales_are_square_roots():
    """alpha_d = sqrt(T_d / geomean(T)); the paper's appendix prints alpha^-2."""
    traces = np.array([0.3, 7.0, 2.0, 0.01])
    exponents = chain_exponents(4, biases=False)
    alphas = np.exp(exponents @ minimise_rescaled(traces, exponents).log_scales)
    assert alphas == pytest.approx(np.sqrt(traces / np.exp(np.log(traces).mean())), rel=1e-12)
    assert np.prod(alphas) == pytest.approx(1.0)


def test_two_layers_with_biases_have_a_closed_form():
    assert chain_minimum([3, 5], [2, 7]).value == pytest.approx(17.0, rel=1e-14)
    assert chain_minimum([0.2, 11.0], [3.0, 0.0]).value == pytest.approx(2 * np.sqrt(3.2 * 11.0), rel=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_the_certificate_of_a_chain_is_its_balance(seed):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(2, 9))
    t, b = np.exp(4 * rng.standard_normal((2, layers)))
    found = chain_minimum(t, b)
    weights, biases = found.blocks[:layers], found.blocks[layers:]
    assert weights[1:] == pytest.approx((weights + biases)[:-1], abs=1e-12 * found.value)  # t_{d+1} = t_d + b_d
    assert found.certificate < 1e-12
    assert found.value == pytest.approx(found.blocks.sum(), rel=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_random_problems_agree_with_bfgs(seed):
    rng = np.random.default_rng(seed)
    t, b = np.exp(rng.standard_normal((2, 6)))
    traces, exponents = np.concatenate([t, b]), chain_exponents(6)
    other = minimize(objective(traces, exponents), np.zeros(5), method="BFGS", options={"gtol": 1e-10})
    found = chain_minimum(t, b)
    assert found.value == pytest.approx(other.fun, rel=1e-8)
    assert found.value <= other.fun * (1 + 1e-12)


def test_general_exponents_agree_with_bfgs():
    rng = np.random.default_rng(3)
    exponents = rng.integers(-2, 3, (12, 3)).astype(float)
    exponents = np.concatenate([exponents, -exponents.sum(axis=0, keepdims=True)])  # sums to 0: coercive
    traces = np.exp(rng.standard_normal(13))
    other = minimize(objective(traces, exponents), np.zeros(3), method="BFGS", options={"gtol": 1e-11})
    assert minimise_rescaled(traces, exponents).value == pytest.approx(other.fun, rel=1e-9)


def test_a_perturbed_minimiser_fails_the_certificate():
    traces, exponents = np.array([3.0, 5.0, 2.0, 7.0]), chain_exponents(2)
    found = minimise_rescaled(traces, exponents)
    moved = traces * np.exp(-2 * exponents @ (found.log_scales + 1e-4))
    assert relative_gradient(found.blocks, exponents) < 1e-14
    assert relative_gradient(moved, exponents) > 1e-5


def test_the_minimum_is_that_of_the_rescaled_problem_too():
    rng = np.random.default_rng(5)
    t, b = np.exp(rng.standard_normal((2, 5)))
    traces, exponents = np.concatenate([t, b]), chain_exponents(5)
    elsewhere = traces * np.exp(-2 * exponents @ rng.standard_normal(4))
    assert minimise_rescaled(elsewhere, exponents).value == pytest.approx(
        minimise_rescaled(traces, exponents).value, rel=1e-12
    )


def test_a_zero_block_leaves_an_infimum_that_is_not_attained():
    found = chain_minimum([1, 0, 4], [2, 3, 7])
    assert found.value == pytest.approx(2 * np.sqrt(12) + 7, rel=1e-14)  # 13.9282
    assert not found.attained
    assert found.dropped == (0, 3)  # T_1 and B_1 are driven to 0
    values = [
        objective(np.array([1, 0, 4, 2, 3, 7.0]), chain_exponents(3))(found.log_scales + s * found.recession)
        for s in (0.0, 2.0, 20.0)
    ]
    assert values[0] > values[1] > values[2] == pytest.approx(found.value, rel=1e-12)


def test_without_biases_one_zero_block_makes_the_infimum_zero():
    found = minimise_rescaled([1.0, 0.0, 4.0], chain_exponents(3, biases=False))
    assert (found.value, found.attained, found.dropped) == (0.0, False, (0, 2))
    assert bias_free_minimum([1.0, 0.0, 4.0]) == 0.0
    nothing = minimise_rescaled([0.0, 0.0], chain_exponents(2, biases=False))
    assert (nothing.value, nothing.attained) == (0.0, True)


def test_rounding_noise_is_taken_for_zero_only_on_request():
    traces, biases = np.array([1.0, 1e-17, 4.0]), np.array([2.0, 3.0, 7.0])
    asked = minimise_rescaled(np.concatenate([traces, biases]), chain_exponents(3), zero_tolerance=1e-14)
    assert asked.value == pytest.approx(2 * np.sqrt(12) + 7, rel=1e-14)
    assert "dead layer" in asked.note
    kept = chain_minimum(traces, biases)
    assert kept.attained
    assert kept.note is None
    assert kept.value == pytest.approx(asked.value, rel=1e-6)


def test_blocks_far_apart_are_no_trouble():
    traces = 10.0 ** np.array([-140.0, 120.0, -60.0, 150.0])
    assert bias_free_minimum(traces) == pytest.approx(4 * 10**17.5, rel=1e-12)
    assert minimise_rescaled(traces, chain_exponents(4, False)).value == pytest.approx(4 * 10**17.5, rel=1e-12)
    assert chain_minimum([1e-100, 1e100], [1e-90, 3.0]).value == pytest.approx(2 * np.sqrt(1e10 + 1) + 3, rel=1e-12)


def test_a_deep_chain_is_certified():
    rng = np.random.default_rng(1)
    t, b = np.exp(3 * rng.standard_normal((2, 80)))
    assert chain_minimum(t, b).certificate < 1e-10


def test_scales_that_change_nothing_are_left_alone():
    exponents = np.array([[1.0, 1.0], [-1.0, -1.0]])
    assert minimise_rescaled([4.0, 9.0], exponents).value == pytest.approx(12.0, rel=1e-14)
    assert minimise_rescaled([4.0, 9.0], np.zeros((2, 0))).value == pytest.approx(13.0, rel=1e-14)


def test_what_cannot_be_minimised_is_refused():
    with pytest.raises(ArgumentError, match=r"the trace of conv\.weight is -0\.088.*Gauss-Newton"):
        minimise_rescaled([1.0, -0.088], chain_exponents(2, False), ["fc.weight", "conv.weight"])
    with pytest.raises(ArgumentError, match="zero_tolerance"):
        minimise_rescaled([1.0, 1.0], chain_exponents(2, False), zero_tolerance=-1)
    with pytest.raises(ArgumentError, match="one row per block"):
        minimise_rescaled([1.0, 1.0, 1.0], chain_exponents(2, False))
    with pytest.raises(ArgumentError, match="one of each per layer"):
        chain_minimum([1.0, 1.0], [1.0])
