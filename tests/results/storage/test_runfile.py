"""The file gives back what was put in, is never half-written, and is refused in one line if it is not what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, failed_record, make_record

import spectra.results.storage.atomic_write
import spectra.results.storage.runfile
from spectra.errors import StorageError
from spectra.results.identity import Identity
from spectra.results.storage.attributes import checksum
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.traces import trace as plain_trace
from spectra.spectrum.tridiagonal import Tridiagonal

DATA = Path(__file__).parents[2] / "data"


def write(path, *records, settings=SETTINGS):
    with RunFile.open(path, settings) as run:
        for record in records:
            run.append(record)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "run.h5", make_record(0), make_record(1), make_record(0, "ggn"))


def refused(path):
    """The message with which a file is refused; it must be one line that names the file."""
    with pytest.raises(StorageError) as caught:
        load_trajectory(path)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(path).name in message
    return message


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))  # to the last bit


# --- what is put in comes out -------------------------------------------------------------------------------------


def test_a_record_comes_back_bit_for_bit(tmp_path):
    record = make_record(3, "ggn", "train", notes=("one", "zwei: ü"), provenance={"a": [1, {"b": 0.1}], "c": None})
    back = load_trajectory(write(tmp_path / "run.h5", record))[0]
    assert len({t.steps for t in record.spectrum.tridiagonals}) > 1  # ragged
    for old, new in zip(record.spectrum.tridiagonals, back.spectrum.tridiagonals, strict=True):
        same(old.alphas, new.alphas)
        same(old.betas, new.betas)
        assert (old.exhausted, old.orthogonality) == (new.exhausted, new.orthogonality)
    for name in ("n", "noise", "seed", "distribution", "tensor_sizes"):
        assert getattr(back.spectrum, name) == getattr(record.spectrum, name)
    assert list(back.spectrum.tensor_sizes) == list(record.spectrum.tensor_sizes)
    same(back.spectrum.tensor_forms, record.spectrum.tensor_forms)
    assert back.estimates == record.estimates
    assert list(back.estimates) == list(record.estimates)
    assert back.spectrum.estimates() == record.estimates
    for name in (
        "checkpoint",
        "checkpoint_sha256",
        "epoch",
        "step",
        "operator",
        "bn_mode",
        "status",
        "reason",
        "facts",
    ):
        assert getattr(back, name) == getattr(record, name), name
    assert (back.settings, back.provenance, back.notes) == (record.settings, record.provenance, record.notes)
    assert back.identity == record.identity
    assert {name: type(fact) for name, fact in back.facts.items()} == {
        name: type(fact) for name, fact in record.facts.items()
    }


def test_what_is_not_known_stays_unknown(tmp_path):
    spectrum = Spectrum([Tridiagonal([1.0, 2.0], [0.5, 0.0], exhausted=True)], 2)
    record = make_record(
        checkpoint=None,
        checkpoint_sha256=None,
        epoch=None,
        step=None,
        spectrum=spectrum,
        facts={"loss": None},
        notes=(),
    )
    back = load_trajectory(write(tmp_path / "run.h5", record))[0]
    assert (back.checkpoint, back.checkpoint_sha256, back.epoch, back.step, back.reason) == (None,) * 5
    assert back.facts == {"loss": None}
    assert back.spectrum.seed is None
    assert back.spectrum.tensor_forms is None
    assert back.spectrum.tridiagonals[0].exhausted
    assert math.isnan(back.spectrum.tridiagonals[0].orthogonality)
    assert back.estimates["trace"].stderr is None  # one probe


def test_odd_estimates_and_texts_come_back(tmp_path):
    estimates = {
        "plain": Estimate(1.5, 0.1, 1.2, 1.8, 4, note="a note, with ±"),
        "open": Estimate(2.0, None, -math.inf, None, 4, confidence=0.9),
        "vague": Estimate(0.3, None, 0.0, 0.9, 4, tau=1e-3, resolved=False),
        "clear": Estimate(0.3, 0.0, 0.3, 0.3, 4, tau=1e-3, resolved=True),
    }
    record = make_record(cached_estimates=estimates, checkpoint="odd \udce9\0.pt", step=2**40)
    back = load_trajectory(write(tmp_path / "run.h5", record))[0]
    assert back.estimates == estimates
    assert back.checkpoint == "odd \\udce9\\x00.pt"
    assert back.step == 2**40


def test_records_are_in_training_order_whatever_the_order_of_arrival(tmp_path):
    t = load_trajectory(write(tmp_path / "run.h5", make_record(4), make_record(0), failed_record(2)))
    assert [record.epoch for record in t] == [0, 2, 4]
    assert [record.status for record in t] == ["complete", "failed", "complete"]
    assert t[1].reason == "NaN weights"
    assert t.settings == json.loads(json.dumps(SETTINGS))


def test_the_tree_is_as_the_format_says(path):
    with h5py.File(path) as file:
        assert file.attrs["encoding-type"] == "spectra-run"
        assert file.attrs["encoding-version"] == 1
        assert json.loads(file.attrs["settings"])["task"] == "digits-convnet"
        assert sorted(file["records"]) == ["000000", "000001", "000002"]
        record = file["records/000002"]
        assert record.attrs["operator"] == "ggn"
        assert record.attrs["complete"] == 1
        spectrum = record["spectrum"]
        shapes = {name: (spectrum[name].shape, spectrum[name].dtype.str) for name in spectrum if name != "tensors"}
        assert shapes == {
            "alphas": ((4, 12), "<f8"),
            "betas": ((4, 12), "<f8"),
            "lengths": ((4,), "<i8"),
            "exhausted": ((4,), "|u1"),
            "orthogonality": ((4,), "<f8"),
        }
        assert list(spectrum["tensors/names"].asstr()) == ["conv.weight", "conv.bias", "fc.weight"]
        np.testing.assert_array_equal(
            np.isnan(spectrum["alphas"][()]), np.arange(12) >= spectrum["lengths"][()][:, None]
        )


def test_the_programs_in_the_format_document_give_the_right_numbers(path, monkeypatch, capsys):
    text = (DATA.parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    first, second = (part.split("```")[0] for part in text.split("```python\n")[1:3])
    monkeypatch.chdir(path.parent)
    record = load_trajectory(path)[0]
    exec(first, {})
    assert capsys.readouterr().out.split() == [
        str(record.estimates["trace"].value),
        "+-",
        str(record.estimates["trace"].stderr),
    ]
    names: dict[str, object] = {}
    exec(second, names)  # leaves the last probe's
    last = record.spectrum.tridiagonals[-1]
    np.testing.assert_allclose(names["nodes"], last.nodes, rtol=0, atol=1e-12)
    np.testing.assert_allclose(names["weights"], last.weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(names["residuals"], last.residuals, rtol=0, atol=1e-12)


def test_a_record_of_a_hundred_steps_and_eight_probes_is_small(tmp_path):
    tensors = {f"stage{i // 10}.block{i % 10}.conv.weight": 10 for i in range(160)}
    rows = np.random.default_rng(0).standard_normal((8, 100))
    spectrum = Spectrum(
        [Tridiagonal(row, abs(row)) for row in rows], 1600, tensor_sizes=tensors, tensor_forms=np.ones((8, 160))
    )
    path = tmp_path / "run.h5"
    few = {name: Estimate(1.0, 0.1, 0.8, 1.2, 8) for name in make_record().estimates}
    sizes = [0]
    with RunFile.open(path, SETTINGS) as run:
        for epoch in range(3):
            run.append(make_record(epoch, spectrum=spectrum, cached_estimates=few))
            sizes.append(path.stat().st_size)
    assert np.diff(sizes).max() < 100_000


# --- continuing ---------------------------------------------------------------------------------------------------


def identity_of(record):
    return Identity.of(record.place, operator=record.operator, bn_mode=record.bn_mode, settings=SETTINGS)


def test_a_run_goes_on_where_it_stopped(path):
    before = {record.label: record.spectrum.trace() for record in load_trajectory(path)}
    with RunFile.open(path, SETTINGS) as run:
        assert len(run.records) == 3
        assert run.has(identity_of(make_record(0)))
        assert run.has(identity_of(make_record(0, "ggn")))
        assert not run.has(identity_of(make_record(1, "ggn")))
        assert not run.has(identity_of(make_record(2)))
        run.append(make_record(2))
        assert run.has(identity_of(make_record(2)))
    after = {record.label: record.spectrum.trace() for record in load_trajectory(path)}
    assert len(after) == 4
    assert before.items() <= after.items()


def test_a_failed_record_is_tried_again_and_replaced(tmp_path):
    # A checkpoint that could not be read has no hash, and fails before the settings are known.
    unread = failed_record(1, checkpoint_sha256=None, settings={}, epoch=None, step=None)
    path = write(tmp_path / "run.h5", make_record(0), unread, make_record(2))
    with RunFile.open(path, SETTINGS) as run:
        assert not run.has(identity_of(make_record(1)))
        run.append(dataclasses.replace(unread, reason="still"))
    assert [r.reason for r in load_trajectory(path) if r.status == "failed"] == ["still"]
    with RunFile.open(path, SETTINGS) as run:
        run.append(make_record(1))
    assert [(record.epoch, record.status) for record in load_trajectory(path)] == [
        (0, "complete"),
        (1, "complete"),
        (2, "complete"),
    ]


def test_other_settings_are_refused_with_both_values(path):
    other = SETTINGS | {"seed": 1, "lanczos_steps": 50, "samples": 100}
    content = path.read_bytes()
    with pytest.raises(StorageError) as caught:
        RunFile.open(path, other)
    message = str(caught.value)
    assert "seed is 0 in the file, 1 now" in message
    assert "lanczos_steps is 12 in the file, 50 now" in message
    assert "samples is not set in the file, 100 now" in message
    assert "reduction" not in message
    assert path.read_bytes() == content


def test_settings_that_are_equal_as_json_are_the_same(path):
    with RunFile.open(path, SETTINGS | {"batch_sizes": ((64, 2), (10, np.int64(1)))}) as run:
        assert len(run.records) == 3


def test_a_checkpoint_that_was_replaced_is_refused(path):
    changed = make_record(1, checkpoint_sha256="f" * 64)
    with RunFile.open(path, SETTINGS) as run:
        with pytest.raises(StorageError, match=r"SHA-256 was 000000000000\.\.\., now it is ffffffffffff\.\.\."):
            run.has(changed.identity)
        with pytest.raises(StorageError, match="another results file"):
            run.append(changed)
    assert len(load_trajectory(path)) == 3


def test_the_same_record_twice_is_refused(path):
    with RunFile.open(path, SETTINGS) as run, pytest.raises(StorageError, match="already"):
        run.append(make_record(0))


def test_two_writers_of_one_file_are_noticed(tmp_path):
    path = tmp_path / "run.h5"
    first, second = RunFile.open(path, SETTINGS), RunFile.open(path, SETTINGS)
    first.append(make_record(0))
    with pytest.raises(StorageError, match="another process"):
        second.append(make_record(1))
    assert len(load_trajectory(path)) == 1


# --- nothing half-written -----------------------------------------------------------------------------------------


def test_nothing_is_created_before_the_first_record(tmp_path):
    with RunFile.open(tmp_path / "run.h5", SETTINGS):
        assert os.listdir(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), RunFile.open(tmp_path / "run.h5", SETTINGS):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["write_record", "write", "fsync", "replace", "seal"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_inside_an_append_changes_nothing(tmp_path, monkeypatch, place, error, exists):
    path = tmp_path / "run.h5"
    if exists:
        write(path, make_record(0))
    before = path.read_bytes() if exists else None
    run = RunFile.open(path, SETTINGS)
    with monkeypatch.context() as patch:

        def fail(*_, **__):
            raise error

        if place == "write_record":
            patch.setattr(spectra.results.storage.runfile, "write_record", fail)
        elif place == "seal":
            patch.setattr("spectra.results.storage.record_codec.seal", fail)
        elif place == "write":
            real = os.open

            def half(*arguments):  # a disk that takes a part of it
                descriptor = real(*arguments)
                os.write(descriptor, b"part")
                os.close(descriptor)
                raise error

            patch.setattr(os, "open", half)
        else:
            patch.setattr(os, place, fail)
        with pytest.raises(StorageError if isinstance(error, OSError) else type(error)) as caught:
            run.append(make_record(1))
    if isinstance(error, OSError):
        assert "\n" not in str(caught.value)
        assert "no space left" in str(caught.value).lower()
    assert (path.read_bytes() if exists else None) == before
    assert os.listdir(tmp_path) == (["run.h5"] if exists else [])
    run.append(make_record(1))  # and it goes on once there is room
    assert len(load_trajectory(path)) == 1 + exists


def test_a_reader_sees_whole_records_at_every_moment(tmp_path, monkeypatch):
    path = write(tmp_path / "run.h5", make_record(0))
    seen = []
    for name in ("open", "fsync", "replace"):
        real = getattr(os, name)

        def spy(*arguments, real=real, **options):
            if arguments[0] != path:  # reading opens it too
                seen.append(len(load_trajectory(path)))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, spy)
    with RunFile.open(path, SETTINGS) as run:
        run.append(make_record(1))
    assert seen[0] == 1
    assert seen[-1] == 2  # the folder is flushed after the file is in its place
    assert seen == sorted(seen)


def test_an_open_reader_keeps_its_file_while_it_is_replaced(path):
    with h5py.File(path, "r", locking=False) as reader:
        write(path, make_record(7))
        assert len(reader["records"]) == 3
        assert reader["records/000000/spectrum/alphas"].shape == (4, 12)
    assert len(load_trajectory(path)) == 4


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_disk_that_fills_up_is_one_line_and_keeps_the_file(tmp_path):
    path = write(tmp_path / "run.h5", make_record(0))
    before = path.read_bytes()
    program = textwrap.dedent(
        f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from run_files import SETTINGS, make_record
        from spectra.errors import StorageError
        from spectra.results.storage.runfile import RunFile
        run = RunFile.open({str(path)!r}, SETTINGS)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)} + 1000, resource.RLIM_INFINITY))
        try:
            run.append(make_record(1))
        except StorageError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot be written: file too large" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.h5"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "run.h5"
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from run_files import SETTINGS, make_record
from spectra.results.storage.runfile import RunFile
run = RunFile.open({str(path)!r}, SETTINGS)
os.replace = lambda *_: os._exit(9)
run.append(make_record(0))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".run.h5.")
    mine = tmp_path / spectra.results.storage.atomic_write._prefix(path)
    others = [tmp_path / ".run.h5.another-host-1.part", tmp_path / "notes.part", Path(f"{mine}{os.getppid()}.part")]
    for other in others:
        other.write_bytes(b"x")
    write(path, make_record(0))
    assert sorted(os.listdir(tmp_path)) == sorted(["run.h5", *(other.name for other in others)])


def test_a_link_stays_a_link(tmp_path):
    real = tmp_path / "elsewhere"
    real.mkdir()
    write(real / "run.h5", make_record(0))
    link = tmp_path / "run.h5"
    link.symlink_to(real / "run.h5")
    write(link, make_record(1))
    assert link.is_symlink()
    assert len(load_trajectory(real / "run.h5")) == 2


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_permissions_are_the_usual_ones_and_stay(tmp_path):
    path = tmp_path / "run.h5"
    before = os.umask(0o027)
    try:
        write(path, make_record(0))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    write(path, make_record(1))
    assert path.stat().st_mode & 0o777 == 0o600


# --- places that cannot be written --------------------------------------------------------------------------------


def unwritable(path):
    with pytest.raises(StorageError) as caught:
        RunFile.open(path, SETTINGS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_not_created(tmp_path):
    message = unwritable(tmp_path / "a" / "b" / "run.h5")
    assert f"the folder {tmp_path / 'a' / 'b'} does not exist" in message
    assert os.listdir(tmp_path) == []


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    assert "is a folder" in unwritable(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in unwritable(tmp_path / "file" / "run.h5")


@pytest.mark.parametrize("content", [b"", b"my thesis", b"\x89HDF\r\n\x1a\n cut off"])
def test_a_file_that_is_not_ours_is_never_overwritten(tmp_path, content):
    path = tmp_path / "run.h5"
    path.write_bytes(content)
    unwritable(path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["run.h5"]


def test_a_foreign_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "run.h5"
    run = RunFile.open(path, SETTINGS)
    path.write_bytes(b"my thesis")
    with pytest.raises(StorageError, match="another process"):
        run.append(make_record(0))
    assert path.read_bytes() == b"my thesis"


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_read_only_folder_or_file_is_refused_before_anything_is_computed(path, monkeypatch):
    if os.geteuid() == 0:  # to whom nothing is read-only

        def denied(*_, **__):
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", denied)
            assert "permission denied" in unwritable(path.with_name("new.h5"))
            assert "permission denied" in unwritable(path)
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert "read-only" in unwritable(path)
    else:
        path.parent.chmod(0o500)
        assert "permission denied" in unwritable(path.with_name("new.h5"))
        assert "permission denied" in unwritable(path)
        path.parent.chmod(0o700)
        path.chmod(0o400)
        assert "read-only" in unwritable(path)


def test_a_full_disk_is_noticed_before_anything_is_computed(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "no space left on device; free some space" in unwritable(tmp_path / "run.h5")
    assert os.listdir(tmp_path) == []


# --- files that are not what they should be -----------------------------------------------------------------------


def test_what_is_no_results_file_is_refused_in_one_line(tmp_path, path):
    assert "no such file" in refused(tmp_path / "missing.h5")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "empty.h5").write_bytes(b"")
    assert "empty file" in refused(tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("epoch,trace\n0,1\n")
    assert "not an HDF5 file" in refused(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.arange(3)
    assert "not one that spectra wrote" in refused(tmp_path / "other.h5")
    with h5py.File(tmp_path / "kind.h5", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file.attrs["encoding-version"] = 1
    assert "not one that spectra wrote" in refused(tmp_path / "kind.h5")


@pytest.mark.parametrize("part", [0.99, 0.9, 0.5, 0.1, 0.01])
def test_a_truncated_file_is_refused(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "truncated or damaged" in refused(path)


SEAL = 85  # bytes at the end of the file, as the format says


def test_the_file_ends_with_its_sha256(path):
    content = path.read_bytes()
    assert content[-SEAL:] == b"\nspectra-run sha256 " + hashlib.sha256(content[:-SEAL]).hexdigest().encode() + b"\n"


@pytest.mark.parametrize("lost", [1, 40, SEAL])
def test_without_its_last_line_the_file_is_still_whole(path, lost):
    before = load_trajectory(path)
    path.write_bytes(path.read_bytes()[:-lost])
    for old, new in zip(before, load_trajectory(path), strict=True):
        same(old.spectrum.nodes, new.spectrum.nodes)
    write(path, make_record(5))
    assert len(load_trajectory(path)) == 4


def test_a_newer_version_is_refused_with_what_to_do(path):
    with h5py.File(path, "r+") as file:
        file.attrs["encoding-version"] = 2
        file.attrs["spectra-version"] = "9.9"
    message = refused(path)
    assert "format version 2" in message
    assert "spectra 9.9" in message
    assert "upgrade" in message


def test_a_record_that_was_not_finished_is_left_out_with_a_note(path):
    with h5py.File(path, "r+") as file:
        del file["records/000001"].attrs["complete"]
        file["records"].create_group("000003")  # one that was only begun
    t = load_trajectory(path)
    assert len(t) == 2
    assert [note.split("record ")[1] for note in t.notes] == [
        "000001 was not finished, and is left out",
        "000003 was not finished, and is left out",
    ]
    write(path, make_record(1), make_record(2), make_record(3))  # and the run goes on over it
    assert [record.epoch for record in load_trajectory(path)["hessian", "eval"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["alphas", "betas", "lengths", "exhausted", "orthogonality", "tensors/forms"])
def test_a_flipped_byte_in_the_raw_data_is_found(path, name):
    with h5py.File(path, "r") as file:
        dataset = file[f"records/000001/spectrum/{name}"]
        place, size = dataset.id.get_offset(), dataset.nbytes
        sent = dataset[()].tobytes()
    content = path.read_bytes()
    assert content[place : place + size] == sent
    for index in (0, size // 2, size - 1):
        damaged = bytearray(content)
        damaged[place + index] ^= 1
        path.write_bytes(damaged)
        assert "does not match its SHA-256" in refused(path)
        path.write_bytes(damaged[:-SEAL])  # as a tool that rewrites the file leaves it
        message = refused(path)
        assert "record 000001 is damaged" in message
        assert "checksum" in message
    path.write_bytes(content)
    assert len(load_trajectory(path)) == 3


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("records/000001", "operator", "ggn"),
        ("records/000001", "bn_mode", "train"),
        ("records/000001", "epoch", 7.0),
        ("records/000001", "status", "failed"),
        ("records/000001/facts", "loss", 0.0),
        ("records/000001/spectrum", "n", 100),
        ("records/000001/spectrum", "noise", 0.0),
        ("/", "settings", "{}"),
    ],
)
def test_a_changed_identity_or_fact_is_found(path, where, name, value):
    with h5py.File(path, "r+") as file:
        assert file[where].attrs[name] != value
        file[where].attrs[name] = value
    assert "checksum" in refused(path)


def test_a_spectrum_that_was_exchanged_is_found(path):
    with h5py.File(path, "r+") as file:
        del file["records/000000/spectrum"]
        file.copy("records/000001/spectrum", file["records/000000"])
    assert "record 000000 is damaged" in refused(path)


def test_a_damaged_cache_is_computed_again(path):
    with h5py.File(path, "r+") as file:
        file["records/000000/estimates/value"][0] += 1.0
    record = load_trajectory(path)["hessian", "eval"].at(0)
    assert record.estimates["trace"] == record.spectrum.trace()
    assert "computed again" in record.notes[-1]


def test_what_a_later_writer_adds_does_not_disturb(path):
    with h5py.File(path, "r+") as file:
        group = file["records/000000"]
        extra = group.create_group("eigenvectors")
        extra["vectors"] = np.eye(3)
        extra.attrs["checksum"] = checksum(extra)
        group.attrs["label"] = "sgd"
        group.attrs["checksum"] = checksum(group)
    assert len(load_trajectory(path)) == 3


def test_random_damage_is_one_line_or_the_same_numbers(path):
    """60 files with flipped bits and 20 cut off: refused in one line, or every number is what it was."""
    random = np.random.default_rng(0)
    content = path.read_bytes()
    whole = {record.label: record for record in load_trajectory(path)}
    refusals = 0
    for trial in range(80):
        damaged = bytearray(content)
        if trial < 60:
            for place in random.integers(len(content), size=1 + trial % 3):
                damaged[place] ^= 1 << random.integers(8)
        else:
            damaged = damaged[: random.integers(len(content))]
        path.write_bytes(damaged)
        found = []
        with contextlib.suppress(StorageError):
            found = load_trajectory(path)
        refusals += not found
        for record in found:
            assert record.facts == whole[record.label].facts
            assert record.estimates == whole[record.label].estimates
            same(record.spectrum.nodes, whole[record.label].spectrum.nodes)
    assert refusals > 60


# --- versions, and the numpy wing ---------------------------------------------------------------------------------


def test_the_file_of_version_1_keeps_loading():
    t = load_trajectory(DATA / "v1.h5")
    wanted = json.loads((DATA / "v1.json").read_text(encoding="utf-8"))
    for record, entry in zip(t, wanted, strict=True):
        for name in ("checkpoint", "checkpoint_sha256", "epoch", "step", "operator", "bn_mode", "status", "reason"):
            assert getattr(record, name) == entry[name]
        assert (record.facts, record.settings) == (entry["facts"], entry["settings"])
        if record.spectrum is not None:
            # Its estimates are of another edition: all of them are computed again from the raw tridiagonals ...
            assert record.cached_estimates is None
            assert record.estimates == record.spectrum.estimates()
            assert record.estimates.keys() >= entry["estimates"].keys()
            # ... which say what they said: the plain mean over the probes, with no eigenvalue taken as known.
            trace = plain_trace(record.spectrum.quadrature.with_nothing_known())
            assert trace.value == pytest.approx(entry["estimates"]["trace"]["value"], rel=1e-12)
            assert trace.stderr == pytest.approx(entry["estimates"]["trace"]["stderr"], rel=1e-9)


def test_reading_and_writing_need_no_torch(path):
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import spectra
from run_files import SETTINGS, make_record
from spectra.results.storage.runfile import RunFile
t = spectra.load_trajectory({str(path)!r})
t["hessian", "eval"].trace
RunFile.open({str(path)!r}, SETTINGS).append(make_record(9))
assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
