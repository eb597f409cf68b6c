"""The loss and its gradient at displaced parameters, held against the loss written again with the model moved."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, batches_of, conv_batch_norm, parameters
from torch import nn
from torch.nn import functional as F

from spectra import Task
from spectra.errors import ArgumentError, DataError, NumericsError, TaskError
from spectra.operators.displaced import DisplacedLoss

pytestmark = pytest.mark.usefixtures("float64")


def moved(model_parameters, shift):
    with torch.no_grad():
        start = 0
        for p in model_parameters:
            p.add_(shift[start : start + p.numel()].view_as(p))
            start += p.numel()


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "with_weight_decay"], ids=lambda case: case.name)
def test_loss_and_gradient_are_those_of_the_moved_model(case):
    for bn_mode in case.bn_modes:
        torch.manual_seed(0)
        task, written_again = case.make()
        displaced, params = DisplacedLoss(task, bn_mode), parameters(task)
        shift = 0.1 * torch.randn(displaced.n)
        loss, gradient = displaced.gradient(shift)
        task.model.eval()
        moved(params, shift)
        expected = written_again(bn_mode) if len(case.bn_modes) > 1 else written_again()
        slopes = torch.autograd.grad(expected, params, allow_unused=True)
        flat = torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(slopes, params)])
        assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
        assert displaced.loss(shift) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert torch.allclose(gradient, flat, rtol=1e-9, atol=1e-12)


def test_the_l2_term_is_left_out():
    case = next(c for c in CASES if c.name == "with_weight_decay")
    task, written_again = case.make()
    l2 = 0.15 * sum(float((p.detach() ** 2).sum()) for p in parameters(task))
    assert DisplacedLoss(task).loss() == pytest.approx(float(written_again().detach()) - l2, rel=1e-12)


@pytest.mark.parametrize("bn_mode", ["eval", "recalibrated", "train"])
def test_nothing_of_the_model_changes(bn_mode):
    task, _ = conv_batch_norm()
    task.model.train()
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    flags, generator = [m.training for m in task.model.modules()], torch.get_rng_state()
    displaced = DisplacedLoss(task, bn_mode)
    with displaced.prepared():
        displaced.gradient(torch.ones(displaced.n))
        displaced.loss(torch.ones(displaced.n))
    after = task.model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert [m.training for m in task.model.modules()] == flags
    assert all(p.grad is None for p in task.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_after_a_displacement_the_loss_at_the_parameters_is_the_same_to_the_bit():
    task, _ = conv_batch_norm()
    displaced = DisplacedLoss(task, "train")
    before = displaced.loss()
    displaced.gradient(torch.randn(displaced.n))
    assert displaced.loss() == before


def test_a_float32_model_is_displaced_in_float64():
    model = nn.Linear(3, 2).to(torch.float32)
    x, y = torch.randn(5, 3, dtype=torch.float32), torch.randn(5, 2, dtype=torch.float32)
    displaced = DisplacedLoss(Task(model, nn.MSELoss(), [(x, y)]))
    shift = 1e-9 * torch.randn(displaced.n)
    _, gradient = displaced.gradient()
    assert displaced.loss(shift) - displaced.loss() == pytest.approx(float(gradient @ shift), rel=1e-5)


def test_what_is_random_or_shuffled_or_not_finite_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x):
            return F.dropout(self.body(x), 0.5)  # in whatever mode

    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    with pytest.raises(TaskError, match="random in eval mode"):
        DisplacedLoss(Task(Noisy(), nn.CrossEntropyLoss(), [(x, y)]))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    loader = torch.utils.data.DataLoader(list(zip(x, y)), batch_size=4, shuffle=True)
    with pytest.raises(DataError, match="shuffle"):
        DisplacedLoss(Task(model, nn.CrossEntropyLoss(), loader), "train")
    displaced = DisplacedLoss(Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 4)), "train")
    with pytest.raises(NumericsError, match="move less far"):
        displaced.loss(torch.full((displaced.n,), torch.inf))
    with pytest.raises(NumericsError, match="move less far"):
        displaced.gradient(torch.full((displaced.n,), torch.inf))
    with pytest.raises(ArgumentError, match="of a displacement"):
        displaced.loss(torch.zeros(3))
