"""Products with the Hessian and the GGN against dense float64 matrices of the same losses written a second time."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, dense_hessian, parameters
from torch.nn import functional as F

from spectra import GGNOperator, HessianOperator
from spectra.task.batches import tensors_of

HESSIANS = [(case, mode) for case in CASES for mode in case.bn_modes]
GGNS = [(case, mode) for case, mode in HESSIANS if case.ggn]


def name(value):
    return getattr(value, "name", value)


def whole_loss(case, mode):
    task, loss = case.make()
    return task, loss(mode) if len(case.bn_modes) > 1 else loss()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("case", "mode"), HESSIANS, ids=name)
def test_hessian_is_the_dense_one(case, mode):
    task, loss = whole_loss(case, mode)
    dense = dense_hessian(loss, parameters(task))
    operator = HessianOperator(task, bn_mode=mode)
    product = operator @ torch.eye(operator.n)
    assert float(dense.norm()) > 1e-3
    assert float((product - dense).norm()) <= 1e-12 * float(dense.norm())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("case", "mode"), GGNS, ids=name)
def test_ggn_is_the_dense_one(case, mode):
    """G = sum_b f_b J_b' A_b J_b, with J and A built one row at a time from the batch outputs."""
    task, _ = case.make()
    operator = GGNOperator(task, bn_mode=mode)
    params = operator.function.theta
    total = torch.zeros(operator.n, operator.n)
    with operator.function.evaluation():
        for batch, weight in operator.batches():
            output = operator.function.output(batch)
            outputs = tensors_of(output)
            flat = torch.cat([t.reshape(-1) for t in outputs])
            jacobian = torch.stack(
                [
                    operator.function.flatten(torch.autograd.grad(z, params, retain_graph=True, allow_unused=True))
                    for z in flat
                ]
            )
            leaf = flat.detach().requires_grad_()
            pieces = [p.view_as(t) for p, t in zip(leaf.split([t.numel() for t in outputs]), outputs)]
            again = dict(zip(output, pieces)) if isinstance(output, dict) else pieces[0]
            curvature = dense_hessian(task.criterion(again, task.target_of(batch)), [leaf])
            total += task.total_factor(weight) * jacobian.T @ curvature @ jacobian
    dense = total / task.divisor(task.survey().total_weight) + task.l2 * torch.eye(operator.n)
    product = operator @ torch.eye(operator.n)
    assert float(dense.norm()) > 1e-3
    assert float((product - dense).norm()) <= 1e-12 * float(dense.norm())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_softmax_regression_has_the_closed_form(kind):
    """H = G = (1/N) sum_n A_n (x) x_n x_n', with A = diag(p) - p p'."""
    from spectra import Task

    model = torch.nn.Linear(4, 3, bias=False)
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    p = model(x).softmax(1).detach()
    dense = sum(torch.kron(torch.diag(pn) - torch.outer(pn, pn), torch.outer(xn, xn)) for pn, xn in zip(p, x)) / 20
    operator = kind(Task(model, torch.nn.CrossEntropyLoss(), [(x[:13], y[:13]), (x[13:], y[13:])]))
    assert torch.allclose(operator @ torch.eye(12), dense, rtol=0, atol=1e-15)
    trace = float(((1 - p.square().sum(1)) * x.square().sum(1)).mean())
    assert float(torch.trace(operator @ torch.eye(12))) == pytest.approx(trace, rel=1e-13)


@pytest.mark.usefixtures("float64")
def test_softmax_regression_at_zero_has_the_closed_trace_and_diagonal():
    from spectra import Task

    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    model = torch.nn.Linear(4, 3, bias=False)
    torch.nn.init.zeros_(model.weight)
    product = HessianOperator(Task(model, torch.nn.CrossEntropyLoss(), [(x, y)])) @ torch.eye(12)
    assert float(product.trace()) == pytest.approx((1 - 1 / 3) * float(x.square().sum(1).mean()), rel=1e-13)
    assert torch.allclose(product.diagonal().view(3, 4), (1 / 3) * (2 / 3) * x.square().mean(0).expand(3, 4))


