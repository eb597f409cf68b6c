"""``torchrun -m spectra_cli analyze``: one result whatever the number of processes, also after one was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import environment

from spectra import load_trajectory

TASK = """
import os, pathlib
import torch
from torch import nn
from spectra import Task

class Net(nn.Sequential):
    calls = 0
    def forward(self, x):
        self.calls += 1
        if os.environ.get("KILLED_AT") and os.environ.get("RANK") == "1" and pathlib.Path("run.h5.partial").exists():
            os.kill(os.getpid(), 9)
        return super().forward(x)

def task():
    torch.manual_seed(0)
    net = Net(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).double()
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(23, 1, 6, 6, generator=draw).double(), torch.randint(3, (23,), generator=draw)
    batches = list(zip(x.split(5), y.split(5)))
    return Task(net, nn.CrossEntropyLoss(), batches, test_data=batches[:2])
"""
MAKE = "from task import task; from spectra import save_checkpoint\nfor e in range(2):\n    m = task().model\n    "
MAKE += "m[0].bias.data += e\n    save_checkpoint(f'net_{e}.pt', m, epoch=e)"
COMMAND = ["analyze", "net_0.pt", "net_1.pt", "--task", "task.py:task", "-m", "6", "-k", "3", "--out", "run.h5"]


@pytest.fixture
def home(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    subprocess.run([sys.executable, "-c", MAKE], cwd=tmp_path, env=environment(), check=True)
    return tmp_path


def launched(home: Path, count: int, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"]
    return subprocess.run(
        [*torchrun, "-m", "spectra_cli", *COMMAND, *more],
        cwd=home, env=environment() | {"OMP_NUM_THREADS": "1"} | variables, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def compared(path: Path, other: Path) -> None:
    records, others = load_trajectory(path), load_trajectory(other)
    assert len(records) == len(others) > 0
    for record, same in zip(records, others):
        assert record.label == same.label
        for name, value in record.facts.items():
            assert same.facts[name] == (value if value is None else pytest.approx(value, rel=1e-9)), name
        for mine, yours in ((record.spectrum, same.spectrum), (record.test_spectrum, same.test_spectrum)):
            assert (mine is None) == (yours is None)
            for t, u in zip(mine.tridiagonals if mine else (), yours.tridiagonals if yours else ()):
                np.testing.assert_allclose(t.alphas, u.alphas, atol=1e-9)
        assert (record.exact is None) == (same.exact is None)
        if record.exact is not None and record.exact.total is not None:
            assert same.exact.total == pytest.approx(record.exact.total, rel=1e-9)
        assert [c.name for c in record.checks] == [c.name for c in same.checks]
        assert record.sharpness.keys() == same.sharpness.keys()
        for name, measure in record.sharpness.items():
            assert same.sharpness[name].value == pytest.approx(measure.value, rel=1e-6, nan_ok=True), name
        assert record.status == same.status == "complete"


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(home):
    more = ["--operator", "hessian", "--operator", "ggn", "--bn", "both", "--test-data", "--eigenpairs", "2"]
    more += ["--blocks", "layer"]
    for count in (1, 2, 3):
        found = launched(home, count, *more)
        assert found.returncode == 0, found.stderr
        assert found.stdout.count("run.h5: 8 records") == 1  # one process prints
        assert found.stderr.count("spectra: saved in run.h5") == 1
        (home / "run.h5").rename(home / f"{count}.h5")
    compared(home / "1.h5", home / "2.h5")
    compared(home / "1.h5", home / "3.h5")
    assert "ranks" not in load_trajectory(home / "1.h5")[0].provenance
    assert load_trajectory(home / "3.h5")[0].provenance["ranks"]["world_size"] == 3
    assert sorted(path.name for path in home.glob("*.h5*")) == ["1.h5", "2.h5", "3.h5"]


@pytest.mark.slow
def test_after_a_killed_process_the_command_goes_on_with_another_number(home):
    whole = launched(home, 1)
    assert whole.returncode == 0, whole.stderr
    (home / "run.h5").rename(home / "whole.h5")
    broken = launched(home, 2, KILLED_AT="1")
    assert broken.returncode != 0
    assert "exitcode  : -9" in broken.stderr or "Signal 9" in broken.stderr
    again = launched(home, 3)
    assert again.returncode == 0, again.stderr
    compared(home / "whole.h5", home / "run.h5")
    assert not list(home.glob("run.h5.*"))


@pytest.mark.slow
def test_processes_may_take_a_checkpoint_each(home):
    whole = launched(home, 1)
    assert whole.returncode == 0, whole.stderr
    (home / "run.h5").rename(home / "whole.h5")
    broken = launched(home, 2, "--parallel", "checkpoints", KILLED_AT="1")
    assert broken.returncode == 0, broken.stderr  # it dies where there is a run.h5.partial, which there is not
    compared(home / "whole.h5", home / "run.h5")
    again = launched(home, 3, "--parallel", "checkpoints")  # nothing is left to do; one process has no checkpoint
    assert again.returncode == 0, again.stderr
    assert "0 records added, 1 kept" in again.stdout or "kept as they were" in again.stdout
    compared(home / "whole.h5", home / "run.h5")
    assert sorted(path.name for path in home.glob("*.h5*")) == ["run.h5", "whole.h5"]


@pytest.mark.slow
def test_the_files_of_interrupted_processes_are_joined(home):
    assert launched(home, 1).returncode == 0
    (home / "run.h5").rename(home / "run.process-2-of-5.h5")
    (home / "bad.pt").write_bytes(b"")
    found = launched(home, 2, "bad.pt", "--parallel", "checkpoints")
    assert found.returncode != 0
    assert "1 of 1 records failed" in found.stderr  # of those that were not there
    assert [record.status for record in load_trajectory(home / "run.h5")].count("complete") == 2
    assert sorted(path.name for path in home.glob("*.h5*")) == ["run.h5"]


def test_one_process_cannot_take_checkpoints_apart(home):
    found = subprocess.run(
        [sys.executable, "-m", "spectra_cli", *COMMAND, "--parallel", "checkpoints"],
        cwd=home, env=environment(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert found.returncode == 1
    assert "error: there is one process: torchrun starts several" in found.stderr


def test_a_launcher_without_its_variables_is_one_line(home):
    env = environment() | {"WORLD_SIZE": "2", "RANK": "0"}
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    found = subprocess.run(
        [sys.executable, "-m", "spectra_cli", *COMMAND], cwd=home, env=env, capture_output=True, text=True, timeout=100
    )
    assert found.returncode == 1
    expected = "MASTER_ADDR is not set, although WORLD_SIZE=2: torchrun sets both; for one process unset WORLD_SIZE"
    assert found.stderr == f"spectra: error: {expected}\n"
    assert "Traceback" not in found.stderr
    assert os.listdir(home).count("run.h5") == 0
