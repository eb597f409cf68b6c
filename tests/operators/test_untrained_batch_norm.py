"""An untrained residual network with batch norm in train mode: a negative trace and a negative eigenvalue are real.

The reference is the network written again with plain functions in float64: batch norm from the mean and the variance
of each batch, the loss as the sum over a fixed partition, and double backward. It shares no code with the operators.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F

from spectra import HessianOperator, Task, slq
from spectra.zoo.networks.residual import preresnet

pytestmark = pytest.mark.usefixtures("float64")
TINY = 1e-30  # eps of batch norm: exact invariance needs it to vanish


def normalised(h, weight, bias, eps):
    """(N, C, side, side) by the mean and the biased variance of each channel over the batch."""
    centred = h - h.mean((0, 2, 3), keepdim=True)
    spread = torch.sqrt(centred.square().mean((0, 2, 3), keepdim=True) + eps)
    return centred / spread * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def scores(p, x, eps):
    """A PreResNet of basic units from its parameters by name: (N, 3, side, side) to (N, classes)."""
    h = F.conv2d(x, p["stem.weight"], padding=1)
    for i in range(sum(name.endswith("convolutions.0.weight") for name in p)):
        at = f"units.{i}."
        first, second = p[f"{at}convolutions.0.weight"], p[f"{at}convolutions.1.weight"]
        stride = 1 if i == 0 or first.shape[0] == first.shape[1] else 2
        active = normalised(h, p[f"{at}norms.0.weight"], p[f"{at}norms.0.bias"], eps).relu()
        kept = active if i == 0 else h
        if stride == 2:
            kept = F.conv2d(active, p[f"{at}shortcut.weight"], stride=2)
        inner = F.conv2d(active, first, stride=stride, padding=1)
        inner = normalised(inner, p[f"{at}norms.1.weight"], p[f"{at}norms.1.bias"], eps).relu()
        h = kept + F.conv2d(inner, second, padding=1)
    h = normalised(h, p["norm.weight"], p["norm.bias"], eps).relu().mean((2, 3))
    return h @ p["head.weight"].T + p["head.bias"]


class Reference:
    """The mean loss over fixed batches, its gradient (n,) and products with its Hessian."""

    def __init__(self, model, batches, eps):
        self.p = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
        total = sum(len(y) for _, y in batches)
        losses = [F.cross_entropy(scores(self.p, x, eps), y, reduction="sum") / total for x, y in batches]
        self.loss = float(sum(losses).detach())
        pieces = torch.autograd.grad(sum(losses), list(self.p.values()), create_graph=True)
        self.gradient = torch.cat([piece.reshape(-1) for piece in pieces])
        self.n = len(self.gradient)

    def __matmul__(self, v):
        pieces = torch.autograd.grad(self.gradient, list(self.p.values()), grad_outputs=v, retain_graph=True)
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def dense(self):
        return torch.stack([self @ row for row in torch.eye(self.n)])

    def invariant_filters(self):
        """(embedded filter (n,), embedded gradient (n,)) of each filter whose output is only read by batch norm."""
        start = 0
        for name, p in self.p.items():
            if name == "stem.weight" or name.endswith("convolutions.0.weight"):
                size = p[0].numel()
                for i in range(len(p)):
                    inside = torch.zeros(self.n)
                    inside[start + i * size : start + (i + 1) * size] = 1
                    flat = torch.cat([q.detach().reshape(-1) for q in self.p.values()])
                    yield inside * flat, inside * self.gradient.detach()
            start += p.numel()


def problem(seed, depth, width, side, sizes, eps=1e-5):
    """An untrained network with the initialisation that torch gives a convolution, and batches of random images."""
    torch.manual_seed(seed)
    model = preresnet(depth, "basic", classes=4, width=width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    x, y = torch.randn(sum(sizes), 3, side, side), torch.randint(4, (sum(sizes),))
    batches = list(zip(x.split(sizes), y.split(sizes)))
    return Task(model, nn.CrossEntropyLoss(), batches), Reference(model, batches, eps)


def bound_on_the_least_eigenvalue(operator, w, g):
    """The least eigenvalue of H on the span of a filter and its gradient: by interlacing, at least that of H."""
    q = torch.stack([w / w.norm(), g / g.norm()], 1)
    return float(torch.linalg.eigvalsh(q.T @ (operator @ q))[0])


def holds(estimate, truth):
    return estimate.lower <= truth + 1e-9 * abs(truth) and truth - 1e-9 * abs(truth) <= estimate.upper


@pytest.mark.slow
def test_the_negative_trace_and_least_eigenvalue_are_those_of_the_dense_hessian():
    task, reference = problem(0, 8, 1, 8, (9, 5))
    operator, dense = HessianOperator(task, bn_mode="train"), reference.dense()
    assert float((operator @ torch.eye(operator.n) - dense).norm()) <= 1e-12 * float(dense.norm())
    eigenvalues = np.linalg.eigvalsh(dense)
    assert eigenvalues.sum() < -40 < -8 > eigenvalues[0]  # far from what rounding could do
    s = slq(operator, lanczos_steps=40, num_probes=8)
    assert holds(s.trace(), eigenvalues.sum())
    assert s.trace().upper < 0
    assert holds(s.lambda_min(), eigenvalues[0])
    assert holds(s.lambda_max(), eigenvalues[-1])
    assert s.lambda_min().upper < -s.lambda_max().upper  # the least eigenvalue is the largest in magnitude


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_filter_that_batch_norm_alone_reads_has_the_identities_of_scale_invariance(seed):
    """H e(w) = -e(grad) and w'Hw = 0; the span of w and its gradient then holds a negative direction."""
    task, reference = problem(seed, 8, 2, 8, (9, 5), eps=TINY)
    operator = HessianOperator(task, bn_mode="train")
    filters = list(reference.invariant_filters())
    assert len(filters) == 2 + 2 + 4 + 8
    w, minus = torch.stack([w for w, _ in filters], 1), -torch.stack([g for _, g in filters], 1)
    product = operator @ w
    assert (minus.norm(dim=0) > 1e-4).all()
    assert ((product - minus).norm(dim=0) < 1e-9 * minus.norm(dim=0)).all()
    assert ((w * product).sum(0).abs() < 1e-9 * w.norm(dim=0) * minus.norm(dim=0)).all()
    bound = min(bound_on_the_least_eigenvalue(operator, w, g) for w, g in filters)
    least = slq(operator, lanczos_steps=25, num_probes=2).lambda_min()
    assert least.lower <= least.upper <= bound < -0.05


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_the_trace_of_a_filter_has_mean_zero_over_its_directions_in_train_mode_alone(bn_mode):
    """On a sphere the Laplacian of a smooth function has mean zero, so the trace of the block is of either sign.

    A filter of two weights turns through a circle, where equally spaced angles give the mean to rounding.
    """
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3, eps=TINY), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    )
    x, y = torch.randn(14, 2, 2, 2), torch.randint(3, (14,))
    task = Task(model, nn.CrossEntropyLoss(), list(zip(x.split((9, 5)), y.split((9, 5)))))

    def trace(angle, length):
        with torch.no_grad():
            model[0].weight[0, :, 0, 0] = length * torch.tensor([math.cos(angle), math.sin(angle)])
        block = HessianOperator(task, bn_mode=bn_mode, params="0.weight") @ torch.eye(6)[:, :2]
        return float(block[:2].trace())

    traces = np.array([trace(2 * math.pi * i / 80, 1.0) for i in range(80)])
    assert traces.min() < -0.02 < 0.02 < traces.max()
    if bn_mode == "train":
        assert abs(traces.mean()) < 1e-9
        assert trace(0.3, 0.5) == pytest.approx(4 * trace(0.3, 1.0), rel=1e-9)  # as 1 / |w|^2
    else:
        assert abs(traces.mean()) > 1e-3


