"""Checkpoints of a small network with batch norm, and the message with which one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.errors import CheckpointError


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


STATE = network().state_dict()


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def prefixed(prefix: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
