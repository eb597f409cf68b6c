"""An error in the user's model, loss or data, on the command line: one line with file, line and function."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from spectra import save_checkpoint
from spectra_cli.main import main

FILE = """\
import torch, spectra
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

X, Y = torch.ones(6, 4), torch.zeros(6).long()


class Net(nn.Module):
    def __init__(self, fails=None):
        super().__init__()
        self.net, self.fails = nn.Linear(4, 3), fails

    def forward(self, x):
        if self.fails == "raise":
            raise ValueError("no\\nsuch thing")
        if self.fails == "deep":
            return nn.Sequential(nn.Flatten(), self.net, nn.Linear(7, 2))(x)
        if self.fails == "backward":
            return Broken.apply(self.net(x))
        return self.net(x)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope @ torch.ones(7, 7)


class Rows(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, row):
        return X[row], Y[row + 1] if row == 4 else {}["missing"]


def bad_collate(rows):
    return torch.stack([torch.ones(len(rows)), torch.ones(2)])


def bad_loss(output, target):
    return helper(output)


def helper(output):
    return output.view(17).mean()


def model_and_batch(model, batch):
    return model(batch[0]).view(17).mean()


def numbers(batch):
    return len(batch) / 0


def task(case):
    batches, criterion = [(X, Y)], nn.CrossEntropyLoss()
    return {
        "raise": lambda: spectra.Task(Net("raise"), criterion, batches),
        "deep": lambda: spectra.Task(Net("deep"), criterion, batches),
        "backward": lambda: spectra.Task(Net("backward"), criterion, batches),
        "forward": lambda: spectra.Task(Net(), criterion, batches, forward=lambda m, b: m(b[0].T)),
        "criterion": lambda: spectra.Task(Net(), bad_loss, batches),
        "loss": lambda: spectra.Task.from_loss(Net(), model_and_batch, batches),
        "target": lambda: spectra.Task(Net(), criterion, batches, target=lambda batch: batch["y"]),
        "weight": lambda: spectra.Task(Net(), criterion, batches, weight=numbers),
        "data": lambda: spectra.Task(Net(), criterion, DataLoader(Rows(), 3)),
        "worker": lambda: spectra.Task(Net(), criterion, DataLoader(Rows(), 3, num_workers=1)),
        "collate": lambda: spectra.Task(Net(), criterion, DataLoader(TensorDataset(X, Y), 3, collate_fn=bad_collate)),
    }[case]()
"""


def line_of(words: str) -> int:
    return next(number for number, line in enumerate(FILE.splitlines(), 1) if words in line)


CASES = {
    "raise": ("the forward pass fails at Net.forward", 'raise ValueError("no', "ValueError: no such thing"),
    "deep": (
        "the forward pass fails at Net.forward",
        "nn.Sequential(nn.Flatten()",
        "RuntimeError: mat1 and mat2 shapes",
    ),
    "backward": ("raised by Broken.backward", "slope @ torch.ones(7, 7)", "RuntimeError: "),
    "forward": ("the forward pass fails at Net.forward", "        return self.net(x)", "RuntimeError: mat1 and mat2"),
    "criterion": ("the criterion fails at helper", "output.view(17).mean()", "RuntimeError: shape '[17]' is invalid"),
    "loss": ("the loss fails at model_and_batch", "model(batch[0]).view(17)", "RuntimeError: shape '[17]'"),
    "target": ("target= fails at task.<lambda>", 'batch["y"]', "TypeError: tuple indices"),
    "weight": ("weight= fails at numbers", "len(batch) / 0", "ZeroDivisionError: division by zero"),
    "data": ("reading the data fails at Rows.__getitem__", '{}["missing"]', "KeyError: 'missing'"),
    "worker": ("reading the data fails at", '{}["missing"]', "KeyError: 'missing'"),
    "collate": (
        "reading the data fails at bad_collate",
        "torch.stack([torch.ones(len(rows))",
        "RuntimeError: stack expects",
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "a.pt", torch.nn.ModuleDict({"net": torch.nn.Linear(4, 3)}))
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "mine" in name:
            del sys.modules[name]


def analyze(*arguments: object):
    return CliRunner().invoke(main, ["analyze", "a.pt", *map(str, arguments)], prog_name="spectra")


@pytest.mark.parametrize("case", CASES)
def test_an_error_in_user_code_is_one_line_with_its_place(folder, case):
    result = analyze("--task", "mine.py:task", "--task-arg", f"case={case}")
    where, line, what = CASES[case]
    assert result.exit_code == 1
    errors = [text for text in result.stderr.splitlines() if text.startswith("spectra: error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    assert where in errors[0]
    assert f"mine.py line {line_of(line)}" in errors[0]
    assert what in errors[0]
    assert not Path("run.h5").exists()


def test_debug_shows_the_traceback_with_the_original_error(folder):
    result = analyze("--task", "mine.py:task", "--task-arg", "case=criterion", "--debug")
    assert "The above exception was the direct cause" in result.stderr
    assert "RuntimeError: shape '[17]' is invalid" in result.stderr.split("The above exception")[0]


def test_an_error_in_a_shuffled_pass_that_is_frozen_names_its_place_too(folder):
    result = analyze("--task", "mine.py:task", "--task-arg", "case=data", "--snapshot-data")
    assert f"Rows.__getitem__ in mine.py line {line_of('missing')}: KeyError" in result.stderr
    result = analyze("--task", "mine.py:task", "--task-arg", "case=data", "--samples", "2")
    assert "Rows.__getitem__ in mine.py" in result.stderr
