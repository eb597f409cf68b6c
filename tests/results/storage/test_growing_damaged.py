"""A file whose run has not ended, with damaged or foreign bytes after its HDF5 data: refused, or read with a note."""

from __future__ import annotations

import io
import json
import os
import random

import h5py
import numpy as np
import pytest
from growing_files import check_ended, growing, small, split
from limited_process import said_in_a_process
from run_files import SETTINGS

import spectra.results.storage.runfile
from spectra.errors import StorageError
from spectra.results.storage.appended import MARK, Frame
from spectra.results.storage.checksum import seal_of
from spectra.results.storage.merge import merge
from spectra.results.storage.runfile import RunFile, load_trajectory


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def said_by(path):
    """The records and notes of a file as JSON, or the error, from a process with limits."""

    def call():
        there = load_trajectory(path)
        for record in there:
            record.to_json()
        return json.dumps([[record.epoch for record in there], list(there.notes)])

    return said_in_a_process(call)


def image_of(change=None, name="000020"):
    """The HDF5 file of a frame, with something done to it."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        spectra.results.storage.runfile.write_record(file.create_group(f"records/{name}"), small(12))
        if change is not None:
            change(file)
    return buffer.getvalue()


def deep(file):
    at = file["records/000020"]
    for _ in range(50):
        at = at.create_group("x")


def external(file):
    file["records/000020/facts/loss"] = h5py.ExternalLink("/etc/hostname", "/")


def link_for_records(file):
    file.move("records", "hidden")
    file["records"] = h5py.SoftLink("/hidden")


def stored_elsewhere(file):
    group = file["records/000020/spectrum"]
    del group["alphas"]
    group.create_dataset("alphas", (1, 2), "f8", external=[("/etc/passwd", 0, 16)])


def no_record(file):
    del file["records/000020"]


def a_circle(file):
    file["records/000020/again"] = file["records/000020"]


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize("change", [deep, external, link_for_records, stored_elsewhere, no_record, a_circle])
def test_what_a_record_after_the_data_may_not_be_is_refused_in_a_line(path, change):
    growing(path).close()
    seal = seal_of(path.read_bytes()[:-85])
    good = path.read_bytes()
    path.write_bytes(good + Frame(["000020"], image_of()).written(seal)[0])
    assert json.loads(said_by(path)) == [[*range(11), 12], []]
    path.write_bytes(good + Frame(["000020"], image_of(change)).written(seal)[0])
    words = said_by(path)
    assert words.startswith(f"{path}: a record after its HDF5 data is damaged: ")
    assert "\n" not in words
    for use in (lambda: RunFile.open(path, SETTINGS), lambda: merge([path], path.with_name("merged.h5"))):
        with pytest.raises(StorageError, match="after its HDF5 data is damaged"):
            use()


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize(
    ("names", "image"),
    [
        (["000020"], b""),
        (["000020"], b"no HDF5"),
        (["000020"], b"\x89HDF\r\n\x1a\n" + b"\0" * 1000),
        (["000007"], image_of()),
    ],
)
def test_a_record_after_the_data_that_is_no_hdf5_or_has_another_name_is_refused_in_a_line(path, names, image):
    growing(path).close()
    path.write_bytes(path.read_bytes() + Frame(names, image).written(seal_of(path.read_bytes()[:-85]))[0])
    words = said_by(path)
    assert "after its HDF5 data is damaged" in words
    assert "\n" not in words


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize(
    "appended",
    [
        b"garbage",
        MARK,
        MARK + b"0" * 64 + b" 999999999999999999 000020\nshort",
        MARK + b"0" * 64 + b" 99999999999999999999999999 000020\n",
        MARK + b"0" * 64 + b" -5 000020\n",
        MARK + b"0" * 64 + b" 5 ../../000020\nshort",
        MARK + b"0" * 64 + b" 5 " + b",".join([b"000020"] * 50_000) + b"\nshort",
        MARK + b"0" * 64 + b" 5 000020\nshort",
    ],
)
def test_what_is_no_frame_is_left_out_with_a_note(path, appended):
    growing(path).close()
    path.write_bytes(path.read_bytes() + appended)
    found, notes = json.loads(said_by(path))
    assert found == list(range(11))
    assert notes == [f"{path}: the record that was added last is incomplete, and is left out"]
    path.write_bytes(path.read_bytes() + MARK)  # something comes after it: it was not written last
    assert "is incomplete" in said_by(path)
    assert "\n" not in said_by(path)


def test_flipped_bits_after_the_data_are_found(path):
    growing(path)
    main, frames = split(path)
    content, dice, refused = path.read_bytes(), random.Random(0), 0
    ends = np.cumsum([len(main), *map(len, frames)])
    for trial in range(60):
        at = dice.randrange(len(main) - 85, len(content)) if trial % 3 else dice.randrange(len(main) - 85, len(main))
        damaged = bytearray(content)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        if at < ends[-2]:
            with pytest.raises(StorageError, match="damaged") as caught:
                load_trajectory(path)
            assert "\n" not in str(caught.value)
            refused += 1
        else:  # the last record, which is told from one that was cut by nothing
            there = load_trajectory(path)
            assert [record.epoch for record in there] == list(range(10))
            assert len(there.notes) == 1
    assert 10 < refused < 60  # the rest was of the last record


def test_frames_of_another_state_of_the_file_are_refused(path):
    growing(path, 12)
    main, frames = split(path)
    for wrong in ([frames[1], *frames[1:]], frames[::-1], frames[1:]):
        path.write_bytes(main + b"".join(wrong))
        with pytest.raises(StorageError, match="record 1 after its HDF5 data is incomplete"):
            load_trajectory(path)


def test_a_tool_that_edits_a_file_that_grows_takes_records_away_and_a_note_says_so(path):
    growing(path)
    frames = split(path)[1]
    with h5py.File(path, "r+") as file:
        file["mine"] = 1.0
        del file["mine"]
    there = load_trajectory(path)
    assert len(there) == 11 - len(frames)
    (note,) = there.notes
    assert "was edited by another tool before its run had ended" in note
    with RunFile.open(path, SETTINGS) as run:  # the same command
        for epoch in range(11):
            if not run.has(small(epoch).identity):
                run.append(small(epoch))
    check_ended(path, *range(11))
