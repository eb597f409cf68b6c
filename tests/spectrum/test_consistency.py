"""What is proved between the numbers of one operator: found where it is broken, mended, and kept by every spectrum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reference import bulk_with_outliers, probes_of

from spectra.spectrum.consistency import DEFINED, RELATIONS, contradictions, reconciled
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum

EIGENVALUES = np.concatenate([[9.0, -4.0, 2.0], np.linspace(-0.1, 0.3, 97)])


@pytest.fixture(scope="module")
def whole() -> dict[str, Estimate]:
    """The exact numbers of a matrix as estimates: nothing can be wrong with them."""
    x, n = EIGENVALUES, 100
    p = np.abs(x) / np.abs(x).sum()
    numbers = {
        "trace": x.sum(), "mean_eigenvalue": x.mean(), "second_moment": (x**2).mean(),
        "frobenius_norm": np.linalg.norm(x), "spectral_norm": 9.0, "lambda_max": 9.0, "lambda_min": -4.0,
        "stable_rank": (x**2).sum() / 81, "participation_rank": np.abs(x).sum() ** 2 / (x**2).sum(),
        "entropy_rank": np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()),
        "trace_deflated": x.sum(), "frobenius_norm_deflated": np.linalg.norm(x),
    }  # fmt: skip
    found = {name: Estimate(float(v), 0.0, float(v), float(v), 8) for name, v in numbers.items()}
    for name, tau, f in (("rank_degeneracy", 1.0, 97 / n), ("negative_mass", 1.0, 1 / n)):
        found[name] = Estimate(f, 0.0, f, f, 8, tau=tau, resolved=True)
    return found


def test_exact_numbers_break_no_relation(whole):
    assert contradictions(whole, 100) == []
    assert reconciled(whole, 100) == whole


def test_a_positive_matrix_keeps_the_relations_of_its_kind():
    x = np.abs(EIGENVALUES)
    names = {"trace": x.sum(), "frobenius_norm": np.linalg.norm(x), "lambda_max": 9.0}
    found = {name: Estimate(float(v), 0.0, float(v), float(v), 8) for name, v in names.items()}
    assert contradictions(found, 100, semidefinite=True) == []
    found["trace"] = Estimate(8.0, 0.1, 7.8, 8.2, 8)
    assert contradictions(found, 100, semidefinite=False) == []
    assert "frobenius_norm <= trace" in contradictions(found, 100, semidefinite=True)[0]
    assert contradictions(reconciled(found, 100, True), 100, True) == []


@pytest.mark.parametrize("relation", RELATIONS, ids=str)
def test_every_relation_is_noticed_and_mended(whole, relation):
    """Each of the two numbers of a relation is moved until it breaks."""
    n = 100
    low = whole[relation.smaller.name]
    broken = dict(whole)
    at = relation.larger.of(whole[relation.larger.name].value, n)
    term = at + abs(at) + 1.0
    if relation.smaller.sign < 0 and relation.smaller.inverse(term, n) > 0:
        pytest.skip("no value of this number breaks it")
    value = relation.smaller.inverse(term, n)
    broken[relation.smaller.name] = replace(low, value=value, lower=value, upper=value)
    assert any(str(relation) in words for words in contradictions(broken, n, semidefinite=True))
    mended = reconciled(broken, n, semidefinite=True)
    assert contradictions(mended, n, semidefinite=True) == []
    for name in broken.keys() - {name for name, _ in DEFINED}:  # wider, never narrower
        if (estimate := mended[name]).lower is not None:
            assert estimate.lower <= broken[name].lower
            assert estimate.upper >= broken[name].upper


@pytest.mark.parametrize(
    ("name", "interval", "tau"),
    [
        ("rank_degeneracy", (0.999, 1.0), 1.0),  # the largest eigenvalue is not within tau
        ("rank_degeneracy", (0.0, 0.5), 2.0),  # more than |H|_F allows to be outside
        ("negative_mass", (0.0, 0.0), 1.0),  # the smallest eigenvalue is below -tau
        ("negative_mass", (0.5, 0.6), 1.0),  # no room for more than those within tau
    ],
)
def test_fractions_respect_the_ends_and_the_norm(whole, name, interval, tau):
    value = sum(interval) / 2
    broken = whole | {name: replace(whole[name], value=value, lower=interval[0], upper=interval[1], tau=tau)}
    assert any(name in words for words in contradictions(broken, 100))
    assert contradictions(reconciled(broken, 100), 100) == []


KINDS = {
    "spike": np.concatenate([[13.7], np.full(399, 0.05)]),
    "spikes of both signs": np.concatenate([[9.0, -9.0, 5.0], np.linspace(-0.1, 0.1, 397)]),
    "double": np.concatenate([[9.0, 9.0], np.linspace(0, 0.1, 398)]),
    "power law": 1 / np.arange(1.0, 401.0) ** 1.5,
    "bulk": np.linspace(-1, 2, 400),
    "outliers": bulk_with_outliers(400),
    "negative": -np.geomspace(1e-6, 3, 400),
    "low rank": np.concatenate([np.linspace(1, 5, 20), np.zeros(380)]),
    "one step from zero": np.concatenate([[1e-3], np.zeros(399)]),
    "decades": np.geomspace(1e-8, 1e2, 400),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("distribution", ["sphere", "rademacher"])
def test_no_record_contradicts_itself(name, distribution):
    """Also where nothing has converged, with one probe, and of probes that do not have the law of sphere probes."""
    values = KINDS[name]
    for seed, (steps, probes, noise) in enumerate([(2, 2, 0.0), (5, 1, 1e-6), (20, 3, 1e-4), (1, 4, 0.0)]):
        t = probes_of(values, steps, probes, seed)
        s = Spectrum(t, 400, noise=noise, distribution=distribution, semidefinite=bool((values >= 0).all()))
        assert contradictions(s.estimates(), 400, s.semidefinite) == [], seed


@pytest.mark.parametrize("probes", [1, 4])
def test_single_numbers_respect_the_certain_bounds(probes):
    """Also asked for alone: the Frobenius norm is at least that of each tridiagonal matrix."""
    for seed in range(60):
        s = Spectrum(probes_of(KINDS["spike"], 6, probes, seed), 400, distribution="rademacher")
        assert s.frobenius_norm().value >= s.spectral_norm().value
        assert s.stable_rank().value >= 1
        if probes > 1:
            assert s.frobenius_norm().upper >= s.spectral_norm().value
