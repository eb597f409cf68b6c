"""Hooks of mkdocs: pages from outside docs/ and from the code, links between them, and a check of the built site."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import notebooks  # noqa: E402
import reference_pages as reference  # noqa: E402

# Files of the repository that are pages of the site -> their path there.
MIRRORED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "analyses/README.md": "gallery.md",
}
SOURCE = {page: file for file, page in MIRRORED.items()}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_config(config: Any) -> Any:
    """An entry of the navigation that ends in a slash stands for the generated pages in that folder."""
    made = list(reference.pages()) + list(notebooks.pages(ROOT / "docs"))

    def filled(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: filled(below) for title, below in entry.items()}
        if isinstance(entry, list):
            return [filled(one) for one in entry]
        return [page for page in made if page.startswith(entry)] if entry.endswith("/") else entry

    config.nav = filled(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    for file, page in MIRRORED.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    for page, content in (reference.pages() | notebooks.pages(ROOT / "docs")).items():
        files.append(File.generated(config, page, content=content))
    for picture, data in notebooks.pictures(ROOT / "docs").items():
        files.append(File.generated(config, picture, content=data))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links and tables that are right in the repository right in the site."""
    here = page.file.src_uri
    fenced, lines = False, []
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if not fenced:
            line = LINK.sub(lambda link: _in_site(link, here), line)
            if line.startswith("|"):  # here a pipe in code does not end a cell, and a backslash before it is printed
                line = re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), line)
        lines.append(line)
    return "\n".join(lines)


def _in_site(link: re.Match[str], here: str) -> str:
    """A link of the repository as one of the site; what is not in the site is left as plain text."""
    picture, text, target = link.groups()
    path, hash_sign, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return link[0]
    in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(SOURCE.get(here, f"docs/{here}")), path))
    in_site = MIRRORED.get(in_repository, in_repository.removeprefix("docs/"))
    if in_site.endswith(".ipynb") and not here.startswith("notebooks/"):
        in_site = in_site.removesuffix(".ipynb") + ".md"
    if in_repository not in MIRRORED and not in_repository.startswith("docs/"):
        return text
    if text.endswith(".md"):  # the name of a file says nothing in the site
        text = posixpath.basename(text).removesuffix(".md")
    return f"{picture}[{text}]({posixpath.relpath(in_site, posixpath.dirname(here) or '.')}{hash_sign}{anchor})"


def on_post_build(config: Any) -> None:
    """Refuse a site whose pages would load anything from another place."""
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+")
    imports = re.compile(r"(?:url\([\"']?|@import [\"'])(?:https?:)?//[^\s\"')]+")
    for file in sorted(Path(config.site_dir).rglob("*")):
        pattern = {".html": loads, ".css": imports}.get(file.suffix)
        found = pattern.search(file.read_text(encoding="utf-8")) if pattern else None
        if found:
            raise PluginError(f"{file}: a page must not load anything from elsewhere: {found[0]}")
