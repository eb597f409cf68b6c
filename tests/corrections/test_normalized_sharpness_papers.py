"""Tsuzuku, Sato, Sugiyama: arXiv:1901.04653 (NA) and ICML 2020 (NI). Each test is a row of docs/corrections.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F


def arxiv_value(h: np.ndarray, u: np.ndarray, lam: float = 0.5) -> float:
    """``min_{x,y} sum H e^{x+y} + U e^{-(x+y)} / (2 lam)`` by a general-purpose optimiser."""
    rows = h.shape[0]

    def objective(z: np.ndarray) -> float:
        s = np.exp(z[:rows, None] + z[None, rows:])
        return float((h * s).sum() + (u / s).sum() / (2 * lam))

    return float(minimize(objective, np.zeros(sum(h.shape)), tol=1e-14).fun)


def best(objective, size: int) -> float:
    return float(minimize(objective, np.zeros(size), tol=1e-14).fun)


def problem(seed: int = 0, shape: tuple[int, int] = (4, 3)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape) * 5, rng.random(shape)


def test_na_5_the_increase_of_the_loss_under_noise_is_half_the_trace_which_is_no_norm():
    h = torch.diag(torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64))
    directions = math.sqrt(3) * torch.eye(3).double()  # E[eps eps'] = I, exactly
    increase = float(torch.stack([0.5 * e @ h @ e for e in directions]).mean())
    assert increase == pytest.approx(0.5 * float(h.trace()))
    assert float(torch.linalg.matrix_norm(h, "nuc")) == pytest.approx(6.0) != float(h.trace())


def test_na_5_2_the_product_of_the_scales_is_a_standard_deviation():
    h = torch.tensor([[2.0, 5.0], [1.0, 3.0]], dtype=torch.float64)
    sigma, sigma_prime = torch.tensor([0.5, 2.0]).double(), torch.tensor([3.0, 0.1]).double()
    scale = sigma[:, None] * sigma_prime[None, :]
    torch.manual_seed(0)
    noise = torch.randn(200_000, 2, 2, dtype=torch.float64) * scale
    increase = float((0.5 * h * noise**2).sum((1, 2)).mean())
    squared = float(0.5 * (h * (sigma**2)[:, None] * (sigma_prime**2)[None, :]).sum())  # as (17) has it
    assert increase == pytest.approx(squared, rel=0.02)
    assert abs(increase - float(0.5 * (h * scale).sum())) > 0.2 * increase


def test_na_6_the_logarithm_of_the_variance_counts_once_per_entry():
    q = Normal(torch.full((4, 5), 0.3), torch.tensor(0.2))
    p = Normal(torch.zeros(4, 5), torch.tensor(0.7))
    total = float(kl_divergence(q, p).sum())
    squares = float(((0.2**2 + 0.3**2) / (2 * 0.7**2) - 0.5) * 20)
    assert total == pytest.approx(squares + 20 * math.log(0.7 / 0.2), rel=1e-5)
    assert abs(total - (squares + math.log(0.7 / 0.2))) > 10


def test_na_app_c_lambda_of_one_gives_a_value_smaller_by_the_root_of_two():
    h, u = problem()
    assert arxiv_value(h, u, 0.5) / arxiv_value(h, u, 1.0) == pytest.approx(math.sqrt(2), rel=1e-6)


def test_na_35_the_norms_of_the_first_matrix():
    w = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert np.linalg.norm(w, 2) == pytest.approx(5.464986, abs=1e-6)
    assert np.linalg.norm(w) == pytest.approx(5.477226, abs=1e-6)  # what is printed as the spectral norm


def test_na_44_45_the_norms_of_the_transformed_second_matrix():
    w = np.array([[50.0, 0.6], [70.0, 0.8]])
    assert np.linalg.norm(w) ** 2 == pytest.approx(7401.0)
    assert np.linalg.norm(w) == pytest.approx(86.0291, abs=1e-4)
    assert np.linalg.norm(w, 2) == pytest.approx(86.0291, abs=1e-4)
    assert np.linalg.svd(w, compute_uv=False)[1] == pytest.approx(0.0232, abs=1e-4)


def skip_network(w1: torch.Tensor, w2: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.relu(x @ w1.T) + F.relu(x @ w2.T)


def test_na_7_3_the_fisher_rao_norm_doubles_when_the_skip_is_taken_out():
    torch.manual_seed(0)
    w, x, y = torch.randn(3, 4).double(), torch.randn(9, 4).double(), torch.randint(3, (9,))

    def diagonal_norm(w1: torch.Tensor, w2: torch.Tensor) -> float:
        total = 0.0
        for sample, label in zip(x, y):
            pair = [w1.clone().requires_grad_(), w2.clone().requires_grad_()]
            loss = F.cross_entropy(skip_network(*pair, sample[None]), label[None])
            grads = torch.autograd.grad(loss, pair)
            total += sum(float((p * g).detach().pow(2).sum()) for p, g in zip(pair, grads)) / len(x)
        return total

    torch.testing.assert_close(skip_network(w / 2, w / 2, x), skip_network(w, torch.zeros_like(w), x))
    # relu at 0 has slope 0, so that the branch without weights has no gradient
    assert diagonal_norm(w, torch.zeros_like(w)) / diagonal_norm(w / 2, w / 2) == pytest.approx(2.0)


def test_na_25_is_the_diagonal_version_of_liangs_fisher_rao_norm():
    torch.manual_seed(1)
    w, x, y = torch.randn(3, 4).double(), torch.randn(9, 4).double(), torch.randint(3, (9,))
    p = torch.softmax(x @ w.T, -1)
    gradients = torch.einsum("nk,nd->nkd", p - F.one_hot(y, 3), x)
    diagonal = float((w**2 * (gradients**2).mean(0)).sum())
    full = float(((w * gradients).sum((1, 2)) ** 2).mean())
    assert abs(diagonal - full) > 0.1 * full


def test_na_algorithm_1_the_loss_does_not_depend_on_the_scales_that_it_is_said_to_be_differentiated_in():
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(torch.randn(5, 3, dtype=torch.float64) @ weight.T, torch.randint(4, (5,)))
    assert torch.autograd.grad(loss, (x, y), allow_unused=True) == (None, None)
    h, u = (torch.as_tensor(part) for part in problem())
    scale = torch.exp(x[:, None] + y[None, :])
    slopes = torch.autograd.grad((h * scale).sum() + (u / scale).sum(), (x, y))
    assert all(float(slope.norm()) > 0.1 for slope in slopes)


def test_ni_30_the_sign_multiplies_the_whole_bracket():
    theta, h = torch.tensor([0.0, 0.5, -2.0], dtype=torch.float64), torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    r, eps = 1e-3, 0.1
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)]).double()
    size = theta.abs() + eps

    def diagonal(perturbation: torch.Tensor) -> torch.Tensor:  # of the loss 1/2 sum h theta^2, over all signs
        steps = h * (theta + perturbation) - h * (theta - perturbation)
        return (signs * steps / (2 * r * size)).mean(0)

    torch.testing.assert_close(diagonal(r * size * signs), h)
    printed = diagonal(r * (theta.abs() * signs + eps))
    torch.testing.assert_close(printed, h * theta.abs() / size)
    assert float(printed[0]) == 0.0


def test_ni_26_33_35_the_root_belongs_inside_the_sum_over_columns():
    """What the derivation reaches by choosing scales of rows and columns is ``S/2``; the printed form is below it."""
    h, u = problem()

    def product(z: np.ndarray) -> float:  # sqrt(sum H s * sum U / s)
        s = np.exp(z[:4, None] + z[None, 4:])
        return float(np.sqrt((h * s).sum() * (u / s).sum()))

    def columns(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (h * np.exp(x)[:, None]).sum(0), (u * np.exp(-x)[:, None]).sum(0)

    reached = best(product, 7)
    derived = best(lambda x: float(np.sqrt(np.prod(columns(x), axis=0)).sum()), 4)
    printed = math.sqrt(best(lambda x: float((columns(x)[0] * columns(x)[1]).sum()), 4))
    assert reached == pytest.approx(arxiv_value(h, u) / 2, rel=1e-6)
    assert derived == pytest.approx(reached, rel=1e-6)
    assert printed < 0.9 * reached
    h, u = h[:, :1], u[:, :1]  # one column: the printed form gives sum sqrt(h u), for one row sqrt(sum h u)
    one_column = math.sqrt(best(lambda x: float((h[:, 0] * np.exp(x)).sum() * (u[:, 0] * np.exp(-x)).sum()), 4))
    assert one_column == pytest.approx(float(np.sqrt(h * u).sum()), rel=1e-6)
    assert math.sqrt(float((h * u).sum())) < one_column


def test_ni_26_33_both_exponentials_are_of_the_same_variable():
    h, u = problem()
    kernel = h @ u.T
    gamma, gamma_prime = np.ones(4), np.ones(3)
    assert np.exp(gamma) @ kernel @ np.exp(-gamma) > 0
    with pytest.raises(ValueError, match="mismatch"):
        np.exp(gamma) @ kernel @ np.exp(-gamma_prime)
    h, u = problem(shape=(4, 4))
    values = [np.exp(-c * gamma) @ (h @ u.T) @ np.exp(-c * gamma) for c in (0.0, 10.0)]  # gamma' = -gamma
    assert values[1] == pytest.approx(math.exp(-20) * values[0])  # and so on: the infimum over both is 0


@pytest.mark.parametrize("seed", range(5))
def test_ni_and_na_do_not_define_the_same_number(seed):
    h, u = problem(seed)
    kernel = h @ u.T
    printed = math.sqrt(best(lambda x: float(np.exp(x) @ kernel @ np.exp(-x)), 4))
    half = arxiv_value(h, u) / 2
    assert printed < half < math.sqrt(3) * printed


def test_ni_6_the_covariance_of_the_noise_is_the_square_of_sigma():
    """Rise and divergence as functions of sigma: ``sigma^2 Tr H / 2`` and ``|w|^2 / (2 sigma^2)`` (exact moments)."""
    h, w, sigma = np.array([3.0, 1.0]), torch.tensor([0.5, -2.0]), 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    for covariance, holds in ((sigma**2, True), (sigma, False)):
        std = math.sqrt(covariance)
        moments = float((weights * (std * nodes) ** 2).sum() / weights.sum())
        divergence = float(kl_divergence(Normal(w, std), Normal(torch.zeros(2), std)).sum())
        rise_agrees = float((h / 2 * moments).sum()) == pytest.approx(float(sigma**2 * h.sum() / 2), rel=1e-9)
        divergence_agrees = divergence == pytest.approx(float(w.square().sum()) / (2 * sigma**2), rel=1e-6)
        assert rise_agrees is divergence_agrees is holds


def test_ni_prop_4_1_the_best_lambda_grows_with_m_to_the_two_thirds_and_the_bound_falls_with_its_third_root():
    a, constant = 3.0, 50.0

    def excess(lam: float, m: float) -> float:
        return a / math.sqrt(lam) + constant / lam + lam / (2 * m)

    for m, near in ((1e9, 0.06), (1e12, 0.006), (1e15, 0.0006)):
        found = minimize(lambda t: excess(math.exp(t[0]), m), [math.log(m) / 2], tol=1e-16)  # noqa: B023
        closed = (a * m) ** (2 / 3)
        assert math.exp(float(found.x[0])) == pytest.approx(closed, rel=near)
        assert float(found.fun) == pytest.approx(1.5 * a ** (2 / 3) * m ** (-1 / 3), rel=near)
        assert excess(math.sqrt(m), m) == pytest.approx(a * m**-0.25, rel=6 * near)  # the rate of the printed choice
        assert excess(math.sqrt(m), m) > 2 * float(found.fun)
