"""The cross-check finds wrong numbers, seldom calls right ones wrong, and says what it could not have found."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from run_files import checks_of_probes
from scipy import stats

from spectra.errors import ArgumentError
from spectra.results.trace_checks import (
    AGREES,
    DISAGREES,
    FRESH_PROBES,
    INCONCLUSIVE,
    Check,
    can_tell,
    check_traces,
    compare,
    confirmed,
    too_few_probes,
    why_inconclusive,
)
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

N = 60
PIECES = {"a": 20, "b": 40}


def first_products(values: np.ndarray, k: int, rng: np.random.Generator, noise: float = 1e-16) -> Spectrum:
    """What one step leaves of a diagonal matrix, with sphere probes."""
    q = rng.standard_normal((k, N))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    forms = q * q * values
    alphas = forms.sum(axis=1)
    betas = np.sqrt(np.maximum(((q * values) ** 2).sum(axis=1) - alphas**2, 0.0))
    cut = PIECES["a"]
    return Spectrum(
        [Tridiagonal([a], [b]) for a, b in zip(alphas, betas)],
        N,
        noise=noise,
        tensor_sizes=PIECES,
        tensor_forms=np.stack([forms[:, :cut].sum(axis=1), forms[:, cut:].sum(axis=1)], axis=1),
    )


def exact_of(values: np.ndarray) -> dict[str, float]:
    return {"a": float(values[: PIECES["a"]].sum()), "b": float(values[PIECES["a"] :].sum())}


def test_z_its_probability_and_the_detectable_discrepancy_are_those_of_students_t():
    samples = np.array([1.0, 2.0, 3.0, 6.0])
    check = compare("x", samples, 2.0, level=0.05)
    error = samples.std(ddof=1) / 2
    assert check.z == pytest.approx(1.0 / error)
    assert check.z == pytest.approx(stats.ttest_1samp(samples, 2.0).statistic)
    assert check.dof == 3
    assert check.detectable == pytest.approx(error * (stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)))
    assert check.verdict == INCONCLUSIVE  # 8.3 would be found, 2 would not


@pytest.mark.parametrize("level", [0.2, 0.05, 0.001])
def test_the_verdict_changes_where_the_p_value_crosses_the_level(level):
    rng = np.random.default_rng(4)
    samples = rng.standard_normal(9)
    reach = stats.t.ppf(1 - level / 2, 8) * samples.std(ddof=1) / 3
    assert compare("x", samples, samples.mean() + 1.001 * reach, level=level).verdict == DISAGREES
    assert compare("x", samples, samples.mean() + 0.999 * reach, level=level).verdict != DISAGREES


def test_a_discrepancy_within_the_noise_of_the_products_is_none():
    samples = np.full(5, 1.0 + 1e-6)
    assert compare("x", samples, 1.0).verdict == DISAGREES
    assert compare("x", samples, 1.0, noise=1e-6).verdict == AGREES
    assert compare("x", samples, 1.0, exact_error=1e-6).verdict == AGREES
    assert compare("x", np.zeros(5), 0.0).verdict == AGREES


def test_probes_that_agree_with_each_other_and_not_with_the_exact_value_disagree_however_few():
    check = compare("x", np.array([2.0, 2.0]), 1.0)
    assert check.verdict == DISAGREES
    assert math.isinf(check.z)
    assert json.loads(json.dumps(check.to_json(), allow_nan=False))["z"] is None


def test_right_traces_agree_and_wrong_ones_are_named_though_their_sum_is_right():
    rng = np.random.default_rng(0)
    values = rng.random(N)
    spectrum = first_products(values, 200, rng)
    exact = exact_of(values)
    assert [(c.name, c.verdict) for c in check_traces(spectrum, exact)] == [
        ("trace", AGREES),
        ("trace of a", AGREES),
        ("trace of b", AGREES),
    ]
    wrong = {"a": 1.3 * exact["a"], "b": exact["b"] - 0.3 * exact["a"]}
    assert [c.name for c in check_traces(spectrum, wrong) if c.failed] == ["trace of a", "trace of b"]


def test_a_detectable_discrepancy_is_found_four_times_of_five():
    """Against the t approximation of the power: between 70 and 95 of 100."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(300):
        samples = rng.standard_normal(12)
        size = compare("x", samples, 0.0).detectable
        found += compare("x", samples + size, 0.0).failed
    assert 0.70 <= found / 300 <= 0.95


