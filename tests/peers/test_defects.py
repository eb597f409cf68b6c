"""Ways of going wrong that were seen in other packages for Hessian spectra, each as a test that spectra does not.

What was seen where, and which of these are proven in other files of the suite, is in docs/peers.md. None of the other
packages is needed here.
"""

from __future__ import annotations

import re
from collections import UserDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import batches_of, dense_hessian, parameters
from torch import nn
from torch.nn import functional as F

from spectra import DenseOperator, GGNOperator, HessianOperator, Task, slq

pytestmark = pytest.mark.usefixtures("float64")


def classifier(samples=60, *, activation=nn.Tanh, sizes=(8, 12, 4)):
    """A small network, its inputs and its labels."""
    inputs, hidden, classes = sizes
    model = nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, classes))
    return model, torch.randn(samples, inputs), torch.randint(classes, (samples,))


def eigenvalues_of(task):
    operator = HessianOperator(task)
    return np.linalg.eigvalsh(operator @ np.eye(operator.n))


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, output, target):
        return self.factor * F.cross_entropy(output, target)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [1e-3, 1e-5, 1e-12])
def test_a_smaller_loss_has_the_same_spectrum_on_a_smaller_scale(factor, dtype):
    """A constant added where something is divided by a norm would show here, as would a tolerance in fixed units."""
    model, x, y = nn.Linear(8, 4), torch.randn(5, 8), torch.randint(4, (5,))
    one, small = (
        slq(HessianOperator(Task(model, Scaled(f), batches_of(x, y, 3, 2)), dtype=dtype), num_probes=3)
        for f in (1.0, factor)
    )
    close = {"rel": 1e-4 if dtype == "float32" else 1e-9}
    for quantity in ("lambda_max", "spectral_norm", "trace", "frobenius_norm"):
        assert getattr(small, quantity)().value == pytest.approx(factor * getattr(one, quantity)().value, **close)
    exact = eigenvalues_of(Task(model, Scaled(1.0), [(x, y)]))
    assert small.lambda_max().value == pytest.approx(factor * exact[-1], **close)
    tau = 0.5 * exact[-15]  # five samples with four classes: rank 15 of 36
    assert exact[-16] < 1e-12 < 1e-3 < tau
    for spectrum, scale in ((one, 1.0), (small, factor)):
        found = spectrum.rank_degeneracy(scale * tau)
        assert found.resolved
        assert found.lower <= 21 / 36 <= found.upper
        assert found.value == pytest.approx(one.rank_degeneracy(tau).value, **close)
    for row in small.nodes:
        found = row[np.isfinite(row)] / factor
        assert np.abs(found[:, None] - exact).min(axis=1).max() <= close["rel"] * exact[-1], "not an eigenvalue"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_six_parameters_with_the_default_steps_have_six_nodes_and_no_negative_one(dtype):
    """Linear regression has a positive semi-definite Hessian of rank n; 100 steps are asked for and 6 are there."""
    model, x, y = nn.Linear(5, 1), torch.randn(40, 5) * torch.logspace(-1, 1, 5), torch.randn(40, 1)
    operator = HessianOperator(Task(model, nn.MSELoss(), batches_of(x, y, 30, 10)), dtype=dtype)
    exact = np.linalg.eigvalsh(HessianOperator(operator.task) @ np.eye(6))
    assert exact[0] > 0
    spectrum = slq(operator)
    error = 100 * operator.noise * exact[-1]
    assert spectrum.nodes.shape[1] <= 6
    assert np.nanmin(spectrum.nodes) >= -error
    for row in spectrum.nodes:
        found = row[np.isfinite(row)]
        assert np.abs(found[:, None] - exact).min(axis=1).max() <= error, "a node that is no eigenvalue"
        assert (np.diff(found) > 1e-3 * exact[0]).all(), "an eigenvalue counted twice"
    assert spectrum.lambda_max().value == pytest.approx(exact[-1], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_of_rank_three_has_no_ghosts_after_twenty_steps(dtype):
    """Three samples and one output: the Gauss-Newton matrix has three eigenvalues beside zero."""
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 1))
    operator = GGNOperator(Task(model, nn.MSELoss(), [(torch.randn(3, 6), torch.randn(3, 1))]), dtype=dtype)
    exact = np.linalg.eigvalsh(GGNOperator(operator.task) @ np.eye(operator.n))
    assert (exact > 1e-6 * exact[-1]).sum() == 3
    spectrum = slq(operator, lanczos_steps=20, num_probes=4)
    error = 100 * operator.noise * exact[-1]
    assert error < 1e-3 * exact[-3]
    for t in spectrum.tridiagonals:
        assert t.exhausted
        assert t.nodes == pytest.approx([0.0, *exact[-3:]], abs=error)
    found = spectrum.rank_degeneracy(0.5 * exact[-3])
    assert found.lower <= 1 - 3 / operator.n <= found.upper


