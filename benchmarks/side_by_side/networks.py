"""The networks that are measured, with their data: sizes, weights after a few steps of training, batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from spectra.zoo.networks.building import seeded
from spectra.zoo.networks.residual import preresnet
from spectra.zoo.networks.small import lenet

Batches = list[tuple[torch.Tensor, torch.Tensor]]

_TRAINING_STEPS, _RATE = 10, 0.02
_WORDS, _TOKENS, _WIDTH, _HEADS = 256, 64, 128, 4


class Attention(nn.Module):
    """Causal self-attention, written out: the fused kernels of torch have no second derivative on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.register_buffer("hidden", torch.ones(_TOKENS, _TOKENS).triu(1).bool(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = x.shape
        heads = self.project(x).view(rows, tokens, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads[0], heads[1], heads[2]
        scores = query @ key.transpose(-1, -2) / math.sqrt(width / _HEADS)
        mixed = scores.masked_fill(self.hidden, -torch.inf).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))


class Block(nn.Module):
    """A layer of a transformer, normalised first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.second = nn.LayerNorm(_WIDTH), Attention(), nn.LayerNorm(_WIDTH)
        self.network = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.first(x))
        return x + self.network(self.second(x))


class GPT(nn.Module):
    """A language model of four layers; its output is (rows, words, tokens), as cross-entropy takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(_WORDS, _WIDTH), nn.Parameter(0.02 * torch.randn(_TOKENS, _WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(4)), nn.LayerNorm(_WIDTH))
        self.head = nn.Linear(_WIDTH, _WORDS, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.words(x) + self.places)).transpose(1, 2)


def mlp() -> nn.Module:
    """784-512-512-10."""
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip


def images(*shape: int) -> Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]:
    """Ten classes of noise around a pattern of their own."""

    def draw(samples: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(10, (samples,), generator=generator)
        patterns = torch.randn(10, *shape, generator=generator)
        return 0.5 * patterns[y] + torch.randn(samples, *shape, generator=generator), y

    return draw


def texts(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Words, each followed by a fixed successor four times out of five."""
    successor = torch.randperm(_WORDS, generator=generator)
    words = torch.randint(_WORDS, (rows, _TOKENS + 1), generator=generator)
    follows = torch.rand(rows, _TOKENS, generator=generator) < 0.8
    for place in range(_TOKENS):
        words[:, place + 1] = torch.where(follows[:, place], successor[words[:, place]], words[:, place + 1])
    return words[:, :-1].contiguous(), words[:, 1:].contiguous()


@dataclass(frozen=True)
class Network:
    """A network with its data."""

    title: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
    samples: int
    several: int = 4  # batches, where there are several
    plain: bool = False  # only layers that every library has rules for, and piecewise linear: exact diagonals
    steps: int = 100  # of Lanczos
    tasks: tuple[str, ...] = ("product", "slq", "lambda_max", "trace", "diagonal")  # those of `make bench`
    kinds: tuple[str, ...] = ("hessian", "ggn")  # of products with several batches, in `make bench`

    def data(self, batches: int) -> Batches:
        """The data in batches of one size: not every library weights them."""
        x, y = self.draw(self.samples, torch.Generator().manual_seed(1))
        return list(zip(x.chunk(batches), y.chunk(batches)))

    def model(self, weights: Path | None = None) -> nn.Module:
        """The network in eval mode, with stored weights or as it is drawn."""
        model = seeded(self.build, 0)
        if weights is not None:
            model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval()

    def train(self, weights: Path) -> None:
        """Train for a few steps and store the weights, so that the spectrum has a structure."""
        model, ((x, y),) = self.model().train(), self.data(1)
        optimizer = torch.optim.SGD(model.parameters(), _RATE, momentum=0.9)
        for _ in range(_TRAINING_STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        torch.save(model.state_dict(), weights)


NETWORKS = {
    "mlp": Network("MLP 784-512-512-10, N = 512", mlp, images(784), 512, plain=True),
    "lenet": Network("LeNet, N = 512", lenet, images(1, 28, 28), 512, plain=True),
    "resnet20": Network(
        "ResNet-20, batch norm in eval mode, N = 64",
        lambda: preresnet(20),
        images(3, 32, 32),
        64,
        steps=20,
        tasks=("product",),
        kinds=("hessian",),
    ),
    "gpt": Network(
        "GPT, 4 layers of 128, 16 rows of 64 tokens", GPT, texts, 16, steps=20, tasks=("product", "slq", "lambda_max")
    ),
}