@pytest.mark.slow
def test_a_network_of_depth_20_agrees_with_the_probes_and_the_ends_of_the_reference():
    """20,000 parameters: 400 Hutchinson probes and SciPy's ends of the reference; the float32 operator must agree."""
    task, reference = problem(0, 20, 4, 16, (24, 16))
    operator = HessianOperator(task, bn_mode="train")
    s = slq(HessianOperator(task, bn_mode="train", dtype="float32"), lanczos_steps=60, num_probes=8)
    v = torch.randn(reference.n)
    assert float((operator @ v - reference @ v).norm()) <= 1e-11 * float((reference @ v).norm())
    forms = []
    for _ in range(400):
        signs = torch.randint(2, (reference.n,)) * 2.0 - 1
        product = reference @ signs
        forms.append((float(signs @ product), float(product @ product)))
    trace, square = np.mean(forms, 0)
    error, square_error = np.std(forms, 0, ddof=1) / len(forms) ** 0.5
    print(trace, error, s.trace(), square**0.5, s.frobenius_norm())
    assert abs(s.trace().value - trace) < 3 * math.hypot(s.trace().stderr, error)
    norm = s.frobenius_norm()
    assert abs(norm.value - square**0.5) < 3 * math.hypot(norm.stderr, square_error / (2 * square**0.5))
    assert trace < -5 * error

    def times(vector):
        return (reference @ torch.from_numpy(np.ascontiguousarray(vector).reshape(-1))).numpy()

    whole = LinearOperator((reference.n, reference.n), matvec=times, dtype=float)
    for which, estimate in (("SA", s.lambda_min()), ("LA", s.lambda_max())):
        (truth,) = eigsh(whole, k=1, which=which, tol=1e-8, return_eigenvectors=False)
        print(truth, estimate)
        assert estimate.lower - 1e-4 * abs(truth) <= truth <= estimate.upper + 1e-4 * abs(truth)
