"""The diagonal and the block traces of a loss from its whole Hessian by double backward, as a reference."""

from __future__ import annotations

import torch
from cases import dense_hessian, parameters

from spectra import Task


def dense_diagonal(task: Task) -> dict[str, torch.Tensor]:
    """{trainable tensor: its part of the Hessian's diagonal}, over the one batch of a task in eval mode."""
    model = task.model.eval()
    ((x, y),) = task.data
    hessian = dense_hessian(task.criterion(model(x), y), parameters(task))
    pieces = torch.split(hessian.diagonal(), [p.numel() for p in parameters(task)])
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {name: piece.view_as(p).detach() for (name, p), piece in zip(named, pieces)}


def dense_traces(task: Task) -> dict[str, float]:
    """{trainable tensor: the trace of its block}."""
    return {name: float(piece.sum()) for name, piece in dense_diagonal(task).items()}
