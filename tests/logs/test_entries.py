"""What is logged of a record: the numbers to quote with their intervals, and a histogram that is the density."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from every_finding import FULL_EXACT
from run_files import make_record, make_spectrum

from spectra.logs.entries import entry_of, histogram_of
from spectra.results.identity import Place
from spectra.results.measure import Measure
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal


def test_every_number_has_its_interval():
    record = make_record(3.0, facts={"loss": 0.5, "accuracy": None, "n_parameters": 200, "gradient_norm": math.inf})
    entry = entry_of(record)
    assert entry.x == 300
    for name, estimate in record.headlines.items():
        tag = f"spectra/hessian/eval/{name}"
        expected = {tag: estimate.value, f"{tag}_lower": estimate.lower, f"{tag}_upper": estimate.upper}
        if estimate.resolved is False:
            del expected[tag]
        for one, number in expected.items():
            assert entry.numbers.get(one) == number
    tags = {tag.removeprefix("spectra/hessian/eval/") for tag in entry.numbers}
    assert {"loss", "lambda_max", "lambda_max_upper", "epoch", "failed", "rank_degeneracy_tau"} <= tags
    assert not tags & {"accuracy", "n_parameters", "gradient_norm"}
    assert all(math.isfinite(number) for number in entry.numbers.values())
    assert entry.numbers["spectra/hessian/eval/failed"] == 0
    assert not entry.words


def test_what_is_not_resolved_has_its_bracket_alone_and_what_is_not_computed_nothing():
    estimates = {
        "rank_degeneracy": Estimate(0.7, 0.1, 0.2, 0.9, 4, tau=0.01, resolved=False),
        "trace": Estimate(math.nan, None, None, None, 4, note="why"),
        "lambda_max": Estimate(9.0, None, 9.0, math.inf, 4),
    }
    record = make_record(1.0, "ggn", "train", cached_estimates=estimates, facts={}, sharpness={})
    assert {tag.removeprefix("spectra/ggn/train/"): number for tag, number in entry_of(record).numbers.items()} == {
        "failed": 0, "epoch": 1, "rank_degeneracy_lower": 0.2, "rank_degeneracy_upper": 0.9,
        "rank_degeneracy_tau": 0.01, "lambda_max": 9, "lambda_max_lower": 9,
    }  # fmt: skip


def test_numbers_on_test_data_and_measures_have_tags_of_their_own():
    record = make_record(
        test_spectrum=make_spectrum(1),
        sharpness={"fisher_rao": Measure(value=2.5, form="plain", stderr=0.5)},
        facts={"test_loss": 0.75},
    )
    numbers = entry_of(record).numbers
    assert numbers["spectra/hessian/eval/test/lambda_max"] == record.test_estimates["lambda_max"].value
    assert numbers["spectra/hessian/eval/test/lambda_max"] != numbers["spectra/hessian/eval/lambda_max"]
    assert numbers["spectra/hessian/eval/sharpness/fisher_rao"] == 2.5
    assert numbers["spectra/hessian/eval/sharpness/fisher_rao_stderr"] == 0.5
    assert numbers["spectra/hessian/eval/test_loss"] == 0.75


def test_an_exact_trace_is_the_number_to_quote():
    record = make_record(0.0, "ggn", exact=FULL_EXACT, checks=())
    numbers = entry_of(record).numbers
    if record.headline("trace").exact:
        assert numbers["spectra/ggn/eval/trace_lower"] == numbers["spectra/ggn/eval/trace_upper"]
    assert numbers["spectra/ggn/eval/trace"] == record.headline("trace").value


def test_a_record_that_failed_says_so():
    failed = make_record(2.0, status="failed", reason="NaN in \x1b[1m0.weight", spectrum=None, facts={})
    entry = entry_of(failed)
    assert entry.numbers == {"spectra/hessian/eval/failed": 1, "spectra/hessian/eval/epoch": 2}
    assert entry.words == {"spectra/hessian/eval/reason": "failed: NaN in \\x1b[1m0.weight"}
    assert not entry.histograms
    unverified = entry_of(make_record(2.0, status="unverified", reason="a check ended in an error"))
    assert unverified.words["spectra/hessian/eval/reason"] == "unverified: a check ended in an error"
    assert "spectra/hessian/eval/trace" in unverified.numbers


@pytest.mark.parametrize(
    ("place", "x"),
    [(Place(epoch=2.0, step=7), 7), (Place(step=0), 0), (Place(epoch=2.0), 2), (Place(epoch=2.5), 2), (Place(), None)],
)
def test_the_axis_is_the_step_else_the_epoch(place, x):
    assert entry_of(dataclasses.replace(make_record(), place=place)).x == x


@pytest.mark.parametrize("bins", [1, 5, 64])
def test_the_histogram_is_the_integral_of_the_density_over_each_bin(bins):
    spectrum = make_spectrum()
    histogram = histogram_of(spectrum, bins)
    density = spectrum.density(points=20_000)
    assert len(histogram.counts) == bins
    assert len(histogram.edges) == bins + 1
    assert histogram.counts.sum() == pytest.approx(200, rel=1e-12)
    assert (histogram.counts >= 0).all()
    assert histogram.total == 200
    fine = np.linspace(density.grid[0], density.grid[-1], 64 * 300 + 1)  # the edges are among these
    values = spectrum.density(grid=fine).values
    for count, piece in zip(
        histogram.counts, np.split(np.arange(fine.size - 1), np.searchsorted(fine, histogram.edges)[1:-1])
    ):
        whole = slice(piece[0], piece[-1] + 2)
        assert count == pytest.approx(200 * np.trapezoid(values[whole], fine[whole]), abs=1e-4)
    for moment, p in ((histogram.first_moment, 1), (histogram.second_moment, 2)):
        assert moment == pytest.approx(200 * np.trapezoid(values * fine**p, fine), rel=1e-6)


def test_the_histogram_of_a_matrix_that_is_zero_has_all_in_the_middle():
    histogram = histogram_of(Spectrum([Tridiagonal([0.0], [0.0], exhausted=True)], n=7))
    assert histogram.counts.sum() == pytest.approx(7)
    assert histogram.edges[0] < 0 < histogram.edges[-1]
    assert histogram.first_moment == 0
