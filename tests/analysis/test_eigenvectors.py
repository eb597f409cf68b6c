"""The analysis of eigenvectors against dense float64 matrices, with the Gauss-Newton matrix written per target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import batches_of, conv_batch_norm, dense_hessian, parameters
from small_nets import make
from torch import nn
from torch.nn import functional as F

from spectra import Task, analyze
from spectra.analysis import eigenvectors
from spectra.exact import classes

pytestmark = pytest.mark.usefixtures("float64")

QUICK = {"lanczos_steps": 8, "num_probes": 2, "metrics": "none", "check": False, "eigenpairs": 4}
KEPT = QUICK | {"save_eigenvectors": True}


def record_of(task, operator, **options):
    (record,) = analyze(task, operators=operator, **(KEPT | options))
    assert record.status == "complete", record.reason
    return record, record.eigenvector_analysis, record.spectrum.eigenpairs


def ggn_of_each_target(model, x, weights):
    """(targets, n, n): J_i'(diag p - pp')J_i times the weight of target i in the loss, by autograd per output."""
    logits = model(x).movedim(1, -1).reshape(-1, 3)
    ps = list(model.parameters())
    found = []
    for row, weight in zip(logits, weights):
        J = torch.stack(
            [torch.cat([g.reshape(-1) for g in torch.autograd.grad(z, ps, retain_graph=True)]) for z in row]
        )
        p = row.softmax(0).detach()
        found.append(weight * J.T @ (torch.diag(p) - torch.outer(p, p)) @ J)
    return torch.stack(found).numpy()


def test_the_shares_of_tensors_and_of_the_gradient():
    task = make("mine", l2=0.25)
    record, found, _ = record_of(task, "hessian")
    (a, s), (b, t) = task.data
    x, y = torch.cat([a, b]), torch.cat([s, t])
    loss = F.cross_entropy(task.model(x), y) + 0.125 * sum((p**2).sum() for p in parameters(task))
    g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, parameters(task), create_graph=True)])
    H, g = dense_hessian(loss, parameters(task)).numpy(), g.detach().numpy()
    values, vectors = np.linalg.eigh(H)
    exact = vectors[:, np.argsort(-abs(values))[:4]]
    sizes = [p.numel() for p in parameters(task)]
    pieces = np.split(exact**2, np.cumsum(sizes)[:-1])
    np.testing.assert_allclose(found.tensor_shares, [piece.sum(axis=0) for piece in pieces], atol=1e-6)
    np.testing.assert_allclose(found.tensor_shares.sum(axis=0), 1, rtol=1e-14)
    assert found.tensors == tuple(record.spectrum.tensor_sizes)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-12)
    assert found.gradient_norm == pytest.approx(record.facts["gradient_norm"], rel=1e-12)
    true = ((exact.T @ g) ** 2).cumsum() / (g @ g)
    known = np.isfinite(found.gradient_bounds)
    assert known.any()
    assert (abs(found.gradient_cumulative - true)[known] <= found.gradient_bounds[known] + 1e-13).all()
    assert found.gradient_curvature == pytest.approx(g @ H @ g / (g @ g), abs=10 * found.curvature_error)
    assert 0 < found.curvature_error < 1e-12


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("options", [{}, {"l2": 0.25}, {"weight": [0.2, 1.0, 3.0]}, {"reduction": "sum"}])
def test_the_parts_of_the_classes(operator, options):
    weight = torch.tensor(options.get("weight", [1.0, 1.0, 1.0]))
    reduction = options.get("reduction", "mean")
    criterion = nn.CrossEntropyLoss(weight=weight, reduction=reduction)
    task = make("mine", criterion, l2=options.get("l2", 0.0))
    _, found, pairs = record_of(task, operator)
    (a, s), (b, t) = task.data
    x, y = torch.cat([a, b]), torch.cat([s, t])
    scale = 1 if reduction == "sum" else float(weight[y].sum())
    each = ggn_of_each_target(task.model, x, weight[y] / scale)
    forms = np.einsum("nk,inm,mk->ik", pairs.vectors, each, pairs.vectors)
    labels = np.unique(y.numpy())
    assert found.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(found.label_weights, [(y.numpy() == label).mean() for label in labels])
    by_class = [forms[y.numpy() == label].sum(axis=0) for label in labels]
    np.testing.assert_allclose(found.class_forms, by_class, rtol=1e-11, atol=1e-14)
    total = found.class_forms.sum(axis=0) + task.l2
    if operator == "ggn":
        assert found.beyond_ggn is None
        np.testing.assert_allclose(total, pairs.values, rtol=0, atol=found.forms_error)
    else:
        np.testing.assert_allclose(total + found.beyond_ggn, pairs.values, rtol=1e-13)
        assert abs(found.beyond_ggn).max() > 1e-3


def test_positions_have_classes_of_their_own_and_ignored_ones_have_none():
    model = nn.Conv1d(2, 3, 2)
    x, y = torch.randn(6, 2, 5), torch.randint(2, (6, 4))
    y[0, :2] = y[3] = -100
    task = Task(model, nn.CrossEntropyLoss(label_smoothing=0.2), batches_of(x, y, 4, 2))
    _, found, pairs = record_of(task, "ggn")
    kept = (y != -100).reshape(-1)
    each = ggn_of_each_target(model, x, kept / kept.sum())
    forms = np.einsum("nk,inm,mk->ik", pairs.vectors, each, pairs.vectors)
    flat = y.reshape(-1).numpy()
    assert found.labels.tolist() == [0, 1]  # the third class has no target
    np.testing.assert_allclose(found.class_forms, [forms[flat == c].sum(axis=0) for c in (0, 1)], rtol=1e-11)
    np.testing.assert_allclose(found.class_forms.sum(axis=0), pairs.values, rtol=1e-11)


@pytest.mark.parametrize("mode", ["eval", "train", "recalibrated"])
def test_the_parts_add_up_with_batch_norm(mode):
    _, found, pairs = record_of(conv_batch_norm()[0], "ggn", bn_modes=mode)
    np.testing.assert_allclose(found.class_forms.sum(axis=0), pairs.values, rtol=0, atol=2 * found.forms_error)


def test_float32_adds_up_within_its_stated_error():
    _, found, pairs = record_of(make("mine"), "ggn", dtype="float32")
    off = abs(found.class_forms.sum(axis=0) - pairs.values)
    assert (off <= found.forms_error).all()
    assert found.forms_error < 1e-5 * pairs.scale
    np.testing.assert_allclose(found.tensor_shares.sum(axis=0), 1, rtol=1e-14)


def test_a_zero_gradient_has_no_shares():
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    task = Task(model, nn.MSELoss(), [(torch.eye(3), torch.zeros(3, 1))])
    _, found, _ = record_of(task, "hessian", eigenpairs=2)
    assert found.gradient_norm == 0
    assert np.isnan(found.gradient_shares).all()
    assert found.gradient_curvature is None
    assert found.class_reason == "no classes: the criterion is not cross-entropy with a class index for each target"
    found.to_json()


def test_what_has_no_classes_says_why(monkeypatch):
    task = make("mine")
    model, data = task.model, task.data
    probabilities = [(x, F.one_hot(y, 3).to(x.dtype)) for x, y in data]
    for odd in (
        Task(model, nn.CrossEntropyLoss(), probabilities),
        Task(model, lambda output, y: F.cross_entropy(output, y), data, weight=lambda batch: len(batch[0])),
    ):
        _, found, _ = record_of(odd, "ggn")
        assert found.class_forms is None
        assert "no classes" in found.class_reason
    loss = Task.from_loss(model, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), data)
    _, found, _ = record_of(loss, "hessian")
    assert "the GGN needs the loss split" in found.class_reason
    _, found, _ = record_of(task, "empirical_fisher")
    assert (found.class_forms, found.class_reason) == (None, None)
    monkeypatch.setattr(classes, "MOST_CLASSES", 2)
    _, found, _ = record_of(task, "ggn")
    assert found.class_reason == "3 classes: at most 2 are told apart"


def test_only_where_eigenpairs_are_asked_for_and_no_other_number_changes():
    (without,) = analyze(make("mine"), **(QUICK | {"eigenpairs": 0}))
    assert without.eigenvector_analysis is None
    torch.manual_seed(0)
    (record,) = analyze(make("mine"), params="*.weight", **QUICK)
    assert record.eigenvector_analysis.tensors == ("0.weight", "2.weight")


def test_a_fault_leaves_the_spectrum(monkeypatch):
    def broken(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(eigenvectors, "total_gradient", broken)
    (record,) = analyze(make("mine"), **QUICK)
    assert (record.status, record.eigenvector_analysis) == ("unverified", None)
    assert "the analysis of the eigenvectors: RuntimeError: no luck" in record.reason
    assert record.spectrum.eigenpairs is not None
