"""The page with the matrix: `python tests/matrix/page.py` computes all cells and writes it; tests read it."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from matrix.cases import SECTIONS
from matrix.cells import COLUMNS, results

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def tables(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """A table in Markdown for each section."""
    lines = []
    for section, rows in found.items():
        lines += [f"## {section}", "", f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
        lines += [f"| {name} | {' | '.join(cells.values())} |" for name, cells in rows.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def written() -> dict[str, dict[str, str]]:
    """{row: {column: cell}} of the page as it is."""
    rows = re.findall(r"^\| ([^|\s].*?) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: dict(zip(COLUMNS, cells.split(" | "))) for name, cells in rows}


def main() -> None:
    """Compute all cells and rewrite what follows the introduction of the page."""
    warnings.simplefilter("ignore")
    found: dict[str, dict[str, dict[str, str]]] = {}
    for section, cases in SECTIONS.items():
        found[section] = {}
        for name, make in cases.items():
            found[section][name] = results(make, list(COLUMNS))
            print(f"{name}: {found[section][name]}")
    introduction = PAGE.read_text(encoding="utf-8").split("## ")[0]
    PAGE.write_text(introduction + tables(found), encoding="utf-8")


if __name__ == "__main__":
    main()
