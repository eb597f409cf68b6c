"""Agreement with curvlinops and pytorch-hessian-eigenthings, in float64 to near rounding.

Both compute by other roads: curvlinops takes a forward derivative of a reverse one, vectorised over the columns;
hessian-eigenthings differentiates backwards twice, and its Gauss-Newton product has a forward derivative. `make peers`
installs the versions that these tests were written for.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from cases import batches_of
from torch import nn

from spectra import GGNOperator, HessianOperator, Task, as_operator, eigsh, slq
from spectra.krylov.lanczos import tridiagonalize
from spectra.zoo.networks.small import convnet

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("float64")]
ROUNDING = 1e-12  # relative to the norm of the product


@pytest.fixture
def curvlinops() -> ModuleType:
    return pytest.importorskip("curvlinops")


@pytest.fixture
def eigenthings() -> ModuleType:
    return pytest.importorskip("hessian_eigenthings")


def network_mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))
    return model, torch.randn(70, 9), torch.randint(4, (70,))


def network_conv() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Convolutions with batch norm, whose running statistics are those of some passes in train mode."""
    model = convnet(width=4)
    x = torch.randn(70, 1, 8, 8)
    for _ in range(5):
        model(x)
    return model.eval(), x, torch.randint(10, (70,))


NETWORKS = {"mlp": network_mlp, "conv": network_conv}
RAGGED, EQUAL = (32, 32, 6), (35, 35)
OURS = {"hessian": HessianOperator, "ggn": GGNOperator}


def from_curvlinops(curvlinops, kind, model, criterion, data):
    make = {"hessian": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}[kind]
    return make(model, criterion, list(model.parameters()), data)


def from_eigenthings(he, kind, model, criterion, data):
    if kind == "hessian":
        return he.HessianOperator(model, data, he.supervised_loss(criterion))
    return he.GGNOperator(model, data, he.supervised_forward, he.supervised_loss_of_output(criterion))


def columns(operator, block):
    return torch.stack([operator.matvec(column).detach() for column in block.T], dim=1)


def distance(found, expected):
    assert float(expected.norm()) > 1e-3
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("sizes", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("network", NETWORKS)
def test_products_are_those_of_curvlinops(curvlinops, network, kind, sizes):
    model, x, y = NETWORKS[network]()
    data = batches_of(x, y, *sizes)
    ours = OURS[kind](Task(model, nn.CrossEntropyLoss(), data))
    block = torch.randn(ours.n, 3)
    theirs = from_curvlinops(curvlinops, kind, model, nn.CrossEntropyLoss(), data) @ block
    assert distance(ours @ block, theirs) < ROUNDING


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_products_of_a_regression_are_those_of_curvlinops(curvlinops, kind, reduction):
    model, x, _ = network_mlp()
    data, criterion = batches_of(x, torch.randn(70, 4), *RAGGED), nn.MSELoss(reduction=reduction)
    ours = OURS[kind](Task(model, criterion, data))
    block = torch.randn(ours.n, 3)
    theirs = from_curvlinops(curvlinops, kind, model, criterion, data) @ block
    assert distance(ours @ block, theirs) < ROUNDING


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("as_scipy", [False, True])
def test_an_operator_of_curvlinops_is_taken_as_it_is(curvlinops, as_scipy, kind):
    model, x, y = network_mlp()
    data = batches_of(x, y, *RAGGED)
    theirs = from_curvlinops(curvlinops, kind, model, nn.CrossEntropyLoss(), data)
    theirs = theirs.to_scipy() if as_scipy else theirs
    ours = OURS[kind](Task(model, nn.CrossEntropyLoss(), data))
    assert as_operator(theirs).noise < 1e-13
    expected, found = slq(ours, 20, 3, seed=1), slq(theirs, 20, 3, seed=1)
    assert np.abs(found.nodes - expected.nodes).max() < 1e-9 * np.abs(expected.nodes).max()
    pairs = eigsh(theirs, k=2)
    assert np.abs(pairs.values - eigsh(ours, k=2).values).max() < 1e-9 * np.abs(expected.nodes).max()


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("network", NETWORKS)
def test_products_are_those_of_eigenthings_where_batches_are_equal(eigenthings, network, kind):
    model, x, y = NETWORKS[network]()
    data = batches_of(x, y, *EQUAL)
    ours = OURS[kind](Task(model, nn.CrossEntropyLoss(), data))
    block = torch.randn(ours.n, 3)
    theirs = columns(from_eigenthings(eigenthings, kind, model, nn.CrossEntropyLoss(), data), block)
    assert distance(ours @ block, theirs) < ROUNDING


@pytest.mark.parametrize("kind", OURS)
def test_an_operator_of_eigenthings_is_taken_as_it_is(eigenthings, kind):
    model, x, y = network_mlp()
    data = batches_of(x, y, *EQUAL)
    theirs = from_eigenthings(eigenthings, kind, model, nn.CrossEntropyLoss(), data)
    ours = OURS[kind](Task(model, nn.CrossEntropyLoss(), data))
    expected, found = slq(ours, 20, 3, seed=1), slq(theirs, 20, 3, seed=1)
    assert np.abs(found.nodes - expected.nodes).max() < 1e-9 * np.abs(expected.nodes).max()


@pytest.mark.parametrize("kind", OURS)
def test_the_difference_on_unequal_batches_is_that_of_an_unweighted_average(eigenthings, kind):
    """Theirs is (1/B) sum_b H_b v, ours sum_b w_b H_b v / sum_b w_b; both are predicted from the batches alone."""
    model, x, y = network_mlp()
    data = batches_of(x, y, 64, 6)
    task = Task(model, nn.CrossEntropyLoss(), data)
    ours = OURS[kind](task)
    v = torch.randn(ours.n)
    theirs = from_eigenthings(eigenthings, kind, model, nn.CrossEntropyLoss(), data).matvec(v).detach()
    alone = [OURS[kind](Task(model, nn.CrossEntropyLoss(), [batch])) @ v for batch in data]
    whole = OURS[kind](Task(model, nn.CrossEntropyLoss(), [(x, y)])) @ v
    assert distance(ours @ v, whole) < ROUNDING
    assert distance(theirs, (alone[0] + alone[1]) / 2) < ROUNDING
    assert distance(theirs, whole) > 0.1


@pytest.mark.parametrize("kind", OURS)
def test_the_difference_where_targets_are_ignored_is_that_of_weights_by_rows(curvlinops, kind):
    """A batch counts by its rows there, and here by its targets that are not ignored, as the criterion divides."""
    model, x, y = network_mlp()
    y[2:30] = -100
    data = batches_of(x, y, 35, 35)
    ours = OURS[kind](Task(model, nn.CrossEntropyLoss(), data))
    v = torch.randn(ours.n)
    theirs = from_curvlinops(curvlinops, kind, model, nn.CrossEntropyLoss(), data) @ v
    alone = [OURS[kind](Task(model, nn.CrossEntropyLoss(), [batch])) @ v for batch in data]
    kept = y != -100
    whole = OURS[kind](Task(model, nn.CrossEntropyLoss(), [(x[kept], y[kept])])) @ v
    assert distance(ours @ v, whole) < ROUNDING
    assert distance(theirs, (alone[0] + alone[1]) / 2) < ROUNDING
    assert distance(theirs, whole) > 0.1


@pytest.mark.parametrize("network", NETWORKS)
def test_lanczos_from_the_same_start_has_the_scalars_of_eigenthings(eigenthings, network):
    """Both re-orthogonalise: the two recurrences stay together for as long as rounding lets them."""
    model, x, y = NETWORKS[network]()
    data = batches_of(x, y, *EQUAL)
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), data))
    start = torch.nn.functional.normalize(torch.randn(operator.n), dim=0)
    (ours,) = tridiagonalize(operator, [start.numpy()], 15, tolerance=1e-10)
    theirs = eigenthings.lanczos_tridiagonal(
        from_eigenthings(eigenthings, "hessian", model, nn.CrossEntropyLoss(), data), start, 15, reorthogonalize=True
    )
    scale = ours.tridiagonal.nodes[-1]
    assert ours.tridiagonal.alphas == pytest.approx(theirs.alphas.numpy(), abs=1e-8 * scale)
    assert ours.tridiagonal.betas[:14] == pytest.approx(theirs.betas.numpy()[:14], abs=1e-8 * scale)


