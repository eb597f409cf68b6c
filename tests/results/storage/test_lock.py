"""One writer of a results file at a time: the second is refused in a line that says who the first is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from programs import environment
from run_files import SETTINGS, make_record

from spectra.errors import StorageError
from spectra.results.storage.lock import only_writer, refuse_if_written
from spectra.results.storage.runfile import RunFile, load_trajectory

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX systems")

HOLDER = """
import sys, time
sys.argv[1:] = ["analyze", "net.pt", "--out", "run.h5"]
from spectra.results.storage.lock import only_writer
with only_writer({path!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(program, path):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program).replace("{path!r}", repr(str(path)))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.fixture
def holder(path):
    process = start(HOLDER, path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_refused_in_a_line_that_names_the_first(path, holder):
    with pytest.raises(StorageError) as caught, only_writer(path):
        pytest.fail("two at once")
    message = str(caught.value)
    assert f"{path}: process {holder.pid} on " in message
    assert "(-c analyze net.pt --out run.h5) is writing it; wait for it, or write parts with --shard" in message
    assert "\n" not in message
    holder.communicate("")  # the first ends
    with only_writer(path):
        pass
    assert os.listdir(path.parent) == []


def test_a_dead_process_stands_in_nobodys_way(path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert os.listdir(path.parent) == [".run.h5.lock"]  # what it left
    with only_writer(path):
        assert str(os.getpid()) in path.with_name(".run.h5.lock").read_text()
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("words", ["", "{", "[]", '{"process": "x", "machine": 1, "command": "c"}', "\x00" * 9000])
def test_a_lock_file_that_says_nothing_is_no_obstacle(path, words, holder):
    path.with_name(".run.h5.lock").write_text(words)
    with pytest.raises(StorageError, match="another process is writing it"), only_writer(path):
        pass
    holder.communicate("")
    path.with_name(".run.h5.lock").write_text(words)
    with only_writer(path):
        pass
    assert os.listdir(path.parent) == []


def test_the_same_process_is_refused_too_and_keeps_its_lock(path):
    with only_writer(path):
        with pytest.raises(StorageError, match="this process is writing it already"), only_writer(path):
            pass
        link = path.with_name("link.h5")
        link.symlink_to(path)
        with pytest.raises(StorageError, match="this process is writing it already"), only_writer(link):
            pass
        other = start(HOLDER, path)
        assert other.communicate("")[0] == ""  # refused: the lock is still there
        with only_writer(path.with_name("other.h5")):
            pass
    with only_writer(path):
        pass


def test_an_error_ends_the_lock(path):
    with pytest.raises(KeyboardInterrupt), only_writer(path):
        raise KeyboardInterrupt
    assert os.listdir(path.parent) == []
    with only_writer(path):
        pass


def test_a_file_system_without_locks_holds_nothing_and_goes_on(path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with only_writer(path):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    words = r"its lock file \.run\.h5\.lock cannot be written: Permission denied"
    with pytest.raises(StorageError, match=words), only_writer(path):
        pass


def test_a_full_disk_leaves_the_lock_without_its_words(path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with only_writer(path):
        other = start(HOLDER, path)
        assert other.communicate("")[0] == ""


def test_reading_needs_no_lock(path, holder):
    RunFile.open(path, SETTINGS).append(make_record(0))
    assert len(load_trajectory(path)) == 1


def test_whether_a_file_is_being_written_can_be_asked(path, holder):
    with pytest.raises(StorageError, match=rf"process {holder.pid} on .* is writing it"):
        refuse_if_written(path)
    holder.communicate("")
    refuse_if_written(path)
    assert os.listdir(path.parent) == []
    with only_writer(path):
        with pytest.raises(StorageError, match="this process is writing it"):
            refuse_if_written(path)
        other = start(HOLDER, path)
        assert other.communicate("")[0] == ""  # to ask has not let the lock go


MANY = """
import sys, time
from programs import environment
from run_files import SETTINGS, make_record
from spectra.errors import StorageError
from spectra.results.storage.lock import only_writer
from spectra.results.storage.runfile import RunFile
record = make_record(0)
print("ready", flush=True)
number = int(sys.stdin.readline())
done = 0
while done < 4:
    try:
        with only_writer({path!r}):
            run = RunFile.open({path!r}, SETTINGS)
            epoch = 4 * number + done
            run.append(make_record(epoch, spectrum=record.spectrum, cached_estimates=record.estimates))
            done += 1
    except StorageError as error:
        assert "is writing it" in str(error), error
    time.sleep(0.001)
print("done", flush=True)
"""


@pytest.mark.slow
def test_writers_that_take_turns_lose_nothing(path):
    """Three processes at once, each trying until it may: the lock file is made and removed all the time."""
    writers = [start(MANY, path) for _ in range(3)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    lock_free = threading.Barrier(len(writers))
    said = [""] * len(writers)

    def go(number):
        lock_free.wait()
        said[number] = writers[number].communicate(f"{number}\n", timeout=60)[0]

    threads = [threading.Thread(target=go, args=(number,)) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["done\n"] * 3
    assert sorted(record.epoch for record in load_trajectory(path)) == list(range(12))
    assert os.listdir(path.parent) == ["run.h5"]
