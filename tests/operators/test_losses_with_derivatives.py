"""Losses that take derivatives of the network: every number against a dense float64 reference, or a refusal.

The references know nothing of spectra: the loss is written again, with the derivatives in the input by hand or by
``jacrev`` of plain operations, and its Hessian taken by double backward.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from cases import dense_hessian, parameters
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from spectra import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    Task,
    Tracker,
    adaptive_sharpness,
    analyze,
    bn_sharpness,
    delta_sharpness,
    exact_trace,
    gradient_norm,
    load_trajectory,
    slq,
)
from spectra.errors import TaskError
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.point import measure_point

pytestmark = pytest.mark.usefixtures("float64")


def mlp(inputs=1):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


def second_derivative(u, x):
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bent,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return bent


def residual_by_grad(model, x):
    """``u'' + u - x^2`` squared, the derivative by autograd in an input that is made to require a gradient."""
    x = x.clone().requires_grad_()
    return (second_derivative(model(x), x) + model(x) - x**2).square().mean()


def residual_in_place(model, x):
    x.requires_grad_()
    u = model(x)
    return (second_derivative(u, x) + u - x**2).square().mean()


def residual_by_jvp(model, x):
    ones = torch.ones_like(x)

    def slope(z):
        return jvp(model, (z,), (ones,))[1]

    return (jvp(slope, (x,), (ones,))[1] + model(x) - x**2).square().mean()


def residual_by_func_grad(model, x):
    one = grad(grad(lambda z: model(z.reshape(1, 1)).squeeze()))
    return (vmap(one)(x.squeeze(1))[:, None] + model(x) - x**2).square().mean()


def residual_by_functional_call(model, x):
    own = dict(model.named_parameters())
    one = grad(grad(lambda z: functional_call(model, own, (z.reshape(1, 1),)).squeeze()))
    return (vmap(one)(x.squeeze(1))[:, None] + model(x) - x**2).square().mean()


def residual_written_again(model, x):
    """The same number, of a network of two tanh layers whose second derivative in the input is written by hand."""
    (w1, b1), (w2, b2), (w3, b3) = ((layer.weight, layer.bias) for layer in (model[0], model[2], model[4]))
    h1 = torch.tanh(x @ w1.T + b1)
    d1 = (1 - h1**2) * w1[:, 0]
    dd1 = -2 * h1 * (1 - h1**2) * w1[:, 0] ** 2
    h2 = torch.tanh(h1 @ w2.T + b2)
    a, aa = d1 @ w2.T, dd1 @ w2.T
    dd2 = (1 - h2**2) * aa - 2 * h2 * (1 - h2**2) * a**2
    u, uxx = h2 @ w3.T + b3, dd2 @ w3.T
    return (uxx + u - x**2).square().mean()


RESIDUALS = [
    residual_by_grad,
    residual_in_place,
    residual_by_jvp,
    residual_by_func_grad,
    residual_by_functional_call,
]


def collocation(n=11):
    return torch.linspace(-1, 1, n)[:, None]


def products_are(operator, expected, rtol=1e-10):
    found = operator @ torch.eye(operator.n)
    assert float((found - expected).abs().max()) <= rtol * float(expected.abs().max())


@pytest.mark.parametrize("sizes", [(11,), (4, 4, 3)], ids=["one batch", "ragged batches"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_the_hessian_of_a_residual_of_a_differential_equation(residual, sizes):
    model, x = mlp(), collocation()
    task = Task.from_loss(model, residual, list(torch.split(x, sizes)))
    products_are(HessianOperator(task), dense_hessian(residual_written_again(model, x), parameters(task)))
    assert not x.requires_grad


@dataclass
class Points:
    x: torch.Tensor


@pytest.mark.parametrize("form", ["leaf", "loader", "dataclass"])
def test_data_that_require_a_gradient_already(form):
    model, x = mlp(), collocation().requires_grad_()
    data = {
        "leaf": [x],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4),
        "dataclass": [Points(x)],
    }[form]

    def loss(model, batch):
        x = {"leaf": lambda: batch, "loader": lambda: batch[0], "dataclass": lambda: batch.x}[form]()
        u = model(x)
        return (second_derivative(u, x) + u - x**2).square().mean()

    task = Task.from_loss(model, loss, data)
    expected = dense_hessian(residual_written_again(model, x.detach()), parameters(task))
    for each in (task, task.snapshot(), task.rebatched(3), task.subset(11)):
        products_are(HessianOperator(each), expected)
    single = HessianOperator(task, dtype="float32")
    assert float((single @ torch.eye(single.n) - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert x.grad is None


class WithSlope(nn.Module):
    """Returns ``u`` and ``u'``, the derivative taken in the forward pass."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        x = x.detach().requires_grad_()
        u = self.net(x)
        return u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def of_both(outputs, target):
    u, slope = outputs
    return (slope + u**2 - target).square().mean()


