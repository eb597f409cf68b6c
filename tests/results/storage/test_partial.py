"""The file of finished probes: as it was written or refused in a line, and its key says whose they are."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest

from spectra.errors import StorageError
from spectra.results.storage.partial import Partial, PartialFile

KEY = {"weights": "ab", "settings": {"seed": 0, "batch_sizes": [[7, 1]]}, "torch": "2.0"}


def probe(seed):
    random = np.random.default_rng(seed)
    return {
        "alphas": random.standard_normal(5),
        "exhausted": np.array(1, dtype=np.uint8),
        "orthogonality": np.array(np.nan),
        "forms": random.standard_normal((2, 3)).astype(np.float32),
    }


@pytest.fixture
def file(tmp_path):
    return PartialFile(tmp_path / "run.h5")


def test_what_is_written_is_read_bit_for_bit_and_in_order(file):
    parts = [[probe(seed) for seed in range(12)], [probe(20)]]  # more than nine: names in the order of numbers
    file.write(Partial(KEY, {"width": 2, "threads": 1}, parts))
    found = file.read()
    assert (found.key, found.how) == (KEY, {"width": 2, "threads": 1})
    assert [len(part) for part in found.parts] == [12, 1]
    for part, others in zip(parts, found.parts):
        for one, other in zip(part, others):
            assert one.keys() == other.keys()
            for name, values in one.items():
                assert other[name].dtype == values.dtype
                assert other[name].shape == values.shape
                assert other[name].tobytes() == values.tobytes()


def test_there_may_be_no_file_and_no_probes(file):
    assert file.read() is None
    file.remove()
    file.write(Partial(KEY, {}, [[]]))
    assert file.read().parts == [[]]


def test_each_write_takes_the_place_of_the_one_before(file, tmp_path):
    for probes in (1, 3, 2):
        file.write(Partial(KEY, {}, [[probe(0)] * probes]))
        assert len(file.read().parts[0]) == probes
        assert os.listdir(tmp_path) == ["run.h5.partial"]
    file.remove()
    assert os.listdir(tmp_path) == []


def test_a_link_to_the_results_file_has_the_probes_of_what_it_points_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "run.h5").symlink_to(tmp_path / "there" / "run.h5")
    PartialFile(tmp_path / "run.h5").write(Partial(KEY, {}, [[probe(0)]]))
    assert os.listdir(tmp_path / "there") == ["run.h5.partial"]


def test_a_key_that_differs_is_told_by_name():
    partial = Partial(KEY, {}, [])
    assert partial.differs(KEY) == []
    assert (
        partial.differs({**KEY, "settings": {"batch_sizes": ((7, np.int64(1)),), "seed": 0}}) == []
    )  # the same as JSON
    assert partial.differs({**KEY, "torch": "2.1", "more": 1}) == ["more", "torch"]
    assert partial.differs({"weights": "ab"}) == ["settings", "torch"]
    assert partial.differs({**KEY, "settings": {"seed": 1, "batch_sizes": [[7, 1]]}}) == ["settings"]


@pytest.mark.parametrize("step", [1, 97])
def test_a_flipped_bit_is_told_wherever_it_is(file, step):
    file.write(Partial(KEY, {}, [[probe(0)]]))
    content = file.path.read_bytes()
    places = range(len(content) - 200, len(content), 7) if step == 1 else range(0, len(content), step)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 4
        file.path.write_bytes(changed)
        with pytest.raises(StorageError, match=r"run\.h5\.partial: is (damaged|not an HDF5 file)") as caught:
            file.read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 1, 100, 2000, -1, -85])
def test_a_file_that_is_cut_is_told(file, left):
    file.write(Partial(KEY, {}, [[probe(0)]]))
    file.path.write_bytes(file.path.read_bytes()[:left])
    with pytest.raises(StorageError, match=r"run\.h5\.partial: is (damaged|an empty file|not an HDF5 file)"):
        file.read()


def test_a_file_of_a_later_version_is_told(file, monkeypatch):
    monkeypatch.setattr("spectra.results.storage.partial.ENCODING_VERSION", 2)
    file.write(Partial(KEY, {}, [[probe(0)]]))
    monkeypatch.undo()
    with pytest.raises(StorageError, match="is not one that this version of spectra wrote"):
        file.read()


def test_hdf5_of_another_program_is_told(file):
    with h5py.File(file.path, "w") as other:
        other["x"] = 1
    with pytest.raises(StorageError, match="SHA-256 is missing"):
        file.read()


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_keeps_what_was_there(file, tmp_path, monkeypatch, place):
    file.write(Partial(KEY, {}, [[probe(0)]]))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, place, full)
        with pytest.raises(StorageError, match=r"run\.h5\.partial: cannot be written: no space left on device; free"):
            file.write(Partial(KEY, {}, [[probe(0)] * 2]))
    assert len(file.read().parts[0]) == 1
    assert os.listdir(tmp_path) == ["run.h5.partial"]
