"""Records are read in parts, each when used: as if all were read at once, with damage reported by the part it is in."""

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
    exact = ExactTrace(total=1.0, by_layer={"weight": 1.0}, kind="ggn", certified={"weight": True}, reasons=())
    for record in (make_record(0), make_record(1, exact=exact), failed_record(2)):
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

    def counting(function):
        def count(group, *path):
            names.append(group.name.removeprefix("/records/"))
            return function(group, *path)

        return count

    for name in ("read_fields", "read_spectrum"):
        part = getattr(spectra.results.storage.stored, name)
        monkeypatch.setattr(spectra.results.storage.stored, name, counting(part))
    return names


@pytest.fixture
def opened(monkeypatch):
    """The datasets that are opened."""
    names = []
    real = Contents._dataset

    def counting(self, where, dataset, keep):
        names.append(h5py.h5i.get_name(dataset).decode())
        return real(self, where, dataset, keep)

    monkeypatch.setattr(Contents, "_dataset", counting)
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
    assert repr(lazy[2]) == repr(eager[2])
    assert (lazy[2], eager[2]) == (eager[2], lazy[2])


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
    assert reads == ["000001"]  # that one alone, without its arrays
    assert trajectory[1].spectrum is not None
    assert trajectory[1].spectrum is trajectory[1].spectrum
    assert reads == ["000001", "000001/spectrum"]  # each once


def test_continuing_a_run_reads_no_record(path, reads):
    run = RunFile.open(path, SETTINGS)
    assert run.has(make_record(1).identity)
    run.append(make_record(3, cached_estimates={}))
    assert reads == []


def test_a_file_of_fifty_records_is_opened_without_reading_their_arrays(tmp_path, opened, reads):
    known = make_record(0)
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        for epoch in range(50):
            run.append(make_record(epoch, spectrum=known.spectrum, cached_estimates=known.estimates))
    trajectory = load_trajectory(tmp_path / "run.h5")
    assert len(trajectory) == 50
    assert (opened, reads) == ([], [])
    assert trajectory[7].spectrum is not None
    assert reads == ["000007", "000007/spectrum"]
    assert {name.split("/")[2] for name in opened} == {"000007"}
    assert len(set(opened)) == len(opened)  # each is opened once


def test_what_tables_show_is_read_without_the_arrays_of_a_spectrum(tmp_path, opened):
    spectrum = make_record(0).spectrum
    RunFile.open(tmp_path / "run.h5", SETTINGS).append(make_record(0, test_spectrum=spectrum))
    record = load_trajectory(tmp_path / "run.h5")[0]
    assert record.facts
    assert record.notes == ("TF32 was off",)
    assert record.checks == ()
    assert record.headlines["trace"].value == record.estimates["trace"].value == spectrum.trace().value
    assert record.test_estimates["trace"].value == spectrum.trace().value
    assert {name.split("/", 3)[3].rsplit("/", 1)[0] for name in opened} == {"estimates", "test/estimates"}
    opened.clear()
    assert record.test_spectrum.trace() == spectrum.trace()
    assert {name.split("/")[3] for name in opened} == {"test"}
    assert record.spectrum.trace() == spectrum.trace()
    assert len(set(opened)) == len(opened)


def test_a_record_without_a_spectrum_is_known_not_to_have_one_without_reading_any(path, opened):
    records = load_trajectory(path).records
    assert [record.test_spectrum for record in records] == [None] * 3
    assert records[2].spectrum is None
    assert not any("spectrum" in name for name in opened)


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
    assert type(copied) is Record
    assert (copied.epoch, copied.facts["loss"]) == (9.0, 2.5)
    assert copied.spectrum is not None


def test_the_file_may_go_or_be_replaced_while_records_are_unread(path):
    trajectory = load_trajectory(path)
    path.write_bytes(b"")
    assert trajectory[0].spectrum.trace() == make_record(0).spectrum.trace()


def damaged(image, place):
    """The file with a bit of something flipped, under a seal that was computed again."""
    content = bytearray(unsealed(image, ""))
    with h5py.File(io.BytesIO(bytes(content)), "r") as file:
        offset = file[place].id.get_offset()
    content[offset + 3] ^= 1
    return sealed(bytes(content))


USES = {
    "spectrum": lambda r: r.spectrum,
    "trace": lambda r: r.spectrum.trace(),
    "repr": repr,
    "copy": copy.copy,
    "facts": lambda r: r.facts,
    "estimates": lambda r: r.estimates,
    "notes": lambda r: r.notes,
}


@pytest.mark.parametrize(
    ("place", "use"),
    [("spectrum/alphas", use) for use in ("spectrum", "trace", "repr", "copy")]
    + [("exact/traces", use) for use in USES],
)
def test_a_damaged_record_is_one_line_each_time_it_is_used_and_the_others_are_whole(path, image, place, use):
    """The checksums of the groups find it."""
    path.write_bytes(damaged(image, f"records/000001/{place}"))
    trajectory = load_trajectory(path)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"run\.h5: record 000001 is damaged: the checksum of .* does not") as e:
            USES[use](trajectory[1])
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
