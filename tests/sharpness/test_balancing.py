"""Balancing and the normalized sharpness of one matrix: closed forms, certificates, zeros, other minimisers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from spectra.errors import ArgumentError, NumericsError
from spectra.sharpness.balancing import Link, balance, imbalance
from spectra.sharpness.normalized import (
    check_between,
    fisher_rao_from_diagonal,
    matrix_normalized,
    normalized_matrix,
    parameter_wise,
    penalised_parameter_wise,
)


def positive(*shape, seed=0, spread=1.0):
    return np.exp(spread * np.random.default_rng(seed).standard_normal(shape))


def objective(h, u):
    def value(xy):
        s = np.exp(xy[: len(h), None] + xy[None, len(h) :])
        return float(np.sum(h * s + u / s))

    return value


def minimised(function, start):
    return minimize(function, start, method="BFGS", options={"gtol": 1e-10}).fun


# -- normalized sharpness of a matrix


def test_rank_one_matrices_have_a_closed_form():
    a, s = positive(2, 4)
    b, t = positive(2, 6, seed=1)
    expected = 2 * np.sqrt(a * s).sum() * np.sqrt(b * t).sum()
    assert normalized_matrix(np.outer(a, b), np.outer(s, t)).value == pytest.approx(expected, rel=1e-13)


def test_identity_against_swap():
    h, u = np.eye(2), np.eye(2)[::-1]
    assert normalized_matrix(h, u).value == pytest.approx(4.0)
    assert parameter_wise(h, u) == 0.0
    assert matrix_normalized(h.sum(), u.sum()) == pytest.approx(2.0)
    assert normalized_matrix(h, u, "icml").value == pytest.approx(np.sqrt(2))


def test_one_row_is_a_sum_over_parameters_and_the_printed_form_is_not_symmetric():
    h, u = positive(2, 1, 7)
    assert normalized_matrix(h, u, "pacbayes").value == pytest.approx(np.sqrt(h * u).sum(), rel=1e-13)
    assert normalized_matrix(h, u, "icml").value == pytest.approx(np.sqrt((h * u).sum()), rel=1e-13)
    assert normalized_matrix(h.T, u.T, "icml").value == pytest.approx(np.sqrt(h * u).sum(), rel=1e-10)
    assert normalized_matrix(h, u, "icml", side="input").value == pytest.approx(np.sqrt(h * u).sum(), rel=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_arxiv_form_agrees_with_bfgs(seed):
    h, u = positive(2, 4, 5, seed=seed)
    found = normalized_matrix(h, u)
    assert found.value == pytest.approx(minimised(objective(h, u), np.zeros(9)), rel=1e-9)
    assert objective(h, u)(np.concatenate(found.log_scales)) == pytest.approx(found.value, rel=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_the_printed_form_agrees_with_bfgs(seed):
    h, u = positive(2, 4, 5, seed=seed)

    def inside(g):
        return float(np.exp(g) @ h @ u.T @ np.exp(-g))

    assert normalized_matrix(h, u, "icml").value == pytest.approx(np.sqrt(minimised(inside, np.zeros(4))), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_derivation_of_the_paper_gives_half_of_the_arxiv_form(seed):
    h, u = positive(2, 4, 5, seed=seed)

    def derived(x):
        return float(np.sum(np.sqrt((np.exp(x) @ h) * (np.exp(-x) @ u))))

    half = normalized_matrix(h, u, "pacbayes").value
    assert half == pytest.approx(minimised(derived, np.zeros(4)), rel=1e-9)
    assert half == pytest.approx(normalized_matrix(h, u).value / 2, rel=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_the_chain_of_inequalities(seed):
    h, u = positive(2, 6, 4, seed=seed, spread=2.0)
    half, printed = normalized_matrix(h, u, "pacbayes").value, normalized_matrix(h, u, "icml").value
    assert parameter_wise(h, u) < half < matrix_normalized(h.sum(), u.sum())
    assert printed < half < np.sqrt(4) * printed
    check_between(h, u, half)
    with pytest.raises(NumericsError, match="outside"):
        check_between(h, u, 2 * matrix_normalized(h.sum(), u.sum()))


def test_one_scale_for_the_matrix_is_the_minimum_over_one_variance():
    h, u, lam = positive(3, 4), positive(3, 4, seed=1), 0.8
    one = minimize_scalar(lambda t: float(h.sum() * np.exp(t) + u.sum() * np.exp(-t)) * (2 * lam) ** -0.5)
    assert one.fun == pytest.approx(np.sqrt(2 / lam) * matrix_normalized(h.sum(), u.sum()), rel=1e-12)
    assert np.isnan(matrix_normalized(-1e-3, 2.0))


def test_other_lambdas_are_a_factor():
    h, u = positive(2, 3, 4)
    assert normalized_matrix(h, u, lam=1.0).value == pytest.approx(normalized_matrix(h, u).value / np.sqrt(2))


def test_node_wise_rescaling_leaves_every_form_alone():
    h, u = positive(2, 4, 5)
    s = np.outer(positive(4, seed=7, spread=3.0), positive(5, seed=8, spread=3.0))
    for form in ("arxiv", "pacbayes", "icml"):
        assert normalized_matrix(h * s, u / s, form).value == pytest.approx(
            normalized_matrix(h, u, form).value, rel=1e-10
        )
    assert fisher_rao_from_diagonal(h * s, u / s) == pytest.approx(fisher_rao_from_diagonal(h, u), rel=1e-13)
    assert parameter_wise(h * s, u / s) == pytest.approx(parameter_wise(h, u), rel=1e-13)
    assert matrix_normalized((h * s).sum(), (u / s).sum()) > 1.5 * matrix_normalized(h.sum(), u.sum())


def test_a_triangle_has_an_infimum_that_is_not_attained():
    found = normalized_matrix([[1, 1], [0, 1]], np.eye(2))
    assert found.value == pytest.approx(4.0)
    assert not found.attained
    h, u = np.array([[1.0, 1], [0, 1]]), np.eye(2)
    near = [objective(h, u)(np.array([-t, 0.0, t, 0.0])) for t in (1.0, 5.0, 20.0)]
    assert near[0] > near[1] > near[2] == pytest.approx(found.value, abs=1e-7)


def test_rows_without_curvature_or_without_weight_contribute_nothing():
    h, u = positive(2, 3, 4)
    inner = normalized_matrix(h[1:], u[1:])
    for zeroed in (h, u):
        zeroed[0] = 0
        found = normalized_matrix(h, u)
        assert found.value == pytest.approx(inner.value, rel=1e-12)
    assert normalized_matrix(h, u).attained  # a row of nothing at all
    assert normalized_matrix(np.zeros((2, 2)), np.ones((2, 2))).value == 0.0


def test_depthwise_groups_are_separate_problems():
    h, u = positive(2, 4, 2)
    wide_h, wide_u = np.zeros((2, 4, 4))
    for g in range(2):
        rows, columns = slice(2 * g, 2 * g + 2), slice(2 * g, 2 * g + 2)
        wide_h[rows, columns], wide_u[rows, columns] = h[rows], u[rows]
    parts = [normalized_matrix(h[2 * g : 2 * g + 2], u[2 * g : 2 * g + 2]).value for g in range(2)]
    found = normalized_matrix(wide_h, wide_u)
    assert found.value == pytest.approx(sum(parts), rel=1e-12)
    assert found.attained


def test_entries_hundreds_of_orders_apart_are_summed_in_logarithms():
    a, s = positive(2, 4, spread=100.0)
    b, t = positive(2, 5, seed=3, spread=100.0)
    expected = 2 * np.sqrt(a * s).sum() * np.sqrt(b * t).sum()
    assert normalized_matrix(np.outer(a, b), np.outer(s, t)).value == pytest.approx(expected, rel=1e-11)


# -- balancing itself


def test_the_certificate_is_the_balance_of_every_row_and_column():
    h, u = positive(2, 6, 5, spread=2.0)
    found = normalized_matrix(h, u)
    s = np.exp(found.log_scales[0][:, None] + found.log_scales[1][None, :])
    for axis in (0, 1):
        assert (h * s).sum(axis) == pytest.approx((u / s).sum(axis), abs=1e-10 * found.value)
    assert found.value == pytest.approx(2 * (h * s).sum(), rel=1e-10)
    assert found.certificate <= 1e-10


def test_perturbed_potentials_fail_the_certificate():
    links = [Link(0, 1, positive(4, 3)), Link(1, 0, positive(3, 4, seed=1))]
    found = balance(links, [4, 3])
    assert imbalance(links, found.potentials) <= 1e-10
    moved = [p.copy() for p in found.potentials]
    moved[0][2] += 1e-4
    assert imbalance(links, moved) > 1e-6


def test_a_long_chain_is_balanced_by_newton_steps():
    """Sweeps alone would need thousands: what leaves the first class must travel through all of them."""
    rng = np.random.default_rng(0)
    depth = 40
    links = [Link((d + 1) % depth, d, np.exp(2 * rng.standard_normal((3, 3)))) for d in range(depth)]
    links[0] = Link(1, 0, links[0].matrix[:, :1])
    links[-1] = Link(0, depth - 1, links[-1].matrix[:1])
    found = balance(links, [1] + [3] * (depth - 1), fixed=0)
    assert found.certificate <= 1e-10
    assert found.sweeps < 1000
    assert found.potentials[0] == pytest.approx(0.0)


def test_balancing_refuses_what_has_no_minimum():
    with pytest.raises(ArgumentError, match="negative"):
        balance([Link(0, 1, np.array([[-1.0]]))], [1, 1])
    with pytest.raises(ArgumentError, match="shape"):
        balance([Link(0, 1, np.ones((2, 3)))], [3, 2])
    with pytest.raises(ArgumentError, match="clip it first"):
        normalized_matrix([[-1.0]], [[1.0]])
    for options in ({"form": "ICML"}, {"lam": 0.0}, {"side": "left"}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            normalized_matrix([[1.0]], [[1.0]], **options)


# -- single parameters


def test_the_penalised_sum_tends_to_twice_the_parameter_wise_one():
    h, u = positive(2, 5, 4)
    twice = 2 * parameter_wise(h, u)
    assert penalised_parameter_wise(h, u, 1e12, [0.0]).value == pytest.approx(twice, rel=1e-8)
    assert penalised_parameter_wise(h, u, 0.3).value == pytest.approx(twice, rel=1e-13)  # the whole line for beta
    assert penalised_parameter_wise(h, u, 0.3, (-0.1, 0.1)).value > twice


@pytest.mark.parametrize("grid", [(-0.2, 0.3), (1.0, 1.0), np.array([-1.0, 0.0, 0.5])])
@pytest.mark.parametrize("lam", [1e-2, 1.0, 50.0])
def test_each_entry_is_at_its_minimum(grid, lam):
    h, u = positive(2, 6, spread=2.0)
    h[0], u[1] = 0.0, 0.0
    h[2] = u[2] = 0.0

    def distance(s):
        if isinstance(grid, tuple):
            return max(grid[0] - s, 0.0, s - grid[1])
        return float(np.min(np.abs(grid - s)))

    fine = np.linspace(-4, 4, 80001)
    away = np.array([distance(s) for s in fine]) ** 2 / lam
    by_hand = sum(float(np.min(a * np.exp(2 * fine) + b * np.exp(-2 * fine) + away)) for a, b in zip(h, u))
    found = penalised_parameter_wise(h, u, lam, grid)
    assert found.value == pytest.approx(by_hand, rel=1e-6)
    assert found.value <= by_hand * (1 + 1e-12)
    assert found.certificate < 1e-12


def test_the_penalised_sum_refuses_what_is_no_set_of_scales():
    for lam, grid in ((0.0, [0.0]), (1.0, (1.0, 0.0)), (1.0, [np.nan])):
        with pytest.raises(ArgumentError):
            penalised_parameter_wise([1.0], [1.0], lam, grid)
