"""The number of probes and steps for a relative error: which aims are possible, and what a pilot implies."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from scipy.stats import binom

from spectra.errors import ArgumentError
from spectra.krylov.planned_slq import planned_slq
from spectra.krylov.slq import slq
from spectra.operators.dense import DenseOperator
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.probe_planning import (
    MOST,
    NAMES,
    PILOT,
    PILOT_OF_ENDS,
    Planner,
    checked_aims,
    first_steps,
    probes_needed,
    relative_half_width,
    words_of_aims,
)

N = 200
SPECTRA = {
    "flat": np.linspace(0.5, 1.5, N),
    "spiked": np.concatenate([np.linspace(0.01, 0.1, N - 5), [3, 5, 8, 13, 30]]),
    "heavy-tailed": 0.01 * (np.arange(1, N + 1) / N) ** -1.2,
    "both signs": np.concatenate([np.linspace(-0.05, 0.05, N - 10), [-0.6, -0.3], 0.2 * 1.8 ** np.arange(8)]),
}


def truth_of(values):
    sizes = np.abs(values)
    return {
        "trace": values.sum(),
        "frobenius_norm": np.sqrt((values**2).sum()),
        "lambda_max": values.max(),
        "participation_rank": sizes.sum() ** 2 / (sizes**2).sum(),
    }


def planned(values, aims, seed=0, steps=100, probes=MOST, **options):
    operator = DenseOperator(np.diag(values))
    planner = Planner(checked_aims(aims), operator.n, operator.noise, "sphere", steps, probes)
    return planned_slq(operator, planner, seed, **options)[0]


def outcome(spectrum, aims, exact=()):
    return words_of_aims(spectrum, aims, spectrum.estimates(), exact)


def bits(spectrum):
    arrays = [np.concatenate([t.alphas, t.betas]) for t in spectrum.tridiagonals]
    return b"".join(array.tobytes() for array in (*arrays, spectrum.tensor_forms))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tracee": 0.1}, "rtol: 'tracee' is no estimate: one of trace, "),
        ({"rank_degeneracy": 0.1}, "rtol: 'rank_degeneracy' has no relative error: one of trace, "),
        ({"closest_one_mass": 0.1}, "has no relative error"),
        ({"trace_deflated": 0.1}, "has no relative error"),
        ({"trace": 0}, "rtol: trace=0: a number above 0 and below 1 is needed, such as trace=0.05"),
        ({"trace": -0.1}, "above 0"),
        ({"trace": 1}, "below 1"),
        ({"trace": float("nan")}, "rtol: trace=nan"),
        ({"trace": inf}, "rtol: trace=inf"),
        ({"trace": "0.1"}, "rtol: trace=0.1: a number"),
        ({"trace": True}, "rtol: trace=True"),
        ({"trace": None}, "rtol: trace=None"),
    ],
)
def test_an_aim_that_is_none_is_refused(given, words):
    with pytest.raises(ArgumentError, match=words.replace("(", r"\(")):
        checked_aims(given)


def test_every_name_has_a_plan():
    q = slq(DenseOperator(np.diag(SPECTRA["flat"])), 100, 4).quadrature
    for name in NAMES:
        assert 4 <= probes_needed(q, name, 0.3) < inf, name


def test_more_probes_are_needed_for_a_smaller_error():
    q = slq(DenseOperator(np.diag(SPECTRA["heavy-tailed"])), 20, 4).quadrature
    needed = [probes_needed(q, "trace", rtol) for rtol in (0.2, 0.1, 1e-3, 1e-4)]
    assert needed == sorted(needed)
    assert needed[-1] / needed[-2] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("name", ["trace", "mean_eigenvalue", "frobenius_norm", "second_moment"])
def test_the_needed_probes_are_those_of_theory(name):
    # Nothing converges in two steps, so that the variance is 2 n / (n + 2) (sum f^2 - (sum f)^2 / n) of the whole.
    values = SPECTRA["flat"]
    f = values if name in ("trace", "mean_eigenvalue") else values**2
    deviation = np.sqrt(2 * N / (N + 2) * ((f**2).sum() - f.sum() ** 2 / N)) / f.sum()
    if name == "frobenius_norm":
        deviation /= 2
    q = slq(DenseOperator(np.diag(values)), 3, 16).quadrature
    k = probes_needed(q, name, 0.1 * deviation)
    assert 1.0 <= 0.1 * np.sqrt(k) / 1.96 <= 1.3  # the quantiles of few probes, and the bounds


def test_the_first_steps_are_those_of_a_shorter_run():
    operator = DenseOperator(np.diag(SPECTRA["heavy-tailed"]))
    long, short = (slq(operator, steps, 1).tridiagonals[0] for steps in (20, 7))
    cut = first_steps(long, 7)
    assert (cut.alphas.tobytes(), cut.betas.tobytes()) == (short.alphas.tobytes(), short.betas.tobytes())
    assert first_steps(short, 7) is short


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("aims", [{"trace": 0.1}, {"lambda_max": 0.01}, {"participation_rank": 0.3, "trace": 0.3}])
def test_the_numbers_are_those_of_a_plain_run_whatever_the_probes_per_pass(name, aims):
    found = planned(SPECTRA[name], aims)
    plain = slq(DenseOperator(np.diag(SPECTRA[name])), found.lanczos_steps, found.num_probes)
    for other in (plain, *(planned(SPECTRA[name], aims, width=width) for width in (1, 3))):
        assert bits(other) == bits(found)
        np.testing.assert_allclose(other.start_overlaps, found.start_overlaps, rtol=0, atol=1e-14)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_run_goes_on_with_the_same_numbers(after):
    stored = []

    def interrupt(finished):
        stored.append(list(finished))
        if len(stored) == after:
            raise KeyboardInterrupt

    values, options = SPECTRA["heavy-tailed"], {"aims": {"trace": 0.1}, "steps": 12, "width": 2}
    with pytest.raises(KeyboardInterrupt):
        planned(values, group_done=interrupt, **options)
    found = planned(values, **options)
    assert found.num_probes > PILOT
    assert bits(planned(values, done=stored[-1], **options)) == bits(found)


def test_a_pilot_stopped_in_its_midst_goes_on_with_the_same_numbers():
    states = []

    def interrupt(how_far):
        states.append(how_far())
        if len(states) == 9:
            raise KeyboardInterrupt

    values, aims = SPECTRA["heavy-tailed"], {"trace": 0.05}
    with pytest.raises(KeyboardInterrupt):
        planned(values, aims, step_done=interrupt)
    assert bits(planned(values, aims, under_way=states[-1])) == bits(planned(values, aims))


def test_the_end_of_the_spectrum_is_within_its_aim():
    for name, values in SPECTRA.items():
        found = planned(values, {"lambda_max": 1e-3})
        assert found.num_probes == PILOT_OF_ENDS
        assert relative_half_width(found.lambda_max()) <= 1e-3, name
        fewer = slq(DenseOperator(np.diag(values)), int(found.lanczos_steps / 1.3), found.num_probes)
        assert relative_half_width(fewer.lambda_max()) > 1e-3, name


def test_without_an_aim_the_pilot_is_all():
    found = planned(SPECTRA["heavy-tailed"], {})
    assert (found.num_probes, found.lanczos_steps) == (PILOT, 6)


@pytest.mark.parametrize("values", [np.zeros(5), np.ones(5), np.arange(1.0, 4.0), np.array([2.0])])
def test_trivial_operators(values):
    found = planned(values, {"trace": 0.01, "lambda_max": 0.01})
    assert found.trace().value == pytest.approx(values.sum(), abs=1e-12)


def test_limits_hold_and_the_outcome_says_what_is_missing():
    aims = checked_aims({"trace": 0.01, "lambda_max": 1e-6})
    found = planned(SPECTRA["heavy-tailed"], aims, steps=10, probes=5)
    assert (found.num_probes, found.lanczos_steps) == (5, 10)
    trace, largest = outcome(found, aims)
    assert trace.startswith("rtol: trace is within ")
    assert "the aim of 0.01 is not met; about " in trace
    assert trace.endswith(" probes (--probes) would be needed")
    assert "the aim of 1e-06 is not met; more Lanczos steps (--lanczos-steps)" in largest
    (needed,) = (int(word.replace(",", "")) for word in trace.split("about ")[1].split()[:1])
    more = slq(DenseOperator(np.diag(SPECTRA["heavy-tailed"])), 10, needed)
    assert relative_half_width(more.trace()) <= 0.011


def test_one_probe_has_no_error_and_the_outcome_says_so():
    found = planned(SPECTRA["flat"], {"trace": 0.01}, probes=1)
    assert found.num_probes == 1
    assert "more probes (--probes) are needed" in outcome(found, (("trace", 0.01),))[0]


def test_an_exact_number_is_said_to_be_exact():
    found = planned(SPECTRA["flat"], {})
    assert outcome(found, (("trace", 1e-6),), {"trace"}) == ["rtol: trace is exact, no probe was needed for it"]


def test_a_value_of_zero_or_without_an_interval_has_no_relative_error():
    assert relative_half_width(Estimate(0.0, 0.1, -0.2, 0.2, 4)) == inf
    assert relative_half_width(Estimate(1.0, None, None, None, 1)) == inf
    assert relative_half_width(Estimate(-2.0, 0.1, -2.5, -1.5, 4)) == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("aims", [{"trace": 0.05}, {"trace": 0.1, "frobenius_norm": 0.1}, {"lambda_max": 0.01}])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_intervals_cover_and_the_aim_is_met_where_it_is_said_to_be(name, aims):
    """No worse than 90 % at a level of 0.1 %: intervals of 95 %, and the error where the aim is said to be met."""
    runs, truth = 100, truth_of(SPECTRA[name])
    estimates = [planned(SPECTRA[name], aims, seed).estimates() for seed in range(runs)]
    for quantity, rtol in checked_aims(aims):
        found, true = [one[quantity] for one in estimates], truth[quantity]
        rounding = 1e-10 * abs(true)
        covered = sum(one.lower - rounding <= true <= one.upper + rounding for one in found)
        said = [one for one in found if relative_half_width(one) <= rtol]
        met = sum(abs(one.value - true) <= rtol * abs(one.value) for one in said)
        assert covered >= binom.ppf(1e-3, runs, 0.9)
        assert len(said) >= binom.ppf(1e-3, runs, 0.7)
        assert met >= binom.ppf(1e-3, len(said), 0.9)
