"""The factored Hessian of the criterion against the dense one, and its random draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional as F

from spectra import Task, exact_trace
from spectra.errors import TaskError
from spectra.exact import factors
from spectra.exact.factors import (
    DenseFactor,
    DiagonalFactor,
    Layout,
    SoftmaxFactor,
    factor_of,
)
from spectra.exact.normalized import normalized_cross_entropy, normalized_logits
from spectra.operators.function import LossFunction

pytestmark = pytest.mark.usefixtures("float64")


def rebuilt(factor) -> torch.Tensor:
    """sum_c sign s s', (B, M, M)."""
    columns = torch.stack([factor.column(index) for index in range(factor.columns)])
    signs = torch.ones(columns.shape[:2]) if factor.signs is None else factor.signs
    return torch.einsum("cb,cbi,cbj->bij", signs, columns, columns)


def of_criterion(criterion, z, target, samples=None):
    samples = len(z) if samples is None else samples
    function = LossFunction(Task(nn.Linear(2, 2), criterion, [(z, target)]))
    leaf = z.clone().requires_grad_()
    factor = factor_of(function, leaf, target, Layout([leaf], samples))
    dense = hessian(lambda flat: criterion(flat.view_as(z), target), z.reshape(-1))
    size = z.numel() // samples
    blocks = dense.reshape(samples, size, samples, size)[torch.arange(samples), :, torch.arange(samples)]
    return factor, blocks


WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weights"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=["vectors", "positions"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_cross_entropy_in_all_its_settings(reduction, smoothing, weight, shape, soft):
    ignored = {} if soft else {"ignore_index": 2}
    criterion = nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction=reduction, **ignored)
    z = torch.randn(5, 4, *shape)
    target = torch.rand(5, 4, *shape) if soft else torch.randint(4, (5, *shape))
    factor, dense = of_criterion(criterion, z, target)
    assert isinstance(factor, SoftmaxFactor)
    assert factor.columns == 3 * (3 if shape else 1)
    assert torch.allclose(rebuilt(factor), dense, rtol=0, atol=1e-15)


def test_cross_entropy_over_rows_that_belong_to_one_sample():
    z, target = torch.randn(6, 3), torch.randint(3, (6,))
    factor, dense = of_criterion(nn.CrossEntropyLoss(), z, target, samples=2)
    assert factor.columns == 2 * 3
    assert torch.allclose(rebuilt(factor), dense, rtol=0, atol=1e-15)


def test_nothing_cancels_for_a_certain_network():
    """p_2 = 1 - 1e-40 or so: the columns keep their digits where diag(p) - p p' has none."""
    z = torch.tensor([[0.0, 1.0, 93.0]])
    factor, _ = of_criterion(nn.CrossEntropyLoss(), z, torch.tensor([2]))
    p = torch.exp(z[0] - 93)
    assert torch.allclose(rebuilt(factor)[0].diagonal()[:2], p[:2], rtol=1e-14, atol=0)
    assert float(rebuilt(factor)[0, 2, 2]) == pytest.approx(float(p[0] + p[1]), rel=1e-14)


@pytest.mark.parametrize(
    ("criterion", "target", "kind"),
    [
        (nn.MSELoss(), torch.randn(5, 4), DiagonalFactor),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), torch.rand(5, 4), DiagonalFactor),
        (nn.PoissonNLLLoss(), torch.rand(5, 4), DiagonalFactor),
        (lambda z, t: F.cross_entropy(z, t), torch.tensor([0, 1, 2, 3, 0]), DenseFactor),
        (normalized_cross_entropy, torch.tensor([0, 1, 2, 3, 0]), DenseFactor),
        (lambda z, t: (z.prod(1) * t).mean(), torch.rand(5), DenseFactor),
    ],
    ids=["mse", "bce", "poisson", "written_again", "normalized", "indefinite"],
)
def test_other_criteria(criterion, target, kind):
    target = target.to(torch.float64) if target.is_floating_point() else target
    factor, dense = of_criterion(criterion, torch.randn(5, 4), target)
    assert isinstance(factor, kind)
    assert torch.allclose(rebuilt(factor), dense, rtol=0, atol=1e-13)