class Unmoved(nn.Module):
    """An output in which each parameter has a part of zero curvature and zero slope: the Hessian is zero."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(7))

    def forward(self, x):
        return x + (self.w**3).sum() * 0


def test_a_zero_hessian_is_a_spectrum_of_zeros():
    task = Task(Unmoved(), nn.MSELoss(), [(torch.randn(9, 1), torch.randn(9, 1))])
    spectrum = slq(HessianOperator(task))
    assert np.array_equal(spectrum.nodes, np.zeros((8, 1)))
    assert (spectrum.trace().value, spectrum.frobenius_norm().value, spectrum.spectral_norm().value) == (0, 0, 0)
    assert spectrum.rank_degeneracy().value == 1
    assert np.isfinite(spectrum.density().values).all()


def test_the_top_five_are_right_at_the_default_steps():
    model, x, y = classifier(200, activation=nn.ReLU, sizes=(20, 16, 10))
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), [(x, y)]))
    exact = eigenvalues_of(operator.task)
    spectrum = slq(operator, num_probes=2)
    assert spectrum.nodes.shape == (2, 100)
    assert operator.n > 500
    for row, residuals in zip(spectrum.nodes, spectrum.residuals):
        assert row[-5:] == pytest.approx(exact[-5:], rel=1e-6)
        distance = np.abs(row[:, None] - exact).min(axis=1)
        assert (distance <= residuals + 1e-10 * exact[-1]).all(), "an eigenvalue is further than the residual says"


@pytest.mark.parametrize("direction", ["unit", "rademacher"])
def test_products_of_a_relu_network_in_float32_are_those_of_the_dense_hessian(direction):
    """A finite difference crosses kinks, and adds curvature that the second derivative does not have."""
    model, x, y = classifier(256, activation=nn.ReLU, sizes=(20, 32, 10))
    dense = dense_hessian(F.cross_entropy(model(x), y), list(model.parameters()))
    v = torch.randn(len(dense))
    v = v / v.norm() if direction == "unit" else v.sign()
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), [(x, y)]), dtype="float32")
    exact, product = dense @ v, operator @ v
    assert float((product - exact).norm()) < 1e-5 * float(exact.norm())
    assert torch.equal(operator @ (v * 2.0**-20), product * 2.0**-20), "a product is linear to the last bit"


@pytest.mark.parametrize("sizes", [(64, 6), (35, 35), (1,) * 70], ids=["64+6", "35+35", "70 of 1"])
def test_eigenvalues_depend_neither_on_the_number_of_batches_nor_on_their_sizes(sizes):
    """Sums of batch means grow with the number of batches; means of batch means favour the samples of short ones."""
    model, x, y = classifier(70, sizes=(4, 5, 3))
    whole = np.linalg.eigvalsh(dense_hessian(F.cross_entropy(model(x), y), list(model.parameters())).numpy())
    found = eigenvalues_of(Task(model, nn.CrossEntropyLoss(), batches_of(x, y, *sizes)))
    assert found == pytest.approx(whole, abs=1e-13 * whole[-1] + 1e-14)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_ignored_targets_have_no_weight(kind):
    """Two batches of which one has nearly all targets ignored, against the targets that count in one batch."""
    model, x, y = classifier(40)
    y[3:20] = -100
    kept = y != -100
    split = kind(Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 20, 20)))
    whole = kind(Task(model, nn.CrossEntropyLoss(), [(x[kept], y[kept])]))
    v = torch.randn(split.n)
    assert float((split @ v - whole @ v).norm()) < 1e-13 * float((whole @ v).norm())


Named = namedtuple("Named", ["image", "label"])


class Encoding(UserDict):
    """As the batches of tokenizers are: a mapping that is no dict, with its entries as attributes too."""

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


FORMS = {
    "namedtuple": Named,
    "namedtuple within a dict": lambda x, y: {"pair": Named(x, y)},
    "dict": lambda x, y: {"image": x, "label": y},
    "UserDict": lambda x, y: UserDict(image=x, label=y),
    "mapping with attributes": lambda x, y: Encoding(image=x, label=y),
    "list": lambda x, y: [x, y],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_batches_of_every_form_give_the_same_products(kind, form):
    model, x, y = classifier(20)
    pairs = batches_of(x, y, 12, 8)
    plain = kind(Task(model, nn.CrossEntropyLoss(), pairs))

    def part(batch, name):
        if isinstance(batch, list):
            return batch[0 if name == "image" else 1]
        if isinstance(batch, dict) and "pair" in batch:
            batch = batch["pair"]
        return getattr(batch, name) if isinstance(batch, (Named, Encoding)) else batch[name]

    data = [FORMS[form](*pair) for pair in pairs]
    formed = kind(
        Task(
            model,
            nn.CrossEntropyLoss(),
            data,
            forward=lambda m, b: m(part(b, "image")),
            target=lambda b: part(b, "label"),
        )
    )
    v = torch.randn(plain.n)
    assert torch.equal(formed @ v, plain @ v)
    if form == "namedtuple":
        assert torch.equal(kind(Task(model, nn.CrossEntropyLoss(), data)) @ v, plain @ v), "it is a pair as it stands"


def test_the_trace_scatters_over_seeds_as_its_stated_error_says():
    """Over 300 seeds: the spread of the values is the error that each of them states, and they are not biased."""
    model, x, y = classifier(100, sizes=(10, 16, 6))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    matrix = HessianOperator(task) @ np.eye(HessianOperator(task).n)
    found = [slq(DenseOperator(matrix), lanczos_steps=1, num_probes=8, seed=seed).trace() for seed in range(300)]
    values = np.array([e.value for e in found])
    stated = np.sqrt(np.mean([e.stderr**2 for e in found]))
    exact = np.trace(matrix)
    # The exact law of the mean of 8 probes uniform on the sphere: a quadratic form's variance, over 8.
    n = len(matrix)
    law = np.sqrt(2 / (n + 2) * (n * (matrix**2).sum() - exact**2) / 8)
    assert values.std(ddof=1) == pytest.approx(law, rel=0.15)
    assert stated == pytest.approx(law, rel=0.1)
    assert abs(values.mean() - exact) < 4 * law / np.sqrt(300)
    covered = np.mean([e.lower <= exact <= e.upper for e in found])
    assert covered > 0.9


def test_train_mode_of_batch_norm_works_with_running_statistics_through_a_whole_spectrum():
    """The network is in train mode and tracks statistics; the spectrum is that of train mode and nothing is written."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(24, 1, 4, 4), torch.randint(3, (24,))
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 16, 8))

    def without_running_statistics():
        def output(a):
            h = model[0](a)
            centred = h - h.mean((0, 2, 3), keepdim=True)
            scaled = centred / (h.var((0, 2, 3), unbiased=False, keepdim=True) + model[1].eps).sqrt()
            affine = scaled * model[1].weight.view(1, -1, 1, 1) + model[1].bias.view(1, -1, 1, 1)
            return model[4](model[2](affine).flatten(1))

        return sum(F.cross_entropy(output(a), b, reduction="sum") for a, b in task.data) / 24

    dense = np.linalg.eigvalsh(dense_hessian(without_running_statistics(), parameters(task)).numpy())
    spectrum = slq(HessianOperator(task, bn_mode="train"), lanczos_steps=200, num_probes=2)
    assert spectrum.lambda_max().value == pytest.approx(dense[-1], rel=1e-10)
    assert spectrum.lambda_min().value == pytest.approx(dense[0], rel=1e-10)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_test_that_the_page_names_is_there():
    tests = Path(__file__).parents[1]
    page = (tests.parent / "docs" / "peers.md").read_text(encoding="utf-8")
    defined = set()
    for file in tests.rglob("test_*.py"):
        defined |= {file.stem, *re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)}
    named = set(re.findall(r"\btest_\w+", page))
    assert len(named) > 20
    assert named <= defined, f"docs/peers.md names {sorted(named - defined)}, and there is no such test"
