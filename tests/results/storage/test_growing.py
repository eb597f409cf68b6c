"""A record costs what it is long, however many there are, and is in the file at every instant."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import random
import resource
import signal

import fault_injection
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from run_files import SETTINGS, failed_record, make_record

import spectra.results.storage.atomic_write
import spectra.results.storage.runfile
from spectra.errors import SpectraError, StorageError
from spectra.results.identity import Identity
from spectra.results.storage import reader as loading
from spectra.results.storage.appended import MARK, Frame, frames_in
from spectra.results.storage.checksum import parted, seal_of
from spectra.results.storage.merge import merge
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal
from spectra_cli.main import main

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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.fixture
def written(monkeypatch):
    """The bytes of each piece that is written to the disk."""
    sizes = []
    real = spectra.results.storage.atomic_write._write_whole

    def counting(file, rest):
        sizes.append(len(rest))
        real(file, rest)

    monkeypatch.setattr(spectra.results.storage.atomic_write, "_write_whole", counting)
    return sizes


# -- what it costs


def test_a_record_costs_the_same_in_a_long_run_as_in_a_short_one(path, written, monkeypatch):
    """Bytes, comparisons of records and readings of the file: none of them grows with the number of records."""
    compared, loaded = [], []
    for name in ("__eq__", "same_place", "twin_of", "is_of_file"):
        real = getattr(Identity, name)
        monkeypatch.setattr(Identity, name, lambda a, b, real=real: compared.append(1) or real(a, b))
    monkeypatch.setattr(
        spectra.results.storage.runfile, "whole", lambda *a, **b: loaded.append(1) or loading.whole(*a, **b)
    )
    steps = []
    with RunFile.open(path, SETTINGS) as run:
        for epoch in range(200):
            before = len(compared)
            assert not run.has_twin(small(epoch).identity)
            run.append(small(epoch, weights_sha256="w"))
            steps.append(len(compared) - before)
    check_ended(path, *range(200))
    assert sum(written) < 8 * path.stat().st_size
    assert max(steps) <= 10
    assert len(loaded) < 20  # each time half as much again


def test_saved_eigenvectors_are_written_a_constant_number_of_times(path, written):
    n, r = 20_000, 4
    vectors = np.random.default_rng(0).standard_normal((n, r)).astype(np.float32)  # which gzip does not shorten
    pairs = Eigenpairs(
        np.arange(4.0, 0.0, -1.0), np.full(r, 1e-9), np.full(r, True), vectors,
        which="LM", noise=1e-7, scale=4.0, tolerance=1e-6, products=9, seed=0, complete=True, completeness="",
    )  # fmt: skip
    spectrum = Spectrum([Tridiagonal([1.0, 2.0], [0.5, 0.1])], n, eigenpairs=pairs, overlaps=np.full((1, r), 0.01))
    with RunFile.open(path, SETTINGS) as run:
        for epoch in range(40):
            run.append(small(epoch, spectrum=spectrum))
    once = 40 * vectors.nbytes
    assert once * 0.8 < path.stat().st_size
    assert sum(written) < 6 * once
    np.testing.assert_array_equal(load_trajectory(path)[39].spectrum.eigenpairs.vectors, vectors)


def test_merging_compares_each_record_with_few(tmp_path, monkeypatch):
    for part in range(2):
        with RunFile.open(tmp_path / f"{part}.h5", SETTINGS) as run:
            for epoch in range(60):
                run.append(small(epoch + 30 * part))
    compared = []
    for name in ("__eq__", "same_place", "twin_of"):
        real = getattr(Identity, name)
        monkeypatch.setattr(Identity, name, lambda a, b, real=real: compared.append(1) or real(a, b))
    merged = merge([tmp_path / "0.h5", tmp_path / "1.h5"], tmp_path / "run.h5")
    assert (merged.records, merged.equal) == (90, 30)
    assert len(compared) < 120 * 10


# -- at every instant


def growing_run(out, done):
    """Eight records, one of which fails at first; the file is written anew several times."""
    with RunFile.open(out, SETTINGS) as run:
        for record in [*map(small, range(3)), failed_record(3), *map(small, range(4, 9)), small(3)]:
            if not run.has(record.identity):
                run.append(record)
                done()


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", ["kill", "full"])
def test_whatever_ends_it_at_any_step_the_records_are_there_and_the_run_goes_on(tmp_path, fault, every):
    out = tmp_path / "run.h5"
    counter = fault_injection.Faults(fault, None)
    with counter.injected():
        growing_run(out, lambda: None)
    whole = fault_injection.content(out)
    check_ended(out, *range(9))
    out.unlink()
    seen = set()
    for at in range(1 + random.Random(fault).randrange(every), counter.count + 1, every):
        code, stored = fault_injection.child(growing_run, out, fault_injection.Faults(fault, at))
        assert code in (0, -signal.SIGKILL, 3)
        if out.exists():
            there = load_trajectory(out)
            assert stored <= len(there) + (stored > 9) <= stored + 1  # the tenth replaces one
            assert [record.identity for record in there]
            seen.add(parted(out.read_bytes(), "")[1] not in (None, b""))
        assert fault_injection.child(growing_run, out, fault_injection.Faults(fault, None))[0] == 0
        assert not fault_injection.differences(fault_injection.content(out), whole)
        check_ended(out, *range(9))
        out.unlink()
    assert seen == {True, False}  # records after the HDF5 data, and none


def test_a_last_record_that_was_cut_at_any_byte_is_left_out_and_no_other(path):
    run = growing(path)
    main, frames = split(path)
    assert len(frames) == 2
    del run
    seal = seal_of(parted(path.read_bytes(), "")[0])
    kept, last = b"".join(frames[:-1]), frames[-1]
    for cut in range(len(last)):
        found, notes = frames_in(kept + last[:cut], seal, "run.h5")
        assert (len(found), len(notes)) == (len(frames) - 1, int(cut > 0))
    for cut in [0, 1, 20, 90, 100, len(last) // 2, len(last) - 1]:
        path.write_bytes(main + kept + last[:cut])
        there = load_trajectory(path)
        assert [record.epoch for record in there] == list(range(10))
        assert list(there.notes) == [f"{path}: the record that was added last is incomplete, and is left out"] * (
            cut > 0
        )
        with RunFile.open(path, SETTINGS) as run:
            run.append(small(10))
            assert load_trajectory(path).notes == ()
        check_ended(path, *range(11))


def test_a_run_that_was_killed_is_in_order_after_the_same_command_though_nothing_was_missing(path):
    growing(path)
    before = path.read_bytes()
    with RunFile.open(path, SETTINGS) as run:
        assert path.read_bytes() == before
        assert all(run.has(small(epoch).identity) for epoch in range(11))
    check_ended(path, *range(11))
    ended = path.read_bytes()
    with RunFile.open(path, SETTINGS):
        pass
    assert path.read_bytes() == ended  # nothing to do


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, StorageError])
def test_whatever_ends_a_run_the_file_has_all_of_it_for_h5py(path, error):
    run = growing(path, 8)
    assert split(path)[1]
    with pytest.raises(error), run:
        raise error("ended")
    check_ended(path, *range(8))


def test_where_the_end_cannot_be_written_the_records_stay_and_the_first_error_is_told(path, monkeypatch):
    def full(*_, **__):
        raise StorageError("run.h5: cannot be written: no space left on device")

    run = growing(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(spectra.results.storage.runfile, "replace_file", full)
        with pytest.raises(StorageError, match="no space left"), run:
            pass
        with pytest.raises(KeyboardInterrupt), run:
            raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert epochs(path) == list(range(11))
    run.append(small(11))  # there is room again
    run.close()
    check_ended(path, *range(12))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("place", ["before", "half", "flush"])
def test_a_failure_while_a_record_is_added_leaves_the_file_as_it_was(path, monkeypatch, error, place):
    run = growing(path)
    before = path.read_bytes()

    def fail(*_):
        raise error

    def half(file, rest):
        file.write(rest[: len(rest) // 2])
        raise error

    with monkeypatch.context() as patch:
        if place == "flush":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(spectra.results.storage.atomic_write, "_write_whole", half if place == "half" else fail)
        with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
            run.append(small(11))
    assert path.read_bytes() == before
    run.append(small(11))
    assert len(split(path)[1]) > 1  # it was added as the others
    run.close()
    check_ended(path, *range(12))


def test_a_failed_record_is_replaced_by_one_after_the_data(path):
    run = RunFile.open(path, SETTINGS)
    for record in [small(0), small(1), failed_record(2), small(3), small(4), failed_record(5), small(6)]:
        run.append(record)
    for epoch in (2, 5):
        assert not run.has(small(epoch).identity)
        run.append(small(epoch))
        assert run.has(small(epoch).identity)
    assert split(path)[1]
    assert [(record.epoch, record.status) for record in load_trajectory(path)] == [(e, "complete") for e in range(7)]
    run.close()
    check_ended(path, *range(7))


def test_by_force_records_are_replaced_after_the_data(path):
    growing(path).close()
    run = RunFile.open(path, SETTINGS, force=True)
    for epoch in (3, 4, 5):
        run.append(small(epoch, checkpoint_sha256=f"f{epoch:063d}", facts={"loss": 9.0}))
    assert split(path)[1]
    assert [record.facts.get("loss") == 9.0 for record in load_trajectory(path)] == [
        epoch in (3, 4, 5) for epoch in range(11)
    ]
    run.close()
    check_ended(path, *range(11))


def test_another_writer_is_noticed_after_the_data_too(path):
    run = growing(path)
    other = RunFile.open(path, SETTINGS)
    run.append(small(11))
    with pytest.raises(StorageError, match="another process"):
        other.append(small(12))
    with pytest.raises(StorageError, match="another process"):
        other.close()
    assert epochs(path) == list(range(12))


# -- who reads it


def test_every_reader_has_all_of_a_file_that_grows(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    known = make_record(0)
    run = RunFile.open(path, SETTINGS)
    for epoch in range(11):
        run.append(make_record(epoch, spectrum=known.spectrum, cached_estimates=known.estimates))
    content = path.read_bytes()
    with h5py.File(path, "r") as file:  # others know that there may be more
        assert file.attrs["growing"] == 1
        assert len(file["records"]) < 11
    done = CliRunner().invoke(main, ["show", "--json", "run.h5"])
    assert [entry["epoch"] for entry in json.loads(done.output)] == list(range(11))
    assert CliRunner().invoke(main, ["plot", "run.h5", "--what", "trajectory"]).exit_code == 0
    path.with_name("other.h5").write_bytes(content)
    done = CliRunner().invoke(main, ["compare", "run.h5", "other.h5"])
    assert done.exit_code == 0, done.output
    assert merge([path], path.with_name("merged.h5")).records == 11
    assert path.read_bytes() == content
    for record in load_trajectory(path):
        assert record.spectrum.n == 200
        assert dataclasses.replace(record, cached_estimates=None).identity == make_record(record.epoch).identity


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_file_of_two_names_and_one_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    real = tmp_path / "disk"
    real.mkdir()
    link = tmp_path / "run.h5"
    link.symlink_to(real / "run.h5")
    run = growing(link)
    assert split(link)[1]
    assert epochs(link) == epochs(real / "run.h5") == list(range(11))
    real.chmod(0o500)
    monkeypatch.setattr(spectra.results.storage.atomic_write, "temporary_file", None)
    assert epochs(link) == list(range(11))
    real.chmod(0o700)
    monkeypatch.undo()
    run.append(small(11))
    run.close()
    assert link.is_symlink()
    check_ended(real / "run.h5", *range(12))


# -- what is not as it should be


def said_by(path):
    """What reading the file says, in a process of its own with limits; an error, or the records and notes."""
    receive, send = os.pipe()
    number = os.fork()
    if number == 0:
        words = b""
        try:
            signal.alarm(60)
            resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
            there = load_trajectory(path)
            for record in there:
                record.to_json()
            words = json.dumps([[record.epoch for record in there], list(there.notes)]).encode()
        except SpectraError as error:
            words = str(error).encode()
        except BaseException as error:
            words = f"not ours: {error!r}".encode()
        finally:
            os.write(send, words[:4000])
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        words = pipe.read().decode()
    _, status = os.waitpid(number, 0)
    assert not os.WIFSIGNALED(status), f"ended by signal {os.WTERMSIG(status)}"
    assert not words.startswith("not ours"), words
    return words


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
