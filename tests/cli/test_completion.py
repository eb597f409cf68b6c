"""Completion in the shell, by the script that click writes for bash."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from click.shell_completion import BashComplete
from programs import environment

from spectra_cli.main import COMMANDS, main

BASH = shutil.which("bash")
LINES = {
    "spectra ": [*COMMANDS],
    "spectra an": ["analyze"],
    "spectra plot --wh": ["--what"],
    "spectra plot --format p": ["png", "pdf"],
}


def completions(line: str) -> list[str]:
    """What click answers for this line, with the cursor at its end."""
    *words, last = line.split(" ")
    found = BashComplete(main, {}, "spectra", "_SPECTRA_COMPLETE").get_completions(words[1:], last)
    return [item.value for item in found]


@pytest.mark.parametrize("line", LINES)
def test_commands_options_and_values_are_completed(line):
    assert completions(line) == LINES[line]


@pytest.mark.parametrize("line", ["spectra analyze ru", "spectra show ru", "spectra inspect ru", "spectra merge ru"])
def test_files_are_completed_where_a_command_takes_files(line):
    *words, last = line.split(" ")
    (item,) = BashComplete(main, {}, "spectra", "_SPECTRA_COMPLETE").get_completions(words[1:], last)
    assert item.type == "file"


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_completes_a_command_without_loading_torch(tmp_path):
    program = tmp_path / "spectra"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom spectra_cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    program.chmod(0o755)
    script = (
        'eval "$(_SPECTRA_COMPLETE=bash_source spectra)" && complete -p spectra\n'
        'COMP_WORDS=(spectra "") COMP_CWORD=1\n_spectra_completion spectra\necho "${COMPREPLY[@]}"\n'
        "COMP_WORDS=(spectra mer) COMP_CWORD=1 COMPREPLY=()\n"
        '_spectra_completion spectra\necho "${COMPREPLY[@]}"\n'
    )
    given = environment()
    given["PATH"] = f"{tmp_path}:{given['PATH']}"
    done = subprocess.run([BASH, "-c", script], capture_output=True, text=True, timeout=120, env=given)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    complete, names, merge = done.stdout.splitlines()
    assert complete.split()[-1] == "spectra"
    assert names.split() == list(COMMANDS)
    assert merge == "merge"
