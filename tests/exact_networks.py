"""The table of networks that the exact quantities are held against: a task, and whether the Hessian's blocks are G's.

The dense references are made by autograd over all samples at once, block by block; nothing of the product is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import batches_of, dense_hessian
from torch import nn
from torch.nn import functional as F

from spectra import Task

N = 7


@dataclass(frozen=True)
class Network:
    name: str
    make: Callable[[], Task]
    hessian: bool  # whether the diagonal of G is that of H
    reason: str = ""  # what the reasons must contain where it is not
    fallback: bool = False  # whether gradients of single samples are needed


def labels(k: int = 3, *shape: int) -> torch.Tensor:
    return torch.randint(k, (N, *shape))


def task_of(model, x, y=None, criterion=None, **options) -> Task:
    y = labels() if y is None else y
    return Task(model, criterion or nn.CrossEntropyLoss(), batches_of(x, y, 4, 3), **options)


def settled(model: nn.Module) -> nn.Module:
    """Batch norm with statistics and an affine part that are not the initial ones."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2.0)
                layer.weight.normal_()
                layer.bias.normal_()
    return model


def mlp(activation=nn.ReLU, **options):
    return task_of(
        nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 4), activation(), nn.Linear(4, 3)),
        torch.randn(N, 5),
        **options,
    )


class Affine(nn.Module):
    """Piecewise linear however it is written: in-place ReLU, residual sums, pooling, a slice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding="same", bias=False)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = F.max_pool2d(F.relu_(self.bn(self.stem(x))), 2)
        h = F.leaky_relu(self.inner(h) + self.shortcut(h))
        return self.head(h.mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self, pool=True, padding_idx=None):
        super().__init__()
        self.embed = nn.Embedding(6, 4, padding_idx=padding_idx)
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)
        self.pool = pool

    def forward(self, x):
        h = torch.relu(self.body(self.embed(x)))
        return self.head(h.mean(1)) if self.pool else self.head(h).transpose(1, 2)


class TimeFirst(nn.Module):
    """A linear layer on (time, batch, features) with as many steps as samples: the leading dimension is no sample."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):  # (batch, time, features)
        return self.head(torch.relu(self.body(x.transpose(0, 1))).cumsum(0)[-1])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.same, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.same(torch.relu(self.same(torch.relu(self.first(x)))))))


class Functional(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.first, self.head, self.act = nn.Linear(4, 5), nn.Linear(5, 3), act

    def forward(self, x):
        return self.head(self.act(self.first(x)))


class Product(nn.Module):
    """A weight times another weight, and a parameter that multiplies activations: affine in each tensor alone."""

    def __init__(self, squared=False):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5, 3))
        self.gain, self.squared = nn.Parameter(torch.randn(3)), squared

    def forward(self, x):
        gain = self.gain * self.gain if self.squared else self.gain
        return F.linear(x, (self.left @ self.right).t()) * gain


class SelfProduct(nn.Module):
    """Two activations of one tensor multiplied: quadratic in it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.body(x)
        return self.head(h * h.roll(1, 0).roll(-1, 0))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        weights = (self.q(x) @ x.transpose(1, 2)).softmax(-1)
        return self.head((weights @ self.v(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class HiddenSquare(torch.autograd.Function):
    """x^2 with a backward that autograd cannot see into: its second derivative is quietly nothing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.detach().clone())
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 2 * x.detach()


class HiddenLinear(torch.autograd.Function):
    """A matrix product in a custom function, which no mode sees."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.t() @ x


class Unseen(nn.Module):
    """A weight that is used openly once and once more where no mode sees it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)) + HiddenLinear.apply(x, self.body.weight))


def images(channels=2, size=6):
    return torch.randn(N, channels, *([size] if isinstance(size, int) else size))


def conv_task(*layers, x, width):
    return task_of(nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3)), x)


