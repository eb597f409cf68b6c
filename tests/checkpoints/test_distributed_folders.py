"""Folders of torch.distributed.checkpoint: read whole, from several processes, and never trusted."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from processes import in_processes
from torch import nn

from spectra import load_checkpoint
from spectra.checkpoints.discovery import find_checkpoints, order_checkpoints
from spectra.checkpoints.watching import ends_well
from spectra.errors import CheckpointError
from spectra_cli.main import main


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.fixture
def saved(tmp_path):
    model = network()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.randn(4, 3)).sum().backward()
    adam.step()
    folder = tmp_path / "step_7"
    state = {"model": model.state_dict(), "optimizer": adam.state_dict(), "epoch": 3, "step": 7}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder, model


def test_a_folder_is_read_whole(saved):
    folder, model = saved
    found = load_checkpoint(folder, optimizer_state=True)
    assert (found.epoch, found.step, found.key) == (3, 7, "model")
    assert found.dialect == "torch.distributed.checkpoint in 1 files, dictionary, weights under 'model'"
    assert found.state_dict.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict[name], tensor)
        assert found.state_dict[name].dtype == tensor.dtype
    assert found.optimizer.kind == "adam"
    assert found.optimizer_state["state"][0]["exp_avg"].shape == (5, 3)
    assert load_checkpoint(folder / ".metadata").sha256 == found.sha256


def test_a_run_of_folders_is_in_the_order_of_training(saved, tmp_path):
    folder, model = saved
    for name, epoch in (("first", 1), ("last", 10)):
        dcp.save({"model": model.state_dict(), "epoch": epoch}, checkpoint_id=tmp_path / name, no_dist=True)
    found = order_checkpoints(find_checkpoints([tmp_path]))
    assert [path.name for path in found] == ["first", "step_7", "last"]
    assert all(map(ends_well, found))
    shown = CliRunner().invoke(main, ["inspect", str(folder)])
    assert shown.exit_code == 0
    assert "torch.distributed.checkpoint in 1 files" in shown.stdout


def save_shards(folder: str) -> list[tuple[int, ...]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = network().state_dict()
    parts = {name: distribute_tensor(t, mesh, [Shard(0)]) if t.ndim else t for name, t in whole.items()}
    dcp.save({"model": parts, "step": 2}, checkpoint_id=folder)
    return [tuple(t.to_local().shape) for t in parts.values() if hasattr(t, "to_local")]


def test_shards_of_several_processes_are_joined(tmp_path):
    shapes = in_processes(2, save_shards, str(tmp_path / "sharded"))
    assert shapes[0] != shapes[1]  # five rows cannot be shared equally
    found = load_checkpoint(tmp_path / "sharded")
    assert len(found.files) == 3
    for name, tensor in network().state_dict().items():
        assert torch.equal(found.state_dict[name], tensor)


# -- what is not trusted


class Runs:
    def __reduce__(self):
        return os.system, ("touch was-run",)


def changed(folder, change):
    """Write another description: the unpickled one, changed."""
    path = folder / ".metadata"
    description = pickle.loads(path.read_bytes())
    change(description)
    path.write_bytes(pickle.dumps(description))


def place_of(description, name):
    return next(where for index, where in description.storage_data.items() if index.fqn == name)


def other_chunk(description):
    chunk = description.state_dict_metadata["model.0.weight"].chunks[0]
    chunk.sizes = torch.Size([5, 2])


def twice(description):
    first = description.state_dict_metadata["model.0.weight"]
    first.size = torch.Size([10, 3])


def elsewhere(description):
    object.__setattr__(place_of(description, "model.0.weight"), "relative_path", "../other.distcp")


def long(description):
    object.__setattr__(place_of(description, "model.0.weight"), "length", 10**9)


def negative(description):
    object.__setattr__(place_of(description, "model.0.weight"), "offset", -5)


def huge(description):
    description.state_dict_metadata["model.0.weight"].size = torch.Size([2**40, 3])


def swapped(description):
    object.__setattr__(place_of(description, "model.0.weight"), "offset", place_of(description, "model.1.bias").offset)


def unlisted(description):
    del description.state_dict_metadata["model.0.weight"]


def without_pieces(description):
    for index in [index for index in description.storage_data if index.fqn == "model.0.weight"]:
        del description.storage_data[index]


def running(description):
    description.planner_data = Runs()


def nested_twice(description):
    description.planner_data["model.0.weight"] = ("epoch", "inner")


def deep(description):
    description.planner_data["model.0.weight"] = ("model",) * 5000


def of_lists(description):
    description.planner_data["model.0.weight"] = ("model", [1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_chunk, "a piece of 'model.0.weight' is not what the description says"),
        (twice, "pieces of 'model.0.weight' are missing"),
        (elsewhere, "its file '../other.distcp' is not there"),
        (long, "is shorter than the description says"),
        (negative, "is shorter than the description says"),
        (huge, "--max-size allows more"),
        (swapped, "is not what the description says"),
        (unlisted, "describes pieces of entries that it does not list"),
        (without_pieces, "pieces of 'model.0.weight' are missing"),
        (running, "its pickle asks for posix.system, which no such file needs"),
        (deep, "describes entries at places that no checkpoint has"),
        (of_lists, "describes entries at places that no checkpoint has"),
        (nested_twice, "lies within another entry"),
    ],
)
def test_a_description_that_is_wrong_is_refused_in_one_line(change, words, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed(saved[0], change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved[0])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_damage_anywhere_is_found_or_changes_nothing(saved):
    folder, _ = saved
    whole = load_checkpoint(folder).state_dict
    for name in (".metadata", "__0_0.distcp"):
        original = (folder / name).read_bytes()
        for place in range(0, len(original), max(1, len(original) // 40)):
            damaged = bytearray(original)
            damaged[place] ^= 0x10
            (folder / name).write_bytes(bytes(damaged))
            with contextlib.suppress(CheckpointError):  # else in the optimizer's entries, or in a name that is not used
                found = load_checkpoint(folder).state_dict
                assert all(torch.equal(found[key], whole[key]) for key in whole if key in found)
        (folder / name).write_bytes(original)


@pytest.mark.parametrize("cut", [0, 1, 100, 2000])
def test_truncated_files_are_refused(cut, saved):
    for name in (".metadata", "__0_0.distcp"):
        shutil.copy(saved[0] / name, saved[0] / "kept")
        (saved[0] / name).write_bytes((saved[0] / name).read_bytes()[:cut])
        with pytest.raises(CheckpointError):
            load_checkpoint(saved[0])
        assert not ends_well(saved[0])
        shutil.move(saved[0] / "kept", saved[0] / name)


def test_a_missing_file_is_named(saved):
    (saved[0] / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"its file '__0_0\.distcp' is not there"):
        load_checkpoint(saved[0])
