"""The data of a page: what goes in comes out, and no text in it can leave its script element."""

from __future__ import annotations

import json

import pytest
from report_pages import HOSTILE, unpacked

from spectra.report.packing import curve, packed, script_json


@pytest.mark.parametrize(
    "value",
    [
        None,
        1.5,
        "a text that is longer than a number",
        [],
        {},
        [[], [1, [-1, -2]], {"a": []}],
        {"": 0, "__proto__": {"a": 1}, "shapes": ["data", "data"]},
        [{"a": 1, "b": "the same text"}, {"a": 2, "b": "the same text"}, {"b": 1, "a": 2}],
        {HOSTILE: HOSTILE, "\u2028": ["\u2029&<>"]},
    ],
)
def test_packing_loses_nothing(value):
    assert unpacked(json.loads(script_json(packed(value)))) == value


def test_keys_and_texts_are_written_once():
    many = [{"a long name of a number": i, "note": "the same remark for all of them"} for i in range(50)]
    text = script_json(packed(many))
    assert text.count("a long name") == text.count("the same remark") == 1
    assert len(text) < len(json.dumps(many)) / 4


@pytest.mark.parametrize("text", [HOSTILE, "<!--<script>", "]]>", "a\u2028b\u2029c", "&lt;"])
def test_no_text_ends_the_script(text):
    written = script_json({"name": text, text: 1})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {"name": text, text: 1}


def test_not_a_number_is_refused_by_json_and_missing_in_a_curve():
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))
    assert curve([1.23456789e-7, 3.0, float("inf")], 3) == [1.23e-7, 3, None]