def tokens_ignored():
    y = torch.randint(3, (N, 5))
    y[torch.rand(N, 5) < 0.4] = -100
    return task_of(Tokens(pool=False, padding_idx=1), torch.randint(6, (N, 5)), y)


def tokens_flattened():
    y = torch.randint(3, (N, 5))
    y[torch.rand(N, 5) < 0.4] = -100
    model, x = Tokens(pool=False), torch.randint(6, (N, 5))
    forward = lambda m, b: m(b[0]).transpose(1, 2).flatten(0, 1)  # noqa: E731
    return task_of(model, x, y, forward=forward, target=lambda b: b[1].flatten())


def tied_embedding():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6, bias=False))
    model[3].weight = model[0].weight
    return task_of(model, torch.randint(6, (N,)), labels(6))


def fourth_power(z, t):
    return ((z - t).square().sum(1) ** 2).mean()


def sines(z, t):
    return (z[:, :1] * (z * t).sin()).sum(1).mean()


def smooth_then_frozen():
    """The curved part has no trainable parameter before it, so nothing trainable is curved."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    return task_of(model, torch.randn(N, 4))


NETWORKS = [
    Network("mlp_relu", mlp, True),
    Network("mlp_leaky_relu", lambda: mlp(nn.LeakyReLU), True),
    Network("l2", lambda: mlp(l2=0.3), True),
    Network("sum", lambda: mlp(criterion=nn.CrossEntropyLoss(reduction="sum")), True),
    Network("class_weights", lambda: mlp(criterion=nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))), True),
    Network(
        "smoothing",
        lambda: mlp(criterion=nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.1)),
        True,
    ),
    Network(
        "probabilities",
        lambda: mlp(
            y=torch.rand(N, 3), criterion=nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.2)
        ),
        True,
    ),
    Network("ignored", lambda: mlp(criterion=nn.CrossEntropyLoss(ignore_index=1)), True),
    Network("mse", lambda: mlp(y=torch.randn(N, 3), criterion=nn.MSELoss()), True),
    Network(
        "bce",
        lambda: mlp(y=torch.rand(N, 3), criterion=nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5, 1.0]))),
        True,
    ),
    Network("fourth_power", lambda: mlp(y=torch.randn(N, 3), criterion=fourth_power), True),
    Network("indefinite", lambda: mlp(y=torch.randn(N, 3), criterion=sines), True),
    Network(
        "conv_pool",
        lambda: conv_task(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(inplace=True),
            nn.AvgPool2d(2), x=images(size=(6, 6)), width=4,
        ),
        True,
    ),
    Network(
        "grouped_dilated_strided",
        lambda: conv_task(
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="circular"),
            x=images(4, (6, 5)), width=6 * 3 * 3,
        ),
        True,
    ),
    Network(
        "one_dimensional",
        lambda: conv_task(nn.Conv1d(2, 4, 3, stride=2), nn.ReLU(), nn.Conv1d(4, 2, 2), x=images(2, 9), width=6),
        True,
    ),
    Network(
        "three_dimensional",
        lambda: conv_task(nn.Conv3d(1, 2, (2, 3, 2), padding=(1, 0, 0)), nn.ReLU(), x=images(1, (2, 4, 3)), width=24),
        True,
    ),
    Network(
        "transposed",
        lambda: conv_task(
            nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2), nn.ReLU(),
            nn.ConvTranspose2d(4, 2, 2, dilation=2), x=images(4, (2, 3)), width=2 * 6 * 8,
        ),
        True,
    ),
    Network(
        "transposed_1d",
        lambda: conv_task(nn.ConvTranspose1d(2, 3, 3, stride=2), nn.ReLU(), x=images(2, 3), width=21),
        True,
    ),
    Network("residual_bn", lambda: task_of(settled(Affine()), images(size=(4, 4))), True),
    Network(
        "bn_1d",
        lambda: task_of(
            settled(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))), torch.randn(N, 4)
        ),
        True,
    ),
    Network("embedding_repeated", lambda: task_of(Tokens(), torch.randint(3, (N, 5))), True),
    Network("embedding_padding", lambda: task_of(Tokens(padding_idx=1), torch.randint(3, (N, 5))), True),
    Network("tokens_ignored", tokens_ignored, True),
    Network("tokens_flattened", tokens_flattened, True),
    Network("time_first", lambda: task_of(TimeFirst(), torch.randn(N, 4, 3)), True, fallback=True),
    Network("weight_product", lambda: task_of(Product(), torch.randn(N, 4)), True, fallback=True),
    Network("frozen_before_the_curve", smooth_then_frozen, True),
    Network("unseen_use", lambda: task_of(Unseen(), torch.randn(N, 4)), True, fallback=True),
    Network("prelu", lambda: mlp(nn.PReLU), True, fallback=True),
    Network("gelu", lambda: mlp(nn.GELU), False, "GELU in 1"),
    Network("tanh", lambda: mlp(nn.Tanh), False, "Tanh in 1"),
    Network("sigmoid_called", lambda: task_of(Functional(torch.sigmoid), torch.randn(N, 4)), False, "torch.sigmoid"),
    Network(
        "hidden_square", lambda: task_of(Functional(HiddenSquare.apply), torch.randn(N, 4)), False, "gradient changes"
    ),
    Network(
        "layer_norm",
        lambda: task_of(
            nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(N, 4)
        ),
        False,
        "LayerNorm in 1",
    ),
    Network(
        "group_norm",
        lambda: conv_task(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), x=images(size=(4, 4)), width=16),
        False,
        "GroupNorm in 1",
    ),
    Network("tied_embedding", tied_embedding, False, "0.weight is used 2 times", fallback=True),
    Network("same_layer_twice", lambda: task_of(Twice(), torch.randn(N, 4)), False, "is used 2 times", fallback=True),
    Network("parameter_squared", lambda: task_of(Product(True), torch.randn(N, 4)), False, "gain", fallback=True),
    Network("self_product", lambda: task_of(SelfProduct(), torch.randn(N, 4)), False, "both depend on the tensor"),
    Network("attention", lambda: task_of(Attention(), torch.randn(N, 3, 4)), False, "No layer's type"),
    Network("lstm", lambda: task_of(Recurrent(), torch.randn(N, 4, 3)), False, "LSTM in lstm", fallback=True),
    Network(
        "multihead",
        lambda: task_of(
            nn.Sequential(nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True), nn.Flatten(),
                          nn.Linear(12, 3)),
            torch.randn(N, 3, 4),
        ),
        False,
        "MultiheadAttention",
        fallback=True,
    ),
]  # fmt: skip


def whole(task: Task):
    """Output and loss over all samples at once, by the model's own forward pass, in eval mode."""
    task.model.eval()
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    output = task.output_of((x, y))
    loss = task.criterion(output, task.target_of((x, y)))
    return output, loss


def dense_diagonals(task: Task) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The diagonals of the Hessian and of ``J' A J`` by tensor, from dense matrices."""
    named = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    params, sizes = list(named.values()), [p.numel() for p in named.values()]
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        output, loss = whole(task)
        hessian = dense_hessian(loss, params).diagonal()
        output, _ = whole(task)
    flat = output.reshape(-1)
    rows = [torch.autograd.grad(z, params, retain_graph=True, allow_unused=True) for z in flat]
    jacobian = torch.stack(
        [torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(r, params)]) for r in rows]
    )
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    curved = torch.autograd.functional.hessian(
        lambda z: task.criterion(z.view_as(output), task.target_of((x, y))), flat.detach()
    )
    ggn = ((curved @ jacobian) * jacobian).sum(0)

    def by_name(diagonal):
        pieces = torch.split(diagonal.detach() + task.l2, sizes)
        return {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces)}

    return by_name(hessian), by_name(ggn)
