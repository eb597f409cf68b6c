"""Weights in shards are one checkpoint, read by the index that lists them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from saved_weights import network, same, save, sharded

from spectra import load_checkpoint
from spectra.checkpoints.discovery import find_checkpoints
from spectra.errors import CheckpointError


def test_shards_are_one_checkpoint_by_whatever_of_them_is_named(tmp_path):
    folder = sharded(tmp_path / "checkpoint-8", 8)
    index = folder / "pytorch_model.bin.index.json"
    assert find_checkpoints([tmp_path]) == [folder]
    assert find_checkpoints([f"{folder}/*.bin"]) == [index]
    assert find_checkpoints(sorted(folder.glob("*.bin"))) == [index]
    for path in (folder, index):
        checkpoint = load_checkpoint(path)
        assert same(checkpoint, 8)
        assert (checkpoint.step, len(checkpoint.files)) == (8, 3)
        assert checkpoint.dialect == "bare state_dict in 2 shards"
    assert load_checkpoint(folder).sha256 == load_checkpoint(index).sha256


def test_the_hash_of_shards_is_that_of_their_hashes_by_name(tmp_path):
    folder = sharded(tmp_path / "checkpoint-8", 8)
    lines = "".join(
        f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in sorted(folder.iterdir())
    )
    assert load_checkpoint(folder).sha256 == hashlib.sha256(lines.encode()).hexdigest()


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    "name", ["../outside.bin", "/etc/passwd", "sub/x.bin", "..", ".", "", "a\\b.bin", "x\0.bin", "../../x"]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    save(tmp_path / "outside.bin")
    mapping = dict.fromkeys(network().state_dict(), name)
    folder = sharded(tmp_path / "checkpoint-8", weight_map=mapping)
    assert "the name of a file in the same folder is needed" in refusal(folder)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ([], "no weight_map in it"),
        ({}, "no weight_map in it"),
        (None, "no weight_map in it"),
        ({"0.weight": 3}, "the file of '0.weight' is a int, not a text"),
        ({"0.weight": ["a"]}, "is a list, not a text"),
        ({"0.weight": "nowhere.bin", "a\nb": "too.bin"}, "its shard 'nowhere.bin' and 1 more is not there: 2 of 2"),
        ({"0.weight": "pytorch_model.bin.index.json"}, "not a checkpoint"),
    ],
)
def test_an_index_that_is_none_is_refused_in_one_line(tmp_path, mapping, words):
    assert words in refusal(sharded(tmp_path / "checkpoint-8", weight_map=mapping))


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, "3", '"x"', "\xff"])
def test_an_index_that_is_not_a_json_object_is_refused_in_one_line(tmp_path, content):
    folder = sharded(tmp_path / "checkpoint-8")
    (folder / "pytorch_model.bin.index.json").write_text(content, encoding="latin-1")
    assert "JSON" in refusal(folder)


def test_shards_that_are_not_what_the_index_says_are_refused(tmp_path):
    folder = sharded(tmp_path / "checkpoint-8")
    index, shard = folder / "pytorch_model.bin.index.json", folder / "pytorch_model-00001-of-00002.bin"
    whole, listed = torch.load(shard), json.loads(index.read_text())
    torch.save({**whole, "extra": torch.ones(1)}, shard)
    assert "holds 'extra', which pytorch_model.bin.index.json does not put in it: 1 such keys" in refusal(folder)
    first = next(iter(whole))
    torch.save({key: value for key, value in whole.items() if key != first}, shard)
    assert f"pytorch_model.bin.index.json puts {first!r} in it, and it is not there" in refusal(folder)
    torch.save(whole, shard)
    shard.write_bytes(shard.read_bytes()[:-30])
    assert "truncated" in refusal(folder)
    shard.unlink()
    assert "its shard 'pytorch_model-00001-of-00002.bin' is not there: 1 of 2" in refusal(folder)
    assert listed["weight_map"]


def test_shards_that_are_written_to_while_they_are_read_are_refused(tmp_path, monkeypatch):
    from spectra.checkpoints import shards

    folder = sharded(tmp_path / "checkpoint-8")
    before = shards.read_hashed

    def read_then_write(path: Path, *how):
        found = before(path, *how)
        os.utime(folder / "pytorch_model-00001-of-00002.bin", ns=(1, 1))
        return found

    monkeypatch.setattr(shards, "read_hashed", read_then_write)
    assert "a shard was written to while they were read" in refusal(folder)


def test_a_shard_whose_index_is_not_there_is_no_part_of_a_partial_checkpoint(tmp_path):
    folder = sharded(tmp_path / "checkpoint-8")
    (folder / "pytorch_model.bin.index.json").unlink()
    assert find_checkpoints([tmp_path]) == [folder]  # one checkpoint, that cannot be used
    assert [path.name for path in find_checkpoints([f"{folder}/*.bin"])] == [
        f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)
    ]
    for path in (folder, folder / "pytorch_model-00001-of-00002.bin"):
        for partial, frozen in ((False, False), (True, False), (False, True)):
            words = "it is one shard of several, and pytorch_model.bin.index.json, which lists them, is not there$"
            with pytest.raises(CheckpointError, match=words):
                load_checkpoint(path).load_into(network(3).requires_grad_(not frozen), partial=partial)


def test_code_in_a_shard_is_not_run(tmp_path):
    folder = sharded(tmp_path / "checkpoint-8")

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    shard = folder / "pytorch_model-00001-of-00002.bin"
    torch.save({**torch.load(shard), "evil": Runs()}, shard)
    assert "--unsafe-load" in refusal_of_shard(folder, shard)
    assert not (tmp_path / "ran").exists()


def refusal_of_shard(folder: Path, shard: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert str(caught.value).startswith(str(shard))
    return str(caught.value)
