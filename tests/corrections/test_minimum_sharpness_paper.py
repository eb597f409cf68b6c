"""Ibayashi et al. (2021), "Minimum sharpness": what is printed and what holds. Rows of docs/corrections.md.

The truth is a dense float64 Hessian by double backward; no formula of the package is used.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import dense_hessian
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F


def network(activation: nn.Module, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)).double()
    return model, torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))


def logit_gradients(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(N, K, n): the gradient of each logit of each sample."""
    params = list(model.parameters())
    rows = []
    for logits in model(x):
        grads = [torch.autograd.grad(logit, params, retain_graph=True) for logit in logits]
        rows.append(torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads]))
    return torch.stack(rows)


def hessian_trace(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(dense_hessian(F.cross_entropy(model(x), y), list(model.parameters())).trace())


def formula(model: nn.Module, x: torch.Tensor, power: int) -> float:
    """Proposition 1 with norms to this power: ``mean_n [sum_l p_l |dz_l|^power - |dlnZ|^power]``."""
    g, p = logit_gradients(model, x), model(x).softmax(-1).detach()
    log_partition = torch.einsum("nk,nkp->np", p, g)
    return float(((p * g.norm(dim=-1) ** power).sum(-1) - log_partition.norm(dim=-1) ** power).mean())


def test_ms_prop_1_the_norms_are_squared():
    model, x, y = network(nn.ReLU())
    truth = hessian_trace(model, x, y)
    assert formula(model, x, 2) == pytest.approx(truth, rel=1e-12)
    assert abs(formula(model, x, 1) - truth) > 0.05 * truth


def test_ms_app_a_the_norm_of_an_outer_product_is_squared_too():
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0, 2.0])
    product = float(x.norm() ** 2 * y.norm() ** 2)
    assert product == float(torch.outer(x, y).norm() ** 2) == 225.0
    assert product != float(torch.outer(x, y).norm())


def test_ms_prop_2_the_gradient_after_scaling_by_alpha_is_the_one_before_over_alpha():
    model, x, _ = network(nn.ReLU())
    alpha = 2.5
    model[0].bias.data.zero_()

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(model(x).logsumexp(-1).sum(), model[0].weight)[0]

    before = gradient()
    model[0].weight.data *= alpha
    model[2].weight.data /= alpha
    after = gradient()
    torch.testing.assert_close(after, before / alpha)
    assert float((before - after / alpha).norm()) > 0.5 * float(before.norm())  # the primes as printed


def test_ms_app_c_the_best_scale_is_the_square_root_of_the_trace_over_the_geometric_mean():
    traces = [1.0, 2.0, 4.0]
    mean = math.prod(traces) ** (1 / 3)

    def rescaled(scales: list[float]) -> float:
        assert math.prod(scales) == pytest.approx(1.0)
        return sum(t / a**2 for t, a in zip(traces, scales))

    best = rescaled([math.sqrt(t / mean) for t in traces])
    assert best == pytest.approx(3 * mean) == pytest.approx(6.0)
    assert rescaled([mean / t for t in traces]) > 1.5 * best  # as printed
    assert sum(t * (mean / t) for t in traces) == pytest.approx(best)  # it is alpha^-2


def test_ms_prop_1_is_the_trace_of_the_gauss_newton_matrix_and_the_hessians_only_where_logits_are_affine():
    for activation, same in ((nn.ReLU(), True), (nn.GELU(), False), (nn.Tanh(), False)):
        model, x, y = network(activation)
        g, p = logit_gradients(model, x), model(x).softmax(-1).detach()
        a = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        gauss_newton = float(torch.einsum("nkp,nkl,nlp->", g, a, g)) / len(x)
        assert formula(model, x, 2) == pytest.approx(gauss_newton, rel=1e-12)
        assert (abs(hessian_trace(model, x, y) - gauss_newton) < 1e-12) is same


def test_ms_section_2_one_back_propagation_less_than_classes_suffices():
    model, x, y = network(nn.ReLU())
    g, p = logit_gradients(model, x), model(x).softmax(-1).detach()
    root = p.sqrt()
    factor = torch.diag_embed(root) - p[:, :, None] * root[:, None, :]  # S S' = diag(p) - p p', S sqrt(p) = 0
    basis = torch.linalg.qr(torch.cat([root[:, :, None], torch.eye(3).double().expand(7, 3, 3)[:, :, :2]], -1))[0]
    columns = factor @ basis[:, :, 1:]
    assert columns.shape == (7, 3, 2)
    trace = float((torch.einsum("nkp,nkc->npc", g, columns) ** 2).sum()) / len(x)
    assert trace == pytest.approx(hessian_trace(model, x, y), rel=1e-12)


def test_ms_app_g_scales_whose_product_is_one_make_normalized_sharpness_depend_on_the_scale_of_layers():
    torch.manual_seed(2)
    x, y = torch.randn(12, 4).double(), torch.randint(3, (12,))
    first, second = torch.randn(5, 4).double(), torch.randn(3, 5).double()

    def values(a: float) -> tuple[float, float]:
        """The sum over both layers of the least ``sum H s + W^2 / s`` over all scales, and over scales of product 1."""
        weights = [(first * a).requires_grad_(), (second / a).requires_grad_()]
        loss = F.cross_entropy(F.relu(x @ weights[0].T) @ weights[1].T, y)
        diagonal = dense_hessian(loss, weights).diagonal().split([20, 15])
        free, tied = 0.0, 0.0
        for weight, entries in zip(weights, diagonal):
            h, u = entries.view(weight.shape).numpy(), weight.detach().square().numpy()
            rows = len(h)

            def value(z: np.ndarray, h: np.ndarray = h, u: np.ndarray = u, rows: int = rows) -> float:
                s = np.exp(z[:rows, None] + z[None, rows:])
                return float((h * s + u / s).sum())

            def one(z: np.ndarray, value=value, rows: int = rows) -> float:
                return value(np.concatenate([z[:rows] - z[:rows].mean(), z[rows:] - z[rows:].mean()]))

            free, tied = (
                total + float(minimize(f, np.zeros(sum(h.shape)), tol=1e-14).fun)
                for total, f in ((free, value), (tied, one))
            )
        return free, tied

    (free, tied), (free_after, tied_after) = values(1.0), values(4.0)
    assert free_after == pytest.approx(free, rel=1e-6)  # NA (17)
    assert tied_after > 1.5 * tied  # 4 times the first layer, a quarter of the second: the same function
