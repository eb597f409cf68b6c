"""Programs of the tests in a process of their own, with the packages that the tests import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import spectra


def environment() -> dict[str, str]:
    """Of a process that imports what the tests import."""
    root = Path(spectra.__file__).parents[1]
    places = [str(root), str(root / "cli"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    # One thread: some of the programs fork, and a library that has started threads does not survive that.
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}


def run_program(name: str, *arguments: object, timeout: float = 3000) -> dict[str, Any]:
    """What a program in `tests/results/storage` prints as JSON on its last line; its error is this test's."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "results" / "storage" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
