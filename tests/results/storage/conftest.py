"""Checkpoints of a small network, and the file of their run."""

from __future__ import annotations

import pytest
import torch
from unfinished_runs import network

import spectra.krylov.slq
from spectra import save_checkpoint


@pytest.fixture
def home(tmp_path):
    for epoch in range(2):
        torch.manual_seed(epoch)
        save_checkpoint(tmp_path / f"net_{epoch}.pt", network(), epoch=epoch)
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def out(home):
    return home / "out" / "run.h5"


@pytest.fixture
def paths(home):
    return sorted(home.glob("net_*.pt"))


@pytest.fixture
def computed(monkeypatch):
    """The probes that are computed, by the number in their group."""
    groups = []
    real = spectra.krylov.slq.tridiagonalize

    def tridiagonalize(operator, starts, *arguments, **options):
        groups.append(len(starts))
        return real(operator, starts, *arguments, **options)

    monkeypatch.setattr("spectra.krylov.slq.tridiagonalize", tridiagonalize)
    return groups
