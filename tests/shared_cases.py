"""Networks and data for the tests of shared analyses, and their numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task, slq
from spectra.krylov.eigsh import eigsh
from spectra.operators.point import measure_point


class Attention(nn.Module):
    """A transformer block over token embeddings, with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return (self.block(self.embed(tokens)) @ self.embed.weight.T).transpose(1, 2)


def task(name: str, sizes: tuple[int, ...] = (5, 4, 4, 3, 2)) -> Task:
    """A task in float64 with batches of these sizes."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    if name == "transformer":
        model: nn.Module = Attention()
        x, y = torch.randint(7, (sum(sizes), 6), generator=draw), torch.randint(7, (sum(sizes), 6), generator=draw)
        y[:, :2] = -100  # targets that do not count
        y[0] = -100
    elif name == "conv":
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)
        )  # fmt: skip
        x, y = torch.randn(sum(sizes), 1, 6, 6, generator=draw), torch.randint(3, (sum(sizes),), generator=draw)
    else:
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        x, y = torch.randn(sum(sizes), 4, generator=draw), torch.randint(3, (sum(sizes),), generator=draw)
    x = x if name == "transformer" else x.double()
    batches = list(zip(x.split(sizes), y.split(sizes)))
    return Task(model.double(), nn.CrossEntropyLoss(), batches, l2=0.01, test_data=batches[:2])


KINDS = {"hessian": HessianOperator, "ggn": GGNOperator, "empirical_fisher": EmpiricalFisherOperator}
#: name -> network, kind, BN mode, sizes of the batches
CASES: dict[str, tuple[str, str, str, tuple[int, ...]]] = {
    "MLP": ("mlp", "hessian", "eval", (5, 4, 4, 3, 2)),
    "MLP, GGN": ("mlp", "ggn", "eval", (5, 4, 4, 3, 2)),
    "MLP, Fisher": ("mlp", "empirical_fisher", "eval", (5, 4, 4, 3, 2)),
    "conv, BN eval": ("conv", "hessian", "eval", (5, 4, 4, 3, 2)),
    "conv, BN train": ("conv", "hessian", "train", (5, 4, 4, 3, 2)),
    "conv, BN recalibrated": ("conv", "ggn", "recalibrated", (5, 4, 4, 3, 2)),
    "transformer": ("transformer", "hessian", "eval", (3, 3, 2, 2)),
    "one large share": ("mlp", "hessian", "eval", (20, 1, 1)),
    "a process without data": ("mlp", "hessian", "eval", (7, 6)),
    "a single batch": ("conv", "hessian", "train", (9,)),
}


def numbers(name: str) -> dict[str, Any]:
    """The numbers of a case: of the point, of a spectrum and of eigenpairs."""
    network, kind, mode, sizes = CASES[name]
    operator = KINDS[kind](task(network, sizes), mode)
    operator.agree()
    with operator.prepared():
        spectrum = slq(operator, 8, 2, 0)
        pairs = eigsh(operator, 2, "LM", tol=1e-9)
        return {
            **measure_point(operator),
            "alphas": [t.alphas for t in spectrum.tridiagonals],
            "betas": [t.betas for t in spectrum.tridiagonals],
            "tensor_forms": spectrum.tensor_forms,
            "batch_forms": spectrum.batch_forms,
            "batch_weights": spectrum.batch_weights,
            "start_overlaps": spectrum.start_overlaps,
            "values": pairs.values,
            "vectors": abs(pairs.vectors),
            "batches": operator.kept.summary["batches"],
        }


def all_numbers(names: list[str]) -> dict[str, dict[str, Any]]:
    return {name: numbers(name) for name in names}