def sobolev_task(*sizes):
    model, x = WithSlope(), collocation()
    data = list(zip(torch.split(x, sizes), torch.split(torch.sin(x), sizes)))
    return Task(model, of_both, data), x


def both_written_again(net, x):
    (w1, b1), (w2, b2), (w3, b3) = ((net[i].weight, net[i].bias) for i in (0, 2, 4))
    h1 = torch.tanh(x @ w1.T + b1)
    h2 = torch.tanh(h1 @ w2.T + b2)
    slope = ((1 - h2**2) * (((1 - h1**2) * w1[:, 0]) @ w2.T)) @ w3.T
    return h2 @ w3.T + b3, slope


def test_a_derivative_in_the_forward_pass_is_an_output_like_any_other():
    """Hessian, Gauss-Newton and empirical Fisher matrix and the exact trace, from outputs written without autograd."""
    task, x = sobolev_task(5, 6)
    net, params = task.model.net, parameters(task)

    def loss():
        return of_both(both_written_again(net, x), torch.sin(x))

    products_are(HessianOperator(task), dense_hessian(loss(), params))

    outputs = both_written_again(net, x)
    rows = [
        torch.cat([p.reshape(-1) for p in torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True,
                                                              allow_unused=True)])
        for tensor in outputs
        for entry in tensor.reshape(-1)
    ]  # fmt: skip
    jacobian = torch.stack(rows)
    points = torch.cat([tensor.detach().reshape(-1) for tensor in outputs])
    target = torch.sin(x)

    def criterion(flat):
        return of_both((flat[:11, None], flat[11:, None]), target)

    gauss_newton = jacobian.T @ torch.func.hessian(criterion)(points) @ jacobian
    products_are(GGNOperator(task), gauss_newton)

    per_sample = torch.func.jacrev(lambda flat: torch.stack([
        of_both((flat[n : n + 1, None], flat[11 + n : 12 + n, None]), target[n : n + 1]) for n in range(11)
    ]))(points) @ jacobian  # fmt: skip
    products_are(EmpiricalFisherOperator(task), per_sample.T @ per_sample / 11)

    trace = exact_trace(task, method="exact")
    assert trace.total == pytest.approx(float(gauss_newton.trace()), rel=1e-10)
    assert trace.kind == "ggn"


def penalty(model, batch):
    """A critic with a gradient penalty, in the manner of Gulrajani et al. (2017)."""
    x, y = batch
    x = x.detach().requires_grad_()
    score = model(x)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return (score * y).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        with torch.no_grad():
            self.bn.running_mean.normal_()
            self.bn.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        return self.b(torch.tanh(self.bn(self.a(x))))


def penalty_written_again(model, x, y, bn_mode):
    """By finite sums only: the slope of the network in every entry of its input from ``torch.func.jacrev``."""
    names = dict(model.named_parameters())

    def score(z):
        h = z @ names["a.weight"].T + names["a.bias"]
        train = bn_mode == "train"
        mean, var = (h.mean(0), h.var(0, unbiased=False)) if train else (model.bn.running_mean, model.bn.running_var)
        h = (h - mean) / torch.sqrt(var + model.bn.eps) * names["bn.weight"] + names["bn.bias"]
        return torch.tanh(h) @ names["b.weight"].T + names["b.bias"]

    slope = torch.func.jacrev(lambda z: score(z).sum())(x)
    return (score(x) * y).mean() + 10 * (slope.square().sum(1).sqrt() - 1).square().mean()


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_the_hessian_of_a_gradient_penalty_with_batch_norm(bn_mode):
    model = Critic()
    batches = [(torch.randn(5, 3), torch.randn(5, 1)), (torch.randn(4, 3), torch.randn(4, 1))]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = Task.from_loss(model, penalty, batches)
    expected = sum(len(x) * dense_hessian(penalty_written_again(model, x, y, bn_mode), parameters(task))
                   for x, y in batches) / 9  # fmt: skip
    products_are(HessianOperator(task, bn_mode), expected, rtol=1e-9)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_penalty_of_a_network_with_kinks():
    """The loss jumps where a unit switches, which neither autograd nor a short difference sees."""
    model = nn.Sequential(nn.Linear(3, 40), nn.LeakyReLU(0.2), nn.Linear(40, 40), nn.LeakyReLU(0.2), nn.Linear(40, 1))
    x, y = torch.randn(3000, 3), torch.randn(3000, 1)
    first = nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
    assert bool((HessianOperator(Task.from_loss(model, penalty, [(x, y)])) @ torch.ones(1841)).any())

    task = Task.from_loss(first, penalty, [(x[:50], y[:50])])
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (first[0], first[2]))
    slopes = torch.where(x[:50] @ w1.T + b1 > 0, 1.0, 0.2)
    score = (slopes * (x[:50] @ w1.T + b1)) @ w2.T + b2
    slope = (slopes * w2) @ w1
    loss = (score * y[:50]).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
    products_are(HessianOperator(task), dense_hessian(loss, parameters(task)))


