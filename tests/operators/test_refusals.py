"""What cannot be a right number is refused, with what was wrong and what to do in one line."""

from __future__ import annotations

import pytest
import torch
from cases import batches_of, conv_batch_norm, mlp_ragged
from torch import nn
from torch.nn import functional as F

from spectra import GGNOperator, HessianOperator, Task
from spectra.errors import ArgumentError, DataError, NumericsError, TaskError

pytestmark = pytest.mark.usefixtures("float64")


def multiply(kind, task, options, times=1):
    operator = kind(task, **options)
    for _ in range(times):
        operator @ torch.ones(operator.n)


def refused(task, error, match, kind=HessianOperator, **options):
    with pytest.raises(error, match=match) as caught:
        multiply(kind, task, options)
    assert "\n" not in str(caught.value)


def small(criterion=None, data=None, **options):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    return Task(model, criterion or nn.CrossEntropyLoss(), batches_of(x, y, 7, 5) if data is None else data, **options)


class Loader:
    """Batches of twelve rows that a function of the pass may change."""

    def __init__(self, change, drop=False):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(12, 4, generator=generator)
        self.y = torch.randint(3, (12,), generator=generator)
        self.change, self.drop = change, drop

    def __iter__(self):
        x, order = self.change(self.x)
        for rows in order.split(5):
            if len(rows) == 5 or not self.drop:
                yield x[rows], self.y[rows]


def shuffling(x):
    return x, torch.randperm(12)


def augmenting(x):
    return x + 0.1 * torch.randn(x.shape), torch.arange(12)


def test_labels_out_of_range():
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    y[8] = 7
    refused(small(data=batches_of(x, y, 7, 5)), DataError, r"labels reach from 0 to 7, .*3 outputs")
    weighted = small(nn.CrossEntropyLoss(weight=torch.ones(3)), data=batches_of(x, y, 7, 5))
    refused(weighted, DataError, "out of the range of the class weights")


def test_empty_data_and_data_that_can_be_read_only_once():
    refused(small(data=[]), DataError, "empty")
    with pytest.raises(DataError, match="read only once"):
        small(data=iter([]))
    with pytest.raises(DataError, match=r"wrap it in a list: \[\(x, y\)\]"):
        small(data=(torch.randn(3, 4), torch.zeros(3).long()))


def test_batches_of_another_form_say_what_to_pass():
    refused(small(data=[{"x": torch.ones(1, 4), "y": torch.ones(1)}]), DataError, "forward=")
    refused(small(data=[torch.ones(3, 4)]), DataError, "forward=")


def test_every_target_ignored():
    x = torch.randn(4, 4)
    refused(small(data=[(x, torch.full((4,), -100))]), DataError, "no weight")


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("criterion", [nn.L1Loss(), lambda out, t: (out - t).abs().mean(), nn.HingeEmbeddingLoss()])
def test_a_criterion_without_second_derivative(kind, criterion):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    x, y = torch.randn(12, 4), torch.randn(12, 2).sign()
    refused(Task(model, criterion, [(x, y)]), TaskError, "second derivative", kind)


