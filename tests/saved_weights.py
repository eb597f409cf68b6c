"""Weights of a small network, saved from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network(seed).state_dict(), path)
    return path


def sharded(folder: Path, seed: int = 0, total: int = 2, **index: object) -> Path:
    """The weights in shards, and the index that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(network(seed).state_dict())
    names = {key: f"pytorch_model-{1 + i % total:05d}-of-{total:05d}.bin" for i, key in enumerate(keys)}
    for name in set(names.values()):
        part = {key: value for key, value in network(seed).state_dict().items() if names[key] == name}
        torch.save(part, folder / name)
    content = {"metadata": {"total_size": 152}, "weight_map": names} | index
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    return folder


def same(checkpoint: object, seed: int) -> bool:
    wanted = network(seed).state_dict()
    found = checkpoint.state_dict
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
