"""``spectra train``: a training from the command line, its listing, and what is refused in one line."""

from __future__ import annotations

import os
import re
import signal

import pytest
import torch
from click.testing import CliRunner

from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.results.storage.runfile import load_trajectory
from spectra.zoo.recipes import PAPERS
from spectra.zoo.tasks import list_tasks
from spectra_cli.main import main
from spectra_cli.train import TrainingDisplay

pytest.importorskip("sklearn")


def run(*arguments: object):
    return CliRunner().invoke(main, ["train", *map(str, arguments)], prog_name="spectra")


def test_a_training_its_continuation_and_its_analysis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("digits-logistic", "--epochs", 1, "--out", "run", "--set", "label_noise=0.25", "--set", "momentum=0")
    assert (result.exit_code, result.stdout) == (0, "")
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"run/epoch_000\.pt  epoch 0, step 0: untrained, test accuracy 0\.\d{4}", lines[0])
    words = r"run/epoch_001\.pt  epoch 1, step 23: loss \d\.\d{4}, accuracy 0\.\d{4}, test accuracy 0\.\d{4}"
    assert re.fullmatch(words, lines[1])
    assert lines[2] == "spectra: 2 checkpoints in run; next: spectra analyze run --test-data"
    result = run("digits-logistic", "--epochs", 3, "--out", "run", "--set", "label_noise=0.25", "--set", "momentum=0")
    lines = result.stderr.splitlines()
    assert lines[0] == "spectra: continues from run/epoch_001.pt"
    assert re.search(r"test accuracy 0\.\d{4}; \d+ s left$", lines[1])
    last = load_checkpoint("run/epoch_003.pt")
    assert last.task_args["label_noise"] == 0.25
    assert last.metadata["recipe"]["momentum"] == 0.0
    analysis = ["analyze", "run", "--last", "--test-data", "-m", "3", "-k", "1", "--quiet", "--metrics", "none"]
    assert CliRunner().invoke(main, analysis).exit_code == 0
    (record,) = load_trajectory("run.h5")
    assert record.facts["loss"] == pytest.approx(last.metadata["train_loss"], rel=1e-5)  # with the noise
    assert record.facts["test_accuracy"] == pytest.approx(last.metadata["test_accuracy"])
    again = run("digits-logistic", "--epochs", 3, "--out", "run", "--set", "label_noise=0.25", "--set", "momentum=0")
    assert "run/epoch_003.pt is the last epoch already" in again.stderr


def test_options_reach_the_network_and_the_training(tmp_path):
    settings = ("widths=5-4", "optimizer=adam", "beta1=0.5", "schedule=step", "milestones=1", "average=step")
    more = [part for setting in settings for part in ("--set", setting)]
    assert run("digits-mlp", "--epochs", 2, "--seed", 3, "--quiet", "--out", tmp_path / "run", *more).exit_code == 0
    checkpoint = load_checkpoint(tmp_path / "run" / "epoch_002.pt")
    assert (checkpoint.task_args["widths"], checkpoint.task_args["seed"]) == ("5-4", 3)
    recipe = checkpoint.metadata["recipe"]
    assert (recipe["beta1"], recipe["milestones"], recipe["average_from"]) == (0.5, [1], 1)
    assert checkpoint.metadata["learning_rate"] == pytest.approx(1e-4)
    assert checkpoint.notes == ("weights taken from 'model'; the file also holds 'iterate', which --weights KEY takes",)


def test_force_trains_anew(tmp_path):
    out = tmp_path / "run"
    assert run("digits-logistic", "--epochs", 2, "--every", 2, "--out", out, "--quiet").exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["epoch_000.pt", "epoch_002.pt"]
    refused = run("digits-logistic", "--epochs", 1, "--seed", 1, "--out", out)
    assert refused.exit_code == 1
    assert "train anew (--force)" in refused.stderr
    assert run("digits-logistic", "--epochs", 1, "--seed", 1, "--out", out, "--force", "--quiet").exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["epoch_000.pt", "epoch_001.pt"]