def test_few_probes_are_inconclusive_and_do_not_claim_to_agree():
    rng = np.random.default_rng(2)
    values = np.r_[rng.standard_normal(N - 1), 50.0]
    verdicts = {check.verdict for check in check_traces(first_products(values, 3, rng), exact_of(values))}
    assert verdicts == {INCONCLUSIVE}


def test_tensors_without_an_exact_trace_are_left_out_and_the_whole_with_them():
    rng = np.random.default_rng(3)
    values = rng.random(N)
    checks = check_traces(first_products(values, 8, rng), {"b": exact_of(values)["b"]})
    assert [check.name for check in checks] == ["trace of b"]
    assert check_traces(first_products(values, 1, rng), exact_of(values)) == []
    assert check_traces(first_products(values, 8, rng), {}) == []
    with pytest.raises(ArgumentError, match="there is no tensor c in the run"):
        check_traces(first_products(values, 8, rng), {"c": 1.0})


def test_false_alarms_are_rare_once_confirmed_also_where_one_eigenvalue_dominates_each_tensor():
    rng = np.random.default_rng(5)
    values = np.full(N, 0.01)
    values[0] = values[-1] = 10.0
    first_alarms = alarms = 0
    for _ in range(300):
        checks = check_traces(first_products(values, 8, rng), exact_of(values))
        if any(check.failed for check in checks):
            first_alarms += 1
            again = check_traces(first_products(values, FRESH_PROBES, rng), exact_of(values))
            alarms += any(check.failed for check in confirmed(checks, again))
    assert first_alarms > 6  # Student's t alone is not enough here: more than twice its level
    assert alarms <= 3


def test_confirmation_keeps_what_is_wrong_and_what_was_right():
    rng = np.random.default_rng(6)
    values = rng.random(N)
    wrong = {name: 2 * value for name, value in exact_of(values).items()}
    first = check_traces(first_products(values, 16, rng), wrong)
    again = check_traces(first_products(values, FRESH_PROBES, rng), wrong)
    assert all(check.failed for check in confirmed(first, again))
    opposite = [Check(c.name, c.estimate, c.exact, c.error, -c.z, c.dof, c.detectable, c.verdict) for c in again]
    assert confirmed(first, opposite) == opposite
    assert confirmed(first, []) == first


def test_a_check_is_json_with_all_its_fields():
    check = compare("trace", np.array([1.0, 1.5, 0.5]), 1.1, of="ggn")
    assert Check(**json.loads(json.dumps(check.to_json()))) == check


# --- what checks could have found ---------------------------------------------------------------------------------


def test_an_inconclusive_check_far_from_agreement_says_in_words_why():
    checks = checks_of_probes(2)
    assert {check.verdict for check in checks} == {INCONCLUSIVE}
    assert checks[0].z == pytest.approx(-26.0)
    critical = checks[0].critical
    assert critical > 100
    words = why_inconclusive(checks)
    assert words == (
        "with 2 probes Student's t has 1 degree of freedom, and the smallest |z| that could be called a "
        f"disagreement is {critical:.3g}"
    )
    assert "3 probes Student's t has 2 degrees" in why_inconclusive(checks_of_probes(3, z=5.0))
    beyond = compare("trace", np.array([9.0, 11.0]), 10.0 + 1.001 * critical, level=1 - 0.99**0.2)
    assert beyond.failed  # the number that is quoted is the one that decides
    assert not compare("trace", np.array([9.0, 11.0]), 10.0 + 0.999 * critical, level=1 - 0.99**0.2).failed


def test_which_checks_say_something():
    few = checks_of_probes(2)
    vague = tuple(dataclasses.replace(check, verdict=INCONCLUSIVE) for check in checks_of_probes(8, z=1.0))
    agrees = compare("trace", np.array([10.0, 10.0 + 1e-9]), 10.0)
    failed = compare("trace", np.full(2, 5.0), 4.0)
    assert agrees.verdict == AGREES
    assert failed.failed
    for checks, too_few, telling in (
        ((), False, False),
        (few, True, False),
        ((*few, agrees), True, False),
        ((*few[:1], agrees), False, True),  # half of them say something
        ((*few, failed), False, True),
        (vague, False, False),
        ((*vague, dataclasses.replace(agrees, dof=7)), False, True),
    ):
        assert (too_few_probes(checks), can_tell(checks)) == (too_few, telling)
