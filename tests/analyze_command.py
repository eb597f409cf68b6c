"""The task file of the tests of `spectra analyze`, the same network by the library, and calls of the command."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner
from torch import nn

from spectra import Task, analyze
from spectra_cli.main import main

TASKS = """
import os, torch, spectra
from torch import nn
from helper_of_analyze import CLASSES

def network(width=5, norm=False):
    layers = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(4, width), *layers, nn.Tanh(), nn.Linear(width, CLASSES))

def rows():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(CLASSES, (24,), generator=generator)
    return [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]

def task(width: int = 5):
    return spectra.Task(network(width), nn.CrossEntropyLoss(), rows())

def with_norm():
    return spectra.Task(network(norm=True), nn.CrossEntropyLoss(), rows())

def per_checkpoint(checkpoint):
    return spectra.Task(network(checkpoint["config"]["width"]), nn.CrossEntropyLoss(), rows())

# -- what is wrong in one way or another

def raises():
    widths = {}
    return network(widths["hidden"])

def empty():
    return spectra.Task(network(), nn.CrossEntropyLoss(), [])

def labels():
    return spectra.Task(network(), nn.CrossEntropyLoss(), [(x, y + 5) for x, y in rows()])

def nan_loss():
    return spectra.Task(network(), nn.CrossEntropyLoss(), [(x / 0, y) for x, y in rows()])

def independent():
    return spectra.Task(network(), nn.CrossEntropyLoss(), rows(), forward=lambda m, b: b[0])

def piecewise_linear():
    return spectra.Task(network(), nn.L1Loss(), [(x, x[:, :3]) for x, _ in rows()])

def slow():
    class Slow(list):
        def __iter__(self):
            import time
            time.sleep(0.3)
            return super().__iter__()
    return spectra.Task(network(), nn.CrossEntropyLoss(), Slow(rows()))
"""
QUICK = ("--task", "tasks.py:task", "-m", "6", "-k", "2")


def network(seed: int = 0, width: int = 5, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(4, width), *layers, nn.Tanh(), nn.Linear(width, 3))


def spectra(*arguments: str):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="spectra")


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder within, hidden ones too, apart from Python's own cache of what it compiled."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def analysed(*arguments: str):
    """The result of a call that must succeed."""
    result = spectra("analyze", *arguments)
    assert result.exit_code == 0, result.output
    return result


def direct(epoch: int = 0, **options):
    """The records of the same network and data, by the library."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator)
    batches = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]
    task = Task(network(epoch), nn.CrossEntropyLoss(), batches, l2=options.pop("l2", 0.0))
    return analyze(task, **({"lanczos_steps": 6, "num_probes": 2} | options))


def refused(folder: Path, arguments: list[str], words: str, *, command: str = "analyze", code: int = 1) -> str:
    """Call the command, which must fail as it should; the line it printed."""
    before = content_of(folder)
    result = spectra(command, *arguments)
    assert content_of(folder) == before  # no file, no temporary file, and what was there unchanged
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("spectra: task ", "["))]  # progress
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("spectra: error: ")
    assert words in lines[0], lines[0]
    assert "(unexpected; --debug" not in lines[0]
    return lines[0]
