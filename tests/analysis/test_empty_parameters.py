"""A trainable tensor without entries: a record with all findings, its file, and what is printed and drawn of it."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from spectra import GGNOperator, HessianOperator, Task, Tracker, load_trajectory
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import SpectraError
from spectra_cli.main import main


def task(*, empty=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    if empty:
        model[0].register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
        model.register_parameter("more", nn.Parameter(torch.empty(2, 0)))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    return Task(model, nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])


@pytest.mark.parametrize("metrics", ["cheap", pytest.param("all", marks=pytest.mark.slow)])
def test_a_record_is_that_of_the_network_without_it(tmp_path, monkeypatch, metrics):
    monkeypatch.chdir(tmp_path)
    records = []
    every = {"metrics": metrics, "eigenpairs": 2, "blocks": "layer", "lanczos_steps": 4, "num_probes": 2}
    for name, empty in (("with", True), ("without", False)):
        made = task(empty=empty)
        torch.save(made.model.state_dict(), f"{name}.pt")
        settings = Settings(**every)
        analyze_run([tmp_path / f"{name}.pt"], lambda _, m=made: m, settings, out=tmp_path / f"{name}.h5", strict=True)
        records.append(load_trajectory(tmp_path / f"{name}.h5").records)
    for with_it, without in zip(*records, strict=True):
        assert with_it.status == "complete"
        assert with_it.facts["loss"] == without.facts["loss"]
        assert (with_it.spectrum.nodes == without.spectrum.nodes).all()
        assert with_it.exact.total == pytest.approx(without.exact.total)
        assert {name: float(m) for name, m in with_it.sharpness.items()} == pytest.approx(
            {name: float(m) for name, m in without.sharpness.items()}, rel=1e-5, nan_ok=True
        )
    arguments = [["show", "with.h5", "--all"], ["show", "with.h5", "--json"], ["inspect", "with.pt"]]
    arguments += [["plot", "with.h5", "--out", "figures"]] if metrics == "all" else []
    for each in arguments:
        done = CliRunner().invoke(main, each)
        assert done.exit_code == 0, (each, done.output)


def test_a_model_of_nothing_else_is_refused_in_one_line():
    made = task()
    for p in made.model.parameters():
        p.requires_grad_(p.numel() == 0)
    for kind in (HessianOperator, GGNOperator):
        with pytest.raises(SpectraError) as caught:
            kind(made) @ torch.zeros(0)
        assert "\n" not in str(caught.value)
        assert "entries" in str(caught.value)


def test_blocks_and_parameters_chosen_by_its_name_are_none():
    with pytest.raises(SpectraError, match=r"0\.nothing"):
        HessianOperator(task(), params="0.nothing")


def test_a_tracker_takes_it(tmp_path):
    made = task()
    with Tracker(made, out=tmp_path / "run.h5", lanczos_steps=4, num_probes=2) as tracker:
        tracker(epoch=0)
    assert load_trajectory(tmp_path / "run.h5").records[0].status == "complete"
