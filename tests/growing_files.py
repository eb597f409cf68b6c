"""Results files of small records whose run has not ended."""

from __future__ import annotations

import hashlib
import itertools
import os

import h5py
from run_files import SETTINGS, make_record

from spectra.results.storage.appended import MARK
from spectra.results.storage.checksum import parted
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

SMALL = Spectrum([Tridiagonal([1.0, 2.0], [0.5, 0.0], exhausted=True)], 2)


def small(epoch, **changes):
    return make_record(epoch, **({"spectrum": SMALL, "cached_estimates": {}} | changes))


def growing(path, count=11):
    """A run that is not closed, as a kill leaves it: its last two records follow the HDF5 data."""
    run = RunFile.open(path, SETTINGS)
    for epoch in range(count):
        run.append(small(epoch))
    return run


def split(path):
    """What stands before the frames, and the frames as they lie in the file."""
    content = path.read_bytes()
    appended = parted(content, "")[1]
    starts = [at for at in range(len(appended)) if appended.startswith(MARK, at)] + [len(appended)]
    return content[: len(content) - len(appended)], [appended[a:b] for a, b in itertools.pairwise(starts)]


def epochs(path):
    return [record.epoch for record in load_trajectory(path)]


def check_ended(path, *wanted):
    """h5py alone sees all records, no other file is in its folder, and its seal is at its end."""
    with h5py.File(path, "r") as file:
        assert "growing" not in file.attrs
        assert sorted(group.attrs["epoch"] for group in file["records"].values()) == sorted(wanted)
        assert all(group.attrs["complete"] == 1 for group in file["records"].values())
    content = path.read_bytes()
    assert content[-85:] == b"\nspectra-run sha256 " + hashlib.sha256(content[:-85]).hexdigest().encode() + b"\n"
    assert os.listdir(path.parent) == [path.name]
    assert sorted(epochs(path)) == sorted(wanted)
