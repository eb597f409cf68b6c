"""Every analysis is held against exact traces: right runs pass, wrong ones are called wrong, others say why not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import dense_hessian
from torch import nn
from torch.nn import functional as F
from wrong_products import multiplied

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task, analyze, exact_trace, iter_analyze, slq
from spectra.analysis.validation import verify
from spectra.errors import NumericsError
from spectra.results.spectrum_checks import check_spectrum
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.results.trace_checks import DISAGREES
from spectra.runtime.allowance import Allowance, limited
from spectra.runtime.memo import shared_results


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
        return multiplied(1.5, product)


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
    monkeypatch.setattr(GGNOperator, "linearise", lambda self, batch: multiplied(3, right(self, batch)))
    options = {"lanczos_steps": 20, "num_probes": 8, "exact_spectrum": 100, "metrics": "none", "check": False}
    (record,) = analyze(make_task(), operators="ggn", **options)
    failed = {check.name.split()[0] for check in record.checks if check.failed}
    assert {"spectral_norm", "wasserstein_distance"} <= failed
    assert any(note.startswith("CHECK FAILED") for note in record.notes)


def test_a_disagreement_with_all_eigenvalues_counts_only_if_fresh_probes_find_it(monkeypatch):
    options = {"lanczos_steps": 4, "num_probes": 3, "exact_spectrum": 100, "metrics": "none", "check": False}
    seen = []

    def shifted_at_first(spectrum, exact, **how):
        seen.append(spectrum)
        moved = exact if len(seen) > 1 else replace(exact, eigenvalues=1e3 * exact.eigenvalues)
        return check_spectrum(spectrum, moved, **how)

    monkeypatch.setattr("spectra.analysis.validation.check_spectrum", shifted_at_first)
    (record,) = analyze(make_task(), operators="ggn", **options)
    assert not any(check.failed for check in record.checks)
    assert [spectrum.num_probes for spectrum in seen] == [3, 64]
    assert seen[0].seed != seen[1].seed


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
    def broken(self, jobs, seen=None):
        raise NumericsError("a product with the ggn holds NaN or infinity")

    monkeypatch.setattr(GGNOperator, "apply_to_blocks", broken)
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


# -- what it may cost


def many_outputs(activation: nn.Module | None = None, classes: int = 80) -> Task:
    """More columns than are taken one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), activation or nn.ReLU(), nn.Linear(6, classes)).double()
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randint(classes, (60,))
    return Task(model, nn.CrossEntropyLoss(), [(x[:40], y[:40]), (x[40:], y[40:])])


def checked(task: Task, gradients: float, probes: int = 4, kind=HessianOperator):
    allowance = Allowance(gradients, "float64")
    operator = kind(task)
    spectrum = slq(operator, 3, probes)
    with limited(allowance), shared_results():
        found = verify(operator, spectrum)
    assert allowance.spent <= gradients
    return found, allowance


def test_the_exact_trace_is_drawn_as_often_as_the_budget_allows_and_says_so():
    task = many_outputs()
    whole, _ = checked(task, 1000)
    assert whole.exact.method == "Monte-Carlo: 32 draws for 79 columns"
    assert (whole.exact.draws, whole.exact.kind) == (32, "hessian")
    fewer, allowance = checked(task, 40)
    assert fewer.exact.method == "Monte-Carlo: 25 draws for 79 columns, as many as the budget allows"
    assert fewer.exact.draws == 25
    assert 10 <= allowance.left < 11  # the products for a comparison that was not needed are there again
    truth = exact_trace(task, method="exact")
    for found in (whole.exact, fewer.exact):
        assert abs(found.total - truth.total) < 4 * found.stderr
        assert found.to_json()["draws"] == found.draws


def test_few_columns_are_taken_one_by_one_or_drawn_if_there_is_no_more():
    task = many_outputs(classes=40)
    assert checked(task, 1000)[0].exact.method == "exact: 39 columns"
    drawn = checked(task, 40)[0].exact
    words = "25 draws for 39 columns, as many as the budget allows, since all of them would cost more than the budget"
    assert drawn.method == f"Monte-Carlo: {words}"
    assert drawn.stderr > 0


def test_a_check_of_drawn_traces_knows_how_little_their_error_is_known_by():
    found, _ = checked(many_outputs(), 30, probes=40, kind=GGNOperator)
    assert {check.dof for check in found.checks} == {found.exact.draws - 1}
    exact, _ = checked(many_outputs(classes=3), 1000, probes=40, kind=GGNOperator)
    assert {check.dof for check in exact.checks} == {39}


def test_a_certificate_that_costs_too_much_is_left_out_and_the_trace_is_called_the_gauss_newton_matrix_s():
    found, _ = checked(many_outputs(), 22)  # the certificate costs 5, 8 draws 8, a product with each probe 10
    assert found.exact.kind == "ggn"
    (reason,) = found.exact.reasons
    assert reason.startswith("Whether it is the Hessian's was not measured (left out, with the fewest draws: about 13 ")
    assert reason.endswith(" of a budget of 22 are left), so this is said to be the Gauss-Newton matrix's.")
    assert {check.of for check in found.checks} == {"ggn"}
    assert found.remainder is not None


def test_a_check_that_costs_too_much_is_left_out_with_the_reason():
    found, allowance = checked(many_outputs(nn.Tanh()), 12)
    assert found.exact.total is None
    assert found.exact.reasons[0].startswith("left out: 8 draws: about 8 gradients, and 2 of a budget of 12 are left")
    assert found.exact.reasons[0].endswith("; --check (check=True in Python) computes it")
    assert (found.checks, found.remainder, found.warnings) == ((), None, [])
    assert allowance.spent <= 12


def test_the_gauss_newton_matrix_is_not_compared_where_its_products_cost_too_much():
    found, _ = checked(many_outputs(nn.Tanh()), 30, probes=16)
    assert found.exact.total is not None
    assert found.remainder is None
    (warning,) = found.warnings
    assert warning.startswith("the Gauss-Newton matrix was not compared: a product with each probe costs about 40 ")


def test_a_check_that_is_asked_for_is_made_whatever_it_costs(monkeypatch):
    monkeypatch.setattr("spectra.runtime.allowance.SMALL", 0.0)
    options = {"lanczos_steps": 1, "num_probes": 2, "metrics": "none"}
    (left_out,) = analyze(many_outputs(), **options)
    assert "left out" in left_out.exact.reasons[0]
    (asked,) = analyze(many_outputs(), **options, check=True)
    assert asked.exact.method == "Monte-Carlo: 32 draws for 79 columns"
    (none,) = analyze(many_outputs(), **options, check=False)
    assert none.exact is None


def test_a_check_that_was_left_out_comes_back_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra.runtime.allowance.SMALL", 0.0)
    records = [analyze(many_outputs(), lanczos_steps=m, num_probes=2, metrics="none")[0] for m in (1, 20)]
    with RunFile.open(tmp_path / "run.h5", {"seed": 0}) as run:
        run.append(records[0])
    with RunFile.open(tmp_path / "other.h5", {"seed": 0}) as run:
        run.append(records[1])
    for record, name in zip(records, ("run.h5", "other.h5")):
        (back,) = load_trajectory(tmp_path / name)
        assert back.exact == record.exact
    assert records[1].exact.draws == 32
