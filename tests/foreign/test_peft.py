"""LoRA adapters of peft on a tiny GPT-2: the curvature in the adapter's parameters alone, and its saved folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import dense_hessian
from foreign_networks import adapted, adapted_reference, analysed, library, task_of

from spectra import HessianOperator, slq

pytestmark = [pytest.mark.foreign, pytest.mark.usefixtures("peft")]


@pytest.fixture(scope="module")
def peft():
    library("transformers")
    return library("peft")


@pytest.mark.usefixtures("float64")
def test_the_curvature_in_the_adapter_is_that_of_the_dense_hessian():
    model = adapted(3).float()
    loss, tensors = adapted_reference(model)
    dense = dense_hessian(loss, tensors).detach()
    operator = HessianOperator(task_of(model, "gpt2"), dtype="float64")
    assert operator.n == len(dense) == 2 * (8 + 24) + 2 * (8 + 32)  # rank 2 on 8 x 24 and on 8 x 32
    assert float(dense.norm()) > 1e-2
    assert float((operator @ torch.eye(operator.n) - dense).norm()) <= 1e-12 * float(dense.norm())
    eigenvalues = np.linalg.eigvalsh(dense)
    spectrum = slq(operator, lanczos_steps=30, num_probes=8)
    assert abs(spectrum.trace().value - eigenvalues.sum()) < 4 * spectrum.trace().stderr
    for end, truth in ((spectrum.lambda_max(), eigenvalues[-1]), (spectrum.lambda_min(), eigenvalues[0])):
        assert end.lower - 1e-9 <= truth <= end.upper + 1e-9


def test_the_folder_of_an_adapter_is_analysed_from_the_command_line(tmp_path, monkeypatch):
    """The file has the adapter alone: the base comes with the task, and the record is of the file's adapter."""
    monkeypatch.chdir(tmp_path)
    model = adapted(3)
    model.save_pretrained("adapter")
    loss, tensors = adapted_reference(model)
    (record,) = analysed(tmp_path, "return task_of(adapted(9), 'gpt2')", "adapter", "--partial")
    assert record["facts"]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["facts"]["n_parameters"] == sum(p.numel() for p in tensors)
