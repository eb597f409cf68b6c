"""Granziol (2020), "Flatness is a False Friend": what is printed and what holds. Rows of docs/corrections.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import dense_hessian
from reference import lanczos
from torch import nn
from torch.nn import functional as F

from spectra.spectrum.degeneracy import rank_bound_ff


def deep_linear(w: list[float], x: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss ``exp(x prod w)`` and its Hessian."""
    weights = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    loss = torch.exp(x * weights.prod())
    return loss.detach(), dense_hessian(loss, [weights])


def test_ff_2_3_the_hessian_of_the_deep_linear_example_is_not_of_rank_one():
    w, x = [1.0, 2.0, 3.0], -0.3
    loss, hessian = deep_linear(w, x)
    q = math.prod(w)
    u = torch.tensor([q / value for value in w]).double()
    v = torch.tensor([[0.0 if i == j else q / (a * b) for j, b in enumerate(w)] for i, a in enumerate(w)]).double()
    torch.testing.assert_close(hessian, loss * (x**2 * torch.outer(u, u) + x * v))
    assert float(hessian.trace()) == pytest.approx(0.72896810, abs=1e-8)
    assert float(torch.linalg.eigvalsh(hessian)[-1]) == pytest.approx(0.58267121, abs=1e-8)  # not the trace
    assert float(loss * abs(x) * u @ u) == pytest.approx(2.429894, abs=1e-6)  # as printed


def test_ff_section_2_longer_products_have_full_rank():
    for depth in (2, 3, 4, 5):
        w, x = [1.0 + 0.3 * i for i in range(depth)], 0.1
        loss, hessian = deep_linear(w, x)
        a = x * math.prod(w)
        assert int(torch.linalg.matrix_rank(hessian)) == depth
        closed = float(loss) ** depth * (-a) ** depth / math.prod(w) ** 2 * (1 - (a + 1) * depth)
        assert float(torch.linalg.det(hessian)) == pytest.approx(closed, rel=1e-10)


def test_ff_6_the_loss_is_of_differences_of_logits():
    z, label = torch.tensor([[1.2, -0.3, 0.7]], dtype=torch.float64), torch.tensor([0])
    loss = float(F.cross_entropy(z, label))
    others = z[0, 1:]
    assert float(torch.log1p((others - z[0, 0]).exp().sum())) == pytest.approx(loss, rel=1e-14)
    assert float(torch.log1p(others.exp().sum())) > 2 * loss  # with the logits themselves


def test_ff_evidence_has_the_sum_of_the_logarithms():
    """Against the integral of ``exp(-x'Hx / 2)`` under the prior ``N(0, 1/g)``, by quadrature."""
    eigenvalues, g = [2.0, 0.5, 7.0], 0.8
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    log_evidence = sum(
        math.log(float((weights * np.exp(-value * nodes**2 / (2 * g))).sum() / weights.sum())) for value in eigenvalues
    )
    logs = [math.log((value + g) / g) for value in eigenvalues]
    assert log_evidence == pytest.approx(-sum(logs) / 2, rel=1e-6)
    assert abs(log_evidence + math.prod(logs) / 2) > 0.3


def test_ff_7_9_the_signs_of_the_derivatives_of_the_loss():
    w = torch.tensor([0.4, -0.7], dtype=torch.float64, requires_grad=True)
    h = torch.stack([w[0] * w[1], w[0] ** 2 - w[1], torch.sin(w[1])])  # z_i - z_c
    loss = torch.log1p(h.exp().sum())
    jacobian = torch.stack([torch.autograd.grad(piece, w, retain_graph=True)[0] for piece in h])
    second = torch.stack([dense_hessian(piece, [w]) for piece in h])
    e = h.exp().detach()
    gradient = (e[:, None] * jacobian).sum(0) / (1 + e.sum())
    torch.testing.assert_close(torch.autograd.grad(loss, w, retain_graph=True)[0], gradient)
    assert float(gradient.norm()) > 0.01  # so that the printed sign is another gradient
    outer = jacobian[:, :, None] * jacobian[:, None, :]
    hessian = (e[:, None, None] * (second + outer)).sum(0) / (1 + e.sum()) - torch.outer(gradient, gradient)
    torch.testing.assert_close(dense_hessian(loss, [w]), hessian)


