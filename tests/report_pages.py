"""What the tests of the report page read it with: its data unpacked as the page does, and its tables. No browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

HOSTILE = "</script><script>alert(1)</script>"


def data_in(page: str) -> Any:
    """The data of a page, unpacked."""
    (text,) = re.findall(r'<script type="application/json" id="spectra-data">(.*?)</script>', page, re.DOTALL)
    return unpacked(json.loads(text))


def unpacked(packed: dict[str, Any]) -> Any:
    """The inverse of `spectra.report.packing.packed`, written independently of the page's script."""

    def unpack(part: Any) -> Any:
        if not isinstance(part, list):
            return part
        kind, *entries = part
        if kind == -1:
            return [unpack(entry) for entry in entries]
        if kind == -2:
            return packed["texts"][entries[0]]
        return dict(zip(packed["shapes"][kind], map(unpack, entries), strict=True))

    return unpack(packed["data"])


class Tables(HTMLParser):
    """The tables of checkpoints: series -> rows of {column name, "" for the checkpoint: text}."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.series: dict[str, list[dict[str, str]]] = {}
        self.tags: list[str] = []
        self._rows: list[dict[str, str]] | None = None
        self._cell: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attrs)
        if tag == "table":
            self._rows = self.series.setdefault(known["data-series"], []) if "data-series" in known else None
        elif tag == "tr" and self._rows is not None and "data-moment" in known:
            self._rows.append({})
        elif tag in ("td", "th") and self._rows:
            self._cell = known.get("data-name", "" if tag == "th" else "gap")
            self._rows[-1][self._cell or ""] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = None
        elif tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        if self._rows and self._cell is not None:
            self._rows[-1][self._cell] += data
