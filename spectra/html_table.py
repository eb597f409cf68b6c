"""Small tables in HTML, which notebooks show for results; every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from spectra.errors import escaped


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """A table with a row of heads; the first cell of each row is its head.

    Example:
        >>> html_table(["name", "value"], [["<b>", 1]])
        '<table><thead><tr><th>name</th><th>value</th></tr></thead><tbody><tr><th>&lt;b&gt;</th><td>1</td></tr></tbody></table>'
    """
    top = f"<caption>{_text(caption)}</caption>" if caption else ""
    head = "".join(f"<th>{_text(words)}</th>" for words in heads)
    body = "".join(
        f"<tr><th>{_text(first)}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f"<table>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(escaped(str(value)))
