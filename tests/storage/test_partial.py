"""The file of the finished probes: what is written comes back, and what is not whole is never used."""

from __future__ import annotations

import numpy as np
import pytest

from spectra.errors import StorageError
from spectra.storage.partial import Partial, PartialFile

KEY = {"weights": "ab", "settings": {"seed": 0, "params": ["a", "b"]}}


def partial(probes: int = 2) -> Partial:
    draw = np.random.default_rng(0)
    arrays = [
        {"alphas": draw.normal(size=5), "betas": draw.normal(size=5), "exhausted": np.array(1, dtype=np.uint8)}
        for _ in range(probes)
    ]
    return Partial(KEY, {"width": 1, "threads": 2}, [arrays, arrays[:1]])


def test_what_is_written_comes_back_bit_for_bit(tmp_path):
    file = PartialFile(tmp_path / "run.h5")
    assert file.read() is None
    file.write(partial(12))  # more than ten: the order is that of the numbers
    found = file.read()
    assert (found.key, found.how) == (KEY, {"width": 1, "threads": 2})
    assert [len(part) for part in found.parts] == [12, 1]
    for one, other in zip(found.parts[0], partial(12).parts[0]):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5.partial"]
    file.remove()
    assert not list(tmp_path.iterdir())


def test_what_differs_in_a_key_is_named():
    assert partial().differs(KEY) == []
    assert partial().differs({"weights": "ab", "settings": {"seed": 0, "params": ("a", "b")}}) == []  # equal as JSON
    assert partial().differs({"weights": "cd", "settings": KEY["settings"], "torch": "2"}) == ["torch", "weights"]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path, part):
    file = PartialFile(tmp_path / "run.h5")
    file.write(partial())
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(StorageError, match=r"run.h5.partial: is"):
        file.read()


def test_every_flipped_bit_is_noticed(tmp_path):
    file = PartialFile(tmp_path / "run.h5")
    file.write(partial())
    whole = file.path.read_bytes()
    for place in range(0, len(whole), 97):
        file.path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(StorageError, match=r"run.h5.partial: is"):
            file.read()


def test_the_finished_probes_of_a_linked_file_lie_beside_the_file(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "run.h5").symlink_to(tmp_path / "far" / "real.h5")
    assert PartialFile(tmp_path / "run.h5").path == tmp_path / "far" / "real.h5.partial"
