"""A run of a small network: its task, settings that are quick, and a listener that remembers the events."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from spectra import Task, load_trajectory
from spectra.analysis.run import Listener
from spectra.analysis.settings import Settings

QUICK = Settings(lanczos_steps=4, num_probes=2)
BOTH = Settings(operators=("hessian", "ggn"), lanczos_steps=4, num_probes=2)


def network(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def rows(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    return [(x[:7], y[:7]), (x[7:], y[7:])]


def maker(data=None):
    task = Task(network(), nn.CrossEntropyLoss(), data or rows(), name="net")
    return lambda checkpoint: task


class Ear(Listener):
    def __init__(self):
        self.heard = []

    def checkpoint(self, index, total, path):
        self.heard.append((path.name, index, total))

    def record(self, record):
        self.heard.append((record.operator, record.bn_mode, record.status))

    def kept(self, place, operator, bn_mode):
        self.heard.append((operator, bn_mode, "kept"))


def status(path):
    return [(Path(record.checkpoint).name, record.operator, record.status) for record in load_trajectory(path)]
