"""What the exact trace says of itself: drawn columns, refusals, other dtypes, and that the model is left alone."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from cases import CASES, batches_of
from exact_networks import NETWORKS, Affine, HiddenLinear, Tokens, Unseen, images, settled, task_of
from torch import nn

from spectra import GGNOperator, Task, exact_diagonal, exact_trace
from spectra.errors import ArgumentError
from spectra.exact.samples import SampleGradients
from spectra.jsonable import to_jsonable

pytestmark = pytest.mark.usefixtures("float64")


def wide(classes=60):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))
    x, y = torch.randn(12, 4), torch.randint(classes, (12,))
    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 5, 5, 2), l2=0.01)


# -- drawn columns


@pytest.mark.parametrize("make", [wide, lambda: task_of(Tokens(pool=False), torch.randint(6, (7, 5)), TOKENS)])
def test_drawn_columns_are_unbiased_with_an_honest_error(make):
    task = make()
    exact, drawn = exact_trace(task, method="exact"), exact_trace(task, method="monte-carlo", draws=400)
    assert exact.stderr is None
    assert 0 < drawn.stderr < 0.05 * exact.total
    assert abs(drawn.total - exact.total) < 4 * drawn.stderr
    assert drawn.method.startswith("Monte-Carlo: 400 draws")
    assert drawn.kind == "hessian"
    for name, value in exact.by_layer.items():
        assert abs(drawn.by_layer[name] - value) <= 4.5 * drawn.stderr_by_layer[name] + 1e-12
    true, found = exact_diagonal(task, method="exact"), exact_diagonal(task, method="monte-carlo", draws=400)
    z = torch.cat([((found[n] - true[n]) / found.stderr[n].clamp(min=1e-12)).reshape(-1) for n in true])
    assert float(z.abs().max()) < 6
    assert float(z.square().mean()) == pytest.approx(1, abs=0.5)


TOKENS = torch.randint(3, (7, 5), generator=torch.Generator().manual_seed(4))


def test_an_indefinite_criterion_can_be_drawn():
    task = task_of(
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
        torch.randn(7, 4),
        torch.randn(7, 3),
        lambda z, t: (z[:, :1] * (z * t).sin()).sum(1).mean(),
    )
    exact, drawn = exact_trace(task), exact_trace(task, method="monte-carlo", draws=600)
    assert abs(drawn.total - exact.total) < 4 * drawn.stderr


def test_many_classes_are_drawn_and_few_are_not():
    assert exact_trace(wide(60), draws=4).stderr is not None
    assert exact_trace(wide(20)).stderr is None


def test_draws_depend_on_the_seed_alone():
    task = wide()
    first, again, other = (exact_trace(task, draws=3, seed=seed).total for seed in (1, 1, 2))
    assert first == again
    assert first != other


# -- refusals


def test_batch_norm_in_train_mode_has_no_exact_form():
    task = task_of(settled(Affine()), images(size=(4, 4)))
    trace, diagonal = exact_trace(task, "train"), exact_diagonal(task, "train")
    assert trace.total is None
    assert trace.kind is None
    assert not trace.applies
    assert "slq(GGNOperator(task, bn_mode='train'))" in trace.reasons[0]
    assert not diagonal
    assert diagonal.kind is None
    assert diagonal.reasons == trace.reasons


def test_train_mode_without_batch_norm_is_no_other_mode():
    task = wide(5)
    assert exact_trace(task, "train").total == exact_trace(task).total


def test_batch_norm_without_running_statistics_is_refused_in_every_mode():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))
    assert "depend on the others of its batch" in exact_trace(task_of(model, torch.randn(7, 4))).reasons[0]


def test_samples_that_are_mixed_in_forward_are_refused():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = torch.relu(self.body(x))
            return self.head(h - h.mean(0))

    trace = exact_trace(task_of(Mixing(), torch.randn(7, 4)))
    assert trace.total is None
    assert "depend on each other" in trace.reasons[0]


@pytest.mark.parametrize("first", [0, 1])
def test_samples_that_are_mixed_one_way_are_refused(first):
    """Every second row takes something of its neighbour, which takes nothing back."""

    class OneWay(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = torch.relu(self.body(x))
            taking = (torch.arange(len(x)) + first) % 2
            return self.head(h + 1e-3 * taking[:, None] * h.roll(1, 0))

    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    trace = exact_trace(Task(OneWay(), nn.CrossEntropyLoss(), [(x, y)]))
    assert trace.total is None
    assert "depend on each other" in trace.reasons[0]


def test_rounding_that_depends_on_other_rows_costs_a_pass_and_no_closed_form(monkeypatch):
    """As kernels round differently for other contents of a block of rows."""
    task = wide(5)
    expected = exact_trace(task)
    monkeypatch.setattr("spectra.exact.use_checks.torch.equal", lambda *_: False)
    found = exact_trace(task)
    assert (found.by_layer, found.method) == (expected.by_layer, "exact: 4 columns")


@pytest.mark.parametrize("entry", [(0, 0), (2, 3)])
def test_a_use_that_no_mode_sees_is_found_in_any_entry_of_a_weight(entry):
    class Entry(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            hidden = HiddenEntry.apply(x, self.body.weight, entry)
            return self.head(torch.relu(self.body(x))) + 0.1 * hidden

    task = task_of(Entry(), torch.randn(7, 4))
    G = GGNOperator(task)
    assert exact_trace(task).total == pytest.approx(float((G @ torch.eye(G.n)).trace()), rel=1e-10)
    assert "formed for 1 of 4" in exact_trace(task).method


class HiddenEntry(torch.autograd.Function):
    """An entry of a matrix times each row's sum, in a custom function."""

    @staticmethod
    def forward(ctx, x, w, entry):
        ctx.save_for_backward(x, w)
        ctx.entry = entry
        return x.sum(1, keepdim=True) * w[entry]

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        mask = torch.zeros_like(w)
        mask[ctx.entry] = 1
        return None, (grad * x.sum(1, keepdim=True)).sum() * mask, None


