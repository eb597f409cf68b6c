"""Losses that cast to a lower precision on the way: accepted at that precision, with noise that is honest about it.

The reference is the same network without the casts, in float64, by its dense Hessian.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields

import pytest
import torch
from cases import batches_of, dense_hessian, parameters
from torch import nn
from torch.nn import functional as F

from spectra import (
    GGNOperator,
    HessianOperator,
    Task,
    adaptive_sharpness,
    analyze,
    bn_sharpness,
    delta_sharpness,
    exact_trace,
    gradient_norm,
    minimum_sharpness,
    normalized_sharpness,
    slq,
)
from spectra.errors import TaskError

pytestmark = pytest.mark.usefixtures("float64")


class ModelOutput(OrderedDict):
    """What Hugging Face's class of this name does: a dictionary and a dataclass, which refuses ``update``."""

    def __post_init__(self):
        for part in fields(self):
            if getattr(self, part.name) is not None:
                super().__setitem__(part.name, getattr(self, part.name))

    def update(self, *args, **kwargs):
        raise Exception("You cannot use ``update`` on a ModelOutput instance.")

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclass
class Output(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class Classifier(nn.Module):
    """A token classifier that computes its own loss, as language models do, from logits in another precision."""

    def __init__(self, low=None, where="logits"):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        self.low, self.where = low, where

    def forward(self, tokens, labels=None):
        h = self.embed(tokens)
        if self.where == "norm" and self.low is not None:  # as an RMS norm that computes in float32
            wide = h.dtype
            h = h.to(self.low)
            h = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).to(wide)
        elif self.where == "norm":
            h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
        logits = self.head(torch.tanh(self.body(h)))
        if self.where == "logits" and self.low is not None:
            logits = logits.to(self.low)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float() if self.low is torch.bfloat16
                                                           else logits.flatten(0, 1), labels.flatten())  # fmt: skip
        return Output(loss=loss, logits=logits)


def own_loss(model, batch):
    return model(batch["tokens"], batch["labels"]).loss


def tokens_and_labels():
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(9, (11, 4), generator=generator) for _ in range(2))


def task_of(low, where="logits", sizes=(4, 7)):
    tokens, labels = tokens_and_labels()
    data = [{"tokens": a, "labels": b} for a, b in batches_of(tokens, labels, *sizes)]
    return Task.from_loss(Classifier(low, where), own_loss, data)


def exact_hessian(where="logits"):
    tokens, labels = tokens_and_labels()
    model = Classifier(None, where)
    return dense_hessian(model(tokens, labels).loss, list(model.parameters()))


def measured_noise(operator, exact):
    """The largest error of a product with one of forty random unit vectors, relative to the spectral norm."""
    vectors = torch.randn(operator.n, 40)
    vectors /= vectors.norm(dim=0)
    return float((operator @ vectors - exact @ vectors).norm(dim=0).max() / torch.linalg.matrix_norm(exact, 2))


LOW = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@pytest.mark.parametrize("sizes", [(11,), (4, 7)])
@pytest.mark.parametrize("where", ["logits", "norm"])
@pytest.mark.parametrize("low", LOW)
def test_a_cast_within_the_loss_is_accepted_named_and_counted_as_noise(low, where, sizes):
    operator, exact = HessianOperator(task_of(low, where, sizes), dtype="float64"), exact_hessian(where)
    noise = measured_noise(operator, exact)
    assert 0.3 * noise < operator.noise < 30 * noise
    assert operator.noise >= torch.finfo(low).eps
    assert any(f"casts to {LOW[low]} on the way" in note for note in operator.self_test.notes)
    pure = HessianOperator(task_of(None, where, sizes), dtype="float64")
    assert pure.noise < 1e-14
    assert not pure.self_test.notes


def test_nothing_is_taken_for_a_cast_where_there_is_none():
    """Also by layers with several outputs, of which some are not used, and where the default dtype is another."""
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    recurrent, x, y = nn.LSTM(4, 3, batch_first=True), torch.randn(9, 4), torch.randint(3, (9,))

    def slope(model, batch):
        x = batch[0].requires_grad_()
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square().sum(1).mean()

    def chosen(model, batch):
        best, where = model(batch[0]).sort(1)
        return (best[:, -1] * torch.linalg.svdvals(best).sum() * (where[:, :1] + 1)).mean()

    data = [(x, y)]
    for task in (
        Task(model, nn.CrossEntropyLoss(), data),
        Task.from_loss(model, slope, data),
        Task.from_loss(model, chosen, data),
        Task(recurrent, nn.CrossEntropyLoss(), data, forward=lambda m, b: m(b[0][:, None])[0][:, 0]),
    ):
        operator = HessianOperator(task, dtype="float64")
        assert operator.self_test.notes == ()
        assert operator.function.carried == torch.float64
        assert operator.noise < 1e-11


def test_float32_products_of_a_model_that_casts_to_less_have_the_noise_of_that():
    operator, exact = HessianOperator(task_of(torch.bfloat16), dtype="float32"), exact_hessian()
    noise = measured_noise(operator, exact)
    assert 0.3 * noise < operator.noise < 30 * noise
    within = HessianOperator(task_of(torch.float32), dtype="float32")  # nothing is lost beyond the operator's own dtype
    assert not within.self_test.notes
    assert within.noise < 1e-5


