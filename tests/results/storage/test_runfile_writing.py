"""A results file is never half-written, and a place that cannot be written is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import pytest
from run_files import SETTINGS, make_record, write

import spectra.results.storage.atomic_write
import spectra.results.storage.runfile
from spectra.errors import StorageError
from spectra.results.storage.runfile import RunFile, load_trajectory


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "run.h5", make_record(0), make_record(1), make_record(0, "ggn"))


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
