"""The certificate: which tensors pass, why others do not, and how many passes it takes."""

from __future__ import annotations

import pytest
import torch
from exact_networks import task_of
from torch import nn

import spectra.exact.certificate_conditions
from spectra import GGNOperator, Task, exact_diagonal, exact_trace
from spectra.exact.certificate import certify
from spectra.exact.certificate_conditions import Conditions
from spectra.operators.function import LossFunction

pytestmark = pytest.mark.usefixtures("float64")


def test_a_curved_network_is_seen_also_where_the_loss_is_nothing():
    """Near zero loss H - G vanishes by itself; the outputs are as curved as before."""
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))
    x = torch.randn(7, 4)
    y = model(x).argmax(1)
    task = Task(model, lambda z, t: nn.functional.cross_entropy(1000 * z, t), [(x, y)])
    trace = exact_trace(task)
    assert trace.kind == "ggn"
    assert trace.certified == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}


def test_a_curve_behind_a_gate_that_is_shut_is_seen():
    """A branch that starts at zero adds nothing here, and is no less curved beside it."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.gate = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return self.head(self.first(x) + self.gate * torch.tanh(self.branch(x)))

    trace = exact_trace(task_of(Gated(), torch.randn(7, 4)))
    assert not trace.certified["branch.weight"]
    assert trace.certified["first.weight"]
    assert trace.kind == "ggn"


def test_a_tensor_that_only_other_rows_depend_on_is_in_doubt():
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.usual, self.rare, self.unused = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x):
            rows = x[:, 0] > 5
            return self.usual(x).index_add(0, rows.nonzero()[:, 0], torch.tanh(self.rare(x[rows])))

    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    model = Rare()
    assert exact_trace(Task(model, nn.CrossEntropyLoss(), [(x, y)])).applies
    x[17, 0] = 6.0
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    G = GGNOperator(task)
    trace = exact_trace(task)
    assert trace.total == pytest.approx(float((G @ torch.eye(G.n)).trace()), rel=1e-10)
    assert trace.kind == "ggn"
    assert [name for name, passed in trace.certified.items() if not passed] == ["rare.weight", "rare.bias"]
    assert "no effect on the outputs of the rows looked at" in trace.reasons[0]


class Gain(nn.Module):
    """Affine in its weight and bias, and curved in its gain."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
        self.gain = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return x @ self.weight.T * self.gain.exp() + self.bias


def test_tensors_of_a_module_that_fail_together_are_told_apart():
    trace = exact_trace(task_of(Gain(), torch.randn(7, 4)))
    assert trace.certified == {"weight": True, "bias": True, "gain": False}
    assert trace.reasons[0].startswith("The outputs are not affine in 1 of 3 parameter tensors (gain: relative second")


class HiddenProduct(torch.autograd.Function):
    """The product of two arguments, with a backward that autograd cannot see into: no second derivative."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.kept = a.detach().clone(), b.detach().clone()
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.kept
        return grad * b, grad * a


class TwoFactors(nn.Module):
    def __init__(self, same: bool):
        super().__init__()
        self.left, self.right, self.same = nn.Linear(4, 3), nn.Linear(4, 3), same

    def forward(self, x):
        return HiddenProduct.apply(self.left(x), self.left(x) if self.same else self.right(x)) + self.right(x)


@pytest.mark.parametrize("same", [False, True])
def test_a_second_derivative_that_autograd_misses_fails_only_the_tensors_that_are_curved(same):
    """A product of two tensors is affine in each, so the missing derivative is that of no block of the diagonal."""
    trace = exact_trace(task_of(TwoFactors(same), torch.randn(7, 4)))
    curved = [name for name, passed in trace.certified.items() if not passed]
    assert curved == (["left.weight", "left.bias"] if same else [])
    assert ("its gradient changes along the tensor" in " ".join(trace.reasons)) is same


@pytest.mark.parametrize("depth", [2, 12])
def test_only_one_product_at_each_point_is_made_for_a_module(depth, monkeypatch):
    """All other passes are the same for any number of tensors, and without a defect no tensor is tested alone."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.ReLU())]
    task = task_of(nn.Sequential(*layers, nn.Linear(4, 3)), torch.randn(7, 4))
    passes = {"forward": 0, "products": 0}
    output, forms = LossFunction.output, Conditions.forms

    def counted(name, function):
        def call(*args):
            passes[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(LossFunction, "output", counted("forward", output))
    monkeypatch.setattr(Conditions, "forms", counted("products", forms))
    assert certify(LossFunction(task)).kind == "hessian"
    assert passes == {"forward": 5, "products": 2 * (depth + 1) + 2}


def test_the_numbers_are_those_of_the_gauss_newton_matrix_whatever_the_certificate_says():
    task = task_of(Gain(), torch.randn(7, 4))
    G = GGNOperator(task)
    diagonal = torch.cat([entries.reshape(-1) for entries in exact_diagonal(task).values()])
    assert torch.allclose(diagonal, (G @ torch.eye(G.n)).diagonal(), rtol=1e-11, atol=1e-14)


def test_a_gauss_newton_form_that_is_not_that_of_the_loss_fails_each_tensor(monkeypatch):
    product = spectra.exact.certificate_conditions.criterion_product
    task = task_of(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(7, 4))
    assert certify(LossFunction(task)).kind == "hessian"
    doubled = lambda *of: [2 * piece for piece in product(*of)]  # noqa: E731
    monkeypatch.setattr(spectra.exact.certificate_conditions, "criterion_product", doubled)
    found = certify(LossFunction(task))
    assert not any(found.passed.values())
    assert "v'Hv = " in found.reasons[0]
