"""Losses that depend on more than the output: the Hessian is right, and what needs the output alone is refused."""

from __future__ import annotations

import pytest
import torch
from cases import dense_hessian, parameters
from input_derivatives import (
    collocation,
    mlp,
    products_are,
    residual_written_again,
    second_derivative,
)
from torch import nn

from spectra import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    Task,
    exact_trace,
    gradient_norm,
)
from spectra.errors import TaskError

pytestmark = pytest.mark.usefixtures("float64")


def entangled_task(*sizes):
    """The criterion itself differentiates the output, in an input that the forward pass hands on."""
    model, x = mlp(), collocation()

    def forward(model, batch):
        x = batch[0].requires_grad_()
        return model(x), x

    def criterion(output, target):
        u, x = output
        return (second_derivative(u, x) + u - target).square().mean()

    data = list(zip(torch.split(x, sizes), torch.split(x**2, sizes)))
    return Task(model, criterion, data, forward=forward), x


@pytest.mark.parametrize("sizes", [(11,), (4, 4, 3)])
def test_a_criterion_that_differentiates_the_output_has_a_hessian_and_says_why_no_ggn(sizes):
    task, x = entangled_task(*sizes)
    products_are(HessianOperator(task), dense_hessian(residual_written_again(task.model, x), parameters(task)))
    for kind in (GGNOperator, EmpiricalFisherOperator):
        with pytest.raises(
            TaskError, match=r"not a criterion of the output alone.*0\.weight.*The Hessian works"
        ) as caught:
            kind(task) @ torch.ones(39)
        assert "\n" not in str(caught.value)
    found = exact_trace(task)
    assert found.kind is None
    assert "criterion of the output alone" in found.reasons[0]


@pytest.mark.parametrize("at_the_reference", [False, True])
def test_a_penalty_on_the_weights_within_the_criterion_is_in_the_hessian_and_no_part_of_a_ggn(at_the_reference):
    """Also where its gradient vanishes, as that of a penalty on the distance to the weights as they are."""
    model, (x, y) = nn.Linear(3, 2), (torch.randn(7, 3), torch.randn(7, 2))
    centre = [p.detach().clone() + (0 if at_the_reference else 1) for p in model.parameters()]

    def criterion(output, target):
        far = sum((p - c).square().sum() for p, c in zip(model.parameters(), centre))
        return nn.functional.mse_loss(output, target) + 0.5 * far

    task = Task(model, criterion, [(x, y)])
    plain = HessianOperator(Task(model, nn.MSELoss(), [(x, y)])) @ torch.eye(8)
    products_are(HessianOperator(task), plain + torch.eye(8))
    with pytest.raises(TaskError, match="depends on weight, bias in another way"):
        GGNOperator(task) @ torch.ones(8)


def test_weights_that_are_outputs_are_no_other_way():
    """A penalty on what the forward pass returns with the outputs is part of the criterion, and of the GGN."""
    model, (x, y) = nn.Linear(3, 2), (torch.randn(7, 3), torch.randn(7, 2))

    def criterion(output, target):
        return nn.functional.mse_loss(output[0], target) + 0.5 * output[1].square().sum()

    task = Task(model, criterion, [(x, y)], forward=lambda m, b: (m(b[0]), m.weight))
    plain = HessianOperator(Task(model, nn.MSELoss(), [(x, y)])) @ torch.eye(8)
    expected = plain + torch.diag(torch.tensor([1.0] * 6 + [0.0] * 2))
    products_are(HessianOperator(task), expected)
    products_are(GGNOperator(task), expected)


def test_parameters_taken_out_of_the_model_before_are_refused():
    """They are constants to the loss of spectra: the penalty on them would be missing from every number."""
    model = nn.Linear(3, 2)
    held = list(model.parameters())

    def criterion(output, target):
        return nn.functional.mse_loss(output, target) + 0.5 * sum(p.square().sum() for p in held)

    task = Task(model, criterion, [(torch.randn(7, 3), torch.randn(7, 2))])
    with pytest.raises(TaskError, match=r"the loss uses weight by a reference .* model\.parameters\(\)"):
        HessianOperator(task) @ torch.ones(8)
    with pytest.raises(TaskError, match="by a reference"):
        gradient_norm(task)


def calls_backward(model, x):
    x = x.clone().requires_grad_()
    model(x).sum().backward(create_graph=True)
    return x.grad.square().mean()


def calls_autograd_backward(model, x):
    torch.autograd.backward(model(x).sum())
    return model(x).square().mean()


@pytest.mark.parametrize("loss", [calls_backward, calls_autograd_backward])
def test_a_loss_that_calls_backward_is_refused_and_leaves_no_gradients(loss):
    model = mlp()
    task = Task.from_loss(model, loss, [collocation()])
    for use in (lambda: HessianOperator(task) @ torch.ones(39), lambda: gradient_norm(task)):
        with pytest.raises(TaskError, match=r"the loss calls backward\(\) itself.*autograd.grad") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert all(p.grad is None for p in model.parameters())
