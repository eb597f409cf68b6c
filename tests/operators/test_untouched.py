"""Nothing of the user's model is changed by a product: buffers, modes, gradients, random states, hooks."""

from __future__ import annotations

import operator
import random

import numpy as np
import pytest
import torch
from cases import batches_of, conv_batch_norm
from torch import nn

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.errors import TaskError

pytestmark = pytest.mark.usefixtures("float64")


class Stubborn(nn.Module):
    """A layer that writes to a buffer at every call, in place and by assignment, in whatever mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        self.last = x.detach().mean()
        return x * 1.5


def state_of(model):
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    wants = [p.requires_grad for p in model.parameters()]
    return flags, tensors, grads, wants


def assert_same(before, after):
    assert before[0] == after[0]
    assert before[3] == after[3]
    for left, right in ((before[1], after[1]), (before[2], after[2])):
        assert left.keys() == right.keys()
        for name in left:
            assert (left[name] is None) == (right[name] is None)
            assert left[name] is None or torch.equal(left[name], right[name]), name


def random_states():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (kind, keys.tolist(), *rest), torch.get_rng_state().tolist()


def prepared_model():
    task, _ = conv_batch_norm()
    model = nn.Sequential(task.model, Stubborn())
    for momentum, layer in zip((None,), [task.model.bn]):
        layer.momentum = momentum  # cumulative averaging, the other way statistics are updated
    model.train()
    model[0].drop.eval()  # a mixture of modes
    x, y = torch.cat([b[0] for b in task.data]), torch.cat([b[1] for b in task.data])
    nn.functional.cross_entropy(model(x), y).backward()
    return model, batches_of(x, y, 6, 5)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *((kind, mode) for kind in (HessianOperator, GGNOperator) for mode in ("eval", "train")),
        (EmpiricalFisherOperator, "eval"),  # in train mode it is refused
    ],
)
def test_a_product_changes_nothing(kind, mode):
    model, data = prepared_model()
    loader = torch.utils.data.DataLoader([(x, y) for xs, ys in data for x, y in zip(xs, ys)], batch_size=6)
    before, generators = state_of(model), random_states()
    hessian = kind(Task(model, nn.CrossEntropyLoss(), loader), bn_mode=mode)
    product = hessian @ torch.randn(hessian.n, generator=torch.Generator().manual_seed(0))
    assert product.abs().sum() > 0
    assert_same(before, state_of(model))
    assert generators == random_states()


def multiply_ten_times(operator):
    for _ in range(10):
        operator @ torch.ones(operator.n)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_exception_in_the_middle_changes_nothing_either(mode):
    model, data = prepared_model()
    calls = 0

    def criterion(output, target):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyError("in the middle")
        return nn.functional.cross_entropy(output, target)

    before, generators = state_of(model), random_states()
    operator = HessianOperator(Task(model, criterion, data, weight=lambda b: len(b[1])), bn_mode=mode)
    with pytest.raises(
        TaskError, match=r"criterion in test_untouched\.py line \d+: KeyError: 'in the middle'"
    ) as caught:
        multiply_ten_times(operator)
    assert isinstance(caught.value.__cause__, KeyError)
    assert calls == 9
    assert_same(before, state_of(model))
    assert generators == random_states()


def test_hooks_on_parameters_do_not_run():
    model, data = prepared_model()
    seen = []
    for p in model.parameters():
        p.register_hook(lambda g: seen.append(g))
    HessianOperator(Task(model, nn.CrossEntropyLoss(), data)) @ torch.ones(sum(p.numel() for p in model.parameters()))
    assert seen == []


def test_products_work_within_no_grad_inference_mode_and_autocast():
    model, data = prepared_model()
    task = Task(model, nn.CrossEntropyLoss(), data)
    v = torch.ones(sum(p.numel() for p in model.parameters()))
    plain = HessianOperator(task) @ v
    with torch.no_grad():
        assert torch.equal(HessianOperator(task) @ v, plain)
    with torch.inference_mode():
        assert torch.equal(HessianOperator(task) @ v, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(HessianOperator(task) @ v, plain)


PRECISIONS = ["cuda.matmul", "cudnn.conv", "mkldnn.matmul"]


def precisions():
    return [operator.attrgetter(name)(torch.backends).fp32_precision for name in PRECISIONS]


def by_the_global_setting():
    torch.set_float32_matmul_precision("medium")


def by_one_backend():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def by_the_general_backend():
    torch.backends.fp32_precision = "tf32"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has the older interface only")
@pytest.mark.parametrize("reduce", [by_the_global_setting, by_one_backend, by_the_general_backend])
def test_reduced_float32_precision_is_off_during_products_and_back_after(reduce):
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(precisions())
            return x

    model = nn.Sequential(nn.Linear(3, 2), Watch())
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))])
    original = precisions(), torch.backends.fp32_precision
    try:
        reduce()
        before = precisions()
        assert before != original[0]
        HessianOperator(task) @ torch.ones(8)
        assert seen
        assert all(entry == ["ieee"] * len(PRECISIONS) for entry in seen)
        assert precisions() == before
    finally:
        torch.backends.fp32_precision = original[1]
        for name, value in zip(PRECISIONS, original[0]):
            operator.attrgetter(name)(torch.backends).fp32_precision = value


def test_a_compiled_or_wrapped_model_is_taken_out_of_its_wrapping():
    model, data = prepared_model()
    wrapped = nn.DataParallel(model)
    assert Task(wrapped, nn.CrossEntropyLoss(), data).model is model
    assert Task(torch.compile(model), nn.CrossEntropyLoss(), data).model is model
