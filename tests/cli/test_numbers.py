"""Numbers in tables have the digits that their errors justify, whatever the source of the error."""

from __future__ import annotations

import pytest

from spectra.spectrum.estimates import Estimate
from spectra_cli.numbers import in_short, number


def estimate(value, stderr, lower, upper):
    return Estimate(value=value, stderr=stderr, lower=lower, upper=upper, num_probes=4)


@pytest.mark.parametrize(
    ("given", "in_table", "short"),
    [
        ((12.3456, 0.5621, 10.9, 13.8), ("12.35", "0.56"), "12.35 +- 0.56"),
        # all probes agree because the Krylov space is exhausted: what is left is the rounding of the products
        ((0.0333988318, 5.9e-18, 0.033398818, 0.033398846), ("0.0333988318", "5.9e-18"), "0.033398818 to 0.033398846"),
        ((2.0, 0.0, 1.9, 2.1), ("2", "0"), "1.9 to 2.1"),
        ((2.0, 0.0, 2.0, 2.0), ("2", "0"), "2 +- 0"),
        # the widest interval that two probes alone can have
        ((10.0, 1.0, -2.7, 22.7), ("10.0", "1.0"), "10.0 +- 1.0"),
    ],
)
def test_digits_are_those_of_the_larger_error(given, in_table, short):
    assert number(estimate(*given)) == in_table
    assert in_short(estimate(*given)) == short
