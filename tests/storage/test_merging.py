"""Files of one run joined: each record once, in the order of training; what does not fit together is refused."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, failed_record, make_record, make_spectrum

from spectra.errors import ArgumentError, StorageError
from spectra.storage import merging
from spectra.storage.locking import only_writer
from spectra.storage.merging import merge, part_path
from spectra.storage.runfile import RunFile, load_trajectory


def write(path, *records, settings=SETTINGS):
    with RunFile.open(path, settings) as run:
        for record in records:
            run.append(record)
    return path


def test_the_joined_file_is_that_of_one_run(tmp_path):
    odd = write(tmp_path / "odd.h5", make_record(1), make_record(3))
    even = write(tmp_path / "even.h5", make_record(0), make_record(0, "ggn"), make_record(2))
    done = merge([odd, even], tmp_path / "run.h5")
    assert (done.records, done.equal, done.failed) == (5, 0, 0)
    one_run = [make_record(0), make_record(0, "ggn"), make_record(1), make_record(2), make_record(3)]
    whole = load_trajectory(write(tmp_path / "whole.h5", *one_run))
    joined = load_trajectory(tmp_path / "run.h5")
    assert joined.settings == whole.settings
    for one, other in zip(joined, whole, strict=True):
        assert one.identity == other.identity
        assert one.facts == other.facts
        assert one.estimates == other.estimates
        np.testing.assert_array_equal(one.spectrum.nodes, other.spectrum.nodes)
    with h5py.File(tmp_path / "run.h5") as file, h5py.File(tmp_path / "whole.h5") as other:
        assert list(file["records"]) == list(other["records"])
        for name in file["records"]:  # byte for byte what the writer of one run makes
            assert file["records"][name].attrs["checksum"] == other["records"][name].attrs["checksum"]


def test_a_joined_file_is_continued_as_any(tmp_path):
    write(tmp_path / "a.h5", make_record(0))
    merge([tmp_path / "a.h5"], tmp_path / "run.h5")
    write(tmp_path / "run.h5", make_record(1))
    assert load_trajectory(tmp_path / "run.h5").epochs.tolist() == [0, 1]


def test_equal_records_are_kept_once_and_complete_ones_replace_failed_ones(tmp_path):
    a = write(tmp_path / "a.h5", make_record(0), failed_record(1), failed_record(2))
    later = dataclasses.replace(make_record(0), provenance={"seconds": 99.0})  # of another day
    b = write(tmp_path / "b.h5", later, make_record(1))
    for parts in ((a, b), (b, a)):
        done = merge(parts, tmp_path / "run.h5")
        assert (done.records, done.equal, done.failed) == (3, 1, 1)
        found = load_trajectory(tmp_path / "run.h5")
        assert [record.status for record in found] == ["complete", "complete", "failed"]
        (tmp_path / "run.h5").unlink()


def test_other_results_for_the_same_record_are_refused(tmp_path):
    a = write(tmp_path / "a.h5", make_record(0))
    b = write(tmp_path / "b.h5", make_record(0, spectrum=make_spectrum(7)))
    with pytest.raises(StorageError, match=r"b.h5: ckpt_0.pt epoch 0 hessian eval has other results than in .*a.h5"):
        merge([a, b], tmp_path / "run.h5")
    assert not (tmp_path / "run.h5").exists()


def test_another_content_of_the_same_checkpoint_is_refused(tmp_path):
    a = write(tmp_path / "a.h5", make_record(0))
    b = write(tmp_path / "b.h5", make_record(0, checkpoint_sha256="f" * 64))
    with pytest.raises(StorageError, match=r"run/ckpt_0.pt was another file than in .*a.h5: its SHA-256 was ffff"):
        merge([a, b], tmp_path / "run.h5")


def test_other_settings_are_refused_with_both_values(tmp_path):
    a = write(tmp_path / "a.h5", make_record(0))
    other = SETTINGS | {"seed": 3}
    b = write(tmp_path / "b.h5", make_record(1, settings=other | {"width": 1}), settings=other)
    with pytest.raises(StorageError, match=r"seed is 0 in .*a.h5, 3 in .*b.h5"):
        merge([a, b], tmp_path / "run.h5")


def test_a_file_that_is_there_is_only_added_to_if_it_is_named(tmp_path):
    a, b = write(tmp_path / "a.h5", make_record(0)), write(tmp_path / "b.h5", make_record(1))
    before = a.read_bytes()
    with pytest.raises(StorageError, match="is there already; name it among the parts as well to add to it"):
        merge([b], a)
    assert a.read_bytes() == before
    assert merge([a, b], a).records == 2
    assert load_trajectory(a).epochs.tolist() == [0, 1]


def test_a_damaged_or_missing_part_leaves_nothing_behind(tmp_path):
    a = write(tmp_path / "a.h5", make_record(0))
    content = bytearray(a.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "b.h5").write_bytes(content)
    with pytest.raises(StorageError, match=r"b.h5: is damaged"):
        merge([a, tmp_path / "b.h5"], tmp_path / "run.h5")
    with pytest.raises(StorageError, match=r"c.h5: no such file"):
        merge([a, tmp_path / "c.h5"], tmp_path / "run.h5")
    with pytest.raises(ArgumentError, match="no parts"):
        merge([], tmp_path / "run.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_a_file_that_is_being_written_is_refused(tmp_path):
    a = write(tmp_path / "a.h5", make_record(0))
    with only_writer(tmp_path / "run.h5"), pytest.raises(StorageError, match="is writing it already"):
        merge([a], tmp_path / "run.h5")


def test_a_disk_that_fills_up_leaves_the_parts_and_nothing_else(tmp_path, monkeypatch):
    a = write(tmp_path / "a.h5", make_record(0))

    def full(*arguments, **options):
        raise StorageError("run.h5: cannot be written: no space left on device")

    monkeypatch.setattr(merging, "replace_file", full)
    with pytest.raises(StorageError, match="no space left"):
        merge([a], tmp_path / "run.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_there_are_as_many_shards_as_there_are(tmp_path):
    with pytest.raises(ArgumentError, match="shard 3/2: the first number is from 1 to the second"):
        part_path(tmp_path / "run.h5", 3, 2)
