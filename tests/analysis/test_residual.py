"""Records of H, G and R = H - G in one run: traces that add up, exact zeros, checks, and no measures of R."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cases import dense_hessian, parameters
from small_nets import make
from torch import nn

from spectra import Task, analyze
from spectra.operators.residual import ResidualOperator
from spectra.results.trace_checks import DISAGREES
from spectra.results.trace_identity import trace_identities
from spectra.spectrum.spectrum import Spectrum

pytestmark = pytest.mark.usefixtures("float64")

THREE = ("hessian", "ggn", "residual")
QUICK = {"lanczos_steps": 6, "num_probes": 3, "metrics": "none"}


def relu_net(**options):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    return Task(model, nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])], **options)


@pytest.mark.parametrize("options", [{}, {"l2": 0.25}])
@pytest.mark.parametrize("eigenpairs", [0, 3])
def test_the_traces_add_up_in_one_run(options, eigenpairs):
    task = make("mine", **options)
    records = analyze(task, operators=THREE, check=False, eigenpairs=eigenpairs, **QUICK)
    (found,) = trace_identities(records)
    assert found.holds
    assert (found.probes, found.label) == (3, "BN eval")
    assert found.discrepancy <= found.allowed < 1e-10
    assert found.hessian == pytest.approx(found.ggn + found.residual, rel=1e-12)
    assert found.residual == pytest.approx(records[2].estimates["trace"].value, rel=1e-12)
    assert abs(found.residual) > 1e-3


def test_all_of_the_spectrum_is_that_of_the_dense_residual():
    task = make("mine", l2=0.25)
    (record,) = analyze(task, operators="residual", check=False, lanczos_steps=60, num_probes=2, metrics="none")
    (hessian, ggn) = analyze(task, operators=("hessian", "ggn"), check=False, **QUICK)
    (a, s), (b, t) = task.data
    loss = nn.functional.cross_entropy(task.model(torch.cat([a, b])), torch.cat([s, t]))
    H = dense_hessian(loss, parameters(task)).numpy()
    G = ResidualOperator(task) @ np.eye(len(H))
    values = np.linalg.eigvalsh(G)
    assert record.spectrum.nodes.max() == pytest.approx(values.max(), rel=1e-8)
    assert record.spectrum.nodes.min() == pytest.approx(values.min(), rel=1e-8)
    assert not any("l2 term" in note for note in record.notes)
    assert any("l2 term" in note for note in hessian.notes)
    assert any("l2 term" in note for note in ggn.notes)


@pytest.mark.parametrize("change", ["seed", "data", "n", "failed"])
def test_records_that_do_not_share_probes_and_data_are_not_related(change):
    *two, residual = analyze(make("mine"), operators=THREE, check=False, **QUICK)
    assert len(trace_identities([*two, residual])) == 1
    if change == "seed":
        (residual,) = analyze(make("mine"), operators="residual", check=False, seed=1, **QUICK)
    elif change == "data":
        residual = dataclasses.replace(residual, settings={**residual.settings, "data": "other"})
    elif change == "n":
        (residual,) = analyze(make("mine"), operators="residual", params="*.weight", check=False, **QUICK)
    else:
        residual = dataclasses.replace(residual, spectrum=None, status="failed", reason="x")
    assert trace_identities([*two, residual]) == []


def test_traces_that_do_not_add_up_are_told():
    *two, residual = analyze(make("mine"), operators=THREE, check=False, **QUICK)
    old = residual.spectrum
    tridiagonals = [dataclasses.replace(t, alphas=t.alphas + 1e-9) for t in old.tridiagonals]
    wrong = dataclasses.replace(residual, spectrum=Spectrum(tridiagonals, old.n, noise=old.noise, seed=old.seed))
    (found,) = trace_identities([*two, wrong])
    assert not found.holds
    assert found.discrepancy == pytest.approx(1e-9 * old.n, rel=1e-2)


def test_the_exact_trace_of_a_piecewise_linear_network_is_zero():
    records = dict(zip(THREE, analyze(relu_net(), operators=THREE, check=True, **QUICK)))
    residual = records["residual"]
    assert residual.exact.applies
    trace = residual.headline("trace")
    assert (trace.value, trace.source) == (0.0, "exact")
    assert residual.estimates["trace"].value != 0
    assert records["hessian"].headline("trace").value == records["ggn"].headline("trace").value
    assert all(number.exact and number.value == 0 for number in residual.headline_tensor_traces().values())
    checks = {check.name: check for check in residual.checks}
    assert len(checks) == 5
    assert not any(check.failed for check in residual.checks)
    assert all(check.of == "residual" and check.exact == 0 for check in residual.checks)


def test_a_residual_with_a_trace_is_compared_where_its_blocks_are_zero_only():
    (residual,) = analyze(make("mine"), operators="residual", check=True, **QUICK)
    assert not residual.exact.applies
    assert {check.name for check in residual.checks} == {"trace of 2.weight", "trace of 2.bias"}
    assert not residual.headline("trace").exact
    assert not any(check.failed for check in residual.checks)


def test_a_wrong_residual_fails_its_check(monkeypatch):
    apply = ResidualOperator.apply
    monkeypatch.setattr(ResidualOperator, "apply_in_parts", lambda self, v: (apply(self, v) + 0.1 * v, None))
    monkeypatch.setattr(ResidualOperator, "apply", lambda self, v: apply(self, v) + 0.1 * v)
    (residual,) = analyze(relu_net(), operators="residual", check=True, **(QUICK | {"num_probes": 12}))
    assert {check.verdict for check in residual.checks if check.name != "trace"} == {DISAGREES}
    assert not residual.headline("trace").exact


@pytest.mark.parametrize(
    ("operators", "having"), [(("residual", "ggn", "hessian"), "ggn"), (("hessian", "residual"), "hessian")]
)
def test_measures_are_with_the_first_other_operator(operators, having):
    records = analyze(make("mine"), operators=operators, check=False, **(QUICK | {"metrics": "squared_norm"}))
    assert [record.operator for record in records if record.sharpness] == [having]
    (alone,) = analyze(make("mine"), operators="residual", check=False, **(QUICK | {"metrics": "squared_norm"}))
    assert not alone.sharpness
