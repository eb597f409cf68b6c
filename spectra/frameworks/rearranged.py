"""Tensors that a version of transformers stores in other pieces than the model has, such as the experts of Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn


def rearranged(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> Mapping[str, torch.Tensor]:
    """The tensors of a file, those in other pieces put together as the model has them.

    Which entry of a file is which of the model is found by the conversion that transformers itself applies when it
    saves: it is given the numbers of the entries in place of their values. Only conversions that move each entry to
    exactly one place are used. The result is ``tensors`` itself if nothing is in other pieces, or the rule is unknown.
    """
    entries = model.state_dict()
    missing = {name: tensor for name, tensor in entries.items() if name not in tensors}
    unknown = {name for name in tensors if name not in entries}
    if not missing or not unknown:
        return tensors
    ends = torch.tensor([0, *(tensor.numel() for tensor in missing.values())]).cumsum(0).tolist()
    places = dict(zip(missing, pairwise(ends)))
    numbered = {name: torch.arange(*places[name]).view(tensor.shape) for name, tensor in missing.items()}
    pieces = {name: ids for name, ids in _as_written(model, numbered).items() if name in unknown}
    if not pieces or any(ids.shape != tensors[name].shape for name, ids in pieces.items()):
        return tensors
    ids = torch.cat([piece.reshape(-1) for piece in pieces.values()])
    if ids.dtype != torch.int64 or int(ids.min()) < 0 or int(ids.max()) >= ends[-1]:
        return tensors
    times = torch.bincount(ids, minlength=ends[-1])
    if int(times.max()) > 1:
        return tensors
    values = torch.cat([tensors[name].reshape(-1) for name in pieces])
    joined = torch.zeros(ends[-1], dtype=values.dtype, device=values.device).index_copy(0, ids, values)
    whole = {name: joined[a:b].view(missing[name].shape) for name, (a, b) in places.items() if bool(times[a:b].all())}
    if sum(tensor.numel() for tensor in whole.values()) < len(ids):
        return tensors  # some tensor would be put together in part
    return {**{name: tensor for name, tensor in tensors.items() if name not in pieces}, **whole}


def _as_written(model: nn.Module, entries: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    try:
        from transformers.core_model_loading import (  # type: ignore[import-not-found, unused-ignore]
            revert_weight_conversion,
        )
    except ImportError:  # versions before 5 write the model's own tensors
        return {}
    written: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(entries))
    return written
