"""An analysis gives the same bits again, and leaves the model and the random generators as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from cases import conv_batch_norm
from small_nets import NETS, make

from spectra import analyze, iter_analyze

pytestmark = pytest.mark.usefixtures("float64")


# -- the same again


def bits(record):
    columns = [np.concatenate([t.alphas, t.betas]) for t in record.spectrum.tridiagonals]
    return b"".join(column.tobytes() for column in columns) + record.spectrum.tensor_forms.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_same_seed_gives_the_same_bits(mode, dtype):
    task, _ = conv_batch_norm()
    options = {"operators": ("hessian", "ggn"), "bn_modes": mode, "lanczos_steps": 20, "num_probes": 3, "dtype": dtype}
    first, again = analyze(task, **options), analyze(task, **options)
    for one, other in zip(first, again):
        assert bits(one) == bits(other)
        assert one.facts == other.facts
        assert one.settings == other.settings
        assert one.provenance["noise"] == other.provenance["noise"]
        assert one.to_json()["estimates"] == other.to_json()["estimates"]
    (other,) = analyze(task, **(options | {"operators": "hessian", "seed": 1}))
    assert bits(other) != bits(first[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_sharing_the_pass_over_the_data_does_not_change_a_bit(operator, dtype):
    task, _ = conv_batch_norm()
    found = [
        analyze(task, operators=operator, lanczos_steps=20, num_probes=5, dtype=dtype, width=width)[0]
        for width in (1, 2, 5)
    ]
    assert len({bits(record) for record in found}) == 1
    assert [record.settings["width"] for record in found] == [1, 2, 5]


@pytest.mark.parametrize("name", ["mlp", "conv, BN eval", "conv, BN train"])
@pytest.mark.parametrize("steps", [8, 30])
def test_float32_agrees_with_float64_within_ten_times_its_noise(name, steps):
    torch.manual_seed(3)
    maker, mode = NETS[name]
    task, _ = maker()
    single, double = (
        analyze(task, bn_modes=mode, lanczos_steps=steps, num_probes=4, dtype=dtype)[0]
        for dtype in ("float32", "float64")
    )
    assert double.spectrum.noise < 1e-14 < single.spectrum.noise < 1e-4
    allowed = 10 * single.spectrum.noise * double.estimates["spectral_norm"].value
    assert single.spectrum.nodes.shape == double.spectrum.nodes.shape
    assert np.abs(single.spectrum.nodes - double.spectrum.nodes).max() <= allowed
    assert single.estimates["trace"].value == pytest.approx(
        double.estimates["trace"].value, abs=double.spectrum.n * allowed
    )
    assert single.facts["loss"] == pytest.approx(double.facts["loss"], rel=1e-6)


# -- nothing of the user's is touched


def everything_of(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    return tensors, modes, grads, generators, torch.is_grad_enabled(), torch.get_default_dtype()


def assert_untouched(before, model):
    after = everything_of(model)
    assert before[1] == after[1]
    assert before[3:] == after[3:]
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    for one, other in zip(before[2], after[2]):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_an_analysis_leaves_the_model_as_it_was():
    task, written = conv_batch_norm()
    written().backward()
    task.model.train()
    task.model.drop.eval()
    before = everything_of(task.model)
    analyze(task, operators=("hessian", "ggn"), bn_modes=("eval", "train"), lanczos_steps=3, num_probes=2)
    assert_untouched(before, task.model)


def test_an_analysis_that_is_abandoned_in_the_middle_leaves_the_model_as_it_was():
    task, _ = conv_batch_norm()
    task.model.train()
    before = everything_of(task.model)

    def stop(*now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(task, bn_modes="train", lanczos_steps=3, num_probes=2, progress=stop)
    assert_untouched(before, task.model)
    records = iter_analyze(task, bn_modes=("eval", "train"), lanczos_steps=3, num_probes=2)
    next(records)
    assert_untouched(before, task.model)  # between two records, too
    del records
    assert_untouched(before, task.model)


def test_records_are_of_the_parameters_at_the_call():
    task = make(None)
    (still,) = analyze(task, operators="ggn", lanczos_steps=3, num_probes=2)
    records = iter_analyze(task, operators=("hessian", "ggn"), lanczos_steps=3, num_probes=2)
    next(records)
    with torch.no_grad():
        task.model[0].weight.mul_(2.0)  # training goes on while the records are read
    assert bits(next(records)) == bits(still)
