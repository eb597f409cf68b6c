"""What notebooks show: the numbers and words of the text output, in well-formed HTML with every text escaped."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from every_finding import FULL_ESTIMATES
from run_files import TENSORS, failed_record, make_record, make_spectrum, write

from spectra import Estimate, Trajectory, load_trajectory
from spectra.results.headline import exactly
from spectra.results.html_tables import MOST_ROWS
from spectra.results.identity import Place
from spectra.results.number_text import as_range, estimate_cells, in_short
from spectra.spectrum.estimates import not_computed
from spectra_cli.layout import make_console
from spectra_cli.tables import print_trajectory

EVIL = "<script>alert('x')</script>&\x1b[1m\u202e"


class Page(HTMLParser):
    """The cells of all tables, row by row; every tag must be closed, and be one of those that tables need."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.rows, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag in {"table", "thead", "tbody", "tr", "th", "td", "p", "b"}
        assert [name for name, _ in attributes] in ([], ["style"])
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.texts.append(data)


def page(thing) -> Page:
    return Page(thing._repr_html_())


@pytest.mark.parametrize(
    ("estimate", "rows"),
    [
        (
            Estimate(12.3456, 0.5621, 11.0, 13.7, 8),
            [["", "12.35 +- 0.56"], ["95% interval", "[11, 13.7]"], ["probes", "8"]],
        ),
        (exactly(31.377), [["", "31.377 (exact)"]]),
        (Estimate(2.5, None, None, None, 1), [["", "2.5"], ["probes", "1"]]),
        (
            Estimate(2.5, None, 2.5, None, 2, note=EVIL),
            [["", "2.5 in [2.5, inf]"], ["95% interval", "[2.5, inf]"], ["probes", "2"],
             ["note", "<script>alert('x')</script>&\\x1b[1m\\u202e"]],
        ),
        (
            Estimate(0.7, 0.1, 0.2, 0.9, 4, tau=0.01, resolved=False),
            [["", "not resolved, in [0.2, 0.9]"], ["95% interval", "[0.2, 0.9]"], ["tau", "0.01"], ["probes", "4"]],
        ),
        (not_computed("why", 3), [["", "not computed: why"], ["probes", "3"], ["note", "why"]]),
    ],
)  # fmt: skip
def test_an_estimate_says_what_its_text_says(estimate, rows):
    assert page(estimate).rows == rows


def test_a_spectrum_has_its_estimates_in_words():
    spectrum = make_spectrum()
    shown = page(spectrum)
    assert shown.texts == [repr(spectrum)]
    assert shown.rows[1:] == [[name, str(one), one.note or ""] for name, one in spectrum.estimates().items()]


def test_a_record_has_the_cells_of_the_command_line():
    record = make_record(2.0, "ggn")
    shown, remarks = page(record), {}
    assert shown.rows[0] == ["quantity", "value", "+-", "interval", ""]
    expected = [[name, *estimate_cells(name, one, remarks)] for name, one in record.headlines.items()]
    assert shown.rows[1:] == expected
    assert shown.texts[0] == "ggn, BN eval: ckpt_2.pt epoch 2"
    assert shown.texts[1] == "loss 0.83333, accuracy 0.75, parameters n 200"
    assert shown.texts[-1] == "TF32 was off"


def test_a_run_has_the_rows_of_the_command_line(capsys):
    records = [make_record(float(epoch), operator) for operator in ("hessian", "ggn") for epoch in range(3)]
    run = Trajectory([*records, failed_record(3.0)])
    shown = page(run)
    print_trajectory(run, make_console(), everything=True)
    printed = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    for record in records:
        cells = [in_short(record.headlines[name]) for name in ("trace", "frobenius_norm")]
        cells += [as_range(record.headlines[name]) for name in ("lambda_max", "lambda_min")]
        cells.append(in_short(record.headlines["rank_degeneracy"]))
        assert [row for row in shown.rows if row[2:-1] == cells]
        for cell in cells:
            assert any(cell in " ".join(line) for line in printed), cell
    assert [row[0] for row in shown.rows] == ["epoch", "0", "1", "2", "3", "epoch", "0", "1", "2"]
    assert [row for row in shown.rows if row[1] == "failed"] == [["3", "failed", "", "", "", "", "", "NaN weights"]]
    assert "hessian, BN eval: 4 records" in shown.texts
    assert page(run["ggn", "eval"]).rows == shown.rows[5:]


def test_a_long_run_shows_its_first_and_last_records():
    record = make_record(0.0, cached_estimates=FULL_ESTIMATES)
    many = [dataclasses.replace(record, place=Place(epoch=float(epoch))) for epoch in range(1000)]
    rows = page(Trajectory(many)).rows
    assert len(rows) == MOST_ROWS + 2
    assert rows[MOST_ROWS // 2 + 1][0] == f"... {1000 - MOST_ROWS} more"
    assert (rows[1][0], rows[-1][0]) == ("0", "999")


def test_times_are_epochs_else_steps_else_names():
    record = make_record(0.0, cached_estimates=FULL_ESTIMATES)
    for place, first, cell in (
        (Place(step=30, checkpoint="a/net.pt"), "step", "30"),
        (Place(checkpoint="a/net.pt"), "step", "net.pt"),
        (Place(), "step", "-"),
    ):
        rows = page(Trajectory([dataclasses.replace(record, place=place)])).rows
        assert (rows[0][0], rows[1][0]) == (first, cell)


def test_an_empty_run_and_a_record_without_all_of_it():
    assert page(Trajectory([], notes=["one is incomplete"])).texts == ["no records", "one is incomplete"]
    assert page(failed_record(1.0)).texts == ["hessian, BN eval: ckpt_1.pt epoch 1", "failed: NaN weights"]
    unverified = page(make_record(1.0, status="unverified", reason="a check ended in an error"))
    assert "unverified: a check ended in an error" in unverified.texts
    assert page(make_record(cached_estimates=FULL_ESTIMATES)).rows[3][-1]
    shown = page(Trajectory([make_record(1.0, cached_estimates={})]))
    assert shown.rows[1] == ["1", "1.25", "-", "-", "-", "-", "-", ""]


def test_every_text_is_escaped():
    """A tensor, an operator, a file, a reason, a note, a fact: whatever a file or a user's model brings."""
    estimates = {EVIL: Estimate(1.0, 0.1, 0.8, 1.2, 4, note=EVIL)}
    record = make_record(
        operator=EVIL, bn_mode=EVIL, status="unverified", reason=EVIL, notes=(EVIL,), cached_estimates=estimates,
        checkpoint=EVIL,
    )  # fmt: skip
    failed = failed_record(operator=EVIL, bn_mode=EVIL, reason=EVIL, checkpoint=EVIL)
    spectrum = make_spectrum()
    named = type(spectrum)(
        spectrum.tridiagonals,
        200,
        tensor_sizes={f"{EVIL}{n}": s for n, s in TENSORS.items()},
        tensor_forms=spectrum.tensor_forms,
    )
    run = Trajectory([record, failed], notes=[EVIL])
    for thing in (record, failed, run, run[EVIL, EVIL], named, Estimate(1.0, None, None, None, 1, note=EVIL)):
        text = thing._repr_html_()
        assert "<script" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        page(thing)
    assert run._repr_html_().count("&lt;script&gt;") >= 5


def test_a_run_from_a_file_is_shown(tmp_path):
    path = write(tmp_path / "run.h5", make_record(0.0), make_record(1.0))
    loaded, made = load_trajectory(path), Trajectory([make_record(0.0), make_record(1.0)])
    assert page(loaded).rows == page(made).rows