def moments_of(nodes, weights):
    return np.array([(weights * nodes**p).sum() for p in (1, 2, 3, 4)])


def test_the_quadrature_of_curvlinops_from_the_same_start_has_our_moments(curvlinops):
    """Ten steps, before the loss of orthogonality tells: a rule of ten nodes with the same first moments."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    model, x, y = network_mlp()
    data = batches_of(x, y, *RAGGED)
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), data))
    theirs = from_curvlinops(curvlinops, "hessian", model, nn.CrossEntropyLoss(), data)
    torch.manual_seed(3)
    nodes, vectors = fast_lanczos(theirs, 10)
    torch.manual_seed(3)
    start = torch.randn(operator.n)
    (ours,) = tridiagonalize(operator, [(start / start.norm()).numpy()], 10, tolerance=1e-10)
    found = moments_of(ours.tridiagonal.nodes, ours.tridiagonal.weights)
    assert found == pytest.approx(moments_of(nodes.numpy(), vectors[0].numpy() ** 2), rel=1e-9)


def test_the_densities_of_eigenthings_and_ours_have_the_same_first_moments_within_our_errors(eigenthings):
    """Their probes and ours are independent; the mean and the mean square of the eigenvalues are known exactly."""
    model, x, y = network_mlp()
    data = batches_of(x, y, *EQUAL)
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), data))
    exact = np.linalg.eigvalsh(operator @ np.eye(operator.n))
    spectrum = slq(operator, lanczos_steps=30, num_probes=20)
    theirs = eigenthings.spectral_density(
        from_eigenthings(eigenthings, "hessian", model, nn.CrossEntropyLoss(), data),
        num_runs=20, lanczos_steps=30, seed=5, num_grid_points=4000, grid_padding=0.5,
    )  # fmt: skip
    density = spectrum.density(sigma=theirs.sigma, grid=theirs.grid.numpy())
    for values, p in ((theirs.density.numpy(), "theirs"), (density.values, "ours")):
        mass, mean = (np.trapezoid(values * density.grid**power, density.grid) for power in (0, 1))
        square = np.trapezoid(values * density.grid**2, density.grid) - theirs.sigma**2
        assert mass == pytest.approx(1, abs=1e-4), p
        assert abs(mean - exact.mean()) < 4 * spectrum.mean_eigenvalue().stderr, p
        assert abs(square - (exact**2).mean()) < 4 * spectrum.moment(2).stderr, p
