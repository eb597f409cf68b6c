"""Parts of a run become the file of one run, or are refused with what does not fit."""

from __future__ import annotations

import os

import pytest
from contents import contents
from run_files import SETTINGS, failed_record, make_record, make_spectrum, write

from spectra.errors import ArgumentError, StorageError
from spectra.results.storage.lock import only_writer
from spectra.results.storage.merge import merge, part_path
from spectra.results.storage.runfile import RunFile, load_trajectory


def record_of(epoch, /, operator="hessian", estimates={}, **changes):  # noqa: B006  # the estimates take longest
    if epoch not in estimates:
        estimates[epoch] = make_record(epoch).estimates
    return make_record(epoch, operator, cached_estimates=estimates[epoch], **changes)


def labels(path):
    return [(record.epoch, record.operator, record.status) for record in load_trajectory(path)]


def arrival(path):
    return [record.epoch for record in RunFile.open(path, SETTINGS).records]


def test_shards_become_the_file_of_one_run(tmp_path):
    epochs = range(5)
    records = [record_of(epoch, operator) for epoch in epochs for operator in ("hessian", "ggn")]
    whole = write(tmp_path / "whole.h5", *records)
    out = tmp_path / "run.h5"
    parts = [part_path(out, shard, 2) for shard in (1, 2)]
    for shard, path in enumerate(parts):
        write(path, *[record for record in records if int(record.epoch) % 2 == shard])
    merged = merge(parts, out)
    assert (merged.records, merged.equal, merged.failed) == (10, 0, 0)
    assert contents(out) == contents(whole)
    assert labels(out) == labels(whole)
    assert arrival(out) == [epoch for epoch in epochs for _ in range(2)]  # in the order of training
    assert len(os.listdir(tmp_path)) == 4  # and nothing beside them
    write(out, record_of(7))  # it goes on as any other
    assert len(load_trajectory(out)) == 11


@pytest.mark.parametrize("changes", [{"epoch": None}, {"epoch": None, "step": None}])
def test_without_epochs_the_order_is_by_step_or_by_the_numbers_in_the_names(tmp_path, changes):
    names = ["ckpt_9.pt", "ckpt_10.pt", "ckpt_100.pt"]
    records = [record_of(i, **({"step": i, "checkpoint": name} | changes)) for i, name in enumerate(names)]
    write(tmp_path / "a.h5", records[2], records[0])
    write(tmp_path / "b.h5", records[1])
    merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "run.h5")
    assert [record.checkpoint for record in RunFile.open(tmp_path / "run.h5", SETTINGS).records] == names


def test_other_settings_are_refused_with_what_differs(tmp_path):
    a = write(tmp_path / "a.h5", record_of(0))
    b = write(tmp_path / "b.h5", record_of(1), settings=SETTINGS | {"seed": 1, "samples": 10})
    with pytest.raises(StorageError) as caught:
        merge([a, b], tmp_path / "run.h5")
    message = str(caught.value)
    assert message.startswith(f"{b}: is of a run with other settings: ")
    assert f"samples is not set in {a}, 10 in {b}; seed is 0 in {a}, 1 in {b}" in message
    assert "\n" not in message
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]


def test_equal_results_are_kept_once(tmp_path):
    other_machine = {"device": "cpu", "threads": 4, "seconds": 9.0}
    a = write(tmp_path / "a.h5", record_of(0), record_of(1))
    b = write(tmp_path / "b.h5", record_of(1, provenance=other_machine), record_of(2))
    merged = merge([a, b], tmp_path / "run.h5")
    assert (merged.records, merged.equal) == (3, 1)
    assert load_trajectory(tmp_path / "run.h5")[1].provenance["seconds"] == 1.5  # that of the first part


def test_other_results_of_the_same_record_are_refused(tmp_path):
    a = write(tmp_path / "a.h5", record_of(0), record_of(1))
    b = write(tmp_path / "b.h5", record_of(1, spectrum=make_spectrum(5)))
    with pytest.raises(StorageError, match=r"b\.h5: .* has other results than in .*a\.h5: spectrum; decide which"):
        merge([a, b], tmp_path / "run.h5")
    c = write(tmp_path / "c.h5", record_of(1, facts={"loss": 0.5}))
    with pytest.raises(StorageError, match=r"c\.h5: .* has other results than in .*a\.h5: facts; decide which"):
        merge([a, c], tmp_path / "run.h5")
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5", "c.h5"]


