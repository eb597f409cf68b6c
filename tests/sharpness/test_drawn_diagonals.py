"""Diagonals from draws: unbiased with an honest error, covariant where they are said to be, and labelled where used."""

from __future__ import annotations

import math

import pytest
import torch
from cases import dense_hessian
from torch import nn
from torch.nn import functional as F

from spectra import Task, exact_diagonal, normalized_sharpness
from spectra.errors import ArgumentError
from spectra.sharpness.drawn_diagonals import METHODS, drawn_diagonal


def make_task(batch_norm: bool = False) -> Task:
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(4)] if batch_norm else []
    model = nn.Sequential(nn.Linear(3, 4), *norm, nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randint(3, (9,))
    return Task(model, nn.CrossEntropyLoss(), [(x[:5], y[:5]), (x[5:], y[5:])])


def dense_diagonal(task: Task) -> torch.Tensor:
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    return dense_hessian(F.cross_entropy(task.model(x), y), list(task.model.parameters())).diagonal()


def flat(parts) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_over_draws_is_the_diagonal_within_its_standard_error(method):
    task = make_task()
    found = drawn_diagonal(task, method, draws=200, radius=1e-4, seed=1)
    z = (flat(found.values) - dense_diagonal(task)) / flat(found.stderr)
    assert float(z.abs().max()) < 4.5
    assert 0.7 < float(z.square().mean().sqrt()) < 1.3


def test_the_variance_of_probes_is_the_rest_of_the_row():
    task = make_task()
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    h = dense_hessian(F.cross_entropy(task.model(x), y), list(task.model.parameters()))
    expected = (h.square().sum(1) - h.diagonal().square()).sqrt() / math.sqrt(300)
    found = flat(drawn_diagonal(task, "probes", draws=300).stderr)
    torch.testing.assert_close(found, expected, rtol=0.35, atol=1e-12)


def test_a_quadratic_loss_with_one_parameter_per_term_needs_one_pair_of_draws():
    """Without off-diagonal entries the signs say everything, at any radius and eps."""
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    task = Task(model, nn.MSELoss(), [(x, torch.zeros(3, 1, dtype=torch.float64))])
    expected = 2 / 3 * torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    for method, options in (("probes", {}), ("ni", {"radius": 0.5}), ("ni", {"radius": 0.5, "eps": 0.3})):
        found = drawn_diagonal(task, method, draws=2, **options)
        torch.testing.assert_close(found.values["weight"][0], expected)
        assert float(found.stderr["weight"].max()) < 1e-12


def test_the_second_papers_estimate_is_covariant_under_a_rescaling_of_units_at_a_finite_radius():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randint(3, (9,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    c = torch.tensor([0.1, 3.0, 20.0, 0.5], dtype=torch.float64)
    before = drawn_diagonal(task, "ni", draws=3, radius=0.05)
    outputs = model(x)
    with torch.no_grad():
        model[0].weight *= c[:, None]
        model[2].weight /= c
    torch.testing.assert_close(model(x), outputs)
    after = drawn_diagonal(task, "ni", draws=3, radius=0.05)
    torch.testing.assert_close(after.values["0.weight"], before.values["0.weight"] / c[:, None] ** 2)
    torch.testing.assert_close(after.values["2.weight"], before.values["2.weight"] * c**2)
    layer = drawn_diagonal(task, "na", draws=3, radius=0.05)  # the other one is not
    with torch.no_grad():
        model[0].weight /= c[:, None]
        model[2].weight *= c
    first = drawn_diagonal(task, "na", draws=3, radius=0.05)
    assert float((layer.values["2.weight"] - first.values["2.weight"] * c**2).abs().max()) > 1e-3


def test_the_printed_form_of_the_second_paper_is_its_equation_and_biased_as_the_table_of_corrections_says():
    task, radius, eps = make_task(), 1e-4, 0.5
    w = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    found = drawn_diagonal(task, "ni-printed", draws=200, radius=radius, eps=eps, seed=1)
    z = (flat(found.values) - dense_diagonal(task) * w.abs() / (w.abs() + eps)) / flat(found.stderr)
    assert float(z.abs().max()) < 4.5
    assert 0.7 < float(z.square().mean().sqrt()) < 1.3
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    h = dense_hessian(F.cross_entropy(task.model(x), y), list(task.model.parameters()))
    signs = [(2 * torch.randint(2, w.shape, generator=g) - 1).double() for g in [torch.Generator().manual_seed(4)] * 2]
    literal = sum(s * (h @ (w.abs() * s + eps)) / (w.abs() + eps) for s in signs) / 2
    found = flat(drawn_diagonal(task, "ni-printed", draws=2, radius=1e-5, eps=eps, seed=4).values)
    torch.testing.assert_close(found, literal, rtol=1e-6, atol=1e-8)
    plain, same = (flat(drawn_diagonal(task, m, draws=3).values) for m in ("ni", "ni-printed"))
    assert torch.equal(plain, same)  # at eps = 0
    words = normalized_sharpness(task, diagonal="ni-printed", eps=0.1, draws=2).reason
    assert "the diagonal is from 2 draws (ni-printed)" in words


def test_batch_norm_in_train_mode_has_a_diagonal_by_probes():
    task = make_task(batch_norm=True)
    found = drawn_diagonal(task, "probes", draws=500, bn_mode="train")
    task.model.train()
    loss = sum(len(y) * F.cross_entropy(task.model(x), y) for x, y in task.data) / 9
    truth = dense_hessian(loss, list(task.model.parameters())).diagonal()
    z = (flat(found.values) - truth) / flat(found.stderr).clamp(min=1e-12)
    assert float(z.abs().max()) < 5


def test_weight_decay_has_no_part_and_the_seed_decides():
    task = make_task()
    heavy = Task(task.model, task.criterion, task.data, l2=2.0)
    for method in METHODS:
        a, b = (flat(drawn_diagonal(t, method, draws=3, seed=5).values) for t in (task, heavy))
        assert torch.equal(a, b)
        assert not torch.equal(a, flat(drawn_diagonal(task, method, draws=3, seed=6).values))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_normalized_sharpness_from_draws_says_so_and_comes_near_the_exact_one_with_many(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(3, (40,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    exact = normalized_sharpness(task).value

    def off(draws: int) -> float:  # in the root mean square over seeds
        found = [normalized_sharpness(task, diagonal=method, draws=draws, radius=1e-6, seed=seed) for seed in range(4)]
        assert {measure.curvature for measure in found} == {"hessian"}
        assert all(f"the diagonal is from {draws} draws ({method})" in measure.reason for measure in found)
        return math.sqrt(sum((measure.value / exact - 1) ** 2 for measure in found) / 4)

    assert off(300) < 0.6 * off(4)


def test_what_cannot_be_drawn_is_refused():
    task = make_task()
    with pytest.raises(
        ArgumentError, match="diagonal='hutch': 'exact', 'monte-carlo', 'probes', 'na', 'ni', 'ni-printed' is needed"
    ):
        normalized_sharpness(task, diagonal="hutch")
    with pytest.raises(ArgumentError, match="draws=1"):
        drawn_diagonal(task, draws=1)
    with torch.no_grad():
        task.model[0].bias.zero_()
    with pytest.raises(ArgumentError, match="eps=0: 4 parameters are 0 and would not move"):
        drawn_diagonal(task, "ni")
    assert flat(drawn_diagonal(task, "ni", eps=0.1, draws=2).values).isfinite().all()
    assert exact_diagonal(task).kind == "ggn"
