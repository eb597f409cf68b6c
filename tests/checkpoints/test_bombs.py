"""A small file does not take much memory or time, unless it is said that it may."""

from __future__ import annotations

import json
import resource
import struct
import zipfile

import pytest
import torch
from crafted_checkpoints import edited, saved
from torch import nn

from spectra.analysis.settings import Settings
from spectra.checkpoints import bounds
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.checkpoints.discovery import order_checkpoints
from spectra.errors import ArgumentError, CheckpointError


def compressed(path, numbers):
    saved(path, None, padding=torch.zeros(numbers))
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_what_is_compressed_a_lot_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "FLOOR", 2**20)
    path = compressed(tmp_path / "epoch_7.pt", 2**20)
    words = refusal(path)
    assert "to 4 MiB, more than the 1 MiB allowed" in words
    assert "--max-size 5M" in words
    assert load_checkpoint(path, max_size="5M").state_dict.keys() == {"weight", "bias"}
    assert load_checkpoint(path, max_size=5 * 2**20).epoch == 7
    assert "more than the 3 MiB allowed" in refusal(path, max_size="3M")
    assert order_checkpoints([path]) == [path]


def test_what_is_compressed_a_little_or_not_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "FLOOR", 1)
    torch.save({"weight": torch.zeros(2**18)}, tmp_path / "a.pt")
    load_checkpoint(tmp_path / "a.pt")
    assert "expands" in refusal(compressed(tmp_path / "b.pt", 2**18))


def test_a_compressed_file_is_not_memory_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra.checkpoints.rawfile.MMAP_FROM", 1)
    found = load_checkpoint(compressed(tmp_path / "a.pt", 8))
    assert found.state_dict["bias"].tolist() == [0, 1, 2, 3]


def test_parts_that_overlap_or_share_a_name_are_refused(tmp_path):
    path = saved(tmp_path / "a.pt")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/data/0", bytes(48))
    assert "two parts of the archive have the same name" in refusal(path)
    torch.save({"weight": torch.ones(10_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        twins = [archive.getinfo("a/data/0")] * 9
        for number, part in enumerate(twins):
            copy = zipfile.ZipInfo(f"a/data/{number + 5}")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "create_version", "extract_version"):
                setattr(copy, name, getattr(part, name))
            archive.filelist.append(copy)
        archive._didModify = True
    assert "overlap" in refusal(path)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("number", [11, 13, 10**9, 2**31 - 1])
def test_a_storage_declares_what_the_file_has(tmp_path, monkeypatch, number, mmap):
    monkeypatch.setattr("spectra.checkpoints.rawfile.MMAP_FROM", 1 if mmap else 2**40)
    torch.save({"weight": torch.ones(12)}, tmp_path / "a.pt")
    path = edited(tmp_path / "a.pt", lambda data: data.replace(b"K\x0c", b"J" + struct.pack("<i", number), 1))
    assert f"storage '0' declares {4 * number} bytes, and 48 are there" in refusal(path)


def test_a_storage_of_the_old_format_declares_no_more_than_the_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.ones(12)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x0c", b"J" + struct.pack("<i", 2**31 - 1), 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"declares {4 * (2**31 - 1)} bytes" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6


def test_a_storage_that_is_not_there_is_named(tmp_path):
    torch.save({"weight": torch.ones(12)}, tmp_path / "a.pt")
    path = edited(tmp_path / "a.pt", lambda data: data.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"))
    assert "the numbers of storage '9' are not in the file" in refusal(path)


@pytest.mark.parametrize("among_weights", [False, True])
def test_numbers_that_are_repeated_are_bounded(tmp_path, among_weights):
    wide = torch.zeros(1).expand(2**20, 2**20)
    path = saved(tmp_path / "a.pt", None, **({"big": wide} if not among_weights else {}))
    if among_weights:
        torch.save({"weight": wide}, path)
    assert "repeats the 1 numbers of its storage" in refusal(path)
    torch.save({"weight": torch.ones(1).expand(5, 5)}, path)
    assert load_checkpoint(path).state_dict["weight"].sum() == 25


@pytest.mark.parametrize("opening", [b"]", b"}X\x01\x00\x00\x00k", b")"])
def test_deep_containers_are_refused(tmp_path, opening):
    closing = {b"]": b"a", b"}X\x01\x00\x00\x00k": b"s", b")": b"\x85"}[opening]
    deep = b")" + closing * 300_000 if opening == b")" else opening * 300_000 + b"]" + closing * 300_000
    path = edited(saved(tmp_path / "a.pt", 12345), lambda data: data.replace(b"M90", deep))
    assert "nested more than 100 deep" in refusal(path)


def test_one_list_many_times_over_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra.checkpoints.contents.MAX_VALUES", 10_000)
    laughs = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 8
    assert "one list many times" in refusal(saved(tmp_path / "a.pt", laughs))


def test_so_many_operations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "OPERATIONS", 1000)
    assert "more than 1000 operations" in refusal(saved(tmp_path / "a.pt", list(range(5000))))


def safetensors(path, header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(first, last, shape=(2, 2), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 16), "b": entry(0, 16)},
        {"a": entry(0, 16), "b": entry(8, 24)},
        {"a": entry(0, 2**60, (2**29, 2**29))},
        {"a": entry(0, 16, (2**62, 2**62))},
        {"a": entry(16, 0)},
        {"a": entry(-16, 0)},
        {"a": entry(0, 16, (-2, -2))},
        {"a": entry(0, 16, (2, 3))},
        {"a": entry(0, 16, (4,), "F99")},
        {"a": entry(4, 20)},
        {"a": []},
        [1, 2],
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff" * 10,
    ],
)
def test_a_header_of_safetensors_that_contradicts_itself_is_refused(tmp_path, header):
    pytest.importorskip("safetensors")
    refusal(safetensors(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("length", [2**40, 2**63, 2**64 - 1, 10**8 + 1])
def test_a_header_of_safetensors_is_no_longer_than_the_file(tmp_path, length):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":{}}')
    refusal(path)


@pytest.mark.parametrize("size", ["", "8X", "-1", "0", "9" * 400, 0, -5, True, "1e9", 2**70])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ArgumentError, match="max_size="):
        parse_size(size)


@pytest.mark.parametrize("name", ["lanczos_steps", "num_probes", "seed", "width", "eigenpairs", "exact_spectrum"])
@pytest.mark.parametrize("value", [2**63, 10**400])
def test_counts_of_absurd_size_are_refused(name, value):
    with pytest.raises(ArgumentError, match=f"{name}=.*at most") as caught:
        Settings(**{name: value})
    assert len(str(caught.value)) < 200


def test_an_honest_checkpoint_with_all_that_trainers_save_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "FLOOR", 1)
    model = nn.Linear(30, 30)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    content = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 3}
    torch.save(content | {"losses": [0.5] * 10_000, "empty": torch.empty(0)}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt").epoch == 3
