"""Folders of transformers whose tensors are in other pieces, or whose configuration declares another size."""

from __future__ import annotations

import copy
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_networks import library, network
from torch.nn import functional as F

from spectra import HessianOperator
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.errors import CheckpointError, TaskError
from spectra.frameworks.rearranged import rearranged
from spectra_cli.task_source import resolve

pytestmark = [pytest.mark.foreign, pytest.mark.usefixtures("_folder")]


@pytest.fixture
def _folder(tmp_path, monkeypatch):
    library("transformers")
    monkeypatch.chdir(tmp_path)
    np.save("ids.npy", np.arange(12))


def task_at(folder):
    read = load_checkpoint(folder)
    source = resolve("hf:causal-lm", ("data=ids.npy",), read)
    task = source.task(read)
    source.renamed(read, task.model).load_into(task.model)
    return task


def experts(kind, **options):
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, **options}
    config = getattr(transformers, f"{kind}Config")(num_key_value_heads=1, initializer_range=0.3, **shape)
    return getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Mixtral", {"intermediate_size": 6, "num_local_experts": 3}),
        ("Qwen2Moe", {"moe_intermediate_size": 6, "num_experts": 3, "num_experts_per_tok": 2}),
        ("Olmoe", {"intermediate_size": 6, "num_experts": 3, "num_experts_per_tok": 2}),
    ],
)
def test_experts_in_single_tensors_are_put_together(kind, options):
    model = experts(kind, **options)
    model.save_pretrained("model")
    model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    ids = torch.arange(12)[None]
    task = task_at("model")
    assert len(load_checkpoint("model").state_dict) > len(model.state_dict())  # the file has other pieces
    for name, tensor in model.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], tensor), name
    torch.testing.assert_close(task.model(input_ids=ids).logits, model(input_ids=ids).logits)
    operator = HessianOperator(task, dtype="float64")
    exact = copy.deepcopy(model).double()
    parameters = list(exact.parameters())
    v = torch.randn(operator.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = exact(input_ids=ids).logits[0, :-1]
    slopes = torch.autograd.grad(F.cross_entropy(scores, ids[0, 1:]), parameters, create_graph=True, allow_unused=True)
    along = sum((g * p).sum() for g, p in zip(slopes, split(v, parameters)) if g is not None)
    products = torch.autograd.grad(along, parameters, allow_unused=True)
    expected = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(products, parameters)])
    assert float((operator @ v - expected).norm()) <= 1e-6 * float(expected.norm())  # it normalises in float32


def split(v, parameters):
    return [piece.view_as(p) for piece, p in zip(v.split([p.numel() for p in parameters]), parameters)]


def test_a_missing_expert_or_another_shape_is_refused_as_before():
    model = experts("Mixtral", intermediate_size=6, num_local_experts=3)
    model.save_pretrained("model")
    weights = load_checkpoint("model").state_dict
    key = "model.layers.1.block_sparse_moe.experts.1.w3.weight"
    for change in (None, torch.zeros(5, 8)):
        changed = {name: tensor for name, tensor in weights.items() if name != key or change is not None}
        if change is not None:
            changed[key] = change
        Path("model/model.safetensors").unlink(missing_ok=True)
        torch.save(changed, "model/pytorch_model.bin")
        with pytest.raises(CheckpointError, match="experts"):
            task_at("model")


def test_a_conversion_that_changes_values_is_not_used(monkeypatch):
    """Entries are followed by their numbers, and a shift by one makes numbers that no entry has."""
    model = torch.nn.Linear(2, 3)
    tensors = {"other.weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
    for change, used in ((lambda t: t.flip(0), True), (lambda t: t + 1, False), (lambda t: t * 0, False)):
        monkeypatch.setattr(
            "spectra.frameworks.rearranged._as_written",
            lambda model, entries, change=change: {f"other.{name}": change(t) for name, t in entries.items()},
        )
        assert (rearranged(tensors, model) is not tensors) is used


@pytest.mark.parametrize(
    "change", [{"n_embd": 10**6}, {"vocab_size": 10**10}, {"n_positions": 10**9}, {"n_layer": 10**7, "n_embd": 800}]
)
def test_a_network_vastly_larger_than_its_weights_is_refused_before_it_is_built(change):
    network("gpt2").save_pretrained("model")
    file = Path("model/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    tracemalloc.start()
    with pytest.raises(TaskError, match=r"declares a network of more than [\d,]+ numbers, and the weights have"):
        task_at("model")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_the_limit_leaves_nothing_behind():
    network("gpt2").save_pretrained("model")
    file = Path("model/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "n_embd": 10**6}))
    with pytest.raises(TaskError):
        task_at("model")
    torch.nn.Embedding(3, 2**27 // 3, device="meta")  # another network is not counted
