"""The empirical Fisher matrix against the outer products of the gradients of single samples, one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES, batches_of, class_weights_and_smoothing, conv_batch_norm, from_loss_of_dicts, mlp_ragged
from torch import nn
from torch.nn import functional as F

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.errors import TaskError
from spectra.task.batches import choose_rows

pytestmark = pytest.mark.usefixtures("float64")

APPLIES = [case for case in CASES if case.ggn]


def by_samples(task):
    """sum_n w_n g_n g_n' / sum_n w_n: every row a batch of its own, one backward pass each."""
    operator = HessianOperator(task)
    function, n = operator.function, operator.n
    total, weights = torch.zeros(n, n), 0.0
    with function.evaluation():
        for batch in task.data:
            rows = len(task.target_of(batch))
            for row in range(rows):
                sample = choose_rows(batch, torch.tensor([row]))
                weight = task.weight_of(sample)
                if weight > 0:
                    _, pieces = function.gradient(sample)
                    gradient = function.flatten(pieces)
                    if task.averaging.reduction == "sum":
                        gradient = gradient / weight
                    total += weight * torch.outer(gradient, gradient)
                    weights += weight
    return total / (weights if task.reduces_to == "mean" else 1.0) + task.l2 * torch.eye(n)


def dense(task, **options):
    operator = EmpiricalFisherOperator(task, **options)
    return operator @ torch.eye(operator.n, dtype=operator.torch_dtype)


@pytest.mark.parametrize("case", APPLIES, ids=lambda case: case.name)
def test_the_product_is_that_of_the_gradients_of_single_samples(case):
    task, _ = case.make()
    reference, found = by_samples(task), dense(task)
    assert float(reference.norm()) > 1e-3
    assert float((found - reference).norm()) <= 1e-12 * float(reference.norm())
    assert float(torch.linalg.eigvalsh(found)[0]) >= -1e-13 * float(reference.norm())


def test_softmax_regression_has_the_closed_form():
    """F = (1/N) sum_n (p_n - e_y)(p_n - e_y)' (x) x_n x_n'."""
    model = nn.Linear(4, 3, bias=False)
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    r = model(x).softmax(1).detach() - F.one_hot(y, 3)
    expected = sum(torch.kron(torch.outer(rn, rn), torch.outer(xn, xn)) for rn, xn in zip(r, x)) / 20
    found = dense(Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 13, 7)))
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)
    assert float(found.trace()) == pytest.approx(float((r.square().sum(1) * x.square().sum(1)).mean()), rel=1e-13)


def test_class_weights_enter_once_and_not_squared():
    """F = sum_n c_y r_n r_n' (x) x_n x_n' / sum_n c_y, as the loss and its GGN weight their samples."""
    model, c = nn.Linear(4, 3, bias=False), torch.tensor([0.2, 1.0, 3.0])
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    r = model(x).softmax(1).detach() - F.one_hot(y, 3)
    outer = [torch.kron(torch.outer(rn, rn), torch.outer(xn, xn)) for rn, xn in zip(r, x)]
    expected = sum(c[yn] * o for yn, o in zip(y, outer)) / float(c[y].sum())
    mean = Task(model, nn.CrossEntropyLoss(weight=c), batches_of(x, y, 13, 7))
    total = Task(model, nn.CrossEntropyLoss(weight=c, reduction="sum"), batches_of(x, y, 13, 7))
    assert torch.allclose(dense(mean), expected, rtol=0, atol=1e-15)
    assert torch.allclose(dense(total), expected * float(c[y].sum()), rtol=0, atol=1e-14)


def test_it_does_not_depend_on_the_batches():
    for make in (mlp_ragged, class_weights_and_smoothing):
        task, _ = make()
        assert torch.allclose(dense(task), dense(task.rebatched(2)), rtol=0, atol=1e-15)


def test_a_token_is_a_sample_where_forward_and_target_make_it_a_row():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    x, y = torch.randint(7, (6, 5)), torch.randint(7, (6, 5))
    tokens = Task(
        model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 2),
        forward=lambda m, b: m(b[0]).flatten(0, 1), target=lambda b: b[1].flatten(),
    )  # fmt: skip
    alone = Task(model, nn.CrossEntropyLoss(), batches_of(x.flatten(), y.flatten(), 11, 19))
    rows = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 2), forward=lambda m, b: m(b[0]).transpose(1, 2))
    assert torch.allclose(dense(tokens), dense(alone), rtol=0, atol=1e-15)
    assert float((dense(rows) - dense(tokens)).norm()) > 0.1 * float(dense(tokens).norm())


def test_it_is_not_the_ggn():
    task, _ = mlp_ragged()
    ggn = GGNOperator(task) @ torch.eye(GGNOperator(task).n)
    assert float((dense(task) - ggn).norm()) > 0.1 * float(ggn.norm())


