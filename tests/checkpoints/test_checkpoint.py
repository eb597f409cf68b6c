"""Checkpoints: every dialect is read, no code is run, and what does not fit is refused in one line."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_norm_checkpoints import STATE, network, prefixed, refusal, same, saved
from torch import nn

from spectra.checkpoints.checkpoint import (
    find_checkpoints,
    load_checkpoint,
    order_checkpoints,
)
from spectra.checkpoints.dialects import position_in_name, strip_wrappers
from spectra.errors import CheckpointError, MissingDependency


class Runs:
    """An object whose unpickling leaves a trace: a file that appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# -- dialects


WRAPPED = ["state_dict", "model_state_dict", "model", "net", "network", "model_state", "module"]


@pytest.mark.parametrize("key", [*WRAPPED, "state_dict_ema", "model_ema", "ema", "ema_state_dict"])
def test_weights_are_found_under_every_usual_key(tmp_path, key):
    found = load_checkpoint(saved(tmp_path / "a.pt", {key: STATE, "epoch": 4, "optimizer": {"state": {}, "lr": 1}}))
    assert same(found.state_dict, STATE)
    assert found.key == key
    assert key in found.dialect
    assert found.epoch == 4


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bare_state_dict_is_read_in_both_formats_of_torch(tmp_path, legacy):
    path = saved(tmp_path / "a.pt", OrderedDict(STATE), _use_new_zipfile_serialization=not legacy)
    found = load_checkpoint(path)
    assert same(found.state_dict, STATE)
    assert (found.key, found.dialect, found.epoch, found.step, found.task) == (
        None,
        "bare state_dict",
        None,
        None,
        None,
    )


def test_the_one_unknown_key_with_weights_is_taken_and_several_are_not(tmp_path):
    assert load_checkpoint(saved(tmp_path / "a.pt", {"last": STATE, "epoch": 1})).key == "last"
    path = saved(tmp_path / "b.pt", {"generator": STATE, "critic": STATE})
    assert "generator, critic" in refusal(path)
    assert same(load_checkpoint(path, weights="critic").state_dict, STATE)


def test_averaged_weights_come_first_and_the_choice_is_told_and_offered(tmp_path):
    averaged = {key: value + 1 for key, value in STATE.items()}
    path = saved(tmp_path / "a.pt", {"state_dict": STATE, "model_ema": averaged})
    found = load_checkpoint(path)
    assert same(found.state_dict, averaged)
    assert found.others == ("state_dict",)
    assert "moving average" in found.dialect
    assert "--weights" in found.notes[0]
    for choice in ("state_dict", "model"):
        plain = load_checkpoint(path, weights=choice)
        assert same(plain.state_dict, STATE)
        assert plain.notes == ()
    assert same(load_checkpoint(path, weights="ema").state_dict, averaged)
    assert "no weights under 'elsewhere'" in refusal(path, weights="elsewhere")


