"""A small sample of the fuzzer, always the same; `make fuzz` runs it for as long as it is asked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment

PROGRAM = Path(__file__).with_name("fuzz.py")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of a process")


def fuzz(*arguments):
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment() | {"MPLBACKEND": "agg"},
    )


def test_mutated_inputs_are_refused_in_words_or_read(tmp_path):
    done = fuzz("--cases", 90, "--seed", 0, "--out", tmp_path / "found")
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["findings"] == {}, done.stderr
    assert done.returncode == 0
    assert sum(counted["counts"].values()) == 90
    for reader in ("results", "checkpoints", "commands"):
        assert counted["counts"][f"{reader} read"] > 0
        assert counted["counts"][f"{reader} refused"] > 0


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("time.sleep(60)", "no end within 1 s"),
        ("raise TypeError('x')", "unexpected error"),
        ("print('a\\x1bb')", "control character '\\x1b' on the terminal"),
        ("print('[{}]')", "a damaged file was read as whole"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("print('Traceback (most recent call last)')", "traceback"),
                ("sys.exit(7)", "exit code 7"),
                ("sys.exit(1)", "an error without a word"),
                ("bytearray(2**45)", "out of memory"),
            )
        ),
    ],
)
def test_what_must_not_happen_is_a_finding(tmp_path, code, what):
    """With a command in the place of `spectra show` that does it."""
    program = f"""
import os, signal, sys, time
sys.path.insert(0, {str(PROGRAM.parent)!r})
import fuzz
import spectra_cli.show
from pathlib import Path
def does(**options):
    {code}
spectra_cli.show.command.callback = does
fuzz.SECONDS = 1
case = fuzz.Case("x-0", "", ["show", "run.h5"], {{"run.h5": b"x"}}, same='[{{"a": 1}}]')
found, end = fuzz.in_child([case, case], Path(sys.argv[1]))
assert end is None or len(found) == 0
print(end or found[0][1])
fuzz.store(case, "", Path(sys.argv[1]) / "out", Path(sys.argv[1]))
again = fuzz.stored(Path(sys.argv[1]) / "out" / "x-0")
assert (again.command, again.files, again.same) == (case.command, case.files, case.same)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment()
    )
    assert done.stdout.splitlines()[-1:] == [what], done.stderr
