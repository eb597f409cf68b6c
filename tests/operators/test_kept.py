"""Products from kept graphs are bit for bit those of new ones, and what is kept obeys the memory budget."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch
from torch import nn

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task, slq
from spectra.operators import kept


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )


def data(batches=3, rows=6):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(rows, 1, 4, 4, generator=generator), torch.randint(3, (rows,), generator=generator))
        for _ in range(batches)
    ]


OPERATORS = [
    (HessianOperator, "eval"),
    (HessianOperator, "train"),
    (GGNOperator, "eval"),
    (GGNOperator, "train"),
    (EmpiricalFisherOperator, "eval"),
]


@pytest.mark.parametrize(("make", "mode"), OPERATORS, ids=lambda value: getattr(value, "kind", value))
def test_a_kept_product_is_bit_for_bit_a_new_one(make, mode):
    operator = make(Task(network(), nn.CrossEntropyLoss(), data()), mode)
    block = torch.randn(operator.n, 2, generator=torch.Generator().manual_seed(2))
    new = operator @ block
    with operator.prepared():
        first = operator @ block
        assert operator.kept.summary["kept"] == 3
        again, single = operator @ block, operator @ block[:, 1]
    assert operator.kept.summary["kept"] == 0
    assert torch.equal(new, first)
    assert torch.equal(new, again)
    assert torch.equal(single, again[:, 1])


def test_batches_are_linearised_once_while_products_are_kept():
    operator = HessianOperator(Task(network(), nn.CrossEntropyLoss(), data()))
    operator.self_test  # noqa: B018
    calls = []
    linearise = operator.linearise
    operator.linearise = lambda batch: calls.append(1) or linearise(batch)
    with operator.prepared():
        for _ in range(4):
            operator @ torch.ones(operator.n)
        assert len(calls) == 3 + 1  # and once to measure
        with operator.prepared():  # an inner caller neither frees nor measures again
            operator @ torch.ones(operator.n)
        operator @ torch.ones(operator.n)
        assert len(calls) == 4
    with operator.prepared():
        operator @ torch.ones(operator.n)
    assert len(calls) == 7


def test_as_many_batches_are_kept_as_the_budget_holds_and_the_numbers_are_the_same():
    operator = HessianOperator(Task(network(), nn.CrossEntropyLoss(), data(batches=4, rows=32)))
    vector = torch.ones(operator.n)
    counts, products = [], []
    for budget in (0, 150_000, 10**9):
        with operator.prepared(budget):
            products += [operator @ vector, operator @ vector]
            counts.append(operator.kept.summary["kept"])
    assert counts[0] == 0
    assert 0 < counts[1] < 4
    assert counts[2] == 4
    assert all(torch.equal(product, products[0]) for product in products)


def test_the_measured_bytes_are_what_the_graph_holds():
    """A wide batch: the graph of a Hessian product holds tens of MB, and the estimate is that to a factor of two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 400), nn.Tanh(), nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 3))
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), [(torch.randn(8000, 50), torch.randint(3, (8000,)))]))
    operator.self_test  # noqa: B018
    (batch,) = (batch for batch, _ in operator.batches())
    gc.collect()
    with operator.function.evaluation():
        operator.linearise(batch)  # first-use allocations
        before = psutil.Process().memory_info().rss
        products = [operator.linearise(batch) for _ in range(3)]
        held = (psutil.Process().memory_info().rss - before) / 3
        measured = kept._graph_bytes(lambda: operator.linearise(batch))
    assert len(products) == 3
    assert measured > 4e7
    assert 0.5 * held <= measured <= 2 * held


def test_measuring_leaves_nothing_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 400), nn.Tanh(), nn.Linear(400, 3), nn.Softmax(1))
    operator = HessianOperator(Task(model, nn.MSELoss(), [(torch.randn(4000, 50), torch.randn(4000, 3))]))
    operator.self_test  # noqa: B018
    (batch,) = (batch for batch, _ in operator.batches())
    with operator.function.evaluation():
        sizes = []
        for _ in range(12):
            kept._graph_bytes(lambda: operator.linearise(batch))
            sizes.append(psutil.Process().memory_info().rss)
    assert sizes[-1] - sizes[3] < 1e7  # eight graphs of more than 10 MB each


@pytest.mark.parametrize("transformed", ["grad", "jvp", "vmap"])
def test_losses_with_transformations_of_torch_func_are_kept_too(transformed):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(5, 3)

    def loss(model, batch):
        def single(row):
            return model(row[None]).sum()

        if transformed == "grad":
            return torch.func.vmap(torch.func.grad(single))(batch).square().mean()
        if transformed == "jvp":
            return torch.func.jvp(model, (batch,), (torch.ones_like(batch),))[1].square().mean()
        return torch.func.vmap(single)(batch).square().mean()

    operator = HessianOperator(Task.from_loss(model, loss, [x], weight=len))
    new = operator @ torch.ones(operator.n)
    with operator.prepared():
        assert torch.equal(operator @ torch.ones(operator.n), new)
        assert operator.kept.summary["kept"] == 1
        assert torch.equal(operator @ torch.ones(operator.n), new)


def test_a_spectrum_is_the_same_whether_or_not_anything_fits(monkeypatch):
    operator = HessianOperator(Task(network(), nn.CrossEntropyLoss(), data()))
    with_kept = slq(operator, 10, 2)
    monkeypatch.setattr(kept.KeptProducts, "start", lambda self, budget: None)
    without = slq(operator, 10, 2)
    for one, other in zip(with_kept.tridiagonals, without.tridiagonals):
        assert one.alphas.tolist() == other.alphas.tolist()
        assert one.betas.tolist() == other.betas.tolist()
