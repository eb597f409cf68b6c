"""Networks of the matrix: what a training makes of parameters, precision and the calls of a network."""

from __future__ import annotations

import copy
import warnings

import torch
from matrix.problem import Problem, labelled, problem, symbols, trainable
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


def small(activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), activation or nn.Tanh(), nn.Linear(5, 3))


class Checkpointed(nn.Module):
    """Two layers, each computed a second time in the backward pass."""

    def __init__(self, *, reentrant: bool):
        super().__init__()
        self.body, self.reentrant = small(), reentrant

    def forward(self, x):
        h = checkpoint(nn.Sequential(*self.body[:2]), x.requires_grad_(), use_reentrant=self.reentrant)
        return checkpoint(self.body[2], h, use_reentrant=self.reentrant)


def _checkpointed(*, reentrant: bool) -> Problem:
    model = Checkpointed(reentrant=reentrant)
    return problem(model, *labelled(), plain=lambda x: model.body(x))


def checkpointing() -> Problem:
    return _checkpointed(reentrant=False)


def reentrant_checkpointing() -> Problem:
    return _checkpointed(reentrant=True)


def weight_norm() -> Problem:
    model = small()
    parametrizations.weight_norm(model[0])

    def plain(x):
        g, v = (getattr(model[0].parametrizations.weight, f"original{i}") for i in (0, 1))
        return model[2](torch.tanh(x @ (g * v / v.norm(dim=1, keepdim=True)).T + model[0].bias))

    return problem(model, *labelled(), plain=plain)


def weight_norm_by_hook() -> Problem:
    model = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model[0])

    def plain(x):
        g, v = model[0].weight_g, model[0].weight_v
        return model[2](torch.tanh(x @ (g * v / v.norm(dim=1, keepdim=True)).T + model[0].bias))

    return problem(model, *labelled(), plain=plain)


def spectral_norm() -> Problem:
    """In eval mode the vectors of the power iteration are constants."""
    model = small()
    parametrizations.spectral_norm(model[0])
    own = model[0].parametrizations.weight

    def plain(x):
        w, (u, v) = own.original, (own[0]._u, own[0]._v)
        return model[2](torch.tanh(x @ (w / (u @ w @ v)).T + model[0].bias))

    return problem(model, *labelled(), plain=plain)


def spectral_norm_by_hook() -> Problem:
    model = small()
    nn.utils.spectral_norm(model[0])

    def plain(x):
        w = model[0].weight_orig
        w = w / (model[0].weight_u @ w @ model[0].weight_v)
        return model[2](torch.tanh(x @ w.T + model[0].bias))

    return problem(model, *labelled(), plain=plain)


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


def parametrized() -> Problem:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Symmetric())

    def plain(x):
        w = model[0].parametrizations.weight.original
        return model[2](torch.tanh(x @ (w.triu() + w.triu(1).T).T + model[0].bias))

    return problem(model, *labelled(), plain=plain)


def orthogonal() -> Problem:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    parametrizations.orthogonal(model[2], orthogonal_map="cayley")
    return problem(model, *labelled())


class LowRank(nn.Module):
    """A frozen layer and a trainable product of rank one."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(1, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 1))

    def forward(self, x):
        return self.base(x) + 0.5 * F.linear(F.linear(x, self.a), self.b)


def lora() -> Problem:
    model = nn.Sequential(LowRank(nn.Linear(4, 5)), nn.Tanh(), LowRank(nn.Linear(5, 3)))

    def plain(x):
        for layer, after in ((model[0], torch.tanh), (model[2], lambda z: z)):
            x = after(x @ (layer.base.weight + 0.5 * layer.b @ layer.a).T + layer.base.bias)
        return x

    return problem(model, *labelled(), plain=plain)


class Counting(nn.Module):
    """A layer that writes to buffers at every call, by assignment and in place."""

    def __init__(self):
        super().__init__()
        self.body = small()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.calls.add_(1)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.body(x)


def buffers_updated() -> Problem:
    model = Counting()
    return problem(model, *labelled(), plain=lambda x: model.body(x))


class Cube(torch.autograd.Function):
    """A custom function whose backward pass can be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class CubeOnce(Cube):
    """The same, marked as differentiable once."""

    backward = staticmethod(torch.autograd.function.once_differentiable(Cube.backward))


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 3), nn.Linear(3, 3), function

    def forward(self, x):
        return self.b(self.function.apply(self.a(x)))


def _custom(function) -> Problem:
    model = Custom(function)
    return problem(model, *labelled(), plain=lambda x: model.b(model.a(x) ** 3))


def custom_function() -> Problem:
    return _custom(Cube)


def custom_function_once() -> Problem:
    return _custom(CubeOnce)


class Mixed(nn.Module):
    """A network that computes in bfloat16 where autocast does."""

    def __init__(self):
        super().__init__()
        self.body = small()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).to(x.dtype)


def autocast() -> Problem:
    """Products at the precision that the network has: compared with float64, to the accuracy of bfloat16."""
    model = Mixed().float()
    exact = copy.deepcopy(model.body).double()
    x, y = labelled()
    return problem(model, x.float(), y, plain=lambda x: exact(x.double()), params=trainable(exact), tolerance=0.05)


def bfloat16_parameters() -> Problem:
    """Parameters in bfloat16, whose values are exact in float64, which the products are computed in."""
    model = small().bfloat16()
    exact = copy.deepcopy(model).double()
    x, y = labelled()
    x = x.bfloat16()
    return problem(model, x, y, plain=lambda x: exact(x.double()), params=trainable(exact), dtype="float64")


class Complex(nn.Module):
    """A complex layer; the moduli of its outputs are the scores."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight.T).abs().square()


def complex_parameters() -> Problem:
    return problem(Complex(), *labelled())


def quantised() -> Problem:
    model = torch.ao.quantization.quantize_dynamic(small().float(), {nn.Linear}, dtype=torch.qint8)
    x, y = labelled()
    return problem(model, x.float(), y)


def data_parallel() -> Problem:
    model = small()
    return problem(nn.DataParallel(model), *labelled(), plain=model)


def compiled() -> Problem:
    model = small()
    return problem(torch.compile(model, backend="eager"), *labelled(), plain=model)


def scripted() -> Problem:
    model = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return problem(torch.jit.script(model), *labelled(), plain=lambda x: model(x))


def sparse_embedding() -> Problem:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3))

    def plain(x):
        return model[3](torch.tanh(F.one_hot(x, 5).to(model[0].weight) @ model[0].weight).flatten(1))

    return problem(model, *symbols(), plain=plain)


class Sampled(nn.Module):
    """A spatial transformer: an image read at places that depend on it."""

    def __init__(self):
        super().__init__()
        self.places, self.head = nn.Linear(9, 6), nn.Linear(9, 3)

    def forward(self, x):
        theta = self.places(x.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


def grid_sampling() -> Problem:
    return problem(Sampled(), *labelled(5, (1, 3, 3)))


def empty_parameter() -> Problem:
    model = small()
    model.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    return problem(model, *labelled())
