"""What models return and what data yield in other people's forms: taken without ``forward=`` where they are clear."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, fields
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from choices import crossed
from torch import nn
from torch.nn import functional as F

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task, analyze, exact_trace, minimum_sharpness
from spectra.errors import DataError, TaskError

pytestmark = pytest.mark.usefixtures("float64")


class ModelOutput(OrderedDict):
    """What Hugging Face's class of this name does: a dictionary and a dataclass at once, which refuses ``update``."""

    def __post_init__(self):
        for part in fields(self):
            if getattr(self, part.name) is not None:
                super().__setitem__(part.name, getattr(self, part.name))

    def update(self, *args, **kwargs):
        raise Exception(f"You cannot use ``update`` on a {self.__class__.__name__} instance.")

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclass
class ClassifierOutput(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple | None = None


@dataclass(frozen=True)
class Plain:
    features: torch.Tensor
    logits: torch.Tensor


@dataclass
class Single:
    scores: torch.Tensor
    name: str = "x"


Outputs = namedtuple("Outputs", ["logits", "aux"])
Other = namedtuple("Other", ["aux", "logits"])

TAKEN = {
    "ModelOutput": lambda z, h: ClassifierOutput(logits=z, hidden_states=(h,)),
    "frozen dataclass": lambda z, h: Plain(h, z),
    "dataclass of one tensor": lambda z, h: Single(z),
    "dict with logits": lambda z, h: {"hidden": h, "logits": z},
    "dict of one tensor": lambda z, h: {"out": z, "names": ["a"]},
    "object with logits": lambda z, h: SimpleNamespace(logits=z, hidden=h),
    "tuple": lambda z, h: (z, h),
    "tuple of one": lambda z, h: (z,),
    "list": lambda z, h: [z, h],
    "namedtuple": Outputs,
    "namedtuple with logits elsewhere": lambda z, h: Other(h, z),
    "recurrent": lambda z, h: (z, (h, h)),
}


class Network(nn.Module):
    def __init__(self, form):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.body, self.head, self.form = nn.Linear(4, 5), nn.Linear(5, 3), form
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def forward(self, x):
        h = torch.relu(self.body(x))
        return self.form(self.head(h), h)


X, Y = torch.randn(11, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(11) % 3
CRITERIA = {
    "module": (nn.CrossEntropyLoss(), Y),
    "function": (F.cross_entropy, Y),
    "partial": (partial(F.cross_entropy, label_smoothing=0.1), Y),
    "regression": (nn.MSELoss(), torch.sin(torch.arange(33.0, dtype=torch.float64)).view(11, 3)),
}


def batches(target, *sizes):
    return list(zip(torch.split(X, sizes), torch.split(target, sizes)))


def matrices(task):
    return [kind(task) @ torch.eye(43) for kind in (HessianOperator, GGNOperator, EmpiricalFisherOperator)]


@pytest.mark.parametrize("own_forward", [False, True])
@pytest.mark.parametrize(("form", "criterion"), crossed(TAKEN, CRITERIA))
def test_a_criterion_of_one_tensor_is_given_the_logits(form, criterion, own_forward):
    function, target = CRITERIA[criterion]
    options = {"forward": lambda model, batch: model(batch[0])} if own_forward else {}
    task = Task(Network(TAKEN[form]), function, batches(target, 5, 6), **options)
    plain = Task(Network(lambda z, h: z), function, batches(target, 5, 6))
    for found, expected in zip(matrices(task), matrices(plain)):
        assert torch.equal(found, expected)
    trace = exact_trace(task)
    assert (trace.total, trace.kind) == (exact_trace(plain).total, "hessian")
    assert minimum_sharpness(task).value == pytest.approx(minimum_sharpness(plain).value, rel=1e-12)


def test_a_record_of_such_a_model_has_accuracy_and_passes_its_checks():
    facts = []
    for form in (lambda z, h: z, TAKEN["ModelOutput"]):
        record = analyze(Task(Network(form), nn.CrossEntropyLoss(), batches(Y, 5, 6)), lanczos_steps=10, num_probes=4)[
            0
        ]
        assert {check.verdict for check in record.checks} <= {"agrees", "inconclusive"}
        facts.append(record.facts)
    assert facts[0] == facts[1]
    assert 0 <= facts[0]["accuracy"] <= 1


def test_a_criterion_of_ones_own_is_given_what_the_model_returns():
    def criterion(output, target):
        return F.cross_entropy(output.logits, target) + 0.1 * output.hidden_states[0].square().sum(1).mean()

    task = Task(Network(TAKEN["ModelOutput"]), criterion, batches(Y, 5, 6))
    plain = Task(Network(lambda z, h: {"z": z, "h": h}), lambda o, t: F.cross_entropy(o["z"], t)
                 + 0.1 * o["h"].square().sum(1).mean(), batches(Y, 5, 6))  # fmt: skip
    for found, expected in zip(matrices(task), matrices(plain)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda z, h: {"out": z, "aux": h}, "a dict with the entries out, aux"),
        (lambda z, h: {"a": z, "b": z}, "a dict with the entries a, b"),
        (lambda z, h: {}, "a dict"),
        (lambda z, h: SimpleNamespace(a=z), "a SimpleNamespace"),
        (lambda z, h: ClassifierOutput(hidden_states=(h,)), "a ClassifierOutput with the entries hidden_states"),
        (lambda z, h: ((z, h), h), r"a tuple of 2 \(tuple, Tensor\)"),
        (lambda z, h: None, "a NoneType"),
    ],
)
def test_an_output_without_a_clear_tensor_is_refused_naming_what_it_has(form, words):
    with pytest.raises(TaskError, match=rf"returns {words}.*forward=lambda model, batch") as caught:
        HessianOperator(Task(Network(form), nn.CrossEntropyLoss(), batches(Y, 11))) @ torch.ones(43)
    assert "\n" not in str(caught.value)


