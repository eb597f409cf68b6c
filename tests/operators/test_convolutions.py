"""The convolutions with an efficient second derivative against autograd's own, for every geometry."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.operators.convolutions import EfficientConvolutions, _Convolution, constant_factors

GEOMETRIES = {
    "plain": (F.conv2d, (2, 3, 6, 5), (4, 3, 3, 2), {}),
    "strided": (F.conv2d, (2, 3, 7, 7), (4, 3, 3, 3), {"stride": 2, "padding": (1, 0)}),
    "dilated": (F.conv2d, (2, 2, 9, 9), (3, 2, 3, 3), {"dilation": 2, "padding": 1}),
    "grouped": (F.conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2}),
    "depthwise": (F.conv2d, (2, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
    "1d": (F.conv1d, (2, 3, 8), (4, 3, 3), {"stride": 2}),
    "3d": (F.conv3d, (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), {"padding": 1}),
    "transposed": (F.conv_transpose2d, (2, 3, 4, 4), (3, 4, 3, 3), {"stride": 2, "output_padding": 1}),
    "transposed 1d": (F.conv_transpose1d, (2, 4, 5), (4, 1, 3), {"groups": 2, "dilation": 2, "padding": 1}),
    "padding as a word": (F.conv2d, (2, 3, 5, 5), (4, 3, 3, 3), {"padding": "same"}),
    "unbatched": (F.conv2d, (3, 5, 5), (4, 3, 3, 3), {}),
}


def tensors(name, bias=True):
    function, of_input, of_weight, options = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (of_input, of_weight)]
    channels = of_weight[0] if "transposed" not in name else of_weight[1] * options.get("groups", 1)
    if bias:
        drawn.append(torch.randn(channels, generator=generator, dtype=torch.float64))
    return (lambda x, w, b=None: function(x, w, b, **options)), [t.requires_grad_() for t in drawn]


def hessian_products(convolution, args, efficient):
    """A Hessian product of a nonlinear function of a convolution, in all its arguments."""
    directions = [torch.cos(torch.arange(a.numel(), dtype=torch.float64)).view_as(a) for a in args]
    if efficient:
        with EfficientConvolutions():
            value = convolution(*args)
    else:
        value = convolution(*args)
    gradients = torch.autograd.grad(value.tanh().square().sum(), args, create_graph=True)
    return value, gradients, torch.autograd.grad(gradients, args, directions, create_graph=True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_value_gradient_and_hessian_product_are_those_of_autograd(name, bias):
    convolution, args = tensors(name, bias)
    ours, theirs = (hessian_products(convolution, args, efficient) for efficient in (True, False))
    assert torch.equal(ours[0], theirs[0])
    for mine, right in zip((*ours[1], *ours[2]), (*theirs[1], *theirs[2])):
        assert float((mine - right).detach().abs().max()) <= 1e-12 * (1 + float(right.detach().abs().max()))
    if "output_padding" in GEOMETRIES[name][3]:
        return  # torch has no third derivative of it
    third = [torch.autograd.grad(sum(p.square().sum() for p in way[2]), args) for way in (ours, theirs)]
    for mine, right in zip(*third):
        assert float((mine - right).abs().max()) <= 1e-10 * (1 + float(right.abs().max()))


@pytest.mark.parametrize("name", [n for n in GEOMETRIES if n not in ("padding as a word", "unbatched")])
def test_the_efficient_convolution_is_the_one_that_is_used(name):
    convolution, args = tensors(name)
    with EfficientConvolutions():
        node = convolution(*args).grad_fn
    assert node.name() == f"{_Convolution.__name__}Backward"


def test_torch_keeps_what_the_function_does_not_know():
    """Transformations of torch.func and forward-mode derivatives are computed by torch, and right."""
    convolution, (x, w, b) = tensors("plain")
    tangent = torch.ones_like(w)
    with EfficientConvolutions():
        mapped = torch.func.vmap(lambda kernel: convolution(x, kernel, b))(torch.stack([w, 2 * w]))
        _, pushed = torch.func.jvp(lambda kernel: convolution(x, kernel, b), (w.detach(),), (tangent,))
        slope = torch.func.grad(lambda kernel: convolution(x, kernel, b).square().sum())(w.detach())
    assert torch.allclose(mapped[1], convolution(x, 2 * w, b))
    assert torch.allclose(pushed, convolution(x, tangent))
    (right,) = torch.autograd.grad(convolution(x, w, b).square().sum(), w)
    assert torch.allclose(slope, right)


def test_constant_factors_leave_the_derivative_in_the_incoming_gradient_only():
    convolution, args = tensors("strided")
    with EfficientConvolutions():
        value = convolution(*args)
    incoming = torch.ones_like(value, requires_grad=True)
    with constant_factors():
        pulled = torch.autograd.grad(value, args, incoming, create_graph=True)
    directions = [torch.ones_like(a) for a in args]
    *of_args, of_incoming = torch.autograd.grad(pulled, [*args, incoming], directions, allow_unused=True)
    x, w, b = args
    assert of_args == [None, None, None]
    assert torch.allclose(
        of_incoming, convolution(x, torch.ones_like(w)) + convolution(torch.ones_like(x), w, b * 0 + 1)
    )
    # outside of the context the same pass is differentiable in everything
    again = torch.autograd.grad(value, args, incoming, create_graph=True)
    assert all(piece.grad_fn is not None for piece in again)


class Checkpointed(nn.Module):
    """A network whose convolutions are recomputed in the backward pass."""

    def __init__(self, recompute=True):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3)
        self.recompute = recompute

    def block(self, x):
        return self.second(torch.tanh(self.first(x)))

    def forward(self, x):
        x = checkpoint(self.block, x, use_reentrant=False) if self.recompute else self.block(x)
        return x.flatten(1)[:, :4]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", [HessianOperator, GGNOperator, EmpiricalFisherOperator])
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "first layer frozen"])
def test_checkpointed_convolutions_have_the_same_products(make, frozen):
    torch.manual_seed(0)
    network = Checkpointed()
    plain = Checkpointed(recompute=False)
    plain.load_state_dict(network.state_dict())
    data = [(torch.randn(6, 1, 5, 5), torch.randint(4, (6,))) for _ in range(2)]
    products = []
    for model in (network, plain):
        model.first.weight.requires_grad_(not frozen)
        operator = make(Task(model, nn.CrossEntropyLoss(), data))
        vector = torch.ones(operator.n)
        with operator.prepared():
            products += [operator @ vector, operator @ vector]
    assert float(products[-1].norm()) > 1e-3
    for product in products[:-1]:
        assert float((product - products[-1]).norm()) <= 1e-13 * float(products[-1].norm())


class PenalisedGradient(nn.Module):
    """A criterion on a network that differentiates convolutions itself, in forward mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.layer(x).tanh().flatten(1)


