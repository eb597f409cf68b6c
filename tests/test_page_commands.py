"""The command lines in the pages: commands, options and values exist, and so do the other programs that are named."""

from __future__ import annotations

import re
import shlex
from functools import cache

import click
import pytest
from pages import PAGES, ROOT, blocks, code_in_text

from spectra_cli.analysis_options import settings_in
from spectra_cli.main import COMMANDS, main

ANALYSES = ("analyze", "plan", "doctor", "watch")
PLACEHOLDERS = ("file.py", "analyses/NAME.py")
OPTIONS_OF_OTHERS = {"--all", "--debug", "--quick"}  # of the benchmarks; of every command; of analyses/papers


@cache
def command_of(name: str) -> click.Command:
    assert name in COMMANDS, f"there is no command {name}"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@cache
def options_of(name: str) -> set[str]:
    parameters = command_of(name).get_params(click.Context(command_of(name)))
    return {"--help"}.union(*({*one.opts, *one.secondary_opts} for one in parameters))


def check_spectra(words: list[str]) -> None:
    """Parse a whole command line as the command does: options exist, values are valid, arguments are there."""
    name, *given = words
    with command_of(name).make_context(name, given) as context:
        if name in ANALYSES:
            settings_in(context.params)


def check_program(words: list[str]) -> None:
    """That of another program: a target of make, or a file of the repository."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert words[1] in targets, f"make has no target {words[1]}"
    elif words[1].endswith(".py") and words[1] not in PLACEHOLDERS:
        assert (ROOT / words[1]).is_file(), f"there is no file {words[1]}"


@pytest.mark.parametrize("page", PAGES)
def test_the_command_lines_in_the_blocks_are_valid(page):
    for block in blocks(page):
        if block.language not in ("", "bash", "console"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if not re.match(r"(spectra|python|make) ", line):
                continue
            words = shlex.split(line.partition(" | ")[0].partition(" && ")[0], comments=True)
            try:
                if words[0] == "spectra":
                    check_spectra(words[1:])
                else:
                    check_program(words)
            except click.ClickException as error:
                raise AssertionError(f"{line}: {error.format_message()}") from error


@pytest.mark.parametrize("page", PAGES)
def test_what_the_text_calls_an_option_is_one(page, monkeypatch):
    """In the text a line may be incomplete and have placeholders, so values and arguments are not checked."""
    for code in code_in_text(page):
        if not re.match(r"spectra [a-z]|python |make |--[a-z]", code):
            continue
        words = shlex.split(code)
        if words[0] in ("python", "make"):
            check_program(words)
            continue
        if words[0] == "spectra":
            known = options_of(words[1]) | {"--debug"}
        else:
            known = set().union(*map(options_of, COMMANDS), OPTIONS_OF_OTHERS)
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"{code}: there is no option {word}"


def test_an_option_that_does_not_exist_is_found():
    with pytest.raises(click.NoSuchOption):
        check_spectra(["analyze", "ckpt.pt", "--nonsense"])
    with pytest.raises(click.BadParameter):
        check_spectra(["analyze", "ckpt.pt", "--bn", "nonsense"])
    with pytest.raises(Exception, match="lanczos_steps"):
        check_spectra(["analyze", "ckpt.pt", "-m", "0"])
    with pytest.raises(click.MissingParameter):
        check_spectra(["analyze"])
    with pytest.raises(AssertionError, match="no command"):
        check_spectra(["analyse", "ckpt.pt"])
