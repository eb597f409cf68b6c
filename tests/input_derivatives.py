"""Losses that take derivatives of a network in its input, and the same losses written again.

The losses written again know nothing of spectra: their derivatives in the input are by hand.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.func import jvp


def mlp(inputs=1):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


def second_derivative(u, x):
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return second


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


def collocation(n=11):
    return torch.linspace(-1, 1, n)[:, None]


def products_are(operator, expected, rtol=1e-10):
    found = operator @ torch.eye(operator.n)
    assert float((found - expected).abs().max()) <= rtol * float(expected.abs().max())
