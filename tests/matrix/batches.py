"""Batches of the matrix: the forms in which data arrive, each for one small network."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from matrix.problem import Problem, labelled, problem
from torch import nn


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def _of(form: Callable[[Any, Any], Any], **options: Any) -> Problem:
    x, y = labelled()
    data = [form(x[rows], y[rows]) for rows in torch.arange(7).split((4, 3))]
    return problem(_network(), x, y, data=data, options=options)


def pair() -> Problem:
    return _of(lambda x, y: (x, y))


def list_of_two() -> Problem:
    return _of(lambda x, y: [x, y])


def mapping() -> Problem:
    return _of(lambda x, y: {"x": x, "y": y}, forward=lambda m, b: m(b["x"]), target=lambda b: b["y"])


def encoding() -> Problem:
    """A mapping that is no dict, with attributes for its entries, as tokenizers return."""

    class Encoding(collections.UserDict):
        def __getattr__(self, name):
            if name == "data" or name not in self.data:
                raise AttributeError(name)
            return self.data[name]

    return _of(lambda x, y: Encoding(x=x, labels=y), forward=lambda m, b: m(b.x), target=lambda b: b["labels"])


Example = collections.namedtuple("Example", "inputs labels")


def named_tuple() -> Problem:
    return _of(Example)


@dataclasses.dataclass
class Record:
    inputs: torch.Tensor
    labels: torch.Tensor
    name: str = "a batch"


def data_class() -> Problem:
    return _of(Record, forward=lambda m, b: m(b.inputs), target=lambda b: b.labels)


@dataclasses.dataclass(frozen=True)
class Frozen:
    inputs: torch.Tensor
    labels: torch.Tensor


def frozen_data_class() -> Problem:
    return _of(Frozen, forward=lambda m, b: m(b.inputs), target=lambda b: b.labels)


def tensor_alone() -> Problem:
    """An autoencoder: the batch is input and target."""
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)), torch.randn(7, 3)
    data = list(x.split((4, 3)))
    return problem(model, x, x, data=data, criterion=nn.MSELoss(), options={"target": lambda b: b})


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return torch.tanh(self.left(a)) * self.right(b)


def several_inputs() -> Problem:
    model, (x, y) = Two(), labelled()
    data = [(x[rows, :2], x[rows, 2:], y[rows]) for rows in torch.arange(7).split((4, 3))]
    options = {"forward": lambda m, b: m(b[0], b[1]), "target": lambda b: b[2]}
    return problem(model, x, y, data=data, plain=lambda x: model(x[:, :2], x[:, 2:]), options=options)


def variable_lengths() -> Problem:
    """A list of sequences of several lengths, padded within the forward pass."""
    model, y = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)), torch.randint(3, (6,))
    rows = [torch.randn(length, 2) for length in (3, 1, 2, 4, 2, 1)]

    def forward(m, batch):
        sequences = batch[0]
        padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        lengths = torch.tensor([len(s) for s in sequences])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None])[..., None]
        return m[2]((m[1](m[0](padded)) * mask).sum(1))

    def plain(rows):
        return model[2](torch.stack([torch.tanh(model[0](row)).sum(0) for row in rows]))

    data = [(rows[:4], y[:4]), (rows[4:], y[4:])]
    return problem(model, rows, y, data=data, plain=plain, options={"forward": forward})
