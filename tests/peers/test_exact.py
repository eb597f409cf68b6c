"""The exact diagonal of the Gauss-Newton matrix beside BackPACK's and curvlinops', in float64 to near rounding."""

from __future__ import annotations

import pytest
import torch
from cases import batches_of
from torch import nn

from spectra import Task, exact_diagonal, exact_trace

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("float64")]
ROUNDING = 1e-12


def mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    return model, torch.randn(70, 9), torch.randint(4, (70,))


def conv() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip
    return model, torch.randn(70, 2, 8, 8), torch.randint(10, (70,))


NETWORKS = {"mlp": mlp, "conv": conv}


def flat(diagonal) -> torch.Tensor:
    return torch.cat([entries.reshape(-1) for entries in diagonal])


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert float(expected.norm()) > 1e-3
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_diagonal_is_that_of_backpack(network):
    backpack = pytest.importorskip("backpack")
    extensions = pytest.importorskip("backpack.extensions")
    model, x, y = NETWORKS[network]()
    ours = exact_diagonal(Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 32, 32, 6)))
    extended, criterion = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss())
    with backpack.backpack(extensions.DiagGGNExact()):
        criterion(extended(x), y).backward()
    theirs = flat(p.diag_ggn_exact for p in model.parameters())
    assert distance(flat(ours.values()), theirs) < ROUNDING


@pytest.mark.parametrize("network", NETWORKS)
def test_the_diagonal_is_that_of_curvlinops(network):
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = NETWORKS[network]()
    data = batches_of(x, y, 32, 32, 6)
    task = Task(model, nn.CrossEntropyLoss(), data)
    theirs = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    dense = theirs @ torch.eye(theirs.shape[1])
    assert distance(flat(exact_diagonal(task).values()), dense.diagonal()) < ROUNDING
    assert exact_trace(task).total == pytest.approx(float(dense.trace()), rel=ROUNDING)