def test_ff_3_2_the_bound_on_the_rank_is_not_a_theorem():
    """16-48-2, P = 864, and 3000 random inputs: the Gauss-Newton matrix has a rank far above the bound of 528."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 48, bias=False), nn.ReLU(), nn.Linear(48, 2, bias=False)).double()
    x = torch.randn(3000, 16, dtype=torch.float64)
    with torch.no_grad():
        hidden = x @ model[0].weight.T
        active = F.relu(hidden)
        p = model(x).softmax(-1)
    difference = model[2].weight.detach()[0] - model[2].weight.detach()[1]
    # two classes: G = mean p1 p2 g g' with g the gradient of z_1 - z_2
    inner = ((hidden > 0) * difference)[:, :, None] * x[:, None, :]
    outer = torch.stack([active, -active], 1)
    g = torch.cat([inner.flatten(1), outer.flatten(1)], 1) * p.prod(-1).sqrt()[:, None]
    singular = torch.linalg.svdvals(g)
    rank = int((singular > 1e-8 * singular[0]).sum())
    bound = rank_bound_ff(2, 48 + 2, 16)
    assert bound == 528
    assert rank == 864 - 2 * 48  # a null direction per hidden unit for its scale, one for a shift of both rows
    assert rank > bound


def test_ff_3_2_the_rank_of_a_product_is_at_most_the_smaller_and_can_be_less():
    a, b = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    assert np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b) == 1
    assert np.linalg.matrix_rank(a @ b) == 0


def test_ff_vgg_numbers_mix_an_imagenet_head_with_a_count_for_cifar():
    channels = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    assert channels == 4224
    assert channels + 4096 + 4096 + 1000 == 13416
    assert 4 * 10 * (13416 + 1024) == 577_600
    published = 1 - 577_600 / 1.6e7
    assert published == pytest.approx(0.9639, abs=1e-4)
    consistent = 4 * 10 * (channels + 512 + 512 + 10 + 3 * 1024)
    assert consistent == 333_200
    at_least = 1 - consistent / 15_245_130
    assert at_least == pytest.approx(0.9781, abs=1e-4)


def test_ff_app_b_m_steps_match_twice_as_many_moments_less_one():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(40)
    start = rng.standard_normal(40)
    start /= np.linalg.norm(start)
    m = 6
    left = lanczos(values, start, m)
    nodes, weights, mass = left.nodes, left.weights, start**2
    errors = [abs(weights @ nodes**j - mass @ values**j) for j in range(2 * m + 1)]
    assert max(errors[: 2 * m]) < 1e-10
    assert errors[2 * m] > 1e-3


def test_ff_15_the_bound_on_the_largest_ritz_value_with_the_angle_and_the_steps_told_apart():
    """Kaniel, Paige and Saad: the angle is that between the start and the eigenvector, the degree is m - 1."""
    rng = np.random.default_rng(1)
    values = np.r_[rng.random(29), 1.6]
    start = rng.standard_normal(30)
    start /= np.linalg.norm(start)
    tangent = np.sqrt(1 - start[-1] ** 2) / abs(start[-1])
    ordered = np.sort(values)
    gap = (ordered[-1] - ordered[-2]) / (ordered[-2] - ordered[0])
    for m in (2, 4, 8):
        top = lanczos(values, start, m).nodes[-1]
        chebyshev = math.cosh((m - 1) * math.acosh(1 + 2 * gap))
        bound = ordered[-1] - (ordered[-1] - ordered[0]) * (tangent / chebyshev) ** 2
        assert bound <= top <= ordered[-1] + 1e-12


def test_ff_13_the_ramp_of_the_averaged_schedule_is_in_epochs_over_the_start_of_averaging():
    rate, floor, total, start = 0.1, 0.05, 300.0, 200.0

    def ramp(t: float, unit: float) -> float:
        x = t / start
        if x <= 0.5:
            return rate
        return rate * (1 - (1 - floor / rate) * (t / unit - 0.5) / 0.4) if x <= 0.9 else floor

    times = np.linspace(0, total, 30_001)
    jumps = {unit: max(abs(np.diff([ramp(t, unit) for t in times]))) for unit in (start, total)}
    assert jumps[start] < 1e-5
    assert jumps[total] == pytest.approx(
        0.0375, abs=1e-3
    )  # 0.0875 to 0.05 at epoch 180 (and back above the rate at 100)


def test_ff_section_4_the_number_of_parameters_of_the_network_with_100_hidden_units():
    model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    assert sum(p.numel() for p in model.parameters()) == 79_510
