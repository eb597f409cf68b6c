"""docs/corrections.md and the tests beside this file name each other, one to one."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "corrections.md"


def test_every_row_of_the_table_has_a_test_and_every_test_a_row():
    rows = re.findall(r"\| `(test_\w+)` \|$", TABLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    tests = [
        name
        for file in sorted(HERE.glob("test_*_paper*.py"))
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert len(rows) == len(set(rows)) == 39
    assert sorted(rows) == sorted(tests)
