"""What is tried before the first product: as much of the data as tells, and what it tells is true of all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectra.operators.selftest
from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.errors import TaskError
from spectra.operators.curvature import CurvatureOperator


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    """Few rows are taken of batches that are small enough for a test."""
    monkeypatch.setattr("spectra.operators.selftest._SMALL", 0.0)


def images(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1, 8, 8, generator=generator), torch.randint(5, (rows,), generator=generator)


def convolutions(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), *middle, nn.Tanh(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )


def task_of(model: nn.Module, rows: int = 256, batches: int = 1) -> Task:
    x, y = images(rows)
    return Task(model, nn.CrossEntropyLoss(), list(zip(x.chunk(batches), y.chunk(batches))))


def tried_whole(operator: CurvatureOperator):
    untested = type(operator)(operator.task, operator.bn_mode, dtype=operator.torch_dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectra.operators.selftest._SMALL", float("inf"))
        return untested.self_test


@pytest.fixture
def work(monkeypatch):
    """(rows, vectors, dtype) of everything that is multiplied in the self-test."""
    done = []
    real = spectra.operators.selftest._products

    def counted(operator, batch, vectors, seed):
        done.append((len(batch[1]), len(vectors), operator.torch_dtype))
        return real(operator, batch, vectors, seed)

    monkeypatch.setattr(spectra.operators.selftest, "_products", counted)
    return done


# -- what it costs


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_before_the_first_product_no_more_is_multiplied_than_in_one_and_a_half_products(batches, work):
    rows = 1024
    operator = HessianOperator(task_of(convolutions(), rows, batches))
    _ = operator.self_test
    single = sum(n * vectors for n, vectors, dtype in work if dtype == torch.float32) / rows
    double = sum(n * vectors for n, vectors, dtype in work if dtype == torch.float64) / rows
    assert single + 8 * double <= 1.5  # a convolution in float64 takes up to eight times as long


def test_a_batch_that_is_a_small_part_of_the_data_is_tried_whole(work):
    operator = HessianOperator(task_of(convolutions(), 512, 16))
    assert operator.self_test.on == "the first batch"
    assert {rows for rows, _, _ in work} == {32}


def test_a_batch_of_a_small_network_is_tried_whole(monkeypatch, work):
    monkeypatch.setattr("spectra.operators.selftest._SMALL", 2e7)
    assert HessianOperator(task_of(convolutions())).self_test.on == "the first batch"
    assert {rows for rows, _, _ in work} == {256}


def test_it_says_what_was_tried():
    found = HessianOperator(task_of(convolutions(), 256)).self_test
    assert found.on == "32 of the 256 rows of the first batch, and 64 rows at once against pieces of them"


def test_what_two_operators_need_of_the_data_and_the_loss_is_looked_at_once(monkeypatch):
    checks, surveys = [], []
    real_check, real_survey = spectra.operators.checks.check_loss, spectra.task.task.take_survey
    monkeypatch.setattr(spectra.operators.checks, "check_loss", lambda *a, **k: checks.append(k) or real_check(*a, **k))
    monkeypatch.setattr(spectra.task.task, "take_survey", lambda task: surveys.append(1) or real_survey(task))
    task = task_of(convolutions(), 64)
    options = {"lanczos_steps": 2, "num_probes": 2, "check": False, "metrics": "none"}
    first, second = spectra.analyze(task, operators=("hessian", "ggn"), **options)
    assert (len(checks), len(surveys)) == (1, 1)
    assert first.facts["loss"] == second.facts["loss"]
    checks.clear()
    spectra.analyze(task, lanczos_steps=2, num_probes=2)
    losses = {tuple(sorted(k.items())) for k in checks}
    assert len(surveys) <= 2  # the network without its last layers is another task on the same data
    assert len(checks) <= 3 * len(losses)


# -- what it tells is true of all of the batch


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator, EmpiricalFisherOperator])
@pytest.mark.parametrize("rows", [100, 256, 700])
def test_the_noise_found_on_a_few_rows_is_no_less_than_that_of_the_batch(kind, rows):
    operator = kind(task_of(convolutions(), rows))
    few, whole = operator.self_test, tried_whole(operator)
    assert few.on != whole.on
    assert 0.8 * whole.noise < few.noise < 8 * whole.noise


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_where_batch_norm_couples_the_samples_rounding_is_taken_to_grow_with_their_number(kind):
    operator = kind(task_of(convolutions(norm=True), 256), "train")
    few, whole = operator.self_test, tried_whole(operator)
    assert few.on == "32 of the 256 rows of the first batch"
    assert 0.8 * whole.noise < few.noise < 16 * whole.noise


def test_float64_products_are_tried_on_the_same_rows():
    operator = HessianOperator(task_of(convolutions().double(), 256))
    found = operator.self_test
    assert found.on == "32 of the 256 rows of the first batch"
    assert found.noise == tried_whole(operator).noise


# -- what is refused is refused


class Random(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.01, training=True)


def test_a_product_that_is_random_is_refused():
    model = nn.Sequential(convolutions(), Random())
    with pytest.raises(TaskError, match="something in the model is random in eval mode"):
        _ = HessianOperator(task_of(model)).self_test


class Skewed(torch.autograd.Function):
    """x^2 with a first derivative that is one of nothing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad * (1 + 256 * grad.cumsum(-1))


class Squared(nn.Module):
    def forward(self, x):
        return Skewed.apply(x)


def test_a_product_that_is_not_symmetric_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), Squared())
    with pytest.raises(TaskError, match="the product is not symmetric"):
        _ = HessianOperator(task_of(model)).self_test


# -- where rows are no parts of a batch, it is tried whole


class Centred(nn.Module):
    """The outputs of a row depend on the others."""

    def forward(self, x):
        return x - x.mean(0)


class OfOneSize(nn.Module):
    def forward(self, x):
        return x.view(256, -1)


@pytest.mark.parametrize("extra", [Centred, OfOneSize])
def test_rows_that_depend_on_each_other_are_tried_together(extra):
    model = nn.Sequential(convolutions(), extra())
    operator = HessianOperator(task_of(model))
    assert operator.self_test == tried_whole(operator)
    assert operator.self_test.on == "the first batch"


def test_rows_without_a_curvature_are_not_taken_for_the_batch():
    x, y = images(256)
    y[torch.linspace(0, 255, 38).round().to(torch.int64)] = -100  # not counted: the rows that would be taken
    operator = HessianOperator(replace(task_of(convolutions()), data=[(x, y)]))
    assert operator.self_test == tried_whole(operator)


def test_batches_that_have_no_rows_are_tried_whole():
    x, y = images(256)
    task = Task(
        convolutions(),
        nn.CrossEntropyLoss(),
        [{"x": x, "y": y, "scale": torch.tensor(1.0)}],
        forward=lambda model, batch: model(batch["x"]) * batch["scale"],
        target=lambda batch: batch["y"],
    )
    assert HessianOperator(task).self_test.on == "the first batch"
