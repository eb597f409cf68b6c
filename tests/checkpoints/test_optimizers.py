"""The optimizer in a checkpoint: where it is found, its kind, and its settings; a missing one is normal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saved_weights import network, save

from spectra import load_checkpoint
from spectra.checkpoints.optimizers import KEYS
from spectra.errors import CheckpointError

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "adamax": (torch.optim.Adamax, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "unknown": (torch.optim.ASGD, {}),
}


def state(make=torch.optim.SGD, steps: int = 3, **options: object) -> dict:
    model = network()
    optimizer = make(model.parameters(), lr=0.05, **options)
    for _ in range(steps):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    return optimizer.state_dict()


def read(path: Path, **content: object):
    torch.save({"model": network().state_dict(), **content}, path)
    return load_checkpoint(path).optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_kind_follows_from_the_keys_of_the_groups(tmp_path, kind):
    make, options = OPTIMIZERS[kind]
    found = read(tmp_path / "a.pt", optimizer=state(make, **options))
    assert found.kind == kind
    assert found.learning_rates == (0.05,)
    assert found.steps == (None if kind == "sgd" else 3)


@pytest.mark.parametrize("key", KEYS)
def test_the_usual_keys_hold_it(tmp_path, key):
    found = read(tmp_path / "a.pt", **{key: state(momentum=0.9)})
    assert found.words == "SGD, lr 0.05, momentum 0.9"


def test_lightning_has_a_list_and_several_optimizers_are_not_mixed(tmp_path):
    assert read(tmp_path / "a.ckpt", optimizer_states=[state()]).kind == "sgd"
    assert read(tmp_path / "b.ckpt", optimizer_states=[state(), state()]) is None
    assert read(tmp_path / "c.pt", optimizer=state(), optim=state()) is None


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_file_of_a_trainer_beside_the_weights_is_read(tmp_path, name, named):
    weights = save(tmp_path / "checkpoint-8" / "pytorch_model.bin")
    torch.save(state(torch.optim.AdamW), weights.parent / name)
    checkpoint = load_checkpoint(weights if named == "file" else weights.parent)
    assert checkpoint.optimizer.kind == "adamw"
    assert checkpoint.optimizer.steps == 3
    assert checkpoint.notes == ()


def test_a_damaged_file_beside_the_weights_leaves_the_weights_usable(tmp_path):
    weights = save(tmp_path / "checkpoint-8" / "pytorch_model.bin")
    (weights.parent / "optimizer.pt").write_bytes(b"PK\x03\x04 not an archive")
    checkpoint = load_checkpoint(weights.parent)
    assert checkpoint.optimizer is None
    (note,) = checkpoint.notes
    assert "optimizer.pt" in note
    assert "not known" in note


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        {"param_groups": [], "state": {}},
        {"param_groups": [{"lr": "fast"}], "state": {}},
        {"param_groups": [{"lr": float("inf"), "momentum": 0.0}], "state": {}},
        {"param_groups": [3], "state": {}},
        {"param_groups": torch.ones(2), "state": {}},
        {"param_groups": [{"lr": i / 7} for i in range(1001)], "state": {}},
    ],
    ids=range(8),
)
def test_what_is_no_optimizer_is_passed_over_silently(tmp_path, odd):
    torch.save({"model": network().state_dict(), "optimizer": odd}, tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert (checkpoint.optimizer, checkpoint.notes) == (None, ())


def test_a_key_that_no_optimizer_of_torch_has_makes_the_kind_unknown(tmp_path):
    own = state(momentum=0.9)
    own["param_groups"][0]["initial_lr"] = 0.1  # of a scheduler
    assert read(tmp_path / "a.pt", optimizer=own).kind == "sgd"
    own["param_groups"][0]["rho"] = 0.05  # of sharpness-aware minimisation
    assert read(tmp_path / "b.pt", optimizer=own).kind == "unknown"
    odd = state(torch.optim.Adam)
    odd["param_groups"][0]["betas"] = "0.9"
    assert read(tmp_path / "c.pt", optimizer=odd).kind == "unknown"


def test_adam_of_an_older_torch_is_told_from_adamw_only_without_weight_decay(tmp_path):
    for decay, kind in ((0.0, "adam"), (0.1, "adam or adamw")):
        old = state(torch.optim.Adam, weight_decay=decay)
        del old["param_groups"][0]["decoupled_weight_decay"]
        assert read(tmp_path / "a.pt", optimizer=old).kind == kind


def test_the_groups_are_kept_each_once_and_learning_rates_may_be_tensors(tmp_path):
    model = network()
    groups = [{"params": [p], "lr": torch.tensor(0.5) if p.ndim > 1 else 0.25} for p in model.parameters()]
    found = read(tmp_path / "a.pt", optimizer=torch.optim.Adam(groups, capturable=True).state_dict())
    assert found.learning_rates == (0.5, 0.25)
    assert len(found.groups) == 2
    assert found.steps is None


def test_the_state_is_kept_only_where_it_is_asked_for(tmp_path):
    torch.save({"model": network().state_dict(), "optimizer": state(torch.optim.Adam)}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").optimizer_state is None
    kept = load_checkpoint(tmp_path / "a.pt", optimizer_state=True).optimizer_state
    assert kept["state"][0]["exp_avg_sq"].shape == (5, 4)


def test_steps_that_are_no_number_are_left_out(tmp_path):
    for odd in (torch.ones(2), torch.ones(1).to_sparse(), float("nan"), -1, 2.5, "3", torch.ones(1) * 1j):
        own = state(torch.optim.Adam)
        for of in own["state"].values():
            of["step"] = odd
        assert read(tmp_path / "a.pt", optimizer=own).steps is None


def test_a_container_in_itself_is_refused_like_any_other_in_a_checkpoint(tmp_path):
    own = state()
    own["param_groups"][0]["betas"] = loop = []
    loop.append(loop)
    torch.save({"model": network().state_dict(), "optimizer": own}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"(a\.pt|checkpoint-8): .* deep"):
        load_checkpoint(tmp_path / "a.pt")
    weights = save(tmp_path / "checkpoint-8" / "pytorch_model.bin")
    torch.save(own, weights.parent / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"(a\.pt|checkpoint-8): .* deep"):
        load_checkpoint(weights.parent)
