"""Checkpoints that are cut off, overwritten in part, or have a flipped bit: one clear line, or the weights they had.

Where the format has checksums (torch.save since 1.6) no other weight is ever loaded. The legacy format of torch and
safetensors have none: there a flipped bit of a weight cannot be noticed, and what must not happen is a crash.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.checkpoints.rawfile import check_sums
from spectra.errors import CheckpointError, SpectraError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))


def write(path: Path, kind: str) -> bytes:
    content = {"model": network().state_dict(), "epoch": 3, "args": {"lr": 0.1}}
    if kind == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(network().state_dict(), path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


def mutilated(whole: bytes, dice: random.Random) -> bytes:
    """The file with one thing done to it."""
    what = dice.choice(["cut", "bit", "bit", "bit", "zeros", "noise", "doubled", "missing"])
    first = dice.randrange(len(whole))
    length = min(dice.choice([1, 8, 64, 512]), len(whole) - first)
    if what == "cut":
        return whole[:first]
    if what == "bit":
        return whole[:first] + bytes([whole[first] ^ 1 << dice.randrange(8)]) + whole[first + 1 :]
    if what == "doubled":
        return whole[: first + length] + whole[first:]
    if what == "missing":
        return whole[:first] + whole[first + length :]
    block = bytes(length) if what == "zeros" else dice.randbytes(length)
    return whole[:first] + block + whole[first + length :]


def outcome(path: Path) -> dict[str, torch.Tensor] | str:
    """The weights in the model, or the line that says why not."""
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    try:
        load_checkpoint(path).load_into(model)
    except SpectraError as error:  # weights that are not finite are a NumericsError
        return str(error)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def attempt(folder: Path, kind: str, seed: int) -> str | None:
    """The line that refused it; None where it was loaded, which is checked."""
    path = folder / ("w.safetensors" if kind == "safetensors" else "ckpt.pt")
    whole = write(path, kind)
    path.write_bytes(mutilated(whole, random.Random(seed)))
    found = outcome(path)
    if isinstance(found, str):
        assert found.startswith(str(path)), found
        assert len(found.splitlines()) == 1, found
        assert len(found) < 500, found
        return found
    if kind == "zip":
        for name, tensor in network().state_dict().items():
            assert torch.equal(found[name], tensor), f"seed {seed}: another {name} was taken for right"
    return None


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_mutilated_checkpoint_is_refused_in_one_line_or_has_its_weights(tmp_path, kind):
    refused = [attempt(tmp_path, kind, seed) for seed in range(30)]
    assert any(refused)


def folder_with(path: Path) -> Path:
    """Weights in two shards with their index, the state of a trainer beside them."""
    path.mkdir(exist_ok=True)
    weights = network().state_dict()
    names = {key: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, key in enumerate(weights)}
    for name in sorted(set(names.values())):
        torch.save({key: value for key, value in weights.items() if names[key] == name}, path / name)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    (path / "trainer_state.json").write_text(json.dumps({"epoch": 0.5, "global_step": 8, "log_history": [{"loss": 1}]}))
    return path


def attempt_on_folder(folder: Path, name: str, seed: int) -> bool:
    """Whether the folder was refused with one of its JSON files mutilated; if it was read, its weights are compared."""
    path = folder_with(folder) / name
    path.write_bytes(mutilated(path.read_bytes(), random.Random(seed)))
    found = outcome(folder)
    if isinstance(found, str):
        assert found.startswith(str(folder)), found
        assert len(found.splitlines()) == 1, found
        assert len(found) < 500, found
        return True
    assert all(torch.equal(found[key], tensor) for key, tensor in network().state_dict().items())
    return False


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "trainer_state.json"])
def test_a_mutilated_json_file_is_refused_in_one_line_or_changes_no_weight(tmp_path, name):
    refused = [attempt_on_folder(tmp_path / "checkpoint-8", name, seed) for seed in range(30)]
    assert any(refused) == name.endswith("index.json")  # epoch and step are not worth an analysis


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_500_mutilated_checkpoints_are_refused_in_one_line_or_have_their_weights(tmp_path, kind):
    refused = [attempt(tmp_path, kind, seed) for seed in range(1000, 1500)]
    print(f"{kind}: {sum(line is not None for line in refused)} of 500 refused")
    assert sum(line is not None for line in refused) > 100


def test_a_flipped_bit_of_a_weight_which_torch_loads_silently_is_refused(tmp_path):
    path = tmp_path / "ckpt.pt"
    whole = write(path, "zip")
    weights = network().state_dict()["0.weight"]
    place = whole.index(weights.numpy().tobytes()) + 4
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    loaded = torch.load(path, weights_only=True)["model"]["0.weight"]
    assert int((loaded != weights).sum()) == 1  # nothing was said
    with pytest.raises(CheckpointError, match=r"ckpt.pt: damaged: ckpt/data/0 does not match its CRC-32"):
        load_checkpoint(path)


def test_an_archive_that_was_written_without_checksums_is_read(tmp_path):
    options = pytest.importorskip("torch.serialization")
    if not hasattr(options, "set_crc32_options"):
        pytest.skip("this torch always writes them")
    before = options.get_crc32_options()
    options.set_crc32_options(False)
    try:
        write(tmp_path / "ckpt.pt", "zip")
    finally:
        options.set_crc32_options(before)
    check_sums(tmp_path / "ckpt.pt")
    assert torch.equal(outcome(tmp_path / "ckpt.pt")["0.weight"], network().state_dict()["0.weight"])


def test_a_part_that_torch_takes_for_a_folder_is_refused(tmp_path):
    """A bit of the archive's directory: torch would leave the tensor as the memory happened to be."""
    path = tmp_path / "ckpt.pt"
    whole = bytearray(write(path, "zip"))
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"ckpt/data/5"))
    whole[entry + 38] |= 0x10  # the external attribute "folder"
    path.write_bytes(whole)
    torch.load(path, weights_only=True)  # nothing is said
    with pytest.raises(CheckpointError, match="ckpt/data/5 does not match its CRC-32"):
        load_checkpoint(path)
