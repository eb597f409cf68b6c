"""Records that are read when they are used: the same as ever, and a file of many opens without reading them."""

from __future__ import annotations

import copy
import pickle

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, make_record

from spectra.errors import StorageError
from spectra.records import Record
from spectra.storage import loading, stored
from spectra.storage.runfile import RunFile, load_trajectory
from spectra.storage.sealing import sealed


@pytest.fixture
def path(tmp_path):
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        for epoch in range(3):
            run.append(make_record(epoch))
    return tmp_path / "run.h5"


@pytest.fixture
def reads(monkeypatch):
    """The groups that are read, as they are."""
    found = []
    real = stored.read_record

    def counted(group, **options):
        found.append(group.name)
        return real(group, **options)

    monkeypatch.setattr(stored, "read_record", counted)
    return found


def test_what_orders_and_lists_a_run_is_read_at_once_and_the_rest_when_it_is_used(path, reads):
    trajectory = load_trajectory(path)
    assert trajectory.epochs.tolist() == [0, 1, 2]
    assert [record.label for record in trajectory] == [f"ckpt_{i}.pt epoch {i} hessian eval" for i in range(3)]
    assert [record.identity for record in trajectory] == [make_record(i).identity for i in range(3)]
    assert reads == []
    assert trajectory[1].facts == make_record(1).facts
    assert reads == ["/records/000001"]
    assert type(trajectory[1]) is Record
    np.testing.assert_array_equal(trajectory[1].spectrum.nodes, make_record(1).spectrum.nodes)
    assert reads == ["/records/000001"]


def test_copies_pickles_and_comparisons_are_of_the_whole(path):
    def record():
        return load_trajectory(path)[0]

    assert copy.copy(record()).facts == record().facts
    assert pickle.loads(pickle.dumps(record())).estimates == record().estimates
    assert copy.deepcopy(record()).notes == ("TF32 was off",)
    assert record() != make_record(1)
    assert isinstance(record(), Record)
    assert "hessian" in repr(record())


def test_a_record_outlives_the_file_and_its_trajectory(path):
    record = load_trajectory(path)[2]
    path.unlink()
    assert record.estimates == make_record(2).estimates


def test_without_the_seal_all_records_are_read_and_compared_at_once(path, monkeypatch):
    found = []
    real = loading.read_record
    monkeypatch.setattr(loading, "read_record", lambda group, **options: found.append(group.name) or real(group))
    path.write_bytes(path.read_bytes()[:-85])
    load_trajectory(path)
    assert found == ["/records/000000", "/records/000001", "/records/000002"]


def test_damage_inside_a_whole_seal_is_one_line_when_the_record_is_used(path):
    """As if the damage had been there before the file was sealed: the seal fits, the group cannot be read."""
    content = path.read_bytes()
    with h5py.File(path, "r+") as file:
        del file["records/000001/spectrum/alphas"]
    image = path.read_bytes()
    path.write_bytes(
        sealed(image[: image.rindex(b"\nspectra-run sha256 ")] if b"spectra-run sha256 " in image else image)
    )
    assert path.read_bytes() != content
    trajectory = load_trajectory(path)
    assert trajectory[0].facts
    with pytest.raises(StorageError, match=r"run.h5: record 000001 is damaged"):
        trajectory[1].facts  # noqa: B018
