"""The whole command `spectra analyze`, and how much of it is set-up; whole processes, measured from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS, PROBES = 40, 4
_TASK = """
from pathlib import Path
from torch import nn
from side_by_side.networks import NETWORKS
from spectra import Task

def task():
    network = NETWORKS[{name!r}]
    return Task(network.model(), nn.CrossEntropyLoss(), network.data(1))
"""
_REFERENCE = """
import torch
from pathlib import Path
from side_by_side.networks import NETWORKS
from side_by_side.reference import Reference
torch.set_num_threads(1)
network = NETWORKS[{name!r}]
reference = Reference(network.model(Path({weights!r})), torch.nn.CrossEntropyLoss(), network.data(1))
for _ in range({probes}):
    reference.lanczos({steps})
"""


def commands_of(name: str, weights: Path, folder: Path) -> dict[str, list[str]]:
    """The command lines, by what they show."""
    task = folder / f"task_{name}.py"
    task.write_text(_TASK.format(name=name), encoding="utf-8")
    script = _REFERENCE.format(name=name, weights=str(weights), probes=PROBES, steps=STEPS)
    analyze = [sys.executable, "-m", "spectra_cli.main", "analyze", str(weights), "--task", f"{task}:task", "--quiet"]
    analyze += ["--out", str(folder / f"{name}.h5")]
    alone = ["--no-check", "--metrics", "none"]
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "set-up": [*analyze, "-m", "1", "-k", "1", *alone],
        "spectrum": [*analyze, "-m", str(STEPS), "-k", str(PROBES), *alone],
        "whole": [*analyze, "-m", str(STEPS), "-k", str(PROBES)],
        "reference": [sys.executable, "-c", script],
    }


def run(command: list[str]) -> dict[str, float]:
    """CPU seconds, seconds by the clock and peak memory of a process.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {said.decode(errors='replace')[-500:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - begun,
        "peak_mib": usage.ru_maxrss * unit / 2**20,
    }


def measure(name: str, weights: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Each command in turn, ``repeats`` times."""
    commands = commands_of(name, weights, folder)
    runs: dict[str, list[dict[str, float]]] = {what: [] for what in commands}
    for _ in range(repeats):
        for what, command in commands.items():
            for left in folder.glob(f"{name}*.h5*"):  # a run would go on with the probes of the one before it
                left.unlink()
            runs[what].append(run(command))
    return {"network": name, "runs": runs}