def test_statistics_are_recalibrated_through_a_loss_that_differentiates():
    model = Critic()
    x, y = torch.randn(9, 3), torch.randn(9, 1)
    h = (x @ model.a.weight.T + model.a.bias).detach()
    task = Task.from_loss(model, penalty, [(x, y)])
    operator = HessianOperator(task, "recalibrated")
    with torch.no_grad():
        model.bn.running_mean.copy_(h.mean(0))
        model.bn.running_var.copy_(h.var(0))
    products_are(operator, dense_hessian(penalty_written_again(model, x, y, "eval"), parameters(task)), rtol=1e-9)


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
    """A penalty on what the forward pass returns beside the outputs is part of the criterion, and of the GGN."""
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


@pytest.mark.parametrize("residual", [residual_by_grad, residual_in_place])
def test_whatever_evaluates_the_loss_works(residual, tmp_path):
    """Facts, survey, snapshot, measures, the displaced loss, a whole record and the tracker."""
    model, x = mlp(), collocation()
    task = Task.from_loss(model, residual, list(torch.split(x, (6, 5))))
    loss = float(residual_written_again(model, x).detach())
    assert task.survey().num_samples == 11
    assert measure_point(HessianOperator(task))["loss"] == pytest.approx(loss, rel=1e-12)
    slopes = torch.autograd.grad(residual_written_again(model, x), parameters(task), materialize_grads=True)
    slope = torch.cat([g.reshape(-1) for g in slopes])
    assert gradient_norm(task).value == pytest.approx(float(slope.norm()), rel=1e-10)
    for measure in (delta_sharpness, adaptive_sharpness):
        assert measure(task).value > 0
    with pytest.raises(TaskError, match="batch norm, which is computed in plain operations"):
        bn_sharpness(task)
    record = analyze(task, lanczos_steps=10, num_probes=2, metrics="all")[0]
    assert record.facts["loss"] == pytest.approx(loss, rel=1e-12)
    for name, measured in record.sharpness.items():
        assert measured.value == measured.value or measured.reason, name
    with Tracker(task, out=tmp_path / "run.h5", lanczos_steps=4, num_probes=2, snapshot=True) as tracker:
        for epoch in range(2):
            tracker(epoch=epoch)
            task.loss_of(x.clone()).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
    assert load_trajectory(tmp_path / "run.h5")["hessian", "eval"].epochs.tolist() == [0.0, 1.0]


def test_the_loss_at_displaced_parameters():
    model, x = mlp(), collocation()
    displaced = DisplacedLoss(Task.from_loss(model, residual_in_place, list(torch.split(x, (6, 5)))))
    shift = 0.1 * torch.randn(39)
    there, slope = displaced.gradient(shift)
    assert displaced.loss(shift) == there
    with torch.no_grad():
        for p, piece in zip(model.parameters(), torch.split(shift, [p.numel() for p in model.parameters()])):
            p.add_(piece.view_as(p))
    expected = residual_written_again(model, x)
    assert there == pytest.approx(float(expected.detach()), rel=1e-12)
    pieces = torch.autograd.grad(expected, list(model.parameters()), materialize_grads=True)
    assert torch.allclose(slope, torch.cat([piece.reshape(-1) for piece in pieces]), rtol=1e-9, atol=1e-12)


