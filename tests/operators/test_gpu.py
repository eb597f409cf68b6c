"""On a CUDA device: the same numbers as on the CPU, to the noise of the products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import conv_batch_norm, tokens_ignored

from spectra import (
    DifferenceHessianOperator,
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    Task,
    deflated,
    eigsh,
    hutchpp,
    loss_slices,
    slq,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.usefixtures("float64"),
]


def on_gpu(task):
    import copy

    model = copy.deepcopy(task.model).to("cuda", torch.float32)
    return Task(model, task.criterion, task.data, forward=task.forward, target=task.target)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize(
    ("make", "mode"), [(conv_batch_norm, "eval"), (conv_batch_norm, "train"), (tokens_ignored, "eval")]
)
def test_float32_on_the_gpu_agrees_with_float64_on_the_cpu(kind, make, mode):
    task, _ = make()
    agree(kind(task, mode), kind(on_gpu(task), mode))


@pytest.mark.parametrize("make", [conv_batch_norm, tokens_ignored])
def test_the_empirical_fisher_matrix_agrees_too(make):
    task, _ = make()
    agree(EmpiricalFisherOperator(task), EmpiricalFisherOperator(on_gpu(task)))


def test_operators_of_operators_agree_too():
    task, _ = conv_batch_norm()
    here, there = (HessianOperator(t) - 0.5 * GGNOperator(t) for t in (task, on_gpu(task)))
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((here.n, 2)))[0]
    agree(here, there)
    for project in (False, True):
        agree(*(deflated(operator, np.ones(2), frame, project=project) for operator in (here, there)))


def test_eigenpairs_and_traces_by_sketches_agree_too():
    task, _ = conv_batch_norm()
    here, there = HessianOperator(task), HessianOperator(on_gpu(task))
    mine, theirs = eigsh(here, 3, "LM"), eigsh(there, 3, "LM")
    assert theirs.complete
    assert np.abs(mine.values - theirs.values).max() <= 20 * there.noise * mine.scale
    spectrum = slq(there, 6, 4, eigenpairs=theirs)
    assert spectrum.deflated_trace().value == pytest.approx(
        slq(here, 6, 4, eigenpairs=mine).deflated_trace().value, abs=np.sqrt(here.n) * 20 * there.noise * mine.scale
    )
    assert hutchpp(there, 12).value == pytest.approx(hutchpp(here, 12).value, rel=1e-3, abs=1e-3 * mine.scale)


def agree(exact, single):
    """With the same probes every Ritz value agrees within 10 eta |H|_2; in six steps no recurrence is exhausted."""
    assert single.device.type == "cuda"
    here = slq(exact, lanczos_steps=6, num_probes=4, seed=3)
    there = slq(single, lanczos_steps=6, num_probes=4, seed=3)
    assert np.nanmax(np.abs(here.nodes - there.nodes)) <= 10 * single.noise * here.spectral_norm().value


def test_products_keep_their_container_and_device():
    task, _ = conv_batch_norm()
    operator = HessianOperator(on_gpu(task))
    v = torch.randn(operator.n)
    assert (operator @ v).device.type == "cpu"
    assert (operator @ v.cuda()).device.type == "cuda"
    assert isinstance(operator @ v.numpy(), np.ndarray)


def test_products_by_differences_and_slices_agree_with_the_cpu():
    task, _ = conv_batch_norm()
    there = on_gpu(task)
    agree(HessianOperator(task), DifferenceHessianOperator(there))
    for here, other in zip(*(loss_slices(each, ("top", "filter"), points=5) for each in (task, there))):
        np.testing.assert_allclose(other.losses, here.losses, rtol=1e-5)
        np.testing.assert_allclose(other.kinks.switched, here.kinks.switched, atol=0.01)
