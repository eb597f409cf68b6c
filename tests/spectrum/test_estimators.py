"""The registry of estimators. Run this file as a script to write its table into ``docs/quantities.md``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spectra.errors import ArgumentError
from spectra.spectrum import deflation
from spectra.spectrum.consistency import DEFINED, RELATIONS
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.error_budget import NAMES
from spectra.spectrum.estimators import BY_NAME, ENDS, ESTIMATORS, SUMMARY, Interval, reference_table
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

PAGE = Path(__file__).parents[2] / "docs" / "quantities.md"
BEGIN = "<!-- python tests/spectrum/test_estimators.py makes this table from spectra/spectrum/estimators.py -->\n\n"
END = "\n<!-- end of the table -->\n"

ROWS = (
    ([2.0, -1.0, 0.5], [0.7, 0.3, 0.1]),
    ([1.8, -0.6, 0.4], [0.6, 0.4, 0.2]),
    ([2.3, 0.1, 0.2], [0.5, 0.2, 0.1]),
)


def spectrum(**more) -> Spectrum:
    return Spectrum([Tridiagonal(alphas, betas) for alphas, betas in ROWS], n=40, noise=1e-9, seed=0, **more)


def with_eigenpairs() -> Spectrum:
    pairs = Eigenpairs(np.array([2.5]), np.array([1e-9]), np.array([True]), scale=2.5)
    return spectrum(eigenpairs=pairs, overlaps=np.array([[0.1], [0.2], [-0.1]]))


def test_the_table_in_the_documentation_is_that_of_the_registry():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert page.split(BEGIN)[1].split(END)[0] == reference_table(), "python tests/spectrum/test_estimators.py writes it"


def test_names_are_told_apart_and_every_cell_of_the_table_is_filled():
    assert len(BY_NAME) == len(ESTIMATORS)
    assert all(e.name and e.formula and e.cost and e.error and e.conclude for e in ESTIMATORS)
    assert {e.variant_of for e in ESTIMATORS} <= {None, *BY_NAME}


def test_a_spectrum_has_every_estimate_of_the_registry_in_its_order():
    names = list(with_eigenpairs().estimates())
    assert names == [e.name for e in ESTIMATORS]
    assert list(spectrum().estimates()) == [e.name for e in ESTIMATORS if not e.needs_eigenpairs]


@pytest.mark.parametrize("entry", ESTIMATORS, ids=lambda entry: entry.name)
def test_the_error_of_an_estimate_is_of_the_kind_that_the_registry_says(entry):
    estimate = entry.compute(with_eigenpairs().quadrature)
    assert estimate.lower <= estimate.value <= estimate.upper
    assert (estimate.tau is not None) == (entry.curve is not None) == (entry.interval is Interval.BRACKET)
    if entry.interval is Interval.ENDS:
        assert estimate.stderr is None
        assert ENDS[entry.name] is entry.compute
    if entry.interval in (Interval.SAMPLES, Interval.RULES):
        assert estimate.stderr > 0


def test_a_number_that_the_trace_determines_is_that_function_of_the_trace():
    found = spectrum().estimates()
    for entry in ESTIMATORS:
        if entry.from_trace is not None:
            assert found[entry.name].value == pytest.approx(entry.from_trace(found["trace"].value, 40))
            assert entry.from_trace(80.0, 40) in (80.0, 2.0)


def test_proved_relations_are_between_estimates_of_the_registry():
    named = {term.name for relation in RELATIONS for term in (relation.smaller, relation.larger)}
    named |= {name for name, term in DEFINED} | {term.name for _, term in DEFINED}
    assert named <= set(BY_NAME)


def test_the_lists_that_are_made_from_the_registry():
    assert tuple(list(BY_NAME)[:12]) == NAMES
    assert SUMMARY[:4] == ("trace", "trace_deflated", "frobenius_norm", "frobenius_norm_deflated")
    assert list(ENDS) == ["spectral_norm", "lambda_max", "lambda_min"]


def test_a_curve_over_the_default_tolerances_is_computed_once_for_the_same_rules():
    one = spectrum()
    assert one.degeneracy_curve() is one.degeneracy_curve()
    assert one.negative_curve() is one.negative_curve()
    assert one.negative_curve() is not one.degeneracy_curve()
    assert one.degeneracy_curve() is not one.with_exact_trace(1.0).degeneracy_curve()


@pytest.mark.parametrize("estimate", [deflation.trace, deflation.frobenius_norm])
def test_deflated_estimates_need_eigenpairs(estimate):
    with pytest.raises(ArgumentError, match="no eigenpairs"):
        estimate(spectrum().quadrature)


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + reference_table() + END + rest.split(END)[1], encoding="utf-8")