def test_a_criterion_of_ones_own_that_fails_on_an_output_is_told_what_it_was_given():
    task = Task(Network(TAKEN["dict with logits"]), lambda o, t: F.cross_entropy(o, t), batches(Y, 11))
    with pytest.raises(
        TaskError, match=r"which is given a dict with the entries hidden, logits, fails at .*test_model_io"
    ):
        HessianOperator(task) @ torch.ones(43)


# -- batches without a target


def autoencoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4))


UNLABELLED = {
    "tensor": (list(torch.split(X, (5, 6))), lambda batch: batch, "target=lambda batch: batch;"),
    "loader": (torch.utils.data.DataLoader(X, batch_size=5), lambda batch: batch, "target=lambda batch: batch;"),
    "list of one": (
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=5),
        lambda batch: batch[0],
        r"target=lambda batch: batch\[0\];",
    ),
    "tuple of one": ([(X,)], lambda batch: batch[0], r"target=lambda batch: batch\[0\];"),
}


@pytest.mark.parametrize("form", UNLABELLED)
def test_an_autoencoder_needs_a_target_and_nothing_else(form):
    data, target, words = UNLABELLED[form]
    with pytest.raises(DataError, match=f"so it has no target.*{words}") as caught:
        HessianOperator(Task(autoencoder(), nn.MSELoss(), data)) @ torch.ones(22)
    assert "\n" not in str(caught.value)
    task = Task(autoencoder(), nn.MSELoss(), data, target=target)
    plain = Task(autoencoder(), nn.MSELoss(), [(X, X)])
    for kind in (HessianOperator, GGNOperator):
        assert torch.allclose(kind(task) @ torch.eye(22), kind(plain) @ torch.eye(22), rtol=1e-10, atol=1e-13)
    assert exact_trace(task).total == pytest.approx(exact_trace(plain).total, rel=1e-12)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": X, "y": Y}, "a dict of 2, not a pair"),
        ((X, Y, Y), "a tuple of 3, not a pair"),
        (Single(X), "a Single, not a pair"),
    ],
)
def test_other_batches_say_what_to_pass(batch, words):
    with pytest.raises(DataError, match=rf"{words} \(x, y\): pass forward=.* and target="):
        HessianOperator(Task(Network(lambda z, h: z), nn.CrossEntropyLoss(), [batch])) @ torch.ones(43)


# -- shapes of output and target


class Narrow(nn.Module):
    """Predicts ``(N, 1)`` as regressors do, or ``(N,)``."""

    def __init__(self, squeeze=False):
        super().__init__()
        self.net, self.squeeze = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), squeeze

    def forward(self, x):
        return self.net(x).squeeze(-1) if self.squeeze else self.net(x)


