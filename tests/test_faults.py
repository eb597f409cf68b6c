"""A run that is killed, or meets a full disk, at many instants: nothing is lost, and it ends as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")


def inject(folder: Path, writer: str, fault: str, at: str, seed: int = 0) -> dict:
    """What the program of faults saw; it ends with an error if anything was lost or differs."""
    here = Path(__file__).parent
    paths = [str(here), *(path for path in sys.path if path)]
    done = subprocess.run(
        [sys.executable, here / "fault_injection.py", folder, "--writer", writer, "--fault", fault, "--at", at,
         "--seed", str(seed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    print(found)
    return found


@pytest.mark.parametrize("fault", ["kill", "full"])
def test_a_writer_that_meets_a_fault_at_some_writes_goes_on_as_if_nothing_had_been(tmp_path, fault):
    found = inject(tmp_path, "numpy", fault, "some:12")
    words = {"kill": "killed", "full": "refused in a line"}[fault]
    assert sum(count for seen, count in found["seen"].items() if seen.startswith(words)) >= 8


def test_an_analysis_that_is_killed_at_some_writes_goes_on_bit_for_bit(tmp_path):
    found = inject(tmp_path, "torch", "kill", "60")
    assert any("some probes there" in seen for seen in found["seen"])


@pytest.mark.parametrize(("fault", "words"), [("kill", "killed"), ("full", "refused in a line")])
def test_an_analysis_that_keeps_every_step_meets_a_fault_at_some_writes_and_goes_on_bit_for_bit(tmp_path, fault, words):
    found = inject(tmp_path, "steps", fault, "some:5")
    assert sum(count for seen, count in found["seen"].items() if seen.startswith(words)) >= 3


@pytest.mark.slow
def test_an_analysis_that_keeps_every_step_is_killed_at_every_write(tmp_path):
    found = inject(tmp_path, "steps", "kill", "all")
    assert found["instants"] == found["steps"] > 150
    assert sum(count for seen, count in found["seen"].items() if "some probes there" in seen) > 100


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "full"])
def test_a_writer_that_meets_a_fault_at_every_write(tmp_path, fault):
    found = inject(tmp_path, "numpy", fault, "all")
    assert found["instants"] == found["steps"] > 150


@pytest.mark.slow
def test_a_writer_that_is_killed_at_1000_random_instants(tmp_path):
    assert inject(tmp_path, "numpy", "kill", "random:1000")["instants"] == 1000


@pytest.mark.slow
def test_an_analysis_that_is_killed_at_200_random_instants(tmp_path):
    found = inject(tmp_path, "torch", "kill", "random:200")
    assert sum(count for seen, count in found["seen"].items() if seen.startswith("killed")) > 150


@pytest.mark.slow
def test_an_analysis_that_is_killed_at_every_write(tmp_path):
    found = inject(tmp_path, "torch", "kill", "all")
    assert found["instants"] == found["steps"] > 300