class Exponential(torch.nn.Module):
    """L = exp(X prod_i w_i): the deep linear example, whose Hessian is X L u, X^2 u u' + X V in closed form."""

    def __init__(self, w):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("w", "x", "eigenvalues"),
    [
        ([1.0, 1.0, 1.0], 1.0, [-2.718281828459045, -2.718281828459045, 13.591409142295225]),
        ([1.0, 2.0, 3.0], -0.3, [0.04026739, 0.10602950, 0.58267121]),
    ],
)
def test_deep_linear_example_has_the_closed_spectrum(w, x, eigenvalues):
    from spectra import Task

    task = Task.from_loss(Exponential(w), lambda m, b: torch.exp(b[0] * m.w.prod()).mean(), [torch.tensor([[x]])])
    dense = HessianOperator(task) @ torch.eye(3)
    assert torch.linalg.eigvalsh(dense).tolist() == pytest.approx(eigenvalues, abs=5e-9)
    q, u = torch.tensor(w).prod(), torch.tensor(w).prod() / torch.tensor(w)
    v = q / torch.outer(torch.tensor(w), torch.tensor(w))
    v.fill_diagonal_(0)
    assert torch.allclose(dense, torch.exp(x * q) * (x**2 * torch.outer(u, u) + x * v), rtol=1e-12, atol=0)


GOLDEN = {
    "before": ([[1.0, 2.0], [3.0, 4.0]], [[0.5, 0.6], [0.7, -0.8]]),
    "after": ([[0.1, 0.2], [30.0, 40.0]], [[5.0, 0.06], [7.0, -0.08]]),
}
NUMBERS = {  # trace, |H|_F, lambda_max, lambda_min, lambda_max of the GGN
    "before": (0.3303737883, 2.9102109515, 1.8290899071, -1.6558706057, 0.2082412800),
    "after": (16.9558558526, 14.3945662529, 13.8092084825, -0.9836401996, 13.7239300549),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("state", ["before", "after"])
def test_golden_numbers_of_a_small_relu_net(state):
    from spectra import Task

    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(GOLDEN[state][0]))
        model[2].weight.copy_(torch.tensor(GOLDEN[state][1]))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, -1.0], [-3.0, 2.0]])
    y = torch.tensor([0, 1, 1, 0])
    task = Task(model, torch.nn.CrossEntropyLoss(), [(x[:3], y[:3]), (x[3:], y[3:])])
    hessian, ggn = HessianOperator(task) @ torch.eye(8), GGNOperator(task) @ torch.eye(8)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    found = (hessian.trace(), hessian.norm(), eigenvalues[-1], eigenvalues[0], torch.linalg.eigvalsh(ggn)[-1])
    assert [float(v) for v in found] == pytest.approx(NUMBERS[state], abs=1e-9)
    assert float(ggn.trace()) == pytest.approx(NUMBERS[state][0], abs=1e-9)  # a ReLU net: Tr H = Tr GGN
    assert float(F.cross_entropy(model(x), y).detach()) == pytest.approx(3.2057258391, abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_golden_numbers_of_the_scalar_net():
    from spectra import Task

    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU(), torch.nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[2].weight.copy_(torch.tensor([[0.5], [-0.5]]))
    task = Task(model, torch.nn.CrossEntropyLoss(), [(torch.ones(1, 1), torch.tensor([0]))])
    hessian = HessianOperator(task) @ torch.eye(3)
    assert float(hessian.trace()) == pytest.approx(0.9449422686, abs=1e-10)
    assert float(hessian.norm()) == pytest.approx(0.8657393157, abs=1e-10)
    assert float(torch.linalg.eigvalsh(hessian)[-1]) == pytest.approx(0.8617310842, abs=1e-10)
    assert float(hessian[0, 0]) == pytest.approx(0.1049935854, abs=1e-10)


@pytest.mark.usefixtures("float64")
def test_train_mode_filters_before_batch_norm_have_the_exact_identities():
    """With eps -> 0 the loss is 0-homogeneous in a filter w_i: H e(w_i) = -e(grad_i), and w_i' H_ii w_i = 0."""
    from spectra import Task

    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, bias=False), torch.nn.BatchNorm2d(3, eps=1e-30), torch.nn.Tanh(), torch.nn.Flatten(),
        torch.nn.Linear(12, 3),
    )  # fmt: skip
    x, y = torch.randn(12, 1, 4, 4), torch.randint(3, (12,))
    task = Task(model, torch.nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])
    operator = HessianOperator(task, bn_mode="train")
    function = operator.function
    gradient = torch.zeros(operator.n)
    with function.evaluation():
        for batch, weight in operator.batches():
            gradient += weight / 12 * function.flatten(function.gradient(batch)[1])
    for i in range(3):
        v = torch.zeros(operator.n)
        v[9 * i : 9 * i + 9] = model[0].weight[i].detach().flatten()
        minus = torch.zeros(operator.n)
        minus[9 * i : 9 * i + 9] = -gradient[9 * i : 9 * i + 9]
        product = operator @ v
        assert float((product - minus).norm()) < 1e-13
        assert abs(float(v @ product)) < 1e-12
    assert float(gradient[:27].norm()) > 1e-3
