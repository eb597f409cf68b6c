"""What notebooks show of results: the words of the command line, with every text escaped."""

from __future__ import annotations

import dataclasses
import math
import re
from html import unescape

from run_files import failed_record, make_record, make_spectrum

from spectra.results.headline import exactly
from spectra.results.identity import Place
from spectra.results.number_text import as_range, in_short
from spectra.results.trajectory import Trajectory
from spectra.spectrum.estimates import Estimate

HOSTILE = "</table><script>alert(1)</script>\u202e"


def cells(table: str) -> list[list[str]]:
    """The rows of a table."""
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [[unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def test_an_estimate_is_its_words_its_interval_and_its_note():
    estimate = Estimate(12.3456, 0.5621, 11.0, 13.7, num_probes=8, note="one row dominates")
    assert cells(estimate._repr_html_())[1:] == [
        ["number", "12.35 +- 0.56"],
        ["95% interval", "[11, 13.7]"],
        ["probes", "8"],
        ["note", "one row dominates"],
    ]
    assert cells(exactly(31.377)._repr_html_())[0] == ["", "Headline"]
    assert ["number", "31.377 (exact)"] in cells(exactly(31.377)._repr_html_())
    missing = Estimate(math.nan, None, None, None, 4, note=HOSTILE)
    assert cells(missing._repr_html_())[1][1].startswith("not computed: ")


def test_a_spectrum_shows_what_its_methods_give():
    spectrum = make_spectrum()
    found = dict(cells(spectrum._repr_html_())[1:])
    assert found == {name: str(getattr(spectrum, name)()) for name in ("trace", "frobenius_norm", *ENDS)}


ENDS = ("lambda_max", "lambda_min")


def test_a_record_and_a_run_show_the_words_of_the_command_line():
    record = make_record(1.0)
    expected = {name: as_range(record.headlines[name]) for name in ENDS}
    expected["frobenius_norm"] = in_short(record.headlines["frobenius_norm"])
    assert expected.items() <= dict(cells(record._repr_html_())[1:]).items()
    run = Trajectory([record, failed_record(2.0), *(make_record(float(epoch)) for epoch in range(3, 25))])
    table = run._repr_html_()
    rows = [dict(zip(cells(table)[0], row)) for row in cells(table)[1:]]
    assert len(rows) == 20
    assert expected.items() <= rows[0].items()
    assert rows[1]["trace"] == "failed: NaN weights"
    assert "24 records, the last 4 of which are not shown" in table
    assert cells(run["hessian", "eval"]._repr_html_()) == cells(table)


def test_every_text_is_escaped():
    record = dataclasses.replace(make_record(0.0), place=Place(checkpoint=f"a{HOSTILE}", epoch=0.0), operator=HOSTILE)
    failed = dataclasses.replace(failed_record(1.0), reason=HOSTILE)
    noted = Estimate(1.0, None, None, None, 1, note=HOSTILE)
    for shown in (record, failed, Trajectory([record, failed]), noted):
        table = shown._repr_html_()
        assert "<script" not in table
        assert "\u202e" not in table
        assert "&lt;script&gt;alert(1)" in table
