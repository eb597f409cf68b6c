"""Weights of a checkpoint in a model, and checkpoints that spectra saves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_norm_checkpoints import STATE, network, same, saved
from torch import nn

from spectra.checkpoints.checkpoint import (
    check_finite,
    load_checkpoint,
    save_checkpoint,
)
from spectra.errors import ArgumentError, CheckpointError, NumericsError

# -- into a model


def test_loading_changes_every_tensor_of_the_model(tmp_path):
    target = network(1)
    assert load_checkpoint(saved(tmp_path / "a.pt", STATE)).load_into(target) == []
    assert same(target.state_dict(), STATE)


def test_a_mismatch_lists_the_first_keys_and_counts_and_leaves_the_model_alone(tmp_path):
    state = {f"x{i}": torch.ones(1) for i in range(5)}
    state |= {key: value for key, value in STATE.items() if not key.startswith("1.")}
    state["3.weight"] = torch.ones(7, 16)
    found = load_checkpoint(saved(tmp_path / "a.pt", state))
    target = network(1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        found.load_into(target)
    message = str(caught.value)
    assert "4 of 9 keys missing (1.weight, 1.bias, 1.running_mean, and 1 more)" in message
    assert "5 of 9 keys in the file unexpected (x0, x1, x2, and 2 more)" in message
    assert "1 of another shape or kind (3.weight ((7, 16) in the file, (3, 16) in the model))" in message
    assert "\n" not in message
    assert same(target.state_dict(), before)


def test_integers_are_not_taken_for_weights(tmp_path):
    state = {**STATE, "3.weight": STATE["3.weight"].to(torch.int8)}
    with pytest.raises(CheckpointError, match="int8 in the file"):
        load_checkpoint(saved(tmp_path / "a.pt", state)).load_into(network())


def test_the_counter_of_batch_norm_may_be_missing_or_superfluous(tmp_path):
    state = {key: value for key, value in STATE.items() if "num_batches" not in key}
    target = network(1)
    load_checkpoint(saved(tmp_path / "a.pt", state)).load_into(target)
    assert torch.equal(target.state_dict()["3.weight"], STATE["3.weight"])
    bare = nn.Linear(2, 2)
    more = {**bare.state_dict(), "bn.num_batches_tracked": torch.tensor(3)}
    load_checkpoint(saved(tmp_path / "b.pt", more)).load_into(bare)


def tied(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


@pytest.mark.parametrize("dropped", [None, "embed.weight", "head.weight"])
def test_tied_weights_may_be_saved_once_or_twice(tmp_path, dropped):
    state = {key: value for key, value in tied(0).state_dict().items() if key != dropped}
    target = tied(1)
    load_checkpoint(saved(tmp_path / "a.pt", state)).load_into(target)
    assert same(target.state_dict(), tied(0).state_dict())
    assert target["head"].weight is target["embed"].weight


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path):
    state = tied(0).state_dict()
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"ties differ in the file \(embed.weight and head.weight\)"):
        load_checkpoint(saved(tmp_path / "a.pt", state)).load_into(tied(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_widened_with_a_note(tmp_path, dtype):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}
    target = network(1)
    notes = load_checkpoint(saved(tmp_path / "a.pt", state)).load_into(target)
    assert target[3].weight.dtype == torch.float32
    assert torch.equal(target[3].weight, state["3.weight"].float())
    assert str(dtype).removeprefix("torch.") in notes[0]


def test_wide_weights_convert_the_model_rather_than_be_rounded(tmp_path):
    source = network().double()
    with torch.no_grad():
        source[3].weight += 1e-12
    target = network(1)
    notes = load_checkpoint(saved(tmp_path / "a.pt", source.state_dict())).load_into(target)
    assert torch.equal(target[3].weight, source[3].weight)
    assert {p.dtype for p in target.parameters()} == {torch.float64}
    assert "converted to float64" in notes[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    state = {key: tensor.clone() for key, tensor in STATE.items()}
    state["3.bias"][1] = value
    path = saved(tmp_path / "a.pt", state)
    target = network(1)
    with pytest.raises(NumericsError, match=r"a\.pt: NaN or infinite weights in 1 of 9 tensors: 3\.bias"):
        load_checkpoint(path).load_into(target)
    assert same(target.state_dict(), network(1).state_dict())
    check_finite(STATE)


# -- saving


def test_what_is_saved_is_read_back(tmp_path):
    path = tmp_path / "a.pt"
    extra = {"note": "x", "nested": {"a": [1, 2.5, None, True], "b": torch.ones(2)}, "optimizer": {"state": {}}}
    save_checkpoint(path, network(), "digits-convnet", {"width": 4}, 3, 120, **extra)
    content = torch.load(path, weights_only=True)
    assert content["spectra"] == {"task": "digits-convnet", "options": {"width": 4}}
    assert list(content) == ["spectra", "model", "epoch", "step", "note", "nested", "optimizer"]
    found = load_checkpoint(path)
    assert same(found.state_dict, STATE)
    assert (found.task, found.task_args, found.epoch, found.step) == ("digits-convnet", {"width": 4}, 3, 120)
    assert found.metadata["note"] == "x"
    assert "spectra" not in found.metadata
    assert sorted(os.listdir(tmp_path)) == ["a.pt"]


def test_the_hash_is_that_of_the_file(tmp_path):
    import hashlib

    path = saved(tmp_path / "a.pt", STATE)
    assert load_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra": {"spectra": 1}}, "reserved"),
        ({"extra": {"config": {"path": Path("x")}}}, r"config\['path'\] is a PosixPath"),
        ({"extra": {"f": [1, print]}}, r"f\[1\] is a builtin_function_or_method"),
        ({"extra": {"loss": np.float64(1)}}, "loss is a float64"),
        ({"task": 5}, "task is a int"),
        ({"task_args": {"a": 1}}, "without task"),
        ({"task": "digits-mlp", "task_args": {"a": [1]}}, r"task_args\['a'\] is a list"),
        ({"epoch": "3"}, "epoch='3'"),
        ({"epoch": float("nan")}, "epoch=nan"),
        ({"step": np.int64(3)}, "step="),
    ],
)
def test_what_could_not_be_read_back_safely_is_not_saved(tmp_path, options, words):
    extra = options.pop("extra", {})
    path = tmp_path / "a.pt"
    with pytest.raises(ArgumentError, match=words):
        save_checkpoint(path, network(), **options, **extra)
    assert os.listdir(tmp_path) == []


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, network())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, network(1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_saving_into_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        save_checkpoint(tmp_path / "no" / "a.pt", network())
    assert os.listdir(tmp_path) == []
