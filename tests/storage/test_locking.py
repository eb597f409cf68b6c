"""One writer at a time, who says who it is; a dead one is in nobody's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectra.errors import StorageError
from spectra.storage.locking import only_writer

HOLDER = """
import sys, time
from spectra.storage.locking import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    program = tmp_path / "training.py"
    program.write_text(HOLDER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, program, tmp_path / "run.h5"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(StorageError) as refusal, only_writer(tmp_path / "run.h5"):
        pass
    words = str(refusal.value)
    assert words.startswith(f"{tmp_path / 'run.h5'}: process {holder.pid} on ")
    assert "(training.py " in words
    assert words.endswith("is writing it; wait for it, or write parts with --shard I/N and another --out")
    assert json.loads((tmp_path / ".run.h5.lock").read_text())["process"] == holder.pid


def test_a_killed_holder_is_in_nobodys_way(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".run.h5.lock").exists()  # what it left
    with only_writer(tmp_path / "run.h5"):
        pass
    assert not (tmp_path / ".run.h5.lock").exists()


def test_other_files_and_links_to_the_same(tmp_path, holder):
    with only_writer(tmp_path / "other.h5"):
        pass
    (tmp_path / "link.h5").symlink_to(tmp_path / "run.h5")
    with pytest.raises(StorageError, match=r"link.h5: process \d+ on"), only_writer(tmp_path / "link.h5"):
        pass


def test_an_error_inside_lets_go_of_it(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "run.h5"):
        raise ZeroDivisionError
    with only_writer(tmp_path / "run.h5"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_same_process_twice_is_refused(tmp_path):
    with (
        only_writer(tmp_path / "run.h5"),
        pytest.raises(StorageError, match="this process is writing it already"),
        only_writer(tmp_path / "run.h5"),
    ):
        pass


def test_of_many_that_try_at_once_one_at_a_time_gets_it(tmp_path):
    """Each adds one to a number in a file, by reading and writing: a lock that lets two in would lose some."""
    program = """
import sys, time
from pathlib import Path
from spectra.errors import StorageError
from spectra.storage.locking import only_writer
number = Path(sys.argv[1]).with_name("number")
for _ in range(40):
    while True:
        try:
            with only_writer(sys.argv[1]):
                value = int(number.read_text())
                time.sleep(0.001)
                number.write_text(str(value + 1))
            break
        except StorageError:
            time.sleep(0.001)
"""
    (tmp_path / "number").write_text("0")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path / "run.h5"], env=environment) for _ in range(3)
    ]
    limit = time.monotonic() + 60
    assert [child.wait(timeout=limit - time.monotonic()) for child in children] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "120"
    assert [path.name for path in Path(tmp_path).iterdir()] == ["number"]