def test_two_contents_under_one_name_are_refused_with_both(tmp_path):
    a = write(tmp_path / "a.h5", record_of(1))
    b = write(tmp_path / "b.h5", record_of(1, checkpoint_sha256="f" * 64))
    with pytest.raises(StorageError) as caught:
        merge([a, b], tmp_path / "run.h5")
    assert "run/ckpt_1.pt is not the same file as in" in str(caught.value)
    assert "its SHA-256 was ffffffffffff... in place of 000000000000..." in str(caught.value)


@pytest.mark.parametrize("failed_first", [True, False])
def test_a_complete_record_takes_the_place_of_a_failed_one(tmp_path, failed_first):
    a = write(tmp_path / "a.h5", failed_record(1, checkpoint_sha256=None), record_of(0))
    b = write(tmp_path / "b.h5", record_of(1))
    merged = merge([a, b] if failed_first else [b, a], tmp_path / "run.h5")
    assert (merged.records, merged.equal, merged.failed) == (2, 0, 0)
    assert labels(tmp_path / "run.h5") == [(0, "hessian", "complete"), (1, "hessian", "complete")]


def test_a_record_that_failed_in_all_parts_is_there_once(tmp_path):
    parts = [write(tmp_path / name, failed_record(1), record_of(epoch)) for epoch, name in ((0, "a.h5"), (2, "b.h5"))]
    merged = merge(parts, tmp_path / "run.h5")
    assert (merged.records, merged.equal, merged.failed) == (3, 0, 1)


def test_a_file_that_is_there_is_kept_unless_it_is_a_part(tmp_path):
    a, b = write(tmp_path / "a.h5", record_of(0)), write(tmp_path / "b.h5", record_of(1))
    out = write(tmp_path / "run.h5", record_of(2))
    before = out.read_bytes()
    with pytest.raises(StorageError, match=r"run\.h5: is there already; name it among the parts as well"):
        merge([a, b], out)
    assert out.read_bytes() == before
    assert merge([a, b, out], out).records == 3
    assert merge([out, out], out).records == 3  # named twice is named once


@pytest.mark.parametrize("names", [["out", "a"], ["a", "out"]])
def test_a_merge_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, names):
    paths = {"a": write(tmp_path / "a.h5", record_of(0)), "out": write(tmp_path / "run.h5", record_of(1))}
    before = {name: path.read_bytes() for name, path in paths.items()}

    def full(*_):
        raise OSError(28, "No space left on device")

    for place in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, place, full)
            with pytest.raises(StorageError, match="cannot be written: no space left on device"):
                merge([paths[name] for name in names], paths["out"])
        assert {name: path.read_bytes() for name, path in paths.items()} == before
        assert sorted(os.listdir(tmp_path)) == ["a.h5", "run.h5"]


def test_a_part_that_is_damaged_or_missing_is_named(tmp_path):
    a, b = write(tmp_path / "a.h5", record_of(0)), write(tmp_path / "b.h5", record_of(1))
    content = bytearray(b.read_bytes())
    content[3000] ^= 1
    b.write_bytes(content)
    with pytest.raises(StorageError, match=r"b\.h5: is damaged"):
        merge([a, b], tmp_path / "run.h5")
    with pytest.raises(StorageError, match=r"c\.h5: no such file"):
        merge([a, tmp_path / "c.h5"], tmp_path / "run.h5")
    with pytest.raises(ArgumentError, match="no parts"):
        merge([], tmp_path / "run.h5")
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]


@pytest.mark.parametrize("name", ["a.h5", "run.h5"])
def test_a_file_that_is_being_written_is_not_merged(tmp_path, name):
    a = write(tmp_path / "a.h5", record_of(0))
    with only_writer(tmp_path / name), pytest.raises(StorageError, match=f"{name}: this process is writing it"):
        merge([a], tmp_path / "run.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize(("shard", "shards"), [(0, 2), (3, 2), (1, 0)])
def test_a_part_that_does_not_exist_is_refused(tmp_path, shard, shards):
    with pytest.raises(ArgumentError, match=f"shard {shard}/{shards}: the first number is from 1 to the second"):
        part_path(tmp_path / "run.h5", shard, shards)
