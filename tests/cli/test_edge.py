"""The optimizer's edge of stability in `inspect`, `show` and `plot`, from checkpoints or from options."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from run_files import SETTINGS, failed_record, make_record
from saved_weights import network

from spectra import save_checkpoint
from spectra.results.optimizer import OptimizerSettings
from spectra.results.storage.runfile import RunFile
from spectra.zoo.tasks import build_task
from spectra_cli.main import main


def call(*arguments: object):
    return CliRunner().invoke(main, [str(word) for word in arguments])


def write(path, *records):
    with RunFile.open(path, SETTINGS) as run:
        for record in records:
            run.append(record)
    return path


@pytest.fixture(scope="module")
def with_it(tmp_path_factory):
    records = []
    for epoch, rate in enumerate((0.2, 0.2, 0.05)):
        optimizer = OptimizerSettings("sgd", ({"lr": rate},))
        records.append(dataclasses.replace(make_record(epoch), optimizer=optimizer))
    return write(tmp_path_factory.mktemp("runs") / "run.h5", *records, failed_record(3))


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs") / "bare.h5", make_record(0), make_record(1), failed_record(2))


def test_show_has_a_column_with_the_ratio_at_every_learning_rate(with_it):
    text = call("show", with_it).stdout
    assert "lambda_max / edge" in text
    assert "optimizer: SGD, lr 0.2, at the last: SGD, lr 0.05; edge of stability: 2 / lr" in text
    records = [entry for entry in json.loads(call("show", with_it, "--json").stdout) if entry["status"] == "complete"]
    edges = [entry["optimizer"]["edge"] for entry in records]
    assert edges == pytest.approx([10, 10, 40])
    for entry, edge in zip(records, edges):
        ratio = entry["optimizer"]["lambda_max_over_edge"]["value"]
        assert ratio == pytest.approx(entry["estimates"]["lambda_max"]["value"] / edge)


def test_a_single_record_has_the_edge_in_its_summary_and_in_full(with_it):
    for more in ([], ["--all"]):
        text = call("show", with_it, "--epoch", 0, *more).stdout
        assert "SGD, lr 0.2" in text
        assert "10 = 2 / lr, of full-batch training; lambda_max / edge" in text


def test_options_give_the_optimizer_that_the_checkpoints_lack(without):
    assert "edge" not in call("show", without).stdout
    text = call("show", without, "--learning-rate", 0.1, "--momentum", 0.9).stdout
    assert "lambda_max / edge" in text
    entries = json.loads(call("show", without, "--learning-rate", 0.1, "--momentum", 0.9, "--json").stdout)
    assert [entry["optimizer"]["edge"] for entry in entries if "optimizer" in entry] == pytest.approx([38, 38])


def test_an_option_never_replaces_what_a_checkpoint_holds(with_it):
    result = call("show", with_it, "--epoch", 0, "--learning-rate", 5)
    assert "SGD, lr 0.2" in result.stdout
    assert "--learning-rate is not used" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--momentum", 0.9], "--momentum without --learning-rate"),
        (["--learning-rate", 0], "above 0"),
        (["--learning-rate", "nan"], "above 0"),
        (["--learning-rate", 0.1, "--momentum", 1], "below 1"),
    ],
)
def test_options_out_of_their_range_are_refused_in_one_line(without, options, words):
    for command in ("show", "plot"):
        result = call(command, without, *options)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_adam_has_its_reason_in_place_of_an_edge(tmp_path):
    adam = OptimizerSettings("adam", ({"lr": 1e-3, "betas": [0.9, 0.999]},), 10)
    path = write(tmp_path / "run.h5", *(dataclasses.replace(make_record(e), optimizer=adam) for e in (0, 1)))
    text = call("show", path).stdout
    assert "lambda_max / edge" not in text
    assert "Adam, lr 0.001, betas 0.9/0.999; edge of stability: none" in text
    assert "none: the edge of Adam is that of the preconditioned" in call("show", path, "--epoch", 0).stdout


def test_inspect_shows_the_optimizer(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9).state_dict()
    torch.save({"model": model.state_dict(), "optimizer": optimizer}, tmp_path / "a.pt")
    assert "optimizer   SGD, lr 0.05, momentum 0.9" in call("inspect", tmp_path / "a.pt").stdout
    (entry,) = json.loads(call("inspect", "--json", tmp_path / "a.pt").stdout)
    assert entry["optimizer"]["kind"] == "sgd"
    torch.save(model.state_dict(), tmp_path / "b.pt")
    assert "optimizer" not in call("inspect", tmp_path / "b.pt").stdout
    assert json.loads(call("inspect", "--json", tmp_path / "b.pt").stdout)[0]["optimizer"] is None


def _checkpoint(path, make):
    """A checkpoint of the smallest built-in task after two steps of an optimizer."""
    task = build_task("digits-logistic")
    optimizer = make(task.model.parameters())
    for _ in range(2):
        task.loss_of(next(iter(task.data))).backward()
        optimizer.step()
    save_checkpoint(path, task.model, task="digits-logistic", step=2, optimizer=optimizer.state_dict())
    return path


def test_an_analysis_with_the_preconditioner_of_adam_has_its_edge(tmp_path):
    path = _checkpoint(tmp_path / "a.pt", lambda p: torch.optim.Adam(p, lr=1e-3))
    out = tmp_path / "run.h5"
    result = call("analyze", path, "--precondition", "optimizer", "--preset", "sharpness", "--out", out)
    assert result.exit_code == 0, result.stderr
    text = call("show", out).stdout
    assert "preconditioned: P^-1/2 H P^-1/2, P of the optimizer" in text
    assert "38000 = 2 (1 + beta1) / ((1 - beta1) lr)" in text


def test_sgd_has_no_preconditioner_and_the_command_ends_with_the_reason(tmp_path):
    path = _checkpoint(tmp_path / "a.pt", lambda p: torch.optim.SGD(p, lr=0.1))
    result = call("analyze", path, "--precondition", "optimizer", "--out", tmp_path / "run.h5")
    assert result.exit_code == 1
    assert "a.pt: the optimizer sgd has no preconditioner" in result.stderr
    assert not (tmp_path / "run.h5").exists()
