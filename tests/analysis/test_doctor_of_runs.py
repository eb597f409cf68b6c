"""The doctor on several checkpoints: one finding per problem, with the checkpoints that have it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectra import Task
from spectra.analysis import doctor
from spectra.analysis.diagnoses import Diagnosis
from spectra.analysis.doctor import examine_checkpoints
from spectra.analysis.settings import RunSettings, Settings
from spectra.operators.selftest import self_test


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Findings of a run of epochs that are more than "ok": {check: [(level, reason, epochs)]}."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    task = Task(model, nn.CrossEntropyLoss(), list(zip(x.split(20), y.split(20))))

    def examine(changes, level=("warning", "problem"), **settings):
        """``changes``: what is done to the model or the file before each epoch is saved."""
        paths = []
        for epoch, change in enumerate(changes):
            for _ in range(50):
                model.train()(x)
            with torch.no_grad():
                model[0].weight += 0.01
            paths.append(tmp_path / f"epoch_{epoch}.pt")
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            weights = change(weights) or weights
            state = {"optimizer": weights.pop("optimizer")} if "optimizer" in weights else {}
            torch.save({"model": weights, "epoch": epoch} | state, paths[-1])
        monkeypatch.setattr(doctor.diagnoses, "of_plan", lambda *_: Diagnosis("cost", "ok", "none"))
        monkeypatch.setattr(doctor, "plan_checkpoints", lambda *_: None)
        found = examine_checkpoints(paths, lambda checkpoint: task, RunSettings(Settings(**settings)))
        places = {str(path): epoch for epoch, path in enumerate(paths)}
        return [
            (one.check, one.level, one.reason, [places[c] for c in one.checkpoints])
            for one in found
            if one.level in level
        ]

    examine.model = model
    return examine


def same(weights):
    return None


def not_finite(weights):
    weights["0.bias"][1] = torch.nan


def other_shape(weights):
    weights["3.bias"] = torch.zeros(4)


def stale(weights):
    weights["1.running_mean"] += 3


def test_a_healthy_run_has_no_finding_and_says_what_was_examined(run):
    assert run([same] * 4) == []
    ok = run([same] * 4, level=("ok",))
    assert any("4 checkpoints were read" in reason for _, _, reason, _ in ok)
    assert [places for check, _, _, places in ok if check == "range"] == [[0, 3]]
    assert [places for check, _, _, places in ok if check == "batch norm"] == [[0, 1, 2, 3]]


def test_one_finding_per_problem_with_its_checkpoints(run):
    found = run([same, not_finite, other_shape, not_finite, same])
    assert [(level, places) for _, level, _, places in found] == [("problem", [1, 3]), ("problem", [2])]
    assert "0.bias" in found[0][2]
    assert "another shape" in found[1][2]
    assert not any("epoch_" in reason for _, _, reason, _ in found)


def test_statistics_of_batch_norm_are_checked_in_all(run):
    ((check, level, reason, places),) = run([same, stale, same, stale, same])
    assert (check, level, places) == ("batch norm", "warning", [1, 3])
    assert "not those of the data" in reason


def test_equal_weights_are_found_wherever_they_are(run):
    kept = {}

    def frozen(weights):
        kept.update(kept or weights)
        return kept

    ((check, level, _, places),) = run([frozen, same, frozen, frozen])
    assert (check, level, places) == ("equal weights", "warning", [0, 2, 3])


def test_the_last_is_examined_like_the_first(run):
    def dead(weights):
        weights["3.weight"] *= 0

    found = run([same, dead, dead])
    assert [(check, places) for check, _, _, places in found] == [("parameters", [2])]


def test_operators_are_tested_for_two_checkpoints_only(run, monkeypatch):
    calls = []
    monkeypatch.setattr("spectra.operators.curvature.self_test", lambda *args: (calls.append(1), self_test(*args))[1])
    run([same] * 5)
    assert 2 <= len(calls) <= 4


def test_a_last_one_that_does_not_fit_is_not_examined_with_other_weights(run):
    found = run([same, same, other_shape])
    assert [(level, places) for _, level, _, places in found] == [("problem", [2])]
    ok = run([same, same, other_shape], level=("ok",))
    assert [places for check, _, _, places in ok if check == "range"] == [[0]]


def test_two_findings_are_one_if_they_differ_in_measured_numbers_only():
    one = Diagnosis("batch norm", "warning", "mean off by 0.9 in 1 of 2", "", ("a",))
    assert one.joined(Diagnosis("batch norm", "warning", "mean off by 1.2e-3 in 1 of 2", "", ("b",))).checkpoints == (
        "a",
        "b",
    )
    assert one.joined(Diagnosis("batch norm", "warning", "mean off by 1.2 in 2 of 2", "", ("b",))) is None
    assert one.joined(Diagnosis("batch norm", "warning", "mean off by 1.2 in 1 of 2", "", ("a",))) is None
    assert one.joined(Diagnosis("other", "warning", one.reason, "", ("a",))).checkpoints == ("a",)


def test_a_preconditioner_that_is_not_there_is_found_in_every_checkpoint(run):
    def with_adam(weights):
        optimizer = torch.optim.Adam(run.model.parameters())
        for p in run.model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        weights |= {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        return weights | {"optimizer": optimizer.state_dict()}

    found = run([with_adam, same, same, with_adam], level=("problem",), precondition="optimizer")
    ((check, _, reason, epochs),) = found
    assert (check, epochs) == ("optimizer", [1, 2])
    assert "--precondition optimizer needs that of Adam" in reason
    assert run([with_adam], level=("problem",), precondition="optimizer") == []
