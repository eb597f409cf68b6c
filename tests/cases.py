"""The table of problems that every operator is held against.

A case is a task, and the same loss written a second time without any of the product: over all data at once where the
loss does not depend on the batches, by hand over the batches where it does. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spectra import Task


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], tuple[Task, Callable[[], torch.Tensor]]]  # the task, and its loss written again
    bn_modes: tuple[str, ...] = ("eval",)
    ggn: bool = True


def batches_of(x: Any, y: Any, *sizes: int) -> list[Any]:
    return list(zip(torch.split(x, sizes), torch.split(y, sizes)))


def _classes(n: int, k: int) -> torch.Tensor:
    return torch.randint(k, (n,))


def mlp_ragged():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(17, 5), _classes(17, 3)
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 8, 8, 1))
    return task, lambda: F.cross_entropy(model(x), y)


def relu_sum_reduction():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(11, 4), _classes(11, 3)
    task = Task(model, nn.CrossEntropyLoss(reduction="sum"), batches_of(x, y, 6, 5))
    return task, lambda: F.cross_entropy(model(x), y, reduction="sum")


def sum_over_data_of_a_mean():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(11, 4), _classes(11, 3)
    task = Task(model, F.cross_entropy, batches_of(x, y, 6, 5), reduction="sum")
    return task, lambda: F.cross_entropy(model(x), y, reduction="sum")


def with_weight_decay():
    model = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 3))
    x, y = torch.randn(9, 4), _classes(9, 3)
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 5, 4), l2=0.3)
    return task, lambda: F.cross_entropy(model(x), y) + 0.15 * sum((p**2).sum() for p in model.parameters())


def class_weights_and_smoothing():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(13, 4), _classes(13, 3)
    weight = torch.tensor([0.2, 1.0, 3.0])
    criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    task = Task(model, criterion, batches_of(x, y, 4, 4, 5))
    return task, lambda: F.cross_entropy(model(x), y, weight=weight, label_smoothing=0.1)


def class_probabilities():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(13, 4), torch.rand(13, 3).softmax(1)
    weight = torch.tensor([0.2, 1.0, 3.0])
    task = Task(model, nn.CrossEntropyLoss(weight=weight), batches_of(x, y, 4, 9))
    return task, lambda: F.cross_entropy(model(x), y, weight=weight)


def tokens_ignored():
    """Token targets of which a different number is ignored in each batch, and all in one of them."""
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    x, y = torch.randint(7, (9, 5)), torch.randint(7, (9, 5))
    y[torch.rand(9, 5) < 0.4] = -100
    y[4:6] = -100
    criterion = nn.CrossEntropyLoss()
    batches = batches_of(x, y, 4, 2, 3)
    task = Task(model, criterion, batches, forward=lambda m, b: m(b[0]).transpose(1, 2))
    return task, lambda: F.cross_entropy(model(x).transpose(1, 2), y)


def tokens_with_weight_function():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    x, y = torch.randint(7, (8, 5)), torch.randint(7, (8, 5))
    y[torch.rand(8, 5) < 0.4] = 0

    def criterion(out, target):
        return F.cross_entropy(out.flatten(0, 1), target.flatten(), ignore_index=0)

    task = Task(model, criterion, batches_of(x, y, 5, 3), weight=lambda b: (b[1] != 0).sum())
    return task, lambda: criterion(model(x), y)


def mse_elements():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x, y = torch.randn(10, 4), torch.randn(10, 2)
    task = Task(model, nn.MSELoss(), batches_of(x, y, 7, 3))
    return task, lambda: F.mse_loss(model(x), y)


def binary_with_logits():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x, y = torch.randn(10, 4), torch.rand(10, 2)
    task = Task(model, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5])), batches_of(x, y, 7, 3))
    return task, lambda: F.binary_cross_entropy_with_logits(model(x), y, pos_weight=torch.tensor([2.0, 0.5]))


def unknown_criterion():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x, y = torch.randn(10, 4), torch.randn(10, 2)
    task = Task(model, lambda out, target: ((out - target) ** 4).sum(1).mean(), batches_of(x, y, 7, 3))
    return task, lambda: ((model(x) - y) ** 4).sum(1).mean()


def from_loss_of_dicts():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(10, 4), _classes(10, 3)
    data = [{"x": a, "y": b} for a, b in batches_of(x, y, 7, 3)]
    task = Task.from_loss(model, lambda m, b: F.cross_entropy(m(b["x"]), b["y"]), data)
    return task, lambda: F.cross_entropy(model(x), y)


def dict_batches():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(10, 4), _classes(10, 3)
    data = [{"x": a, "y": b} for a, b in batches_of(x, y, 7, 3)]
    task = Task(model, nn.CrossEntropyLoss(), data, forward=lambda m, b: m(b["x"]), target=lambda b: b["y"])
    return task, lambda: F.cross_entropy(model(x), y)


class _Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(torch.tanh(self.body(x)))))


def unused_and_frozen():
    model = _Unused()
    x, y = torch.randn(9, 4), _classes(9, 3)
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 5))
    return task, lambda: F.cross_entropy(model(x), y)


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.body(self.embed(x))))


def tied_weights():
    model = _Tied()
    x, y = torch.randint(6, (9,)), _classes(9, 6)
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 5))
    return task, lambda: F.cross_entropy(model(x), y)


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        return self.head((x + attended).mean(1))


def attention_and_layer_norm():
    model = _Attention()
    x, y = torch.randn(7, 3, 4), _classes(7, 3)
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 3))

    def written_again():
        q, k, v = model.qkv(model.norm(x)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 2 + torch.full((3, 3), -torch.inf).triu(1)
        return F.cross_entropy(model.head((x + scores.softmax(-1) @ v).mean(1)), y)

    return task, written_again


def transformer_layer():
    model = nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 6, dropout=0.2, batch_first=True), nn.Flatten(), nn.Linear(12, 3)
    )
    x, y = torch.randn(6, 3, 4), _classes(6, 3)
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 2))

    def written_again():
        model.eval()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.cross_entropy(model(x), y)

    return task, written_again


def dropout_is_off():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
    x, y = torch.randn(9, 4), _classes(9, 3)
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 5))
    return task, lambda: F.cross_entropy(model[3](torch.tanh(model[0](x))), y)


def recurrent():
    model = nn.LSTM(3, 4, batch_first=True)
    head = nn.Linear(4, 3)
    whole = nn.ModuleDict({"lstm": model, "head": head})
    x, y = torch.randn(7, 4, 3), _classes(7, 3)

    def forward(m, xs):
        return m["head"](m["lstm"](xs)[0][:, -1])

    task = Task(whole, nn.CrossEntropyLoss(), batches_of(x, y, 4, 3), forward=lambda m, b: forward(m, b[0]))
    return task, lambda: F.cross_entropy(forward(whole, x), y)


class _ConvBN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3 * 4, 3)
        with torch.no_grad():
            self.bn.running_mean.normal_()
            self.bn.running_var.uniform_(0.5, 2.0)
            self.bn.weight.normal_()
            self.bn.bias.normal_()

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.bn(self.conv(x)))).flatten(1))


def conv_batch_norm():
    model = _ConvBN()
    x, y = torch.randn(11, 1, 4, 4), _classes(11, 3)
    batches = batches_of(x, y, 6, 5)
    task = Task(model, nn.CrossEntropyLoss(), batches)

    def written_again(bn_mode: str = "eval"):
        total = 0.0
        for a, b in batches:
            bn, h = model.bn, model.conv(a)
            if bn_mode == "train":
                mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=False)
            else:
                mean, var = bn.running_mean, bn.running_var
            shape = (1, -1, 1, 1)
            h = (h - mean.view(shape)) / torch.sqrt(var.view(shape) + bn.eps) * bn.weight.view(shape) + bn.bias.view(
                shape
            )
            total = total + F.cross_entropy(model.head(torch.tanh(h).flatten(1)), b, reduction="sum")
        return total / len(x)

    return task, written_again


def two_outputs():
    model = nn.Linear(4, 5)
    x, y = torch.randn(9, 4), _classes(9, 3)
    task = Task(
        model,
        lambda out, t: F.cross_entropy(torch.tanh(out["a"]), t) + (out["b"] ** 4).mean(),
        batches_of(x, y, 4, 5),
        forward=lambda m, b: {"a": m(b[0])[:, :3], "b": m(b[0])[:, 3:]},
    )

    def written_again():
        out = model(x)
        return F.cross_entropy(torch.tanh(out[:, :3]), y) + (out[:, 3:] ** 4).mean()

    return task, written_again


_MAKERS = [
    mlp_ragged,
    relu_sum_reduction,
    sum_over_data_of_a_mean,
    with_weight_decay,
    class_weights_and_smoothing,
    class_probabilities,
    tokens_ignored,
    tokens_with_weight_function,
    mse_elements,
    binary_with_logits,
    unknown_criterion,
    dict_batches,
    unused_and_frozen,
    tied_weights,
    attention_and_layer_norm,
    transformer_layer,
    dropout_is_off,
    recurrent,
    two_outputs,
]

CASES = [
    *(Case(make.__name__, make) for make in _MAKERS),
    Case("from_loss_of_dicts", from_loss_of_dicts, ggn=False),
    Case("conv_batch_norm", conv_batch_norm, bn_modes=("eval", "train")),
]


def parameters(task: Task) -> list[torch.Tensor]:
    return [p for p in task.model.parameters() if p.requires_grad]


def dense_hessian(loss: torch.Tensor, params: list[torch.Tensor]) -> torch.Tensor:
    """The Hessian by double backward, row by row: (n, n)."""
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(grads, params)])
    rows = []
    for entry in flat:
        if entry.requires_grad:
            row = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True)
        else:
            row = [None] * len(params)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(row, params)]))
    return torch.stack(rows)