def test_a_saturated_cross_entropy_is_not_mistaken_for_one():
    """At loss 0 to working precision the second derivative in the outputs is exactly zero, and the Hessian is 0."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e4], [-1e4]]))
    operator = GGNOperator(Task(model, nn.CrossEntropyLoss(), [(torch.ones(3, 1), torch.zeros(3).long())]))
    assert not (operator @ torch.ones(2)).any()


def test_dropout_left_on_is_not_mistaken_for_another_averaging():
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    for data in (batches_of(x, y, 7, 5), [(x, y)]):
        refused(Task(model, F.cross_entropy, data, forward=lambda m, b: F.dropout(m(b[0]))), TaskError, "is random")


def test_functions_that_can_be_differentiated_only_once():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad

    model = nn.Sequential(nn.Linear(4, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)], forward=lambda m, b: Once.apply(m(b[0])))
    refused(task, TaskError, "once_differentiable")


def test_a_backward_without_a_graph():
    class Detached(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.logsumexp(1).mean()

        @staticmethod
        def backward(ctx, grad):
            return ctx.saved_tensors[0].detach().softmax(1) / 6

    task = Task.from_loss(nn.Linear(4, 3), lambda m, b: Detached.apply(m(b)), [torch.randn(6, 4)])
    refused(task, TaskError, "without a graph")


def test_a_wrong_second_derivative_is_found_by_the_asymmetry():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * x * grad * (1 + 0.5 * grad.cumsum(-1))  # not a gradient of anything

    model = nn.Sequential(nn.Linear(4, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)], forward=lambda m, b: Wrong.apply(m(b[0])))
    refused(task, TaskError, "not symmetric")


def test_a_loss_that_does_not_depend_on_the_parameters():
    model = nn.Linear(4, 3)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)], forward=lambda m, b: b[0][:, :3])
    refused(task, TaskError, "does not depend on the parameters")
    detached = Task.from_loss(model, lambda m, b: m(b[0]).detach().sum(), [(x, y)])
    refused(detached, TaskError, "does not depend on the parameters")


def test_the_ggn_of_a_task_without_a_split():
    task = Task.from_loss(nn.Linear(2, 1), lambda m, b: m(b).square().mean(), [torch.randn(3, 2)])
    refused(task, TaskError, "Task.from_loss", GGNOperator)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_losses_that_are_not_finite(value):
    task = small()
    x, y = task.data[0]
    broken = Task(task.model, task.criterion, [(x * value, y)])
    refused(broken, NumericsError, "the loss is nan")
    with torch.no_grad():
        task.model[2].bias[1] = value
    refused(task, NumericsError, r"2\.bias holds 1 values of 3")


def wrong_averages():
    def tokens(out, target):
        return F.cross_entropy(out.flatten(0, 1), target.flatten(), ignore_index=0)

    x, y = torch.randn(9, 5, 4), torch.randint(7, (9, 5))
    y[torch.rand(9, 5) < 0.5] = 0
    yield "hidden ignore_index", Task(nn.Linear(4, 7), tokens, batches_of(x, y, 5, 4))
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    yield "a sum", Task(nn.Linear(4, 3), lambda o, t: F.cross_entropy(o, t, reduction="sum"), batches_of(x, y, 5, 4))
    weight = torch.tensor([1.0, 2.0, 9.0])
    yield (
        "hidden class weights",
        Task(nn.Linear(4, 3), lambda o, t: F.cross_entropy(o, t, weight=weight), batches_of(x, y, 5, 4)),
    )
    yield "a wrong weight=", Task(nn.Linear(4, 3), F.cross_entropy, batches_of(x, y, 5, 4), weight=lambda b: 1.0)
    yield (
        "a loss that couples the samples",
        Task(nn.Linear(4, 3), lambda o, t: torch.logsumexp(o.flatten(), 0), batches_of(x, y, 5, 4)),
    )
    yield (
        "the same, without a split",
        Task.from_loss(nn.Linear(4, 3), lambda m, b: torch.logsumexp(m(b[0]).flatten(), 0), batches_of(x, y, 5, 4)),
    )


@pytest.mark.parametrize("which", range(6))
def test_a_wrong_average_is_refused_asking_for_the_weight(which):
    task = list(wrong_averages())[which][1]
    refused(task, TaskError, "weight=")


def test_a_sum_that_is_declared_is_a_sum():
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    criterion = lambda o, t: F.cross_entropy(o, t, reduction="sum")  # noqa: E731
    task = Task(nn.Linear(4, 3), criterion, batches_of(x, y, 5, 4), reduction="sum")
    known = Task(task.model, nn.CrossEntropyLoss(reduction="sum"), task.data)
    v = torch.randn(15)
    assert torch.allclose(HessianOperator(task) @ v, HessianOperator(known) @ v, rtol=1e-12)
    mean = Task(task.model, nn.CrossEntropyLoss(reduction="sum"), task.data, reduction="mean")
    assert torch.allclose(HessianOperator(mean) @ v * 9, HessianOperator(known) @ v, rtol=1e-12)


def test_one_batch_needs_no_weights():
    x = torch.randn(5, 4)
    task = Task.from_loss(nn.Linear(4, 3), lambda m, b: torch.logsumexp(m(b).flatten(), 0), [x])
    assert (HessianOperator(task) @ torch.ones(15)).any()


def test_criteria_and_losses_that_are_not_scalars():
    with pytest.raises(TaskError, match="reduction='none'"):
        small(nn.CrossEntropyLoss(reduction="none"))
    refused(small(lambda o, t: F.cross_entropy(o, t, reduction="none")), TaskError, "one number")


def test_augmentation_is_an_error_in_either_mode():
    for mode in ("eval", "train"):
        refused(small(data=Loader(augmenting)), DataError, "not the same on a second pass", bn_mode=mode)


def test_shuffling_is_a_note_in_eval_mode_and_an_error_where_batches_are_coupled():
    fixed = HessianOperator(small(data=Loader(lambda x: (x, torch.arange(12)))))
    moving = HessianOperator(Task(fixed.task.model, nn.CrossEntropyLoss(), Loader(shuffling)))
    v = torch.randn(fixed.n)
    assert torch.allclose(fixed @ v, moving @ v, rtol=1e-12, atol=1e-14)
    assert fixed.self_test.notes == ()
    assert "shuffled" in moving.self_test.notes[0]
    with_bn = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    task = Task(with_bn, nn.CrossEntropyLoss(), Loader(shuffling))
    refused(task, DataError, "shuffle=False", bn_mode="train")
    refused(Task(with_bn, nn.CrossEntropyLoss(), Loader(shuffling, drop=True)), DataError, "drop_last")


def test_a_last_batch_of_one_is_refused_in_train_mode_only():
    task, _ = conv_batch_norm()
    x, y = torch.cat([b[0] for b in task.data]), torch.cat([b[1] for b in task.data])
    ragged = Task(task.model, task.criterion, batches_of(x, y, 5, 5, 1))
    refused(ragged, DataError, "single sample", bn_mode="train")
    operator = HessianOperator(ragged)
    v = torch.randn(operator.n)
    assert torch.allclose(operator @ v, HessianOperator(task) @ v, rtol=1e-11, atol=1e-13)


def test_train_mode_depends_on_the_partition_as_it_must():
    task, _ = conv_batch_norm()
    other = task.rebatched(4)
    v = torch.randn(HessianOperator(task).n)
    a, b = HessianOperator(task, "train") @ v, HessianOperator(other, "train") @ v
    assert float((a - b).norm() / a.norm()) > 1e-2


def test_randomness_within_the_model_is_found():
    model = nn.Linear(4, 3)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)], forward=lambda m, b: F.dropout(m(b[0]), 0.5, training=True))
    refused(task, TaskError, "random")


def test_a_loader_that_changes_in_the_middle_is_found():
    class Shrinking:
        passes = 0

        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            self.passes += 1
            return iter(self.batches[: 1 if self.passes > 5 else 2])

    task, _ = mlp_ragged()
    broken = Task(task.model, task.criterion, Shrinking(task.data[:2]))
    with pytest.raises(DataError, match="changed between passes"):
        multiply(HessianOperator, broken, {}, times=6)


def test_arguments_out_of_range():
    for options in ({"bn_mode": "test"}, {"dtype": "float16"}, {"dtype": "complex64"}):
        with pytest.raises(ArgumentError):
            HessianOperator(small(), **options)
    with pytest.raises(ArgumentError, match="l2=-1"):
        small(l2=-1.0)
    with pytest.raises(ArgumentError, match="reduction"):
        small(reduction="max")
    with pytest.raises(TaskError, match="requires_grad"):
        HessianOperator(Task(nn.ReLU(), nn.MSELoss(), [(torch.ones(1), torch.ones(1))]))
    with pytest.raises(TaskError, match="Module"):
        Task(lambda x: x, nn.MSELoss(), [])
