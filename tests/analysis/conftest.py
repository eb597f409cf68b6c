"""Fixtures of the runs: checkpoints, and the results file."""

from __future__ import annotations

import pytest
import torch
from small_runs import network

from spectra import save_checkpoint


@pytest.fixture
def run(tmp_path):
    """Three good checkpoints, in a folder of their own."""
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch in range(3):
        torch.manual_seed(epoch)
        save_checkpoint(folder / f"net_{epoch}.pt", network(), epoch=epoch)
    return sorted(folder.iterdir())


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "run.h5"
