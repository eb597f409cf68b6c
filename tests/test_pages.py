"""The pages of the documentation: their links, their place in the site, and numbers that they quote from each other."""

from __future__ import annotations

import posixpath
import re

import pytest
from pages import PAGES, ROOT, anchors, links, text_of

NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_and_image_leads_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert (ROOT / there).exists(), f"{page}: {target}: there is no such file"
        if anchor and there.endswith(".md"):
            assert anchor in anchors(there), f"{page}: {target}: there is no such heading"


def test_every_page_of_docs_is_in_the_navigation_of_the_site_once():
    named = re.findall(r"[\w/-]+\.md", NAVIGATION)
    assert len(named) == len(set(named))
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert pages <= set(named), f"mkdocs.yml has no line for {sorted(pages - set(named))}"


def test_the_times_in_the_readme_are_those_of_the_performance_page():
    sections = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", text_of("docs/performance.md"), re.S | re.M))
    head, _, *rows = re.findall(r"^\| network.*?(?=\n\n)", text_of("README.md"), re.S | re.M)[0].splitlines()
    names = cells(head)
    assert len(rows) >= 5
    for row in rows:
        quoted = dict(zip(names, cells(row)))
        table = [line for line in sections[quoted.pop("network")].splitlines() if line.startswith("|")]
        (measured,) = [dict(zip(cells(table[0]), cells(line))) for line in table if cells(line)[0] == quoted["task"]]
        for library in names[2:]:
            assert quoted[library] == measured.get(library, ""), f"{row}: {library}"
    (exact,) = re.findall(r"its exact trace takes ([\d.]*\d)", text_of("README.md"))
    assert exact == measured["spectra, exact trace"]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split("|")]


def test_the_counts_in_the_readme_are_those_of_the_pages():
    readme = text_of("README.md")
    corrections = re.findall(r"^\|.*`test_\w+` \|$", text_of("docs/corrections.md"), re.M)
    assert f"{len(corrections)} printed statements" in readme
    coverage = re.findall(r"## Coverage, percent\n\n.*?\n\n", text_of("docs/coverage.md"), re.S)[0]
    assert f"on {coverage.count(chr(10) + '|') - 2} kinds" in " ".join(readme.split())


def test_the_readme_is_short():
    """Two screens: what is longer belongs to a page."""
    assert len(text_of("README.md").split()) < 900