NORMS = {
    "batch": (lambda: nn.BatchNorm1d(4), (0,), (1, 4)),
    "layer": (lambda: nn.LayerNorm(4), (1,), (1, 4)),
    "group": (lambda: nn.GroupNorm(1, 4), (1,), (1, 4)),
    "instance": (lambda: nn.InstanceNorm1d(4, affine=True), (2,), (1, 4, 1)),
}
DERIVATIVES = {
    "autograd.grad": lambda f, x: torch.autograd.grad(f(y := x.clone().requires_grad_()).sum(), y, create_graph=True)[
        0
    ],
    "func.grad": lambda f, x: grad(lambda z: f(z).sum())(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.sin(torch.arange(1.0, 1 + x.numel())).view_as(x),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x).sum(0),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x).sum(0),
    "autograd.functional": lambda f, x: torch.autograd.functional.jacobian(f, x, create_graph=True).sum(0),
}


@pytest.mark.parametrize("taken", DERIVATIVES)
@pytest.mark.parametrize("norm", NORMS)
def test_derivatives_through_normalisation_layers(norm, taken):
    """Third derivatives of batch, layer and instance norm are wrong in torch: up to a factor of two in the Hessian."""
    make, over, shape = NORMS[norm]
    model = nn.Sequential(
        nn.Conv1d(4, 4, 1) if norm == "instance" else nn.Linear(4, 4), make(), nn.Linear(*_last(norm))
    )
    for p in model.parameters():
        nn.init.normal_(p)
    x = torch.randn(5, 4, 3) if norm == "instance" else torch.randn(5, 4)
    take = DERIVATIVES[taken]

    def loss(model, x):
        return take(lambda z: torch.tanh(model(z)), x).square().sum()

    def plain(z):
        first, layer, last = model
        h = first(z)
        d = h - h.mean(over, keepdim=True)
        h = d / torch.sqrt(d.square().mean(over, keepdim=True) + 1e-5)
        return torch.tanh(last(h * layer.weight.view(shape) + layer.bias.view(shape)))

    task = Task.from_loss(model, loss, [x])
    expected = dense_hessian(take(plain, x).square().sum(), parameters(task))
    products_are(HessianOperator(task, "train"), expected, rtol=1e-9)


def _last(norm):
    return (3, 1) if norm == "instance" else (4, 1)


@pytest.mark.parametrize(
    ("taken", "times", "what"),
    [("autograd.grad", 1, "product with the Hessian"), ("autograd.grad", 2, "gradient"), ("jvp", 1, "gradient")],
)
def test_a_wrong_derivative_is_seen_by_differences(taken, times, what, monkeypatch):
    """The check itself: with the layers as torch has them, what autograd returns is refused, symmetric or not."""
    monkeypatch.setattr("spectra.operators.function.WrittenOut", nullcontext)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(5, 4)

    def loss(model, x):
        function = model
        for _ in range(times):
            function = partial(DERIVATIVES[taken], function)
        return function(x).square().sum()

    task = Task.from_loss(model, loss, [x])
    with pytest.raises(TaskError, match=f"the {what} by autograd is not the change of the"):
        HessianOperator(task) @ torch.ones(33)
    if what == "gradient":
        with pytest.raises(TaskError, match="the gradient by autograd is not the change of the loss"):
            gradient_norm(task)
    else:
        assert gradient_norm(task).value > 0


def test_a_custom_derivative_that_cannot_be_differentiated_further_is_refused():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, slope):
            return Square.apply(ctx.saved_tensors[0]) * slope

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 3 * x**2

        @staticmethod
        def backward(ctx, slope):
            return 6 * ctx.saved_tensors[0].detach() * slope  # right once, and constant after that

    def loss(model, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(Cube.apply(model(x)).sum(), x, create_graph=True)[0].square().sum()

    task = Task.from_loss(nn.Linear(3, 2), loss, [torch.randn(4, 3)])
    with pytest.raises(TaskError, match="by autograd is not the change of the gradient"):
        HessianOperator(task) @ torch.ones(8)


def test_the_spectrum_of_a_residual_is_that_of_its_dense_hessian():
    model, x = mlp(), collocation()
    task = Task.from_loss(model, residual_by_jvp, list(torch.split(x, (4, 7))))
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(residual_written_again(model, x), parameters(task)))
    spectrum = slq(HessianOperator(task), lanczos_steps=39, num_probes=4)
    assert spectrum.nodes.max() == pytest.approx(float(eigenvalues[-1]), rel=1e-9)
    assert spectrum.nodes.min() == pytest.approx(float(eigenvalues[0]), rel=1e-9)
