"""The number to quote of a record is the exact one where there is one, and says which of the two it is."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from cases import dense_hessian
from run_files import failed_record, make_record
from torch import nn
from torch.nn import functional as F

from spectra import Task, analyze
from spectra.errors import ArgumentError
from spectra.results.exact_trace import ExactTrace
from spectra.results.headline import Headline, exactly, is_exact
from spectra.results.headline_difference import headline_difference
from spectra.results.trace_checks import compare
from spectra.results.trajectory import Trajectory
from spectra.spectrum.differences import difference

LAYERS = {"conv.weight": 20.0, "conv.bias": 1.5, "fc.weight": 10.0}
ALL = dict.fromkeys(LAYERS, True)


def exact_trace(kind: str = "hessian", **changes) -> ExactTrace:
    """Of 31.5; for `kind="ggn"` the last layer alone is certified."""
    certified = ALL if kind == "hessian" else dict.fromkeys(LAYERS, False) | {"fc.weight": True}
    return dataclasses.replace(ExactTrace(total=31.5, by_layer=LAYERS, kind=kind, certified=certified), **changes)


def drawn(kind: str = "hessian") -> ExactTrace:
    errors = dict.fromkeys(LAYERS, 0.1)
    return exact_trace(kind, stderr=0.2, stderr_by_layer=errors, method="Monte-Carlo: 32 draws for 99 columns")


def failed_check():
    return compare("trace", np.full(4, 10.0) + np.array([0.0, 0.1, -0.1, 0.0]), 20.0)


# --- which number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_the_trace_is_exact_where_the_exact_trace_is_of_the_matrix_of_the_record(operator, kind):
    record = make_record(0.0, operator, exact=exact_trace(kind))
    if (operator, kind) == ("hessian", "ggn"):  # the exact trace is of another matrix
        assert record.headline("trace") == Headline(**vars(record.estimates["trace"]))
        assert record.headline("trace").source == "probes"
    else:
        assert record.headline("trace") == exactly(31.5)
        assert record.headline("mean_eigenvalue").value == 31.5 / 200
        assert record.headline("mean_eigenvalue").source == "exact"
    assert record.estimates["trace"] == record.spectrum.trace()  # the estimate stays
    assert {name: h.value for name, h in record.headlines.items() if not h.exact} == {
        name: e.value for name, e in record.estimates.items() if not record.headlines[name].exact
    }


@pytest.mark.parametrize(
    "exact",
    [
        None,
        drawn(),
        ExactTrace(total=None, reasons=("batch norm couples the samples",)),
    ],
    ids=["not asked for", "Monte Carlo", "there is none"],
)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_without_an_exact_trace_every_headline_is_the_estimate(operator, exact):
    record = make_record(0.0, operator, exact=exact)
    assert not any(h.exact for h in (*record.headlines.values(), *record.headline_tensor_traces().values()))
    assert {name: h.value for name, h in record.headlines.items()} == {
        name: e.value for name, e in record.estimates.items()
    }


def test_the_empirical_fisher_matrix_has_no_exact_trace():
    assert not make_record(0.0, "empirical_fisher", exact=exact_trace()).headline("trace").exact


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("trace", False),
        ("trace of conv.weight", False),
        ("trace (exact spectrum)", True),  # compares probes with eigenvalues: the exact trace is not part of it
        ("frobenius_norm (exact spectrum)", True),
    ],
)
@pytest.mark.parametrize("of", ["hessian", "ggn"])
def test_where_a_check_of_the_traces_failed_nothing_counts_as_exact(name, exact, of):
    check = dataclasses.replace(failed_check(), name=name, of=of)
    assert check.failed
    record = make_record(0.0, exact=exact_trace(), checks=(check,))
    assert record.headline("trace").exact == exact
    assert {trace.exact for trace in record.headline_tensor_traces().values()} == {exact}


@pytest.mark.parametrize(
    ("operator", "kind", "names"),
    [("hessian", "hessian", set(LAYERS)), ("hessian", "ggn", {"fc.weight"}), ("ggn", "ggn", set(LAYERS))],
)
def test_a_tensor_is_exact_where_its_own_block_is(operator, kind, names):
    record = make_record(0.0, operator, exact=exact_trace(kind))
    traces = record.headline_tensor_traces()
    assert {name for name, trace in traces.items() if trace.exact} == names
    estimates = record.spectrum.tensor_traces()
    assert list(traces) == list(estimates)
    for name, trace in traces.items():
        assert trace.value == (LAYERS[name] if name in names else estimates[name].value)


def test_an_exact_number_reads_as_one():
    number = exactly(31.377123456)
    assert str(number) == "31.3771 (exact)"
    assert (float(number), number.stderr, number.lower, number.upper) == (31.377123456, 0.0, *[31.377123456] * 2)
    assert is_exact(number)
    assert not is_exact(None)
    assert not is_exact(make_record().estimates["trace"])


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ArgumentError, match=r"no estimate 'tracee': there are trace, mean_eigenvalue"):
        make_record().headline("tracee")
    with pytest.raises(ArgumentError, match="no estimate 'trace': there are none"):
        failed_record().headline("trace")
    assert failed_record().headline_tensor_traces() == {}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_headline_of_a_relu_network_is_the_trace_of_the_dense_hessian_with_its_l2_term(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = torch.randn(23, 5, dtype=torch.float64), torch.randint(3, (23,))
    task = Task(model, nn.CrossEntropyLoss(reduction=reduction), [(x[:16], y[:16]), (x[16:], y[16:])], l2=0.25)
    loss = F.cross_entropy(model(x), y, reduction=reduction) + 0.125 * sum((p**2).sum() for p in model.parameters())
    dense = dense_hessian(loss, list(model.parameters()))
    for record in analyze(task, operators=("hessian", "ggn"), lanczos_steps=4, num_probes=2, metrics="none"):
        assert record.headline("trace").exact
        assert record.headline("trace").value == pytest.approx(float(dense.trace()), rel=1e-10)
        assert record.headline("mean_eigenvalue").value == pytest.approx(float(dense.diagonal().mean()), rel=1e-10)
        sizes = [p.numel() for p in model.parameters()]
        blocks = [float(part.sum()) for part in dense.diagonal().split(sizes)]
        found = [trace.value for trace in record.headline_tensor_traces().values()]
        np.testing.assert_allclose(found, blocks, rtol=1e-9)


# --- for programs -------------------------------------------------------------------------------------------------


def test_json_has_the_estimates_and_the_headline_with_its_source():
    entry = json.loads(json.dumps(make_record(0.0, exact=exact_trace()).to_json(), allow_nan=False))
    assert entry["estimates"]["trace"]["value"] == make_record().spectrum.trace().value
    assert set(entry["headline"]) == {"trace", "mean_eigenvalue"}
    trace = entry["headline"]["trace"]
    assert (trace["value"], trace["stderr"], trace["source"]) == (31.5, 0.0, "exact")
    plain = make_record().to_json()["headline"]["trace"]
    assert (plain["value"], plain["source"]) == (make_record().spectrum.trace().value, "probes")
    assert failed_record().to_json()["headline"] == {}


def test_the_headlines_of_a_series_are_exact_entry_by_entry():
    records = [make_record(0.0, exact=exact_trace()), failed_record(1.0), make_record(2.0, exact=drawn())]
    series = Trajectory(records)["hessian", "eval"]
    values = series.headline("trace")
    estimate = records[2].estimates["trace"]
    np.testing.assert_array_equal(values.value, [31.5, np.nan, estimate.value])
    np.testing.assert_array_equal(values.stderr, [0.0, np.nan, estimate.stderr])
    np.testing.assert_array_equal(values.lower, [31.5, np.nan, estimate.lower])
    assert series.trace.value[0] == records[0].estimates["trace"].value
    with pytest.raises(ArgumentError, match="no estimate 'tracee'"):
        series.headline("tracee")


# --- differences --------------------------------------------------------------------------------------------------


def test_two_estimates_differ_as_their_spectra_do():
    a, b = make_record(0.0), make_record(1.0)
    for name in ("trace", "frobenius_norm", "lambda_max"):
        assert headline_difference(a, b, name) == difference(a.spectrum, b.spectrum, name)
    a, b = (make_record(epoch, exact=exact_trace()) for epoch in (0.0, 1.0))
    for name, options in (("frobenius_norm", {}), ("rank_degeneracy", {"tau": 0.5})):
        expected = difference(a.informed_spectrum, b.informed_spectrum, name, **options)
        assert headline_difference(a, b, name, **options) == expected


def test_two_exact_numbers_differ_exactly():
    a, b = make_record(0.0, exact=exact_trace()), make_record(1.0, exact=exact_trace(total=20.25))
    found = headline_difference(a, b)
    assert (found.value, found.stderr, found.lower, found.upper, found.p_value) == (11.25, 0.0, 11.25, 11.25, None)
    assert headline_difference(a, b, "mean_eigenvalue").value == pytest.approx(11.25 / 200, rel=1e-12)


@pytest.mark.parametrize("exact_first", [True, False])
def test_an_exact_number_and_an_estimate_differ_by_the_error_of_the_estimate(exact_first):
    a, b = make_record(0.0, exact=exact_trace()), make_record(1.0)
    trace = b.estimates["trace"]
    found = headline_difference(a, b) if exact_first else headline_difference(b, a)
    sign = 1 if exact_first else -1
    assert found.value == sign * (31.5 - trace.value)
    assert found.stderr == trace.stderr
    ends = sorted([sign * (31.5 - trace.lower), sign * (31.5 - trace.upper)])
    assert [found.lower, found.upper] == ends
    assert not found.paired
    assert 0 < found.p_value < 1


def test_a_difference_within_the_arithmetic_is_not_significant():
    """Two probes of an identity agree to the last digit: what they differ by from the exact trace is rounding."""
    spectrum = dataclasses.replace(make_record()).spectrum
    trace = spectrum.trace().value
    noise = np.sqrt(200) * spectrum.noise * 9.0
    a = make_record(0.0, exact=exact_trace(total=trace + 0.5 * noise))
    stored = {"trace": dataclasses.replace(spectrum.trace(), stderr=1e-12)}
    assert headline_difference(a, make_record(0.0, cached_estimates=stored)).p_value == pytest.approx(1.0)


def test_a_single_probe_has_no_error():
    a = make_record(0.0, exact=exact_trace())
    one = {"trace": dataclasses.replace(a.estimates["trace"], stderr=None, lower=None, upper=None, num_probes=1)}
    found = headline_difference(a, make_record(0.0, cached_estimates=one))
    assert (found.stderr, found.lower, found.upper, found.p_value) == (None, None, None, None)


def test_a_record_that_failed_has_no_difference():
    with pytest.raises(ArgumentError, match="failed: NaN weights"):
        headline_difference(make_record(), failed_record(1.0))
