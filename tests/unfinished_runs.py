"""Runs of a small network that are interrupted after some of their probes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectra import Task
from spectra.analysis.run import Listener
from spectra.analysis.settings import Settings
from spectra.results.storage.partial import PartialFile

STEPS, PROBES = 3, 4


class Notes(Listener):
    def __init__(self):
        self.said = []

    def note(self, words):
        self.said.append(words)


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def batches(seed, rows=12):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 4, generator=generator), torch.randint(3, (rows,), generator=generator)
    return [(x[:7], y[:7]), (x[7:], y[7:])]


def make_task(checkpoint):
    return Task(network(), nn.CrossEntropyLoss(), batches(0), test_data=batches(1), name="net")


def asked(**changes):
    return Settings(
        **{"lanczos_steps": STEPS, "num_probes": PROBES, "width": 2, "metrics": "none", "check": False} | changes
    )


def interrupt(monkeypatch, after, analyze):
    """Have a run interrupted when it has kept its probes so many times."""
    kept = []
    real = PartialFile.write

    def write(self, partial):
        real(self, partial)
        kept.extend([1] if self.shown.endswith(".partial") else [])
        if len(kept) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "write", write)
        with pytest.raises(KeyboardInterrupt):
            analyze()
