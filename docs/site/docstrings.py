"""An extension of griffe: docstrings as the sources write them, for a site in Markdown."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Any

import griffe

CHANGES = (
    (re.compile(r":(?:func|meth|class|attr|mod|data|exc):`~?([^`]+)`"), r"`\1`"),  # roles of Sphinx
    (re.compile(r"::$", re.M), ":"),  # before an indented block
    (re.compile(r"^( *)Example:$", re.M), r"\1Examples:"),  # the section that is read as a doctest
)


class SourceStyle(griffe.Extension):
    """Markdown in place of reStructuredText, and the comment behind a field as its docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            for pattern, replacement in CHANGES:
                obj.docstring.value = pattern.sub(replacement, obj.docstring.value)

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        if not isinstance(node, ast.AnnAssign) or attr.docstring is not None:
            return
        lines = attr.lines_collection[attr.filepath][node.lineno - 1 : node.end_lineno]
        if words := _last_comment("\n".join(lines)):
            attr.docstring = griffe.Docstring(words, lineno=node.lineno, parent=attr)


def _last_comment(text: str) -> str:
    words = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
    return next((word.string.lstrip("#: ") for word in reversed(list(words)) if word.type == tokenize.COMMENT), "")
