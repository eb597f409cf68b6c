"""A damaged or foreign results file is refused in one line; what another writer adds is ignored."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_files import make_record, same_bits, write

from spectra.errors import StorageError
from spectra.results.storage.attributes import checksum
from spectra.results.storage.runfile import load_trajectory


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "run.h5", make_record(0), make_record(1), make_record(0, "ggn"))


def refused(path):
    """The message with which a file is refused; it must be one line that names the file."""
    with pytest.raises(StorageError) as caught:
        load_trajectory(path)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(path).name in message
    return message


def test_what_is_no_results_file_is_refused_in_one_line(tmp_path, path):
    assert "no such file" in refused(tmp_path / "missing.h5")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "empty.h5").write_bytes(b"")
    assert "empty file" in refused(tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("epoch,trace\n0,1\n")
    assert "not an HDF5 file" in refused(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.arange(3)
    assert "not one that spectra wrote" in refused(tmp_path / "other.h5")
    with h5py.File(tmp_path / "kind.h5", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file.attrs["encoding-version"] = 1
    assert "not one that spectra wrote" in refused(tmp_path / "kind.h5")


@pytest.mark.parametrize("part", [0.99, 0.9, 0.5, 0.1, 0.01])
def test_a_truncated_file_is_refused(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "truncated or damaged" in refused(path)


SEAL = 85  # bytes at the end of the file, as the format says


def test_the_file_ends_with_its_sha256(path):
    content = path.read_bytes()
    assert content[-SEAL:] == b"\nspectra-run sha256 " + hashlib.sha256(content[:-SEAL]).hexdigest().encode() + b"\n"


@pytest.mark.parametrize("lost", [1, 40, SEAL])
def test_without_its_last_line_the_file_is_still_whole(path, lost):
    before = load_trajectory(path)
    path.write_bytes(path.read_bytes()[:-lost])
    for old, new in zip(before, load_trajectory(path), strict=True):
        same_bits(old.spectrum.nodes, new.spectrum.nodes)
    write(path, make_record(5))
    assert len(load_trajectory(path)) == 4


def test_a_newer_version_is_refused_with_what_to_do(path):
    with h5py.File(path, "r+") as file:
        file.attrs["encoding-version"] = 2
        file.attrs["spectra-version"] = "9.9"
    message = refused(path)
    assert "format version 2" in message
    assert "spectra 9.9" in message
    assert "upgrade" in message


def test_a_record_that_was_not_finished_is_left_out_with_a_note(path):
    with h5py.File(path, "r+") as file:
        del file["records/000001"].attrs["complete"]
        file["records"].create_group("000003")  # one that was only begun
    t = load_trajectory(path)
    assert len(t) == 2
    assert [note.split("record ")[1] for note in t.notes] == [
        "000001 was not finished, and is left out",
        "000003 was not finished, and is left out",
    ]
    write(path, make_record(1), make_record(2), make_record(3))  # and the run goes on over it
    assert [record.epoch for record in load_trajectory(path)["hessian", "eval"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["alphas", "betas", "lengths", "exhausted", "orthogonality", "tensors/forms"])
def test_a_flipped_byte_in_the_raw_data_is_found(path, name):
    with h5py.File(path, "r") as file:
        dataset = file[f"records/000001/spectrum/{name}"]
        place, size = dataset.id.get_offset(), dataset.nbytes
        sent = dataset[()].tobytes()
    content = path.read_bytes()
    assert content[place : place + size] == sent
    for index in (0, size // 2, size - 1):
        damaged = bytearray(content)
        damaged[place + index] ^= 1
        path.write_bytes(damaged)
        assert "does not match its SHA-256" in refused(path)
        path.write_bytes(damaged[:-SEAL])  # as a tool that rewrites the file leaves it
        message = refused(path)
        assert "record 000001 is damaged" in message
        assert "checksum" in message
    path.write_bytes(content)
    assert len(load_trajectory(path)) == 3


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("records/000001", "operator", "ggn"),
        ("records/000001", "bn_mode", "train"),
        ("records/000001", "epoch", 7.0),
        ("records/000001", "status", "failed"),
        ("records/000001/facts", "loss", 0.0),
        ("records/000001/spectrum", "n", 100),
        ("records/000001/spectrum", "noise", 0.0),
        ("/", "settings", "{}"),
    ],
)
def test_a_changed_identity_or_fact_is_found(path, where, name, value):
    with h5py.File(path, "r+") as file:
        assert file[where].attrs[name] != value
        file[where].attrs[name] = value
    assert "checksum" in refused(path)


def test_a_spectrum_that_was_exchanged_is_found(path):
    with h5py.File(path, "r+") as file:
        del file["records/000000/spectrum"]
        file.copy("records/000001/spectrum", file["records/000000"])
    assert "record 000000 is damaged" in refused(path)


def test_a_damaged_cache_is_computed_again(path):
    with h5py.File(path, "r+") as file:
        file["records/000000/estimates/value"][0] += 1.0
    record = load_trajectory(path)["hessian", "eval"].at(0)
    assert record.estimates["trace"] == record.spectrum.trace()
    assert "computed again" in record.notes[-1]


def test_what_a_later_writer_adds_does_not_disturb(path):
    with h5py.File(path, "r+") as file:
        group = file["records/000000"]
        extra = group.create_group("eigenvectors")
        extra["vectors"] = np.eye(3)
        extra.attrs["checksum"] = checksum(extra)
        group.attrs["label"] = "sgd"
        group.attrs["checksum"] = checksum(group)
    assert len(load_trajectory(path)) == 3


def test_random_damage_is_one_line_or_the_same_numbers(path):
    """60 files with flipped bits and 20 cut off: refused in one line, or every number is what it was."""
    random = np.random.default_rng(0)
    content = path.read_bytes()
    whole = {record.label: record for record in load_trajectory(path)}
    refusals = 0
    for trial in range(80):
        damaged = bytearray(content)
        if trial < 60:
            for place in random.integers(len(content), size=1 + trial % 3):
                damaged[place] ^= 1 << random.integers(8)
        else:
            damaged = damaged[: random.integers(len(content))]
        path.write_bytes(damaged)
        found = []
        with contextlib.suppress(StorageError):
            found = load_trajectory(path)
        refusals += not found
        for record in found:
            assert record.facts == whole[record.label].facts
            assert record.estimates == whole[record.label].estimates
            same_bits(record.spectrum.nodes, whole[record.label].spectrum.nodes)
    assert refusals > 60
