"""--product differences through a whole analysis, of a network whose backward cannot be differentiated."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from spectra import analyze, load_trajectory, loss_slices
from spectra.analysis.settings import Settings
from spectra.errors import ArgumentError, TaskError
from spectra_cli.main import main

TASK = """
import spectra, torch
from torch import nn

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + 0.1 * x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 + 0.3 * ctx.saved_tensors[0] ** 2)

def task(twice=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.randint(3, (20,))
    between = (lambda h: h + 0.1 * h**3) if twice else Cube.apply
    data = [(x[:12], y[:12]), (x[12:], y[12:])]
    return spectra.Task(model, nn.CrossEntropyLoss(), data, forward=lambda m, b: m[1](between(m[0](b[0]))))
"""
OPTIONS = {"lanczos_steps": 10, "num_probes": 3, "metrics": "none", "check": False}


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    space: dict = {}
    exec(TASK, space)
    torch.save(space["task"]().model.state_dict(), "c.pt")
    return space["task"]


def call(command, *options):
    short = ["-m", "8", "-k", "2", "--metrics", "none"] if command != "slice" else ["--points", "5"]
    return CliRunner().invoke(main, [command, "c.pt", "--task", "task.py:task", "--quiet", *short, *options])


def test_the_numbers_are_those_of_the_same_network_by_autograd(make):
    found = analyze(make(), product="differences", **OPTIONS)[0]
    expected = analyze(make(twice=True), **OPTIONS)[0]
    for name in ("trace", "frobenius_norm", "lambda_max", "lambda_min"):
        assert found.estimates[name].value == pytest.approx(expected.estimates[name].value, rel=1e-5)
    assert found.settings["product"] == "differences"
    assert "product" not in expected.settings
    assert any("by differences of the gradient" in note for note in found.notes)
    assert found.spectrum.noise > expected.spectrum.noise
    slices = [
        loss_slices(made, ["top"], points=5, product=product)[0].line.curvature
        for made, product in ((make(), "differences"), (make(twice=True), "autograd"))
    ]
    assert slices[0] == pytest.approx(slices[1], rel=1e-6)


def test_every_command_takes_the_option_and_names_it_where_it_is_needed(make):
    for command in ("analyze", "slice"):
        done = call(command)
        assert done.exit_code == 1
        assert "--product differences computes the Hessian" in done.stderr
        done = call(command, "--product", "differences")
        assert done.exit_code == 0, done.output
    assert load_trajectory("run.h5")[0].settings["product"] == "differences"
    assert call("analyze").exit_code == 1  # other settings than those of the file


@pytest.mark.slow
@pytest.mark.parametrize("command", ["doctor", "plan"])
def test_what_comes_before_an_analysis_takes_the_option_too(make, command):
    done = call(command, "--product", "differences")
    assert done.exit_code == 0, done.output


def test_bad_choices_are_refused(make):
    with pytest.raises(ArgumentError, match="product='forward': one of 'autograd', 'differences'"):
        Settings(product="forward")
    with pytest.raises(ArgumentError, match="product='differences': only products with the hessian"):
        Settings(product="differences", operators="ggn")
    with pytest.raises(ArgumentError, match="product='forward'"):
        loss_slices(make(), ["top"], product="forward")
    with pytest.raises(TaskError, match="once_differentiable"):
        analyze(make(), **OPTIONS)