def test_a_task_without_a_split_is_refused():
    task = Task.from_loss(nn.Linear(3, 2), lambda m, b: m(b[0]).square().mean(), [(torch.randn(4, 3),)])
    assert exact_trace(task).total is None
    assert "no such split" in exact_trace(task).reasons[0]


def test_a_criterion_without_a_second_derivative_is_refused_with_the_reason():
    task = Task(nn.Linear(3, 2), nn.L1Loss(), batches_of(torch.randn(4, 3), torch.randn(4, 2), 4))
    assert exact_trace(task).total is None
    assert "no second derivative" in exact_trace(task).reasons[0]


def test_a_part_that_only_some_batches_have_is_counted():
    """Neither a mode nor the shapes of the calls show that the second batch goes through one more weight."""

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.extra = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return self.body(x) + (HiddenLinear.apply(x, self.extra) if bool((x[:, 0] > 5).all()) else 0)

    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    x[4:, 0] = 6.0
    task = Task(Sometimes(), nn.CrossEntropyLoss(), batches_of(x, y, 4, 4))
    G = GGNOperator(task)
    assert exact_trace(task).total == pytest.approx(float((G @ torch.eye(G.n)).trace()), rel=1e-10)


@pytest.mark.parametrize("options", [{"method": "probes"}, {"draws": 1}, {"bn_mode": "both"}, {"params": "nothing*"}])
def test_arguments_outside_their_range_are_named(options):
    (name,) = options
    with pytest.raises(ArgumentError, match=name):
        exact_trace(wide(), **options)


# -- other roads to the same numbers


@pytest.mark.parametrize("case", [case for case in CASES if case.ggn], ids=lambda case: case.name)
def test_every_task_of_the_operators_has_the_trace_of_its_operator(case):
    task, _ = case.make()
    G = GGNOperator(task)
    diagonal = (G @ torch.eye(G.n)).diagonal()
    found = exact_diagonal(task)
    flat = torch.cat([entries.reshape(-1) for entries in found.values()])
    assert torch.allclose(flat, diagonal, rtol=0, atol=1e-12 * float(diagonal.abs().max()))
    assert exact_trace(task).total == pytest.approx(float(diagonal.sum()), rel=1e-11)


