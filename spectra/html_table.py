"""Small HTML tables, for notebooks. Every text is escaped: names, reasons and notes may contain anything."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from spectra.errors import escaped

_RIGHT = ' style="text-align:right"'
_LEFT = ' style="text-align:left"'


def safe(text: object) -> str:
    """The text for HTML, with control characters and marks of the direction of text written out.

    Example:
        >>> safe("<b>&'")
        '&lt;b&gt;&amp;&#x27;'
    """
    return html.escape(escaped(str(text)))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: Iterable[int] = (0,)) -> str:
    """A table with a row of headings.

    Args:
        columns: the headings; none where all are empty.
        rows: each with a cell per column.
        left: the columns whose cells are texts; the others are numbers, and are on the right.
    """
    sides = [_LEFT if index in set(left) else _RIGHT for index in range(len(columns))]

    def line(kind: str, cells: Sequence[object]) -> str:
        return f"<tr>{''.join(f'<{kind}{side}>{safe(cell)}</{kind}>' for cell, side in zip(cells, sides))}</tr>"

    head = f"<thead>{line('th', columns)}</thead>" if any(columns) else ""
    return f"<table>{head}<tbody>{''.join(line('td', row) for row in rows)}</tbody></table>"


def lines(*texts: object) -> str:
    """A paragraph for each text that is not empty."""
    return "".join(f"<p>{safe(text)}</p>" for text in texts if str(text))
