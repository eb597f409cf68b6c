"""The command line's frame: help without torch, and every error one line with the right exit code."""

from __future__ import annotations

import errno
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner

from spectra.errors import SpectraError, StorageError
from spectra.version import __version__
from spectra_cli import main as cli
from spectra_cli.main import COMMANDS, main


def run(*arguments: str, **options: object):
    return CliRunner().invoke(main, list(arguments), **options)


@pytest.fixture
def raising(monkeypatch):
    """A subcommand `inspect` that raises what it is told to."""

    def set_up(error: BaseException) -> None:
        @click.command("inspect")
        def command() -> None:
            raise error

        monkeypatch.setattr("spectra_cli.inspect.command", command)

    return set_up


@pytest.mark.parametrize("arguments", [["--help"], [], ["-h"]])
def test_help_lists_the_commands_and_imports_no_torch(arguments):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['spectra', *{arguments!r}]\n"
        "from spectra_cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'h5py', 'rich'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY [] 0" in done.stdout, done.stderr
    for name, (_, words) in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert words.split()[0] in done.stdout


def test_the_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"spectra {__version__}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SpectraError("probes=0: at least 1"), "probes=0: at least 1"),
        (StorageError("run.h5: not ours"), "run.h5: not ours"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.h5"), "a.h5: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "a.h5"), "a.h5: Permission denied"),
        (MemoryError(), "out of memory: try a smaller"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nto"),
            "out of memory: CUDA out of memory. Tried: try a",
        ),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you"), "out of memory: "),
        (RuntimeError("shapes\ndiffer"), "RuntimeError: shapes (unexpected; --debug shows where)"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero (unexpected"),
        (click.ClickException("no such thing"), "no such thing"),
    ],
)
def test_every_error_is_one_line_on_stderr_and_exit_code_1(raising, error, line):
    raising(error)
    result = run("inspect")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"spectra: error: {line}")
    assert result.stderr.count("\n") == 1


def test_notes_of_an_error_are_part_of_its_line(raising):
    error = SpectraError("bad key")
    error.add_note("in run.h5")
    raising(error)
    assert run("inspect").stderr == "spectra: error: bad key (in run.h5)\n"


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_debug_shows_the_traceback(raising, place):
    raising(SpectraError("bad key"))
    arguments = {"before": ["--debug", "inspect"], "after": ["inspect", "--debug"], "environment": ["inspect"]}[place]
    result = run(*arguments, env={"SPECTRA_DEBUG": "1"} if place == "environment" else {})
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("spectra: error: bad key\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspekt"], "there is no command 'inspekt'"),
        (["--nonsense"], "--nonsense"),
        (["inspect"], "Missing argument"),
        (["inspect", "--nonsense", "a"], "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--help)" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_interrupt_exits_with_130(raising):
    raising(KeyboardInterrupt())
    result = run("inspect")
    assert result.exit_code == 130
    assert result.stderr.strip() == "spectra: interrupted"


def test_a_closed_pipe_is_quiet(raising):
    raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    result = run("inspect")
    assert result.exit_code == 1
    assert result.stderr == ""


def test_warnings_of_the_library_go_to_stderr(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(2)}}, path)
    result = run("inspect", str(path), "--unsafe-load")
    assert result.exit_code == 0
    assert result.stderr.startswith("spectra: warning: ")
    assert result.stderr.count("\n") == 1  # once, however often the frame was entered


def test_the_table_of_commands_names_what_exists():
    assert cli.COMMANDS["inspect"][0] == "spectra_cli.inspect"
    assert all(module == f"spectra_cli.{name}" for name, (module, _) in COMMANDS.items())
