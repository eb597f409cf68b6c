"""`spectra report`: a page from files; a bad file gives the same line as `spectra show`, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from report_pages import data_in
from run_files import SETTINGS, make_record

from spectra.results.storage.runfile import RunFile
from spectra_cli.main import main


def call(*arguments: object):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, operator in (("a.h5", "hessian"), ("b.h5", "ggn")):
        with RunFile.open(name, SETTINGS) as run:
            for epoch in (0.0, 1.0):
                for mode in ("eval", "train"):
                    run.append(make_record(epoch, operator, mode))
    Path("text.h5").write_text("no results")
    Path("empty.h5").write_bytes(b"")
    return tmp_path


def test_one_file(here):
    result = call("report", "a.h5")
    assert (result.exit_code, result.stdout) == (0, "report.html\n")
    assert len(data_in(Path("report.html").read_text(encoding="utf-8"))["records"]) == 4


def test_several_files_and_a_choice_of_records(here):
    result = call("report", "a.h5", "b.h5", "--bn", "train", "--out", "both.htm")
    assert (result.exit_code, result.stdout) == (0, "both.htm\n")
    data = data_in(Path("both.htm").read_text(encoding="utf-8"))
    assert [(record["file"], record["operator"], record["bn_mode"]) for record in data["records"]] == [
        ("a.h5", "hessian", "train"),
        ("a.h5", "hessian", "train"),
        ("b.h5", "ggn", "train"),
        ("b.h5", "ggn", "train"),
    ]


@pytest.mark.parametrize("bad", ["none.h5", "text.h5", "empty.h5", "."])
@pytest.mark.parametrize("before", [[], ["a.h5"]])
def test_a_file_that_cannot_be_read_gives_the_line_of_show(here, bad, before):
    shown, reported = call("show", *before, bad), call("report", *before, bad)
    assert reported.exit_code == shown.exit_code == 1
    assert reported.stderr == shown.stderr
    assert len(reported.stderr.splitlines()) == 1
    assert not Path("report.html").exists()


def test_no_record_of_the_choice(here):
    shown, reported = (call(name, "a.h5", "--bn", "none") for name in ("show", "report"))
    assert reported.stderr == shown.stderr != ""
    assert not Path("report.html").exists()


@pytest.mark.parametrize("out", ["a.h5", "page.txt", "none/page.html", "."])
def test_a_page_is_written_to_a_page_only(here, out):
    before = Path("a.h5").read_bytes()
    result = call("report", "a.h5", "--out", out)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert Path("a.h5").read_bytes() == before
    assert sorted(path.name for path in here.iterdir()) == ["a.h5", "b.h5", "empty.h5", "text.h5"]
