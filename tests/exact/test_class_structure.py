"""Class means of the Gauss-Newton matrix against the definitions, by the gradient of every sample and class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import batches_of
from small_nets import make
from torch import nn

from spectra import GGNOperator, Task, exact_trace
from spectra.errors import OutOfMemory, TaskError
from spectra.exact import class_structure as module
from spectra.exact.class_structure import class_structure

pytestmark = pytest.mark.usefixtures("float64")


def by_definition(model, x, y, weights):
    """The four matrices of the decomposition, from delta_icd = J_i'(e_d - p_i) of each target."""
    logits = model(x).movedim(1, -1).reshape(-1, 3)
    ps, deltas, probabilities = list(model.parameters()), [], []
    for row in logits:
        J = torch.stack(
            [torch.cat([g.reshape(-1) for g in torch.autograd.grad(z, ps, retain_graph=True)]) for z in row]
        )
        p = row.softmax(0).detach()
        deltas.append((torch.eye(3) - p) @ J)  # (d, n)
        probabilities.append(p)
    delta, p = torch.stack(deltas).numpy(), torch.stack(probabilities).numpy() * weights[:, None]
    y = y.reshape(-1).numpy()
    whole = np.einsum("id,idn,idm->nm", p, delta, delta)
    parts = {name: np.zeros_like(whole) for name in ("class", "same_class", "cross_class")}
    for c in np.unique(y[weights > 0]):
        own = y == c
        w = p[own].sum(axis=0)
        mean = np.einsum("id,idn->dn", p[own], delta[own]) / w[:, None]
        others = [d for d in range(3) if d != c]
        total = w[others].sum()
        middle = w[others] @ mean[others] / total
        parts["class"] += total * np.outer(middle, middle)
        parts["same_class"] += w[c] * np.outer(mean[c], mean[c])
        for d in others:
            parts["cross_class"] += w[d] * np.outer(mean[d] - middle, mean[d] - middle)
    return whole, parts | {"within": whole - sum(parts.values())}


def data_of(task):
    return (torch.cat(pieces) for pieces in zip(*task.data))


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=torch.tensor([0.25, 1.0, 3.0], dtype=torch.float64)),
    ],
)
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_it_is_the_decomposition_by_samples(criterion, l2):
    task = make("mine", criterion, l2=l2)
    x, y = data_of(task)
    weights = np.ones(12) if criterion.weight is None else criterion.weight[y].numpy()
    weights = weights if criterion.reduction == "sum" else weights / weights.sum()
    whole, parts = by_definition(task.model, x, y, weights)
    operator = GGNOperator(task)
    total = exact_trace(task).total - l2 * operator.n
    assert total == pytest.approx(np.trace(whole), rel=1e-10)
    found = class_structure(operator, total)
    assert found.labels.tolist() == np.unique(y.numpy()).tolist()
    traces = {name: np.trace(matrix) for name, matrix in parts.items()}
    assert found.traces == pytest.approx(traces, rel=1e-9, abs=1e-13)
    assert sum(found.shares.values()) == pytest.approx(1)
    for values, matrix in (
        (found.class_eigenvalues, parts["class"]),
        (found.eigenvalues, parts["class"] + parts["same_class"]),
    ):
        dense = np.linalg.eigvalsh(matrix)[::-1]
        np.testing.assert_allclose(values, dense[: len(values)], rtol=1e-9, atol=1e-13)
        assert abs(dense[len(values) :]).max() < 1e-12
    assert (found.eigenvalues <= np.linalg.eigvalsh(whole)[::-1][: len(found.labels)] + 1e-13).all()
    assert min(traces.values()) > 1e-4


def test_positions_are_targets_and_ignored_ones_are_none():
    model = nn.Conv1d(2, 3, 2)
    x, y = torch.randn(6, 2, 5), torch.randint(2, (6, 4))
    y[0, :2] = y[3] = -100
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 2))
    kept = (y != -100).reshape(-1).numpy()
    whole, parts = by_definition(model, x, y, kept / kept.sum())
    found = class_structure(GGNOperator(task), float(np.trace(whole)))
    assert found.labels.tolist() == [0, 1]
    traces = {name: np.trace(matrix) for name, matrix in parts.items()}
    assert found.traces == pytest.approx(traces, rel=1e-9, abs=1e-13)


def test_one_batch_or_several_make_no_difference():
    task = make("mine")
    x, y = data_of(task)
    whole = Task(task.model, task.criterion, [(x, y)])
    one, other = class_structure(GGNOperator(task), 1.0), class_structure(GGNOperator(whole), 1.0)
    np.testing.assert_allclose(one.gram, other.gram, rtol=1e-11, atol=1e-14)
    assert one.cross_class == pytest.approx(other.cross_class, rel=1e-11)


def test_refusals(monkeypatch):
    both = nn.CrossEntropyLoss(weight=torch.ones(3), label_smoothing=0.1)
    for task, words in (
        (make("mine", both), "together with label smoothing"),
        (Task(nn.Linear(2, 1), nn.MSELoss(), [(torch.ones(3, 2), torch.ones(3, 1))]), "no classes"),
    ):
        with pytest.raises(TaskError, match=words):
            class_structure(GGNOperator(task), 1.0)
    operator = GGNOperator(make("mine"))
    _ = operator.self_test
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match="class means need"):
        class_structure(operator, 1.0)
    monkeypatch.setattr(module, "MOST", 2)
    with pytest.raises(TaskError, match="3 classes: class means are computed for at most 2"):
        class_structure(operator, 1.0)
