"""Tables away from a terminal are, to the character, what rich prints."""

from __future__ import annotations

import io
import random
import sys

import pytest
from rich.console import Console
from rich.table import Table

from spectra_cli.layout import new_table

CELLS = ("", "-", "1.25", "31.3 +- 2.0", "not resolved: 0 to 1 (tau 0.1)", "a  b", "9 to 9.121", "x" * 40)
#: What rich changes on its way, or counts as another width.
DIFFICULT = (" 1", "1 ", "[bold]b[/bold]", ":smile:", "\u00e9\u4e2d", "a\nb", "\x1b[31m", "e\u0301", "\t", "[", "a:b:c")


def filled(cells, seed, *, title=None):
    draw = random.Random(seed)
    names = draw.sample(["epoch", "loss", "trace", "|H|_F", "", "rank degeneracy"], draw.randint(1, 6))
    table = new_table(*names, title=title)
    table.columns[0].justify = draw.choice(["left", "right"])
    for _ in range(draw.randint(0, 6)):
        table.add_row(*draw.choices(cells, k=draw.randint(1, len(names))))
    return table


def test_columns_are_to_the_right_but_for_those_of_text():
    table = new_table("quantity", "value", "note", left=(0, -1))
    assert [column.justify for column in table.columns] == ["left", "right", "left"]


def printed(table, **options):
    stream = io.StringIO()
    Console(file=stream, highlight=False, **options).print(table)
    return stream.getvalue()


def by_rich(table, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(type(table), "__rich_console__", Table.__rich_console__)
        return printed(table, **options)


@pytest.mark.parametrize("cells", [CELLS, DIFFICULT, CELLS + DIFFICULT])
@pytest.mark.parametrize("width", [10_000, 60, 12])
@pytest.mark.parametrize("markup", [False, True])
def test_a_table_is_the_text_of_rich(cells, width, markup, monkeypatch):
    for seed in range(40):
        table = filled(cells, seed, title=random.Random(seed).choice([None, "A title"]))
        options = {"width": width, "markup": markup, "emoji": markup}
        assert printed(table, **options) == by_rich(table, monkeypatch, **options)


def test_a_terminal_gets_what_rich_lays_out(monkeypatch):
    table = filled(CELLS, 0)
    options = {"width": 100, "force_terminal": True, "color_system": "standard"}
    assert "\x1b" in printed(table, **options)
    assert printed(table, **options) == by_rich(table, monkeypatch, **options)


def test_a_row_of_a_long_table_costs_a_few_calls():
    def calls(rows):
        table = new_table("epoch", "loss", "trace", "lambda_max")
        for row in range(rows):
            table.add_row(f"{row}", "0.25", "31.3 +- 2.0", "9 to 9.121")
        count = 0

        def note(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            printed(table, width=10_000)
        finally:
            sys.setprofile(None)
        return count

    calls(10)
    assert calls(600) - calls(200) < 400 * 100  # rich alone makes 1,960 a row
