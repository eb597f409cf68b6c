"""``spectra slice``: its file, its figure, its lines, and one line for each bad input."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from spectra_cli.main import main

TASK = """
import spectra, torch
from torch import nn

def task(kind="relu"):
    torch.manual_seed(0)
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[kind]
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), act(), nn.Linear(6, 3))
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    return spectra.Task(model, nn.CrossEntropyLoss(), [(x[:20], y[:20])], test_data=[(x[20:], y[20:])])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    space: dict = {}
    exec(TASK, space)
    task = space["task"]()
    torch.save(task.model.state_dict(), "a.pt")
    optimizer = torch.optim.SGD(task.model.parameters(), 0.5)
    for _ in range(5):
        optimizer.zero_grad()
        task.criterion(task.model(task.data[0][0]), task.data[0][1]).backward()
        optimizer.step()
    torch.save(task.model.state_dict(), "b.pt")
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 7)).state_dict(), "c.pt")
    return tmp_path


def call(*options):
    return CliRunner().invoke(main, ["slice", "a.pt", "--task", "task.py:task", "--points", "9", *options])


def test_file_figure_and_lines(folder):
    done = call("--along", "gradient", "--along", "b.pt", "--test-data", "--out", "s.json", "--quiet")
    assert done.exit_code == 0, done.output
    content = json.loads((folder / "s.json").read_text())
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    gradient, other = content["slices"]
    assert [each["direction"]["name"] for each in content["slices"]] == ["gradient", "b.pt"]
    assert gradient["critical_sharpness"]["value"] > 0
    assert len(other["t"]) == len(other["loss"]) == len(other["test_loss"]) == len(other["parabola"]) == 9
    assert other["t"][-1] == 1.0
    assert gradient["kinks"]["pairs"] == 20 * 6
    assert content["checkpoint"] == "a.pt"
    for words in (
        "along gradient, batch norm eval",
        "pairs that switch",
        "critical sharpness",
        "buffers do not move: 3",
    ):
        assert words in done.stdout
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".png")) == ["s.json", "s.png"]


def test_json_is_the_file(folder):
    done = call("--along", "random", "--json", "--quiet", "--bn", "both", "--task-arg", "kind=tanh")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content == json.loads((folder / "slice.json").read_text())
    assert [each["bn_mode"] for each in content["slices"]] == ["eval", "train"]
    assert content["slices"][0]["kinks"]["pairs"] == 0


def test_without_kinks_it_says_so(folder):
    done = call("--along", "top", "--task-arg", "kind=tanh", "--quiet")
    assert "none: the network calls no piecewise-linear function" in done.stdout
    assert "pairs that switch" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--along", "sideways"],
            "along='sideways': top, bottom, gradient, random, filter or the path of a checkpoint",
        ),
        (["--along", "c.pt"], "c.pt: does not fit the model"),
        (["--along", "a.pt"], "a.pt: has the same weights"),
        (["--radius", "0"], "radius=0.0: a positive number is needed"),
        (["--points", "10"], "points=10: an odd number"),
        (["--seed", "-1"], "seed=-1: at least 0"),
        (["--out", "a.pt"], "--out a.pt: a name that ends in .json"),
        (["--out", "no/s.json"], "no/s.json: the folder no does not exist"),
        (["--params", "nothing*"], "params='nothing*': no trainable parameter"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, options, words):
    done = call(*options, "--quiet")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"spectra: error: {words}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in folder.iterdir() if path.suffix in (".json", ".png")]
