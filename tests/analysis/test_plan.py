"""The plan of an analysis: exact products, and predictions that follow what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_runs import maker, network, rows
from torch import nn

from spectra import Task, load_trajectory
from spectra.analysis.plan import plan_checkpoints
from spectra.analysis.run import analyze_checkpoints
from spectra.analysis.settings import DataChoice, RunSettings, Settings
from spectra.analysis.store import Listener
from spectra.errors import CheckpointError, OutOfMemory, TaskError
from spectra.runtime import memory


@pytest.fixture
def run(tmp_path):
    paths = [tmp_path / f"epoch_{epoch}.pt" for epoch in range(3)]
    for path in paths:
        torch.save(network().state_dict(), path)
    return paths


def with_test_data():
    task = Task(network(), nn.CrossEntropyLoss(), rows(), test_data=rows(1))
    return lambda checkpoint: task


SETTINGS = {
    "one": Settings(lanczos_steps=4, num_probes=2),
    "several": Settings(("hessian", "ggn", "empirical_fisher"), ("eval", "train"), lanczos_steps=3, num_probes=5),
    "shared passes": Settings(lanczos_steps=4, num_probes=5, width=2),
    "double": Settings(lanczos_steps=4, num_probes=2, dtype="float64", check=False, metrics="none"),
}


def test_a_krylov_space_that_is_exhausted_needs_no_more_than_predicted(run, tmp_path):
    asked = RunSettings(Settings(lanczos_steps=1000, num_probes=1), out=tmp_path / "run.h5")
    plan = plan_checkpoints(run[:1], maker(), asked)
    analyze_checkpoints(run[:1], maker(), asked, Listener())
    assert load_trajectory(asked.out)[0].provenance["products"] <= plan.records[0].products == 43
    assert any("Krylov space" in note for note in plan.notes)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "several" else n for n in SETTINGS])
def test_the_products_are_those_of_the_run(run, tmp_path, name):
    asked = RunSettings(SETTINGS[name], out=tmp_path / "run.h5")
    plan = plan_checkpoints(run, maker(), asked)
    analyze_checkpoints(run, maker(), asked, Listener())
    found = load_trajectory(asked.out)
    assert plan.checkpoints == 3
    assert len(found) == 3 * len(plan.records)
    for record, predicted in zip(found, plan.records):
        assert (record.operator, record.bn_mode) == (predicted.operator, predicted.bn_mode)
        assert record.provenance["products"] == predicted.products
    assert plan.file_bytes == pytest.approx(asked.out.stat().st_size, rel=0.5)


def test_the_products_with_test_data_are_counted(run, tmp_path):
    asked = RunSettings(Settings(lanczos_steps=4, num_probes=2, test_data=True), out=tmp_path / "run.h5")
    plan = plan_checkpoints(run[:1], with_test_data(), asked)
    analyze_checkpoints(run[:1], with_test_data(), asked, Listener())
    record = load_trajectory(asked.out)[0]
    assert len(plan.records[0].trials) == 2
    assert record.provenance["products"] == record.provenance["test_products"] == plan.records[0].products


@pytest.mark.parametrize("blocks", ["layer", pytest.param(r"\d\.weight", marks=pytest.mark.slow)])
def test_blocks_are_counted(run, tmp_path, blocks):
    asked = RunSettings(Settings(lanczos_steps=8, num_probes=3, blocks=blocks), out=tmp_path / "run.h5")
    without = RunSettings(replace(asked.analysis, blocks=None), out=tmp_path / "other.h5")
    plan, plain = (plan_checkpoints(run, maker(), one) for one in (asked, without))
    analyze_checkpoints(run, maker(), asked, Listener())
    record = load_trajectory(asked.out)[0]
    assert record.provenance["products"] == plan.records[0].products
    assert record.provenance["block_products"] == plan.records[0].block_products > plain.records[0].block_products == 0
    assert list(plan.records[0].blocks) == [spectrum.n for spectrum in record.blocks.values()]
    assert plan.file_bytes == pytest.approx(asked.out.stat().st_size, rel=0.5)
    assert plan.file_bytes > 1.2 * plain.file_bytes
    first = plan.records[0]
    assert float((first.time() - replace(first, blocks=()).time())[0]) > 0
    slower = replace(first, trials=[replace(first.trials[0], blocks=first.trials[0].blocks + 1.0)])
    passes = 8 * 3 / first.width
    assert float((slower.time() - first.time())[0]) == pytest.approx(passes)


def test_the_search_for_eigenpairs_is_a_bound(run, tmp_path):
    asked = RunSettings(Settings(lanczos_steps=4, num_probes=2, eigenpairs=3), out=tmp_path / "run.h5")
    plan = plan_checkpoints(run[:1], maker(), asked)
    analyze_checkpoints(run[:1], maker(), asked, Listener())
    products = load_trajectory(asked.out)[0].provenance["products"]
    assert plan.records[0].products < products <= plan.records[0].products + plan.records[0].search
    assert any("at most" in note for note in plan.notes)


def test_a_plan_writes_no_file_and_leaves_the_model_as_it_is(run, tmp_path):
    torch.manual_seed(1)
    task = Task(network(), nn.CrossEntropyLoss(), rows())
    random = torch.get_rng_state()
    plan_checkpoints(run, lambda checkpoint: task, RunSettings(SETTINGS["several"], out=tmp_path / "run.h5"))
    assert sorted(tmp_path.iterdir()) == run
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in task.model.parameters())


def test_a_plan_is_refused_as_the_analysis_is(run, tmp_path, monkeypatch):
    loss = Task.from_loss(network(), lambda model, batch: model(batch[0]).square().mean(), rows())
    with pytest.raises(TaskError):
        plan_checkpoints(run, lambda checkpoint: loss, RunSettings(Settings("ggn")))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        plan_checkpoints([], maker(), RunSettings())
    monkeypatch.setattr(memory, "used_bytes", lambda device: 2**30)
    with pytest.raises(OutOfMemory, match="1025M would fit"):
        plan_checkpoints(run, maker(), RunSettings(Settings(memory="1G")))


def test_memory_for_all_graphs_is_a_saving_where_they_are_not_kept(run, monkeypatch):
    monkeypatch.setattr(memory, "used_bytes", lambda device: 2**30)
    tight = Settings(lanczos_steps=1000, num_probes=40, width=1, memory=2**30 + 20_000)
    data = [(torch.randn(200, 4), torch.randint(3, (200,))) for _ in range(3)]
    plan = plan_checkpoints(run[:1], maker(data), RunSettings(tight))
    record = plan.records[0]
    assert record.kept_share(record.trials[0]) < 1
    roomy = plan_checkpoints(run[:1], maker(data), RunSettings(Settings(lanczos_steps=4, num_probes=2)))
    assert roomy.records[0].kept_share(roomy.records[0].trials[0]) == 1
    assert not any("memory" in saving.change for saving in roomy.savings())
    # From the measured times alone: a graph that costs a second to make.
    slow = [replace(trial, new=trial.kept + 1.0, load=0 * trial.load) for trial in record.trials]
    plan = replace(plan, records=[replace(record, trials=slow)])
    saving = next(saving for saving in plan.savings() if saving.change.startswith("--memory"))
    missing = 1 - record.kept_share(record.trials[0])
    assert saving.seconds == pytest.approx(missing * record.products, rel=1e-6)


def test_a_subset_is_planned_as_the_subset(run):
    data = [(torch.randn(200, 4), torch.randint(3, (200,))) for _ in range(3)]
    asked = RunSettings(SETTINGS["one"], DataChoice(samples=40, batch_size=10))
    plan = plan_checkpoints(run[:1], maker(data), asked)
    assert (plan.records[0].samples, plan.records[0].batches) == (40, 4)
