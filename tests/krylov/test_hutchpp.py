"""Hutch++: unbiased, less scattered than plain probes where outliers dominate, exact where the sketch is the whole."""

from __future__ import annotations

import numpy as np
import pytest

from spectra import DenseOperator, hutchpp, slq
from spectra.errors import ArgumentError, NumericsError
from spectra.operators.base import SymmetricOperator

OUTLIERS = np.concatenate([np.linspace(-0.5, 1.0, 57), [20.0, 30.0, -25.0]])


def hidden(eigenvalues, dtype=np.float64):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((n, n)))
    matrix = (q * eigenvalues) @ q.T
    return DenseOperator(((matrix + matrix.T) / 2).astype(dtype))


def test_it_is_unbiased_and_its_error_is_its_scatter_and_smaller_than_that_of_plain_probes():
    operator = hidden(OUTLIERS)
    found = [hutchpp(operator, 24, seed) for seed in range(300)]
    values = np.array([e.value for e in found])
    error = values.std(ddof=1) / np.sqrt(300)
    assert abs(values.mean() - OUTLIERS.sum()) < 3 * error
    assert np.sqrt(np.mean([e.stderr**2 for e in found])) == pytest.approx(values.std(ddof=1), rel=0.15)
    plain = np.array([slq(operator, 1, 24, seed).trace().value for seed in range(100)])
    assert values.std(ddof=1) < 0.25 * plain.std(ddof=1)
    covered = np.mean([e.lower <= OUTLIERS.sum() <= e.upper for e in found])
    assert covered > 0.91


def test_the_products_are_those_asked_for():
    class Counting(DenseOperator):
        seen = 0

        def apply(self, block):
            Counting.seen += len(block)
            return super().apply(block)

    for products in (6, 7, 24, 50):
        Counting.seen = 0
        estimate = hutchpp(Counting(np.diag(OUTLIERS)), products)
        assert Counting.seen == products
        assert estimate.num_probes == products - 2 * (products // 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sketch_of_the_whole_space_gives_the_trace_itself(dtype):
    estimate = hutchpp(hidden(OUTLIERS, dtype), 180)
    assert estimate.value == pytest.approx(OUTLIERS.sum(), rel=1e-4 if dtype == np.float32 else 1e-12)
    assert estimate.stderr == 0
    assert estimate.lower <= OUTLIERS.sum() <= estimate.upper
    assert hutchpp(DenseOperator(np.zeros((20, 20))), 9).value == 0
    rank_one = DenseOperator(np.outer(np.arange(20.0), np.arange(20.0)))
    assert hutchpp(rank_one, 9).value == pytest.approx(np.arange(20.0) @ np.arange(20.0))


def test_arguments_and_products_that_are_no_numbers_are_refused():
    operator = hidden(OUTLIERS)
    with pytest.raises(ArgumentError, match="products=5: at least 6"):
        hutchpp(operator, 5)
    with pytest.raises(ArgumentError, match="seed=-1"):
        hutchpp(operator, 6, seed=-1)

    class Broken(DenseOperator):
        def apply(self, block):
            return super().apply(block) * float("nan")

    broken: SymmetricOperator = Broken(np.eye(8))
    with pytest.raises(NumericsError, match="NaN or infinite"):
        hutchpp(broken, 6)
