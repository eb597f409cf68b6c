"""``spectra doctor``: its lines, its JSON, and an exit code that is that of the analysis."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from spectra_cli.main import main

TASKS = """
import spectra, torch
from torch import nn

def task(kind="healthy"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(40, 4), torch.randint(9 if kind == "labels" else 3, (40,))
    if kind == "unused":
        model.extra = nn.Parameter(torch.ones(2))
        return spectra.Task(model, nn.CrossEntropyLoss(), [(x, y)], forward=lambda m, b: m[2](m[1](m[0](b[0]))))
    if kind == "broken":
        raise KeyError("no such thing")
    return spectra.Task(model, nn.CrossEntropyLoss(), [(x, y)])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASKS)
    return tmp_path


def call(command, kind, *options):
    space: dict = {}
    exec(TASKS, space)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    torch.save((model if kind == "broken" else space["task"](kind).model).state_dict(), "c.pt")
    arguments = [command, "c.pt", "--task", "task.py:task", "--task-arg", f"kind={kind}", "--quiet", *options]
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("healthy", 0, "problems: 0, warnings: 0"),
        ("unused", 0, "! warning  parameters: the loss does not use 1 tensors: extra -> "),
        ("labels", 1, "! PROBLEM  loss: labels reach from 0 to 8"),
        ("broken", 1, "no such thing"),
    ],
)
def test_the_exit_code_is_that_of_the_analysis(folder, kind, code, words):
    done = call("doctor", kind)
    assert done.exit_code == code
    assert words in done.stdout
    assert "Traceback" not in done.output
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["c.pt", "task.py"]
    assert call("analyze", kind, "-m", "4", "-k", "2", "--metrics", "none").exit_code == code


def test_json_holds_every_finding(folder):
    done = call("doctor", "labels", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert not found["passed"]
    assert {level["level"] for level in found["findings"]} >= {"ok", "problem"}
    assert set(found["findings"][0]) == {"check", "level", "reason", "remedy", "checkpoints"}


def test_the_lines_of_several_checkpoints_name_them(folder):
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    for epoch in range(3):
        torch.save(model.state_dict(), f"epoch_{epoch}.pt")
        with torch.no_grad():
            model[0].bias += 1
    (folder / "epoch_1.pt").write_bytes(b"no checkpoint")
    done = CliRunner().invoke(main, ["doctor", *sorted(map(str, folder.glob("*.pt"))), "--task", "task.py:task"])
    assert done.exit_code == 1
    (line,) = [line for line in done.stdout.splitlines() if "PROBLEM" in line]
    assert line.count("epoch_1.pt") == 1
    assert "epoch_0.pt and " in done.stdout
    assert "problems: 1, warnings: 0" in done.stdout