@pytest.mark.skipif(not hasattr(os, "kill"), reason="the system has no signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_says_how_it_continues(tmp_path, monkeypatch, number):
    kept = TrainingDisplay.stepped

    def stepped(self, step):
        kept(self, step)
        if step == 30:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingDisplay, "stepped", stepped)
    result = run("digits-logistic", "--epochs", 2, "--out", tmp_path / "run")
    assert result.exit_code == 130
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[-2] == (
        f"spectra: the checkpoints so far are in {tmp_path / 'run'}; the same command continues (without --force)"
    )
    assert lines[-1] == "spectra: interrupted"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["epoch_000.pt", "epoch_001.pt"]


def test_the_list_has_every_recipe_with_its_options():
    result = run("--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    named = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {*list_tasks(), *PAPERS} <= named
    assert any("preresnet" in line and "(depth=164, block=bottleneck, width=16)" in line for line in lines)
    assert any(line.split()[0] == "ascent_steps=0" for line in lines if line.strip())


@pytest.mark.parametrize("recipe", [*list_tasks(), *PAPERS])
def test_every_recipe_can_be_listed(recipe):
    result = run(recipe, "--list", "--set", "batch_size=7")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^  batch_size=7 ", result.stdout, re.MULTILINE)


def test_the_options_of_a_papers_recipe_are_its_own():
    text = run("ff-cifar100-vgg16-gadam", "--list").stdout
    for words in (
        "optimizer=gadam",
        "learning_rate=0.0005",
        "weight_decay=0.35",
        "average_from=200",
        "final_fraction=0.5",
    ):
        assert f"  {words} " in text
    text = run("bn-cifar10-lenet-sgds", "--list", "--set", "ascent_steps=5").stdout
    assert re.search(r"^  learning_rate=0\.2 +at the start$", text, re.MULTILINE)  # the words of this optimizer
    for words in ("linear_norm=true", "ascent_steps=5", "learning_rate=0.2", "milestones=60-120-160", "max_norm=0.1"):
        assert f"  {words} " in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "which recipe? --list prints them"),
        (["digits-mlp"], 2, "--out DIR is needed"),
        (["digits-ml", "--out", "run"], 1, "no recipe is called 'digits-ml': did you mean digits-mlp?"),
        (["mnist-mlp", "--out", "run"], 1, "mnist-mlp needs --data-dir DIR: the folder of MNIST's IDX files"),
        (
            ["mnist-mlp", "--out", "run", "--data-dir", "."],
            1,
            "no MNIST here: train-images-idx3-ubyte[.gz] is expected",
        ),
        (["cifar100-allcnn", "--out", "run", "--data-dir", "gone"], 1, "no CIFAR-100 here"),
        (["digits-mlp", "--out", "run", "--data-dir", "."], 1, "has its images from scikit-learn"),
        (["digits-mlp", "--out", "run", "--set", "hidden"], 1, "--set 'hidden': key=value is needed"),
        (["digits-mlp", "--out", "run", "--set", "hidden=x"], 1, "hidden='x': digits-mlp needs an integer here"),
        (["digits-mlp", "--out", "run", "--set", "depht=3"], 1, "digits-mlp has no option 'depht'"),
        (["digits-mlp", "--out", "run", "--set", "epochs=3"], 1, "--set epochs: use --epochs"),
        (["digits-mlp", "--out", "run", "--set", "hidden=3", "--set", "hidden=4"], 1, "--set hidden is given twice"),
        (["digits-mlp", "--out", "run", "--every", "0"], 1, "every=0: at least 1"),
        (["digits-mlp", "--out", "no/run"], 1, "no/run: the folder cannot be made"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_global_generators_are_left_alone(tmp_path):
    before = torch.get_rng_state()
    run("digits-mlp", "--epochs", 1, "--out", tmp_path / "run", "--quiet", "--set", "dropout=0.5")
    assert torch.equal(torch.get_rng_state(), before)