def test_autocast_within_the_forward_pass_is_seen():
    x, y = torch.randn(9, 4), torch.randint(3, (9,))

    def loss(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(batch[0]).float(), batch[1])

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    task = Task.from_loss(model, loss, batches_of(x, y, 4, 5))
    operator = HessianOperator(task, dtype="float32")
    exact = dense_hessian(F.cross_entropy(model(x), y), parameters(task))
    noise = measured_noise(operator, exact)
    assert noise > 1e-4
    assert 0.3 * noise < operator.noise < 30 * noise
    assert "casts to bfloat16" in operator.self_test.notes[0]


def test_everything_goes_on_at_the_precision_that_there_is():
    task, exact = task_of(torch.float32), exact_hessian()
    eigenvalues = torch.linalg.eigvalsh(exact)
    spectrum = slq(HessianOperator(task), lanczos_steps=60, num_probes=4)
    assert spectrum.spectral_norm().value == pytest.approx(float(eigenvalues.abs().max()), rel=1e-5)
    tokens, labels = tokens_and_labels()
    model = Classifier()
    slope = torch.autograd.grad(model(tokens, labels).loss, list(model.parameters()))
    norm = float(torch.cat([piece.reshape(-1) for piece in slope]).norm())
    for dtype in ("float32", "float64"):
        assert gradient_norm(task, dtype=dtype).value == pytest.approx(norm, rel=1e-5)
    record = analyze(task, lanczos_steps=8, num_probes=2)[0]
    assert any("casts to float32" in note for note in record.notes)


def test_a_cast_within_the_criterion_of_a_split_task():
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    task = Task(model, lambda o, t: F.cross_entropy(o.float(), t), batches_of(x, y, 4, 5))
    plain = Task(model, nn.CrossEntropyLoss(), task.data)
    for kind in (HessianOperator, GGNOperator):
        operator, exact = kind(task), kind(plain) @ torch.eye(43)
        noise = measured_noise(operator, exact)
        assert 0.3 * noise < operator.noise < 30 * noise
    found, expected = exact_trace(task, method="exact"), exact_trace(plain, method="exact")
    assert found.kind == expected.kind == "hessian"
    assert found.total == pytest.approx(expected.total, rel=1e-5)


@pytest.mark.parametrize(("error", "low"), [(1e-3, torch.float32), (1e-6, None), (0.05, torch.bfloat16)])
def test_a_wrong_average_is_refused_with_digits_that_show_it_and_the_cast(error, low):
    """A loss that is a mean but for a part that does not add up; it is more than rounding at the loss's precision."""

    def loss(model, batch):
        return own_loss(model, batch) * (1 + error * (len(batch["tokens"]) > 5))

    task = task_of(low)
    task = Task.from_loss(task.model, loss, task.data)
    with pytest.raises(TaskError, match="weight=") as caught:
        HessianOperator(task) @ torch.ones(159)
    message = str(caught.value)
    whole, parts = (message.split(words)[0].split()[-1] for words in (" as a whole", " in two parts"))
    assert whole != parts
    assert abs(float(whole) / float(parts) - 1) == pytest.approx(error, rel=0.5)
    assert (f"rounding to {LOW.get(low)} within the loss is allowed for" in message) == (low is not None)


class Cast(nn.Module):
    def __init__(self, low):
        super().__init__()
        self.low = low

    def forward(self, x):
        return x.to(self.low)


def network(activation, low):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), activation, Cast(low), Cast(torch.float64), nn.Linear(5, 3))


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize(("activation", "kind"), [(nn.ReLU(), "hessian"), (nn.Tanh(), "ggn")])
def test_the_certificate_of_the_exact_trace_allows_for_rounding_and_no_more(activation, kind, low):
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    exact, cast = (
        exact_trace(Task(network(activation, each), nn.CrossEntropyLoss(), [(x, y)]), method="exact")
        for each in (torch.float64, low)
    )
    assert exact.kind == cast.kind == kind
    assert cast.total == pytest.approx(exact.total, rel=10 * torch.finfo(low).eps)


def test_measures_from_differences_of_losses_say_what_the_cast_leaves_of_them():
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    exact, single, half = (
        Task(network(nn.ReLU(), low), nn.CrossEntropyLoss(), [(x, y)])
        for low in (torch.float64, torch.float32, torch.bfloat16)
    )
    for measure in (adaptive_sharpness, delta_sharpness, bn_sharpness):
        value = measure(exact)
        assert "float32" not in (value.reason or "")
        assert "differences of float32 losses keep few digits" in measure(single).reason
        assert measure(single).value == pytest.approx(value.value, rel=0.05)
        with pytest.raises(TaskError, match="casts to bfloat16 on the way"):
            measure(half)
    value = minimum_sharpness(exact)
    assert minimum_sharpness(single).value == pytest.approx(value.value, rel=1e-5)
    assert "casts to less than float32" in minimum_sharpness(half).reason
    assert normalized_sharpness(half).value == pytest.approx(normalized_sharpness(exact).value, rel=0.05)
