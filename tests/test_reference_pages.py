"""The pages of the reference that the site makes from the code, without mkdocs."""

from __future__ import annotations

import html
import importlib
import re
import sys

import click
import pytest
from pages import ROOT

import spectra
from spectra.results.measure_catalogue import CATALOGUE
from spectra.spectrum.estimators import ESTIMATORS
from spectra_cli.main import COMMANDS, main


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        return importlib.import_module("reference_pages")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_has_every_option_with_its_help(name, reference):
    command = main.get_command(click.Context(main), name)
    page = html.unescape(reference.command_page(name))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for text in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"<code>[^\n]*{re.escape(text)}\b", page), text
            assert plain(parameter.help) in plain(page)
    assert "\b" not in page


def plain(text: str) -> str:
    return re.sub(r"</?code>|`", "", text)


def test_every_public_name_is_on_one_page_under_its_home(reference):
    pages = "".join(reference.names_page(page) for page in reference.NAMES)
    named = re.findall(r"^::: (\S+)$", pages, re.M)
    assert len(named) == len(set(named))
    assert {f"{home}.{name}" for name, home in spectra._HOME.items()} <= set(named)
    for path in named:  # classes behind the public names too
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__


def test_every_estimator_and_measure_is_in_its_table(reference):
    pages = reference.pages()
    assert all(f"| `{one.name}` |" in pages["reference/estimators.md"] for one in ESTIMATORS)
    assert all(pages["reference/measures.md"].count(f"| `{name}` |") == 2 for name in CATALOGUE)


def test_text_cannot_become_markup(reference):
    assert reference._plain("is --bn, semi-definite") == "is <code>--bn</code>, semi-definite"
    assert reference._plain("a*b_c|d<e> `f|g`") == "a&#42;b&#95;c&#124;d&#60;e&#62; <code>f&#124;g</code>"
