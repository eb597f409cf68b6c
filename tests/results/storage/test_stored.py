"""Records are read when they are used: the same as if all were read at once, and damage is told by the one it is in."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, changed, failed_record, make_record

import spectra.results.storage.stored
from spectra.errors import StorageError
from spectra.results.exact_trace import ExactTrace
from spectra.results.record import Record
from spectra.results.storage.checksum import sealed, unsealed
from spectra.results.storage.contents import Contents
from spectra.results.storage.record_codec import read_record
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.results.storage.stored import StoredRecord


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "run.h5"
    run = RunFile.open(path, SETTINGS)
    for record in (make_record(0), make_record(1), failed_record(2)):
        run.append(record)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, image):
    (tmp_path / "run.h5").write_bytes(image)
    return tmp_path / "run.h5"


@pytest.fixture
def reads(monkeypatch):
    """The groups that are read."""
    names = []

    def counting(group):
        names.append(group.name.rsplit("/", 1)[-1])
        return read_record(group)

    monkeypatch.setattr(spectra.results.storage.stored, "read_record", counting)
    return names


def shape(record):
    """All fields of a record, as they compare."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(Record)}
    spectrum = fields.pop("spectrum")
    arrays = [] if spectrum is None else [(t.alphas.tobytes(), t.betas.tobytes()) for t in spectrum.tridiagonals]
    return fields, arrays


def test_a_record_on_demand_has_the_fields_of_one_that_is_read_at_once(path, image):
    lazy = load_trajectory(path).records
    with h5py.File(io.BytesIO(unsealed(image, "")), "r") as file:
        eager = [read_record(group) for group in file["records"].values()]
    assert [type(record) for record in lazy] == [StoredRecord] * 3
    assert [shape(record) for record in lazy] == [shape(record) for record in eager]
    assert [type(record) for record in lazy] == [Record] * 3  # used once, it is a plain record


def test_opening_lists_and_orders_without_reading_a_record(path, reads):
    trajectory = load_trajectory(path)
    assert list(trajectory.epochs) == [0, 1, 2]
    assert [(record.operator, record.status, record.reason) for record in trajectory][2] == (
        "hessian",
        "failed",
        "NaN weights",
    )
    assert [record.identity for record in trajectory] == [make_record(epoch).identity for epoch in range(3)]
    assert [record.label for record in trajectory]
    assert reads == []
    assert trajectory[1].facts["loss"] == 1.25
    assert trajectory[1].spectrum is not None
    assert reads == ["000001"]  # that one alone, and once


def test_continuing_a_run_reads_no_record(path, reads):
    run = RunFile.open(path, SETTINGS)
    assert run.has(make_record(1).identity)
    run.append(make_record(3, cached_estimates={}))
    assert reads == []


def test_a_file_of_fifty_records_is_opened_without_reading_their_arrays(tmp_path, monkeypatch, reads):
    known = make_record(0)
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        for epoch in range(50):
            run.append(make_record(epoch, spectrum=known.spectrum, cached_estimates=known.estimates))
    datasets = []
    real = Contents._dataset

    def counting(self, where, dataset, keep):
        datasets.append(h5py.h5i.get_name(dataset).decode())
        return real(self, where, dataset, keep)

    monkeypatch.setattr(Contents, "_dataset", counting)
    trajectory = load_trajectory(tmp_path / "run.h5")
    assert len(trajectory) == 50
    assert (datasets, reads) == ([], [])
    assert trajectory[7].spectrum is not None
    assert reads == ["000007"]
    assert {name.split("/")[2] for name in datasets} == {"000007"}
    assert len(set(datasets)) == len(datasets)  # each is opened once


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))])
def test_copies_are_of_the_whole_record_and_need_no_file(path, make):
    record = load_trajectory(path)[1]
    twin = make(record)
    path.unlink()
    assert type(twin) is Record
    assert shape(twin) == shape(record)
    assert shape(twin)[1] == shape(make_record(1))[1]


def test_a_changed_copy_of_a_record_on_demand_is_a_record(path):
    copied = changed(load_trajectory(path)[0], epoch=9.0)
    assert (copied.epoch, copied.facts["loss"]) == (9.0, 2.5)
    assert copied.spectrum is not None


def test_the_file_may_go_or_be_replaced_while_records_are_unread(path):
    trajectory = load_trajectory(path)
    path.write_bytes(b"")
    assert trajectory[0].spectrum.trace() == make_record(0).spectrum.trace()


@pytest.mark.parametrize("use", [lambda r: r.spectrum, lambda r: r.facts, lambda r: r.estimates, repr, copy.copy])
def test_a_damaged_record_is_one_line_each_time_it_is_used_and_the_others_are_whole(path, image, use):
    """Under a seal that was computed again: the checksums of the groups find it."""
    content = bytearray(unsealed(image, ""))
    with h5py.File(io.BytesIO(bytes(content)), "r") as file:
        place = file["records/000001/spectrum/alphas"].id.get_offset()
    content[place + 3] ^= 1
    path.write_bytes(sealed(bytes(content)))
    trajectory = load_trajectory(path)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"run\.h5: record 000001 is damaged: the checksum of .* does not") as e:
            use(trajectory[1])
        assert "\n" not in str(e.value)
    assert trajectory[0].spectrum is not None
    assert trajectory[2].reason == "NaN weights"


def test_equality_is_of_what_is_read(path):
    one, two = load_trajectory(path), load_trajectory(path)
    assert one[2] == two[2]
    assert one[2] != two[0]
    assert one[0] != "record"
    assert np.isfinite(one[0].facts["loss"])


def test_empty_columns_and_texts_of_fixed_length_are_read(tmp_path):
    """As a record has them whose exact trace has no tensors, and as other tools write them."""
    exact = ExactTrace(total=None, by_layer={}, kind="ggn", certified={}, reasons=("none",))
    path = tmp_path / "run.h5"
    RunFile.open(path, SETTINGS).append(make_record(0, exact=exact))
    buffer = io.BytesIO(unsealed(path.read_bytes(), ""))
    with h5py.File(buffer, "r+", libver=("v108", "v108")) as file:
        tensors = file["records/000000/spectrum/tensors"]
        names = [name.decode() for name in tensors["names"][()]]
        del tensors["names"]
        tensors["names"] = np.array(names, dtype="S16")
    for content in (sealed(buffer.getvalue()), buffer.getvalue()):
        path.write_bytes(content)
        record = load_trajectory(path)[0]
        assert record.exact == exact
        assert list(record.spectrum.tensor_sizes) == names