OVER_ELEMENTS = {
    "MSELoss": nn.MSELoss(),
    "SmoothL1Loss": nn.SmoothL1Loss(),
    "HuberLoss": nn.HuberLoss(),
    "BCEWithLogitsLoss": nn.BCEWithLogitsLoss(),
    "mse_loss": F.mse_loss,
    "MSELoss as a sum": nn.MSELoss(reduction="sum"),
    "L1Loss": nn.L1Loss(),
}
TARGET = (torch.arange(11) % 2).to(torch.float64)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("sizes", [(11,), (5, 6), (10, 1)])
@pytest.mark.parametrize("criterion", OVER_ELEMENTS)
def test_output_and_target_that_broadcast_to_all_pairs_are_refused(criterion, sizes):
    function = OVER_ELEMENTS[criterion]
    kinds = (
        (EmpiricalFisherOperator,) if criterion == "L1Loss" else (HessianOperator, GGNOperator, EmpiricalFisherOperator)
    )
    n = sizes[0]
    for model, target, shapes, remedy in (
        (Narrow(), TARGET, rf"output of shape \({n}, 1\) and a target of shape \({n},\)", r"target\.unsqueeze\(-1\)"),
        (
            Narrow(True),
            TARGET[:, None],
            rf"output of shape \({n},\) and a target of shape \({n}, 1\)",
            r"squeeze\(-1\)",
        ),
    ):
        for kind in kinds:
            with pytest.raises(TaskError, match=f"{shapes}: give both one shape, by .*{remedy}") as caught:
                kind(Task(model, function, batches(target, *sizes))) @ torch.ones(19)
            assert "\n" not in str(caught.value)
        reasons = exact_trace(Task(model, function, batches(target, *sizes))).reasons
        assert any("shape" in reason for reason in reasons)
    same = Narrow()
    for model, target in ((same, TARGET[:, None]), (Narrow(True), TARGET)):
        model.load_state_dict(same.state_dict())
        products = [kind(Task(model, function, batches(target, *sizes))) @ torch.ones(19) for kind in kinds]
        assert all(bool(torch.isfinite(product).all()) for product in products)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("sizes", [(11,), (5, 6)])
@pytest.mark.parametrize(
    "loss",
    [
        lambda output, target: F.mse_loss(output, target),
        lambda output, target: F.huber_loss(target=target, input=output),
        lambda output, target: ((output - target) ** 2).mean(),
        lambda output, target: F.softplus(output * target).mean(),
    ],
)
def test_the_same_in_a_criterion_of_ones_own(loss, sizes):
    with pytest.raises(TaskError, match=rf"output of shape \({sizes[0]}, 1\) and a target of shape \({sizes[0]},\)"):
        HessianOperator(Task(Narrow(), loss, batches(TARGET, *sizes))) @ torch.ones(19)
    shaped = Task(Narrow(), lambda output, target: loss(output.squeeze(-1), target), batches(TARGET, *sizes))
    assert bool((HessianOperator(shaped) @ torch.ones(19)).any())


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_the_same_in_a_loss_of_model_and_batch():
    task = Task.from_loss(Narrow(), lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), batches(TARGET, 11))
    with pytest.raises(TaskError, match=r"the loss fails at .*lambda.* mse_loss is given an output of shape \(11, 1\)"):
        HessianOperator(task) @ torch.ones(19)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_broadcasting_that_leaves_the_number_of_elements_alone_is_none_of_these():
    """A residual against zero, and an output with a leading dimension of one."""
    residual = Task.from_loss(Narrow(), lambda m, b: F.mse_loss(m(b[0]), torch.zeros(1)), batches(TARGET, 5, 6))
    assert bool((HessianOperator(residual) @ torch.ones(19)).any())
    data, forward = batches(TARGET[:, None], 11), lambda model, batch: model(batch[0])[None]
    leading = Task(model := Narrow(), nn.MSELoss(), data, forward=forward)
    plain = Task(model, nn.MSELoss(), data)
    assert torch.allclose(
        HessianOperator(leading) @ torch.ones(19), HessianOperator(plain) @ torch.ones(19), rtol=1e-12
    )
    with pytest.raises(TaskError, match=r"MSELoss is given an output of shape \(11, 1\) and a target of shape \(1,\)"):
        HessianOperator(Task(model, nn.MSELoss(), [(X, torch.zeros(1))])) @ torch.ones(19)
