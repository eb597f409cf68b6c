"""A record costs what it is long, however many there are, and is in the file at every instant."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal

import fault_injection
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from growing_files import check_ended, epochs, growing, small, split
from run_files import SETTINGS, failed_record, make_record

import spectra.results.storage.atomic_write
import spectra.results.storage.runfile
from spectra.errors import StorageError
from spectra.results.identity import Identity
from spectra.results.storage import reader as loading
from spectra.results.storage.appended import frames_in
from spectra.results.storage.checksum import parted, seal_of
from spectra.results.storage.merge import merge
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal
from spectra_cli.main import main


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


@pytest.mark.slow
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
