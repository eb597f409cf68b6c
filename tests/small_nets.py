"""Small networks with their tasks and losses, for tests that analyse them."""

from __future__ import annotations

import torch
from cases import batches_of, conv_batch_norm, mlp_ragged, with_weight_decay
from torch import nn
from torch.nn import functional as F

from spectra import Task


def wide_logistic():
    """Five samples of ten features in three classes: at most 10 of the 33 eigenvalues are not zero."""
    model = nn.Linear(10, 3)
    x, y = torch.randn(5, 10), torch.randint(3, (5,))
    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 3, 2)), lambda: F.cross_entropy(model(x), y)


NETS = {
    "mlp": (mlp_ragged, "eval"),
    "weight decay": (with_weight_decay, "eval"),
    "logistic": (wide_logistic, "eval"),
    "conv, BN eval": (conv_batch_norm, "eval"),
    "conv, BN train": (conv_batch_norm, "train"),
}


def loss_in(written, mode):
    return written(mode) if mode == "train" else written()


def make(name, criterion=None, data=None, **options) -> Task:
    """A small task on twelve rows of four features in three classes."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    return Task(model, criterion or nn.CrossEntropyLoss(), data or batches_of(x, y, 7, 5), name=name, **options)
