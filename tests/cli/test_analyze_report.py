"""`spectra analyze --report`: the page of the run, checked before the run and written at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from analyze_command import QUICK, analysed, refused, spectra
from report_pages import data_in

from spectra import load_trajectory


def test_the_page_has_all_records_of_the_file(here):
    analysed("net_0.pt", *QUICK, "--quiet")
    result = analysed("net_0.pt", "net_1.pt", *QUICK, "--report", "page.html")
    assert "spectra: page in page.html; open it in a browser" in result.stderr.splitlines()
    records = data_in(Path("page.html").read_text(encoding="utf-8"))["records"]
    assert [record["checkpoint"] for record in records] == ["net_0.pt", "net_1.pt"]
    expected = [record.to_json()["estimates"] for record in load_trajectory("run.h5")]
    assert [record["estimates"] for record in records] == expected


def test_a_failed_checkpoint_is_on_the_page(here):
    result = spectra("analyze", "net_0.pt", "nan.pt", *QUICK, "--report", "page.html")
    assert result.exit_code == 1
    statuses = [view["status"] for view in data_in(Path("page.html").read_text(encoding="utf-8"))["views"]]
    assert sorted(statuses) == ["complete", "failed"]


@pytest.mark.parametrize(("page", "words"), [("page.pdf", "ends in .html"), ("none/page.html", "create it first")])
def test_a_page_that_cannot_be_written_ends_the_run_before_it_begins(here, page, words):
    refused(here, ["net_0.pt", *QUICK, "--report", page], words)
