"""Every analysis is held against exact traces: right runs pass, wrong ones are called wrong, others say why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cases import dense_hessian
from torch import nn
from torch.nn import functional as F

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task, analyze, iter_analyze, slq
from spectra.crosscheck import DISAGREES
from spectra.errors import NumericsError
from spectra.storage.runfile import RunFile, load_trajectory
from spectra.verification import verify


def make_task(activation: nn.Module | None = None, batch_norm: bool = False) -> Task:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(6)] if batch_norm else []
    model = nn.Sequential(nn.Linear(5, 6), *middle, activation or nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = torch.randn(23, 5, dtype=torch.float64), torch.randint(3, (23,))
    return Task(model, nn.CrossEntropyLoss(), [(x[:16], y[:16]), (x[16:], y[16:])])


def whole_loss(task: Task) -> torch.Tensor:
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    return F.cross_entropy(task.model(x), y)


def dense_trace(task: Task) -> float:
    return float(dense_hessian(whole_loss(task), list(task.model.parameters())).trace())


class Wrong(HessianOperator):
    """Products that are half as long again as they should be: what a wrong weight of a batch does."""

    def linearise(self, batch):
        product = super().linearise(batch)
        return lambda block: 1.5 * product(block)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_a_right_run_of_a_relu_network_agrees_with_the_exact_traces_in_every_tensor(kind):
    task = make_task()
    operator = kind(task)
    found = verify(operator, slq(operator, 3, 64))
    assert found.exact.applies
    assert found.exact.total == pytest.approx(dense_trace(task), rel=1e-10)
    assert [check.name for check in found.checks] == [
        "trace",
        *(f"trace of {name}" for name, _ in task.model.named_parameters()),
    ]
    assert {check.of for check in found.checks} == {operator.kind}
    assert not found.warnings
    assert found.remainder is None
    assert found.checks[0].exact == found.exact.total


def test_products_that_are_wrong_are_called_wrong():
    operator = Wrong(make_task())
    found = verify(operator, slq(operator, 1, 400))
    assert found.checks[0].verdict == DISAGREES
    assert found.warnings[0].startswith("CHECK FAILED: the trace of the Hessian is ")
    assert found.warnings[0].endswith("disagrees; do not use the numbers of this record")


def test_where_logits_bend_the_gauss_newton_matrix_is_checked_and_the_rest_is_reported():
    task = make_task(nn.GELU())
    operator = HessianOperator(task)
    found = verify(operator, slq(operator, 2, 200))
    assert not found.exact.applies
    assert "GELU" in " ".join(found.exact.reasons)
    of_ggn = [check for check in found.checks if check.of == "ggn"]
    assert len(of_ggn) == 1 + 4
    # The last layer is affine in its own weights, so its blocks are the Hessian's and are checked as such.
    assert {c.name for c in found.checks if c.of == "hessian"} == {"trace of 2.weight", "trace of 2.bias"}
    assert not found.warnings
    truth = dense_trace(task) - found.exact.total
    assert abs(found.remainder.value - truth) < 4 * found.remainder.stderr
    assert found.remainder.stderr < 0.5 * abs(truth)
    unpaired = slq(operator, 1, 200).trace().stderr
    assert found.remainder.stderr < unpaired


def test_batch_norm_by_batch_has_no_exact_trace_and_says_so():
    operator = HessianOperator(make_task(batch_norm=True), bn_mode="train")
    found = verify(operator, slq(operator, 2, 4))
    assert found.exact.total is None
    assert "batch norm" in found.exact.reasons[0]
    assert found.checks == ()


@pytest.mark.parametrize("mode", ["eval", "recalibrated"])
def test_the_exact_trace_is_of_the_running_statistics_of_the_run(mode):
    task = make_task(batch_norm=True)
    operator = HessianOperator(task, bn_mode=mode)
    found = verify(operator, slq(operator, 2, 64))
    assert found.exact.applies
    assert not found.warnings
    columns = torch.eye(operator.n, dtype=torch.float64)
    assert found.exact.total == pytest.approx(float((operator @ columns).trace()), rel=1e-9)


def test_the_empirical_fisher_matrix_has_no_such_trace():
    operator = EmpiricalFisherOperator(make_task())
    assert verify(operator, slq(operator, 2, 4)).exact is None


def test_chosen_parameters_are_checked_alone():
    operator = HessianOperator(make_task(), params="2.*")
    found = verify(operator, slq(operator, 2, 16))
    assert list(found.exact.by_layer) == ["2.weight", "2.bias"]
    assert [check.name for check in found.checks] == ["trace", "trace of 2.weight", "trace of 2.bias"]


def test_one_probe_has_an_exact_trace_and_nothing_to_compare():
    operator = HessianOperator(make_task())
    found = verify(operator, slq(operator, 2, 1))
    assert found.exact.total is not None
    assert found.checks == ()


def test_the_exact_trace_is_of_the_parameters_of_the_run_though_training_has_gone_on():
    task = make_task()
    before = dense_trace(task)
    records = iter_analyze(task, lanczos_steps=2, num_probes=16)
    with torch.no_grad():
        for p in task.model.parameters():
            p.mul_(3.0)
    (record,) = records
    assert record.exact.total == pytest.approx(before, rel=1e-10)
    assert not [check for check in record.checks if check.failed]


def test_a_record_with_its_checks_comes_back_from_a_file_and_goes_to_json(tmp_path):
    found = analyze(make_task(nn.Tanh()), operators=("hessian", "ggn"), lanczos_steps=3, num_probes=5)
    with RunFile.open(tmp_path / "run.h5", {name: found[0].settings[name] for name in ("seed", "task")}) as run:
        for record in found:
            run.append(record)
    for before, after in zip(found, load_trajectory(tmp_path / "run.h5")):
        assert after.exact == before.exact
        assert after.checks == before.checks
        assert after.remainder == before.remainder
    shown = json.loads(json.dumps(after.to_json(), allow_nan=False))
    assert shown["exact"]["applies"] is False
    assert shown["exact"]["total"] == found[1].exact.total
    assert set(shown["exact"]["by_layer"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {"name", "z", "dof", "detectable", "verdict"} <= set(shown["check"][0])


@pytest.mark.parametrize("samples", [23, 10])
def test_all_eigenvalues_are_kept_and_lanczos_is_held_against_them(tmp_path, samples):
    task = make_task()
    (record,) = analyze(task, operators="ggn", lanczos_steps=12, num_probes=6, exact_spectrum=samples, metrics="none")
    exact = record.exact_spectrum
    assert exact.num_samples == samples
    assert exact.rank_bound == 2 * samples
    assert exact.settings == ({} if samples == 23 else {"samples": 10, "data_seed": 0})
    names = [check.name for check in record.checks if "exact spectrum" in check.name]
    assert "wasserstein_distance (exact spectrum)" in names
    assert "frobenius_norm (exact spectrum)" in names
    assert not record.notes or "CHECK" not in " ".join(record.notes)
    with RunFile.open(tmp_path / "run.h5", {"seed": 0}) as run:
        run.append(record)
    (back,) = load_trajectory(tmp_path / "run.h5")
    assert back.exact_spectrum.eigenvalues.tolist() == exact.eigenvalues.tolist()
    assert back.exact_spectrum.to_json() == exact.to_json() == back.to_json()["exact_spectrum"]
    assert back.checks == record.checks


def test_a_wrong_gauss_newton_run_is_found_by_its_eigenvalues(monkeypatch):
    right = GGNOperator.linearise
    monkeypatch.setattr(GGNOperator, "linearise", lambda self, batch: lambda v: 3 * right(self, batch)(v))
    options = {"lanczos_steps": 20, "num_probes": 8, "exact_spectrum": 100, "metrics": "none", "check": False}
    (record,) = analyze(make_task(), operators="ggn", **options)
    failed = {check.name.split()[0] for check in record.checks if check.failed}
    assert {"spectral_norm", "wasserstein_distance"} <= failed
    assert any(note.startswith("CHECK FAILED") for note in record.notes)


def test_the_hessian_and_train_mode_have_no_exact_spectrum():
    task = make_task(batch_norm=True)
    options = {"lanczos_steps": 3, "num_probes": 2, "exact_spectrum": 100, "metrics": "none"}
    for operator, mode in (("hessian", "eval"), ("ggn", "train")):
        (record,) = analyze(task, operators=operator, bn_modes=mode, **options)
        assert record.exact_spectrum is None


def test_what_was_not_asked_for_is_absent():
    (record,) = analyze(make_task(), lanczos_steps=2, num_probes=2, check=False, metrics="none")
    assert record.exact is None
    assert not {"exact", "check", "sharpness"} & set(record.to_json())


def test_a_check_that_cannot_be_made_leaves_the_run_its_numbers_and_says_so(monkeypatch):
    def broken(self, block, seen):
        raise NumericsError("a product with the ggn holds NaN or infinity")

    monkeypatch.setattr(GGNOperator, "_pass", broken)
    (record,) = analyze(make_task(nn.Tanh()), lanczos_steps=2, num_probes=2)
    assert record.status == "complete"
    words = "the traces of this record could not be checked: a product with the ggn holds NaN or infinity"
    assert words in record.notes


def test_few_probes_claim_nothing():
    operator = HessianOperator(make_task())
    verdicts = {check.verdict for check in verify(operator, slq(operator, 2, 2)).checks}
    assert "disagrees" not in verdicts
    assert "inconclusive" in verdicts
    assert np.isfinite([check.z for check in verify(operator, slq(operator, 2, 2)).checks]).all()