def test_the_constant_direction_of_a_dense_cross_entropy_costs_no_column():
    factor, _ = of_criterion(lambda z, t: F.cross_entropy(z, t), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0]))
    assert factor.columns == 3


def test_the_normalised_cross_entropy_does_not_change_with_the_scale_of_the_logits():
    z, y = torch.randn(6, 4), torch.randint(4, (6,))
    loss = normalized_cross_entropy(z, y)
    assert float(normalized_cross_entropy(7 * z + 2, y)) == pytest.approx(float(loss), rel=1e-13)
    assert torch.allclose(normalized_logits(z).var(1, unbiased=False), torch.ones(6))
    factor, dense = of_criterion(normalized_cross_entropy, z, y)
    assert factor.signs is not None  # indefinite
    assert float((dense @ torch.ones(4)).abs().max()) < 1e-15  # A 1 = 0
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(normalized_cross_entropy(leaf, y), leaf)
    centred = z - z.mean(1, keepdim=True)
    assert torch.allclose((dense @ centred[:, :, None])[:, :, 0], -slope, atol=1e-15)  # A (z - mean) = -grad


@pytest.mark.parametrize("z", [torch.ones(2, 2), torch.ones(3, 4)], ids=["two classes", "equal logits"])
def test_the_normalised_cross_entropy_is_refused_where_it_says_nothing(z):
    with pytest.raises(TaskError, match="normalised cross-entropy"):
        normalized_cross_entropy(z, torch.zeros(len(z), dtype=torch.int64))


def every_draw(monkeypatch, factor, shape):
    """The mean of the signed squares over all sign patterns."""
    total = torch.zeros(())
    patterns = list(itertools.product((-1.0, 1.0), repeat=shape.numel()))
    for pattern in patterns:
        monkeypatch.setattr(factors, "random_signs", lambda *_, p=pattern: torch.tensor(p).reshape(shape))
        for sign, column in factor.drawn(torch.Generator()):
            total = total + sign * torch.einsum("bi,bj->bij", column, column)
    return total / len(patterns)


@pytest.mark.parametrize(
    ("criterion", "target", "shape"),
    [
        (nn.CrossEntropyLoss(), torch.tensor([0, 2]), (2, 1, 3, 1)),
        (nn.MSELoss(), torch.zeros(2, 3, dtype=torch.float64), (2, 3)),
        (normalized_cross_entropy, torch.tensor([0, 2]), (2, 3)),
    ],
    ids=["softmax", "diagonal", "dense"],
)
def test_the_mean_over_every_draw_is_the_hessian(monkeypatch, criterion, target, shape):
    factor, dense = of_criterion(criterion, torch.randn(2, 3), target)
    assert torch.allclose(every_draw(monkeypatch, factor, torch.Size(shape)), dense, rtol=0, atol=1e-14)


def coupled(z, t):
    return F.cross_entropy(z, t) * z.square().mean()


def test_a_criterion_that_couples_the_samples_is_refused_with_the_reason():
    task = Task(nn.Linear(3, 4), coupled, [(torch.randn(6, 3), torch.randint(4, (6,)))])
    trace = exact_trace(task)
    assert trace.total is None
    assert not trace.applies
    assert "couples" in trace.reasons[0]


def test_too_many_outputs_of_an_unknown_criterion_are_refused_with_the_remedy():
    x, t = torch.randn(2, 3), torch.randn(2, 600)
    unknown = Task(nn.Linear(3, 600), lambda z, y: (z - y).square().sum(1).mean(), [(x, t)])
    assert "600 outputs" in exact_trace(unknown).reasons[0]
    known = exact_trace(Task(nn.Linear(3, 600), nn.MSELoss(), [(x, t)]), method="exact")
    assert known.total == pytest.approx(2 * float((x.square().sum(1) + 1).mean()), rel=1e-12)
