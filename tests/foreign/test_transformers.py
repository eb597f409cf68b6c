"""Language and vision models of transformers: products, traces and the command line beside float64 references.

Weights are random, and nothing is fetched from anywhere; `tests/foreign_networks.py` has the references.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import dense_hessian
from click.testing import CliRunner
from foreign_networks import analysed, data_of, library, network, reference, reference_scores, task_of, write_task

from spectra import GGNOperator, HessianOperator, Task, analyze
from spectra.errors import TaskError
from spectra.results.trace_checks import DISAGREES
from spectra_cli.main import main

pytestmark = [pytest.mark.foreign, pytest.mark.usefixtures("transformers")]
#: Llama normalises in float32 whatever the precision of its weights, so that its products carry that rounding.
ROUNDING = {"gpt2": 1e-12, "llama": 1e-6, "bert": 1e-12, "vit": 1e-12}


@pytest.fixture(scope="module")
def transformers():
    return library("transformers")


def flat(pieces):
    return torch.cat([piece.reshape(-1) for piece in pieces])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ROUNDING)
def test_products_traces_and_ends_are_those_of_the_dense_hessian(name):
    model = network(name).float()
    loss, tensors = reference(model, name)
    dense = dense_hessian(loss, tensors).detach()
    scale = float(dense.norm())
    assert scale > 1e-1
    operator = HessianOperator(task_of(model, name), dtype="float64")
    v = torch.randn(operator.n, 3)
    assert float((operator @ v - dense @ v).norm()) <= ROUNDING[name] * float((dense @ v).norm())

    (record,) = analyze(task_of(model, name), lanczos_steps=30, num_probes=8, metrics="none")  # float32, the default
    assert record.facts["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert all(check.verdict != DISAGREES for check in record.checks)
    eigenvalues = np.linalg.eigvalsh(dense)
    trace = record.estimates["trace"]
    assert abs(trace.value - eigenvalues.sum()) < 4 * trace.stderr
    for end, truth in (("lambda_max", eigenvalues[-1]), ("lambda_min", eigenvalues[0])):
        assert record.estimates[end].lower - 1e-5 * scale <= truth <= record.estimates[end].upper + 1e-5 * scale


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ROUNDING)
def test_gauss_newton_products_are_those_of_the_dense_matrix(name):
    """G v = J' A J v with A = diag(p) - p p' for each row of scores, J one row at a time."""
    model = network(name).float()
    scores, tensors = reference_scores(model, name)
    jacobian = torch.stack([flat(torch.autograd.grad(z, tensors, retain_graph=True)) for z in scores.reshape(-1)])
    operator = GGNOperator(task_of(model, name), dtype="float64")
    v = torch.randn(operator.n)
    u, p = (jacobian @ v).view_as(scores), scores.softmax(1).detach()
    truth = jacobian.T @ (p * u - p * (p * u).sum(1, keepdim=True)).reshape(-1) / len(scores)
    assert float(truth.norm()) > 1e-2
    assert float((operator @ v - truth).norm()) <= ROUNDING[name] * float(truth.norm())


def returned(model, batch):
    """The loss that a model of transformers computes itself, given the labels."""
    return model(**batch).loss


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_loss_that_the_model_returns_itself_gives_the_same_products(name, dtype):
    """GPT-2's is computed in float32 also by a model in float64, which is no reason to refuse it."""
    model = network(name).float()
    batches, _, _ = data_of(name)
    pairs = [(b, b) for b in batches] if name == "gpt2" else batches
    task = Task.from_loss(model, returned, [{"input_ids": x, "labels": y} for x, y in pairs])
    loss, tensors = reference(model, name)
    gradient = flat(torch.autograd.grad(loss, tensors, create_graph=True))
    operator = HessianOperator(task, dtype=dtype)
    v = torch.randn(operator.n)
    truth = flat(torch.autograd.grad(gradient @ v, tensors))
    product = (operator @ v.to(operator.torch_dtype)).double()
    assert float((product - truth).norm()) <= 1e-5 * float(truth.norm())


@pytest.mark.usefixtures("float64")
def test_a_returned_loss_over_rows_with_unequal_padding_needs_the_number_of_tokens():
    """It is a mean over the tokens that count, which a batch does not say: refused, and taken with weight=."""
    model = network("gpt2").float()
    _, symbols, _ = data_of("gpt2")
    labels = symbols.clone()
    labels[0, 2:], labels[5, 4:] = -100, -100
    batches = [{"input_ids": x, "labels": y} for x, y in zip(symbols.split((4, 3)), labels.split((4, 3)))]
    with pytest.raises(TaskError, match="weight="):
        _ = HessianOperator(Task.from_loss(model, returned, batches)) @ torch.ones(1040)

    def counted(batch):
        return (batch["labels"][:, 1:] != -100).sum()

    operator = HessianOperator(Task.from_loss(model, returned, batches, weight=counted))
    loss, tensors = reference(model, "gpt2", labels[:, 1:].flatten())
    gradient = flat(torch.autograd.grad(loss, tensors, create_graph=True))
    v = torch.randn(operator.n)
    truth = flat(torch.autograd.grad(gradient @ v, tensors))
    assert float(((operator @ v.float()).double() - truth).norm()) <= 1e-5 * float(truth.norm())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_saved_folder_is_analysed_from_the_command_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = network(name, seed=4)
    model.save_pretrained("model")
    (record,) = analysed(tmp_path, f"return task_of(network({name!r}, seed=9), {name!r})", "model")
    loss, _ = reference(model, name)
    assert record["facts"]["loss"] == pytest.approx(loss.item(), rel=1e-5)  # of the file's weights, not the task's


def test_a_file_whose_tensors_the_library_has_renamed_is_refused_and_a_state_dict_is_taken(tmp_path, monkeypatch):
    """transformers 5 writes a ViT under the names of its older versions, which are not those of the model."""
    monkeypatch.chdir(tmp_path)
    body = "return task_of(network('vit', seed=9), 'vit')"
    model = network("vit", seed=4)
    model.save_pretrained("renamed")
    ran = CliRunner().invoke(main, ["analyze", "renamed", *write_task(tmp_path, body), "--out", "out.h5"])
    assert ran.exit_code != 0
    assert "does not fit the model" in ran.output
    assert not (tmp_path / "out.h5").exists()
    torch.save(model.state_dict(), "vit.pt")
    (record,) = analysed(tmp_path, body, "vit.pt")
    assert record["facts"]["loss"] == pytest.approx(reference(model, "vit")[0].item(), rel=1e-5)


def test_the_checkpoints_of_a_trainer_are_a_run_in_the_order_of_their_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    losses = []
    for step in (8, 16, 104):
        model = network("gpt2", seed=step)
        model.save_pretrained(f"run/checkpoint-{step}")
        losses.append(reference(model, "gpt2")[0].item())
    records = analysed(tmp_path, "return task_of(network('gpt2', seed=9), 'gpt2')", "run")
    assert [record["step"] for record in records] == [8, 16, 104]
    assert [record["facts"]["loss"] for record in records] == pytest.approx(losses, rel=1e-5)