@pytest.mark.usefixtures("float64")
def test_a_loss_that_pushes_a_tangent_through_a_convolution_is_right():
    torch.manual_seed(0)
    model, x = PenalisedGradient(), torch.randn(3, 1, 4, 4)

    def loss(model, batch):
        _, pushed = torch.func.jvp(model, (batch,), (torch.ones_like(batch),))
        return pushed.square().mean()

    operator = HessianOperator(Task.from_loss(model, loss, [x], weight=len))
    params = dict(model.named_parameters())
    names = list(params)

    def of(*values):
        return torch.func.functional_call(model, dict(zip(names, values)), (x,))

    def by_hand(*values):
        # the tangent of tanh(conv(x)) along ones, written out
        kernel, bias = values
        inner = F.conv2d(x, kernel, bias)
        return ((1 - inner.tanh().square()) * F.conv2d(torch.ones_like(x), kernel)).square().mean()

    values = [params[n].detach() for n in names]
    blocks = torch.autograd.functional.hessian(by_hand, tuple(values))
    dense = torch.cat([torch.cat([b.reshape(v.numel(), -1) for b in row], 1) for row, v in zip(blocks, values)])
    assert float((operator @ torch.eye(operator.n) - dense).norm()) <= 1e-10 * float(dense.norm())
