"""`spectra analyze` on frozen data, on held-out data and by a paper's protocol; and how `spectra show` tells it."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from click.testing import CliRunner
from run_files import SETTINGS, make_record, make_spectrum
from torch import nn

from spectra import load_trajectory
from spectra.results.storage.runfile import RunFile
from spectra_cli.main import main

TASKS = """
import torch, spectra
from torch import nn

def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    return [(x[:7], y[:7]), (x[7:], y[7:])]

class Noisy:
    def __iter__(self):
        return iter([(x + torch.randn(x.shape), y) for x, y in rows(0)])

def network():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

def noisy():
    return spectra.Task(network(), nn.CrossEntropyLoss(), Noisy())

def held_out():
    return spectra.Task(network(), nn.CrossEntropyLoss(), rows(0), test_data=rows(1))
"""
QUICK = ("-m", "5", "-k", "2")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "data_tasks.py").write_text(TASKS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    torch.save(model.state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spectra(*arguments: str):
    return CliRunner().invoke(main, list(arguments), prog_name="spectra")


def analyzed(task: str, *arguments: str):
    return spectra("analyze", "net.pt", "--task", f"data_tasks.py:{task}", *arguments)


def test_data_that_augment_are_refused_with_the_option_that_freezes_them(here):
    refused = analyzed("noisy", *QUICK)
    assert refused.exit_code != 0
    assert "freeze one pass with --snapshot-data" in refused.stderr
    first = analyzed("noisy", *QUICK, "--snapshot-data", "--data-seed", "4", "--out", "a.h5")
    assert first.exit_code == 0, first.output
    assert "one pass of the data, seed 4" in first.stdout
    analyzed("noisy", *QUICK, "--snapshot-data", "--data-seed", "4", "--out", "b.h5")
    (a,), (b,) = load_trajectory("a.h5"), load_trajectory("b.h5")
    assert a.estimates == b.estimates
    assert a.settings["snapshot_data"] is True
    other = analyzed("noisy", *QUICK, "--snapshot-data", "--out", "a.h5")
    assert "data_seed is 4 in the file, 0 now" in other.stderr


def test_numbers_on_test_data_are_shown_with_those_on_training_data(here):
    done = analyzed(
        "held_out", *QUICK, "--test-data", "--operator", "hessian", "--operator", "ggn", "--json", "--quiet"
    )
    assert done.exit_code == 0, done.output
    (record, _) = load_trajectory("run.h5")
    entry = json.loads(done.stdout)[0]
    assert entry["test"]["loss"] == record.facts["test_loss"]
    assert entry["test"]["n_samples"] == 12
    assert entry["test"]["estimates"]["trace"]["value"] == record.test_spectrum.trace().value
    two = spectra("show", "run.h5").stdout
    assert two.count(", test data") == 2
    one = spectra("show", "run.h5", "--operator", "ggn", "--all").stdout
    for words in ("test data", "loss of the test data", "generalization gap", "10 on the test data"):
        assert words in one
    rows = {row["estimate"]: row for row in csv.DictReader(io.StringIO(spectra("show", "run.h5", "--csv").stdout))}
    ggn = load_trajectory("run.h5")[1]
    assert float(rows["test_trace"]["value"]) == ggn.test_estimates["trace"].value
    assert float(rows["test_trace"]["loss"]) == ggn.facts["test_loss"]
    assert float(rows["trace"]["loss"]) == ggn.facts["loss"]


def test_a_task_without_test_data_says_so_in_a_line(here):
    refused = analyzed("noisy", *QUICK, "--snapshot-data", "--test-data")
    assert refused.exit_code != 0
    assert "the task has no test data: pass test_data=" in refused.stderr
    assert not (here / "run.h5").exists()


def test_a_run_of_checkpoints_has_its_test_losses_in_the_table(tmp_path):
    facts = {"loss": 1.25, "test_loss": 2.375, "test_accuracy": 0.625}
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        for epoch in (0.0, 1.0):
            run.append(make_record(epoch, facts=facts, test_spectrum=make_spectrum(1)))
    text = spectra("show", str(tmp_path / "run.h5")).stdout
    assert "test accuracy" in text
    assert text.count("2.375") == 2


def test_the_preset_fills_what_is_not_given_and_says_what_is(here):
    done = analyzed("held_out", "--preset", "granziol")
    assert done.exit_code == 0, done.output
    found = load_trajectory("run.h5")
    modes = [(r.operator, r.bn_mode) for r in found]
    assert modes == [(name, mode) for name in ("hessian", "ggn") for mode in ("recalibrated", "train")]
    assert found.settings["lanczos_steps"] == 100
    assert found.settings["num_probes"] == 1
    assert "but as given" not in done.stderr
    other = analyzed(
        "held_out", "--preset", "granziol", "-k", "2", "--operator", "ggn", "--bn", "recalibrated", "--out", "b.h5"
    )
    assert (
        "--preset granziol, but as given: operators=ggn in place of hessian+ggn, "
        "bn_modes=recalibrated in place of recalibrated+train, num_probes=2 in place of 1" in other.stderr
    )
    (record,) = load_trajectory("b.h5")
    assert record.settings["preset"] == "granziol, but num_probes=2 in place of 1"
    assert record.spectrum.num_probes == 2


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.removeprefix(start).split("  ") if cell.strip()]


def test_show_prints_what_the_paper_of_the_preset_prints(tmp_path):
    settings = SETTINGS | {"preset": "granziol"}
    one_probe = make_spectrum(0, num_probes=1)
    facts = {"loss": 1.0, "rank_bound_ff": 150}
    records = [
        make_record(0.0, operator, "recalibrated", settings=settings, spectrum=one_probe, facts=facts)
        for operator in ("hessian", "ggn")
    ]
    with RunFile.open(tmp_path / "run.h5", settings) as run:
        for record in records:
            run.append(record)
    text = spectra("show", str(tmp_path / "run.h5")).stdout
    two, one = one_probe.closest(2), one_probe.closest(1)
    assert cells(text, "Ritz values closest to 0") == ["two", "one"]
    assert [float(cell) for cell in cells(text, "their mass (rank degeneracy)")] == pytest.approx(
        [two.mass.value, one.mass.value], rel=1e-4
    )
    assert [float(cell) for cell in cells(text, "their weighted mean")] == pytest.approx(
        [two.value.value, one.value.value], rel=1e-4
    )
    assert cells(text, "4 d_y (sum N_l + d_x)  ") == ["150", "150"]
    assert cells(text, "1 - 4 d_y (sum N_l + d_x) / n") == ["0.25", "0.25"]
    alone = spectra("show", str(tmp_path / "run.h5"), "--operator", "ggn").stdout
    assert cells(alone, "mean eigenvalue Tr H / n") == [f"{one_probe.mean_eigenvalue().value:.5g}"]
    with RunFile.open(tmp_path / "plain.h5", SETTINGS) as run:
        run.append(make_record())
    assert "Granziol" not in spectra("show", str(tmp_path / "plain.h5")).stdout


def test_a_bound_that_exceeds_n_or_is_not_known_is_not_turned_into_a_degeneracy(tmp_path):
    settings = SETTINGS | {"preset": "granziol"}
    for name, facts, words in (("a", {"rank_bound_ff": 500}, "- (it exceeds n)"), ("b", {"loss": 1.0}, "-")):
        with RunFile.open(tmp_path / f"{name}.h5", settings) as run:
            run.append(make_record(settings=settings, facts=facts))
        text = spectra("show", str(tmp_path / f"{name}.h5")).stdout
        assert cells(text, "1 - 4 d_y (sum N_l + d_x) / n") == [words]