def test_an_averaged_model_of_torch_loses_its_counter_and_prefix(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(network())
    found = load_checkpoint(saved(tmp_path / "a.pt", {"ema": averaged.state_dict()}))
    assert same(found.state_dict, STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    found = load_checkpoint(saved(tmp_path / "a.pt", {"model": prefixed(prefix)}))
    assert same(found.state_dict, STATE)
    assert found.dialect.endswith(f"prefix {prefix} removed")


def test_a_prefix_that_only_some_keys_have_stays():
    assert strip_wrappers(["module.a", "b"]) == ""
    assert strip_wrappers(["module.", "module.a"]) == ""
    assert strip_wrappers([]) == ""


def test_a_model_that_is_itself_called_module_is_fitted(tmp_path):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    source, target = Outer(), Outer()
    load_checkpoint(saved(tmp_path / "a.pt", source.state_dict())).load_into(target)
    assert same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("prefix", ["model.", "net.", "model._orig_mod.", "anything."])
def test_a_lightning_prefix_is_taken_off_when_the_model_fits_better_without(tmp_path, prefix):
    content = {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed(prefix),
        "epoch": 2,
        "global_step": 300,
        "hyper_parameters": {"width": 4},
        "loops": {"a": 1},
    }
    found = load_checkpoint(saved(tmp_path / "a.ckpt", content))
    target = network(1)
    notes = found.load_into(target)
    assert same(target.state_dict(), STATE)
    assert "taken off" in notes[0]
    assert (found.epoch, found.step) == (2, 300)
    assert found.metadata["hyper_parameters"] == {"width": 4}
    assert "loops" not in found.metadata
    assert found.dialect.startswith("Lightning")


def test_a_prefix_that_the_model_has_too_is_kept(tmp_path):
    wrapper = nn.ModuleDict({"model": network()})
    found = load_checkpoint(saved(tmp_path / "a.pt", wrapper.state_dict()))
    target = nn.ModuleDict({"model": network(1)})
    assert found.load_into(target) == []
    assert same(target["model"].state_dict(), STATE)
    bare = load_checkpoint(saved(tmp_path / "b.pt", STATE))
    target = nn.ModuleDict({"model": network(1)})
    assert "put before" in bare.load_into(target)[0]
    assert same(target["model"].state_dict(), STATE)


def test_a_compiled_part_of_the_model_is_fitted(tmp_path):
    keys = {key.replace("3.", "3._orig_mod."): value for key, value in STATE.items()}
    target = network(1)
    load_checkpoint(saved(tmp_path / "a.pt", keys)).load_into(target)
    assert same(target.state_dict(), STATE)


def test_nanogpt_checkpoints_give_weights_step_and_arguments(tmp_path):
    content = {"model": prefixed("_orig_mod."), "model_args": {"n_layer": 2}, "iter_num": 2000, "best_val_loss": 1.5}
    found = load_checkpoint(saved(tmp_path / "ckpt.pt", content))
    assert (found.epoch, found.step, found.dialect.split(",")[0]) == (None, 2000, "nanoGPT checkpoint")
    assert found.metadata["model_args"] == {"n_layer": 2}


def test_values_that_scripts_leave_beside_the_weights_are_read_without_running_code(tmp_path):
    content = {
        "model": STATE,
        "epoch": torch.tensor(7),
        "accuracy": np.float64(0.5),
        "history": np.arange(3),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
        "activations": torch.ones(5),
    }
    found = load_checkpoint(saved(tmp_path / "a.pt", content))
    assert found.epoch == 7
    assert found.metadata == {
        "epoch": 7,
        "accuracy": 0.5,
        "history": [0, 1, 2],
        "args": {"lr": 0.1, "betas": [0.9, 0.99]},
    }


def test_safetensors_are_read_with_the_epoch_of_their_header(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    save_file(dict(STATE), path, metadata={"epoch": "3", "format": "pt"})
    found = load_checkpoint(path)
    assert same(found.state_dict, STATE)
    assert (found.epoch, found.dialect) == (3, "safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    assert "truncated" in refusal(path)


def test_safetensors_without_the_package_say_how_to_install_it(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"anything")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingDependency, match=r"pip install 'hessian-spectra\[safetensors\]'"):
        load_checkpoint(path)


# -- epoch and step


@pytest.mark.parametrize(
    ("content", "position"),
    [
        ({"epoch": 3}, (3, None)),
        ({"global_step": 5}, (None, 5)),
        ({"iter_num": 6}, (None, 6)),
        ({"step": 7}, (None, 7)),
        ({"iteration": 8}, (None, 8)),
        ({"epoch": 2.5, "global_step": 1, "step": 9}, (2.5, 1)),
        ({"epoch": None, "step": None}, (12, None)),  # then the name is asked
        ({"epoch": float("nan")}, (12, None)),
        ({"epoch": True}, (12, None)),
    ],
)
def test_epoch_and_step_come_from_the_file_before_its_name(tmp_path, content, position):
    found = load_checkpoint(saved(tmp_path / "ckpt_epoch_012.pt", {"model": STATE, **content}))
    assert (found.epoch, found.step) == position


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("ckpt_epoch_012.pt", (12, None)),
        ("checkpoint-00100.pt", (100, None)),
        ("ckpt2000.pt", (2000, None)),
        ("epoch=3-step=1200.ckpt", (3, 1200)),
        ("model_step_500.pth", (None, 500)),
        ("iter-40.pth.tar", (None, 40)),
        ("lenet_ep7_final.pt", (7, None)),
        ("0012.pt", (12, None)),
        ("model_3.pth.tar", (3, None)),
        ("best_weights_5.pt", (5, None)),
        ("checkpoint-500/model.safetensors", (None, 500)),
        ("resnet18.pt", (None, None)),
        ("resnet-18.pt", (None, None)),
        ("cifar10.pt", (None, None)),
        ("final.pt", (None, None)),
        ("deep5lab.pt", (None, None)),
        ("supernet5.pt", (None, None)),
    ],
)
def test_epoch_and_step_in_a_name_go_by_the_words(name, position):
    assert position_in_name(Path(name)) == position


# -- what is refused


def test_what_is_not_a_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "missing.pt")
    assert "a folder" in refusal(tmp_path)
    (tmp_path / "empty.pt").touch()
    assert "empty" in refusal(tmp_path / "empty.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_a_truncated_file_is_called_truncated(tmp_path, legacy, part):
    path = saved(tmp_path / "a.pt", {"model": {"w": torch.randn(2000)}}, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello\n", "not a checkpoint"),
        (b"1", "not a checkpoint"),
        (pickle.dumps(5), "torch.save did not write it"),
        (pickle.dumps([1]), "torch.save did not write it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_is_not_a_checkpoint_is_refused(tmp_path, content, words):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert words in refusal(path)


def test_other_archives_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    assert "zip archive" in refusal(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("x/y", "z")
    assert "zip archive" in refusal(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "loss": 1.0}, "no weights in it: it holds epoch, loss"),
        ({}, "holds nothing"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        (5, "holds a int"),
        (torch.optim.SGD([nn.Parameter(torch.ones(2))]).state_dict(), "state of an optimizer"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, content, words):
    assert words in refusal(saved(tmp_path / "a.pt", content))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path, legacy, suffix):
    trace = tmp_path / "ran"
    content = {"model": STATE, "evil": Runs(trace)}
    path = saved(tmp_path / f"a{suffix}", content, _use_new_zipfile_serialization=not legacy)
    message = refusal(path)
    assert f"{os.name}.mkdir" in message
    assert "--unsafe-load" in message
    order_checkpoints([path])
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_code_in_a_plain_pickle_is_named_and_not_run(tmp_path, protocol):
    trace = tmp_path / "ran"
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Runs(trace), protocol))
    assert f"{os.name}.mkdir" in refusal(path)
    assert not trace.exists()


def test_code_runs_only_by_unsafe_and_with_a_warning(tmp_path, caplog):
    trace = tmp_path / "ran"
    path = saved(tmp_path / "a.pt", {"model": STATE, "evil": Runs(trace)})
    with caplog.at_level(logging.WARNING, logger="spectra"):
        found = load_checkpoint(path, unsafe=True)
    assert trace.is_dir()
    assert same(found.state_dict, STATE)
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert "code" in caplog.text


def test_a_pickled_model_needs_unsafe(tmp_path):
    path = saved(tmp_path / "a.pt", network())
    assert "--unsafe-load" in refusal(path)
    found = load_checkpoint(path, unsafe=True)
    assert same(found.state_dict, STATE)
    assert "Sequential" in found.dialect
    nested = load_checkpoint(saved(tmp_path / "b.pt", {"ema": network(), "epoch": 3}), unsafe=True)
    assert same(nested.state_dict, STATE)
    assert nested.epoch == 3


def test_torchscript_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("version", "data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"a/{name}", b"3\n" if name == "version" else pickle.dumps({}, 2))
    assert "TorchScript" in refusal(path)


def test_a_large_file_is_mapped_and_gives_the_same_weights(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.pt", {"model": STATE})
    monkeypatch.setattr("spectra.checkpoints.rawfile.MMAP_FROM", 1)
    found = load_checkpoint(path)
    assert same(found.state_dict, STATE)
    path.write_bytes(path.read_bytes()[:-40])
    assert "truncated" in refusal(path)


def test_a_file_that_is_written_to_meanwhile_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.pt", STATE)

    def read_then_write(*_: object) -> object:
        os.utime(path, ns=(1, 1))
        return dict(STATE)

    monkeypatch.setattr("spectra.checkpoints.rawfile.read_raw", read_then_write)
    assert "written to while it was read" in refusal(path)


@pytest.mark.parametrize("entry", ["text", {"task": 3}, {"task": "digits-mlp", "options": {"a": [1]}}, {"task": ["x"]}])
def test_a_malformed_entry_about_the_task_is_not_used(tmp_path, entry):
    found = load_checkpoint(saved(tmp_path / "a.pt", {"model": STATE, "spectra": entry}))
    assert found.task is None
    assert found.task_args == {}
    assert "'spectra'" in found.notes[0]


# -- the checkpoints of a run


def test_folders_and_patterns_stand_for_their_checkpoints(tmp_path):
    for name in ("ckpt_10.pt", "ckpt_9.pt", ".hidden.pt", "optimizer.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    wanted = [tmp_path / "ckpt_9.pt", tmp_path / "ckpt_10.pt"]
    assert find_checkpoints([tmp_path]) == wanted
    assert find_checkpoints([f"{tmp_path}/ckpt_*.pt", tmp_path / "ckpt_9.pt"]) == wanted
    (tmp_path / "a[1].pt").write_bytes(b"x")
    assert find_checkpoints([tmp_path / "a[1].pt"]) == [tmp_path / "a[1].pt"]
    (tmp_path / "sub").mkdir()
    for path, words in [("sub", "no checkpoints"), ("x*.pt", "no file matches"), ("missing.pt", "no such file")]:
        with pytest.raises(CheckpointError, match=words):
            find_checkpoints([tmp_path / path])


def test_a_run_is_ordered_by_epoch_then_step_then_name(tmp_path):
    content = {"b": (1, 5), "a": (1, 9), "c": (0, 0), "z": (10, 90), "y": (2, 20)}
    for name, (epoch, step) in content.items():
        saved(tmp_path / f"{name}.pt", {"model": STATE, "epoch": epoch, "step": step})
    found = order_checkpoints([tmp_path / f"{name}.pt" for name in content])
    assert [path.stem for path in found] == ["c", "b", "a", "y", "z"]


def test_a_run_without_epochs_is_ordered_by_step_else_by_name(tmp_path):
    for name, step in {"a": 30, "b": 4}.items():
        saved(tmp_path / f"{name}.pt", {"model": STATE, "step": step})
    assert [p.stem for p in order_checkpoints([tmp_path / "a.pt", tmp_path / "b.pt"])] == ["b", "a"]
    for name in ("run10", "run9"):
        saved(tmp_path / f"{name}.pt", STATE)
    assert [p.stem for p in order_checkpoints([tmp_path / "run10.pt", tmp_path / "run9.pt"])] == ["run9", "run10"]
    # One that cannot be read is no reason to fail: it keeps the place of its name.
    (tmp_path / "epoch_2.pt").write_bytes(b"junk")
    for epoch in (1, 3):
        saved(tmp_path / f"epoch_{epoch}.pt", {"model": STATE, "epoch": epoch})
    assert [p.stem for p in order_checkpoints(sorted(tmp_path.glob("epoch*"), reverse=True))] == [
        "epoch_1",
        "epoch_2",
        "epoch_3",
    ]