def test_the_trace_is_that_of_the_operator():
    task = task_of(settled(Affine()), images(size=(4, 4)), l2=0.1)
    for mode in ("eval", "recalibrated"):
        G = GGNOperator(task, mode)
        dense = G @ torch.eye(G.n)
        assert exact_trace(task, mode).total == pytest.approx(float(dense.trace()), rel=1e-10)
    assert exact_trace(task).total != pytest.approx(exact_trace(task, "recalibrated").total, rel=1e-3)


def test_float32_agrees_with_float64_to_its_rounding():
    task = task_of(settled(Affine()), images(size=(4, 4)))
    low, high = exact_trace(task, dtype="float32"), exact_trace(task)
    assert low.total == pytest.approx(high.total, rel=1e-5)
    assert low.total != high.total
    assert low.applies


def test_chosen_parameters_alone():
    task = wide(5)
    whole, part = exact_trace(task), exact_trace(task, params="2.*")
    assert part.by_layer == {name: value for name, value in whole.by_layer.items() if name.startswith("2.")}
    assert whole.by_module == pytest.approx({"0": whole.total - part.total, "2": part.total})


def test_it_does_not_depend_on_the_batches():
    task = wide(5)
    one, many = exact_diagonal(task), exact_diagonal(task.rebatched(1))
    assert all(torch.allclose(one[name], many[name], rtol=1e-12, atol=0) for name in one)


def test_rows_that_are_sorted_by_their_content_are_noticed_in_every_batch():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):  # (samples, 2 tokens, features)
            rows = x.flatten(0, 1)
            order = rows[:, 0].argsort()
            return self.head(torch.relu(self.body(rows[order]))[order.argsort()].view(len(x), 2, 5).sum(1))

    x, y = torch.randn(8, 2, 4), torch.randint(3, (8,))
    x[:4, :, 0] = torch.arange(8.0).view(4, 2)  # the first batch is in order by itself
    assert bool((x[4:].flatten(0, 1)[:, 0].diff() < 0).any())
    task = Task(Sorted(), nn.CrossEntropyLoss(), batches_of(x, y, 4, 4))
    G = GGNOperator(task)
    diagonal = torch.cat([entries.reshape(-1) for entries in exact_diagonal(task).values()])
    assert torch.allclose(diagonal, (G @ torch.eye(G.n)).diagonal(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["grouped_dilated_strided", "transposed", "tokens_flattened", "lstm", "indefinite"])
def test_small_memory_changes_no_number(name, monkeypatch):
    """Single columns, samples one by one, and the gradients of single samples in chunks of one."""
    task = next(network for network in NETWORKS if network.name == name).make()
    roomy, trace = exact_diagonal(task), exact_trace(task)
    monkeypatch.setattr("spectra.exact.layers.CHUNK_BYTES", 1)
    monkeypatch.setattr("spectra.exact.linearised.GROUP_BYTES", 1)
    monkeypatch.setattr("spectra.exact.samples.GROUP_BYTES", 1)
    tight = exact_diagonal(task)
    assert all(torch.allclose(tight[key], roomy[key], rtol=1e-11, atol=1e-15) for key in roomy)
    assert exact_trace(task).total == pytest.approx(trace.total, rel=1e-11)


def test_a_pass_for_each_row_gives_what_all_rows_together_give(monkeypatch):
    task = task_of(Unseen(), torch.randn(7, 4))
    together = exact_diagonal(task)
    monkeypatch.setattr(SampleGradients, "_vmapped", lambda *_: None)
    alone = exact_diagonal(task)
    assert all(torch.allclose(together[name], alone[name], rtol=1e-12, atol=1e-16) for name in alone)


# -- what is left behind


def test_the_model_and_the_random_state_are_left_alone():
    model = settled(Affine()).train()
    task = task_of(model, images(size=(4, 4)))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    exact_diagonal(task), exact_trace(task, "recalibrated", draws=3, method="monte-carlo")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_trace_is_json_with_all_its_fields():
    trace = exact_trace(wide(), draws=3)
    assert trace.to_json().items() >= to_jsonable(dataclasses.asdict(trace)).items()
    assert trace.to_json()["applies"] == trace.applies
    assert math.isclose(sum(trace.by_module.values()), trace.total)