def test_samples_that_are_fitted_exactly_leave_nothing_where_the_ggn_stays():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(10, 4)
    y = model(x).detach()
    task = Task(model, nn.MSELoss(), batches_of(x, y, 7, 3))
    assert not dense(task).any()
    assert float((GGNOperator(task) @ torch.ones(37)).norm()) > 0.1


def test_a_piecewise_linear_criterion_is_allowed_since_no_second_derivative_enters():
    model = nn.Linear(3, 1)
    x, y = torch.randn(9, 3), torch.randn(9, 1)
    task = Task(model, nn.L1Loss(), batches_of(x, y, 5, 4))
    one = torch.cat([x, torch.ones(9, 1)], 1)  # the gradients are sign(r_n) (x_n, 1)
    assert torch.allclose(dense(task), one.T @ one / 9, rtol=0, atol=1e-15)
    with pytest.raises(TaskError, match="no second derivative"):
        HessianOperator(task) @ torch.ones(4)


def test_parameters_can_be_chosen():
    task, _ = mlp_ragged()
    last = dense(task, params="2.*")
    assert torch.allclose(last, dense(task)[-len(last) :, -len(last) :], rtol=0, atol=1e-15)


def test_float32_products_are_near_the_float64_ones():
    task, _ = mlp_ragged()
    task.model.float()
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0]).float())
    single = Task(task.model, weighted, [(x.float(), y) for x, y in task.data])
    operator = EmpiricalFisherOperator(single)
    assert operator.dtype == np.dtype("float32")
    exact = dense(single, dtype="float64")
    error = float((dense(single).double() - exact).norm() / exact.norm())
    assert 1e-9 < error < 2e-6
    assert 1.1e-7 < operator.noise < 1e-5


class Careless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Squared(nn.Module):
    def forward(self, x):
        return Careless.apply(x)


def test_a_backward_without_a_graph_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), Squared())
    task = Task(model, nn.MSELoss(), batches_of(torch.randn(6, 3), torch.randn(6, 4), 4, 2))
    with pytest.raises(TaskError, match="differentiated"):
        dense(task)


def test_coupled_samples_are_refused_with_the_remedy():
    task, _ = conv_batch_norm()
    with pytest.raises(TaskError, match=r"depend on the others of its batch: use bn_mode='eval'"):
        EmpiricalFisherOperator(task, bn_mode="train")
    task = Task(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), nn.MSELoss(), task.data)
    with pytest.raises(TaskError, match="keeps no running statistics"):
        EmpiricalFisherOperator(task)
    plain, _ = mlp_ragged()
    assert torch.equal(dense(plain, bn_mode="train"), dense(plain))


def test_a_loss_of_whole_batches_is_refused():
    with pytest.raises(TaskError, match=r"Task\.from_loss has only that of a batch"):
        EmpiricalFisherOperator(from_loss_of_dicts()[0])


def one_batch(criterion, **options):
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    return Task(nn.Linear(3, 2), criterion, [(x, y)], **options)


def test_a_criterion_that_couples_rows_is_refused_even_in_a_single_batch():
    """The Hessian of one batch needs no weights; the gradients of its samples do."""
    task = one_batch(lambda out, y: ((out - out.mean(0) - y) ** 2).mean())
    HessianOperator(task) @ torch.ones(8)
    with pytest.raises(TaskError, match="not a mean over"):
        dense(task)


def test_weights_that_are_no_sum_over_rows_are_refused():
    with pytest.raises(TaskError, match="not a mean over"):
        dense(one_batch(nn.MSELoss(), weight=lambda b: len(b[1]) ** 2))
    with pytest.raises(TaskError, match=r"weight 6 and its rows have 12 together"):  # right for the halves of a batch
        dense(one_batch(nn.MSELoss(), weight=lambda b: max(2, len(b[1]))))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_outputs_without_the_rows_of_the_target_are_refused():
    with pytest.raises(TaskError, match=r"6 rows .* shapes \(1, 6, 2\)"):
        dense(one_batch(nn.MSELoss(), forward=lambda m, b: m(b[0])[None]))
    with pytest.raises(TaskError, match="no common number of rows"):
        dense(one_batch(nn.MSELoss(), forward=lambda m, b: m(b[0])[None], weight=lambda b: len(b[0])))


def test_a_sample_of_weight_zero_that_has_a_part_in_the_loss_is_refused():
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 1])
    for smoothing in (0.0, 0.1):
        criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0]), label_smoothing=smoothing)
        task = Task(nn.Linear(3, 2), criterion, [(x, y)])
        if smoothing:
            with pytest.raises(TaskError, match="sample of weight 0"):
                dense(task)
        else:
            alone = Task(task.model, nn.CrossEntropyLoss(), [(x[y == 1], y[y == 1])])
            assert torch.allclose(dense(task), dense(alone), rtol=0, atol=1e-15)
