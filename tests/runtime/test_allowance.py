"""What optional work may cost: predicted from counts, and taken before the work begins."""

from __future__ import annotations

import pytest
import torch

from spectra.runtime.allowance import PRODUCT, SMALL, WIDER, Allowance, OverBudget, affordable, cost, limited, spend


def allowance_of(products, *, parameters=10**7, targets=10**4, dtype="float32"):
    return Allowance.of_products(products, parameters=parameters, targets=targets, dtype=dtype)


def test_a_spectrum_allows_as_much_as_it_costs():
    assert allowance_of(800).total == PRODUCT * 800


def test_what_is_small_for_any_network_is_allowed_whatever_the_spectrum_costs():
    assert allowance_of(2, parameters=100, targets=10).total == SMALL / 1000
    assert allowance_of(2, parameters=100, targets=0.5).total == SMALL / 100  # weights may be anything above 0


def test_what_is_spent_is_not_there_any_more():
    allowance = allowance_of(8)
    with limited(allowance):
        assert affordable(4.0) == 5.0
        spend(15)
        assert affordable(5.0) == 1.0
        with pytest.raises(OverBudget, match=r"8 draws: about 6 gradients, and 5 of a budget of 20 are left"):
            spend(6, what="8 draws")
        spend(5)
        with pytest.raises(OverBudget):
            spend(0.1)
    assert (allowance.spent, allowance.left) == (20, 0)


def test_nothing_is_limited_outside_of_a_block_nor_in_one_without_an_allowance():
    spend(1e12)
    with limited(allowance_of(1)), limited(None):
        spend(1e12)
        assert affordable(1e12) == float("inf")


def test_an_inner_block_leaves_the_outer_one_as_it_was():
    outer = allowance_of(8)
    with limited(outer):
        with limited(allowance_of(800)):
            spend(1000)
        with pytest.raises(OverBudget):
            spend(1000)


@pytest.mark.parametrize("dtype", [torch.float64, "float64", "torch.float64"])
def test_float64_costs_more_beside_a_float32_record_only(dtype):
    with limited(allowance_of(1)):
        assert cost(3, dtype) == 3 * WIDER
        assert cost(3, torch.float32) == cost(3) == 3
    with limited(allowance_of(1, dtype="float64")):
        assert cost(3, dtype) == 3
