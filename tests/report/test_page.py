"""The report page without a browser: its numbers are those of `Record.to_json`, and every text is escaped."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from every_finding import FULL_CHECKS
from report_pages import HOSTILE, Tables, data_in
from run_files import failed_record, make_record

from spectra.errors import ArgumentError, StorageError
from spectra.report.page import UPLOT_VERSION, page_of, write_report
from spectra.report.runs import Run
from spectra.results.headline import exactly
from spectra.results.identity import Place
from spectra.results.measure import Measure
from spectra.results.number_text import as_range, in_short
from spectra.results.storage.runfile import load_trajectory
from spectra.results.trajectory import Trajectory
from spectra.spectrum.error_budget import ADVICE
from spectra.spectrum.spectrum import Spectrum

DATA = Path(__file__).parents[1] / "data"
OLD_FILES = sorted(DATA.glob("*.h5"))


def page(*records, path="run.h5", **options):
    return page_of([Run(path, Trajectory(records, path=path, **options))])


@pytest.fixture(scope="module")
def records():
    made = [
        make_record(float(e), operator, mode)
        for e in range(3)
        for operator in ("hessian", "ggn")
        for mode in ("eval", "train")
    ]
    del made[5]  # train mode of the Hessian at epoch 1
    return [*made, failed_record(1.0, bn_mode="train")]


@pytest.fixture(scope="module")
def text(records):
    return page(*records)


def test_its_records_are_those_of_show_as_json(records, text):
    expected = [{"file": "run.h5"} | record.to_json() for record in Trajectory(records)]
    assert data_in(text)["records"] == json.loads(json.dumps(expected))


@pytest.mark.parametrize("file", OLD_FILES, ids=lambda file: file.name)
def test_files_of_every_version_have_a_page_with_all_their_records(file):
    run = load_trajectory(file)
    data = data_in(page_of([Run(str(file), run)]))
    assert [record["estimates"] for record in data["records"]] == [record.to_json()["estimates"] for record in run]
    assert [view["status"] for view in data["views"]] == [record.status for record in run]


def test_the_table_has_the_words_of_show(records, text):
    tables = Tables(text).series
    assert list(tables) == ["0-0-0", "0-0-1", "0-1-0", "0-1-1"]
    rows = tables["0-0-0"]
    assert [row[""] for row in rows] == ["epoch 0", "epoch 1", "epoch 2"]
    own = [record for record in Trajectory(records) if (record.operator, record.bn_mode) == ("hessian", "eval")]
    for row, record in zip(rows, own, strict=True):
        for name, words in (("trace", in_short), ("lambda_max", as_range), ("rank_degeneracy", in_short)):
            estimate = record.headlines[name]
            star = " *" if estimate.note and estimate.resolved is not False else ""
            assert row[name] == words(estimate).replace("+-", "±") + star
        assert row["loss"] == f"{record.facts['loss']:.5g}"


def test_what_failed_has_its_reason_in_its_row(text):
    assert Tables(text).series["0-0-1"][1]["gap"] == "failed: NaN weights"
    assert "epoch 1 hessian train: failed: NaN weights" in text


def test_the_budget_of_a_number_is_that_of_the_record(records, text):
    for record, view in zip(Trajectory(records), data_in(text)["views"], strict=True):
        for name, budget in record.budgets.items():
            words, exact = view["numbers"][name], record.headlines[name].exact
            known = {
                "probes": budget.probes,
                "steps": budget.truncation,
                "arithmetic": budget.arithmetic,
                "data": budget.data,
            }
            if exact:
                known |= {"probes": 0.0, "steps": 0.0, "arithmetic": None}
            assert words["budget"] == {part: "-" if size is None else f"{size:.2g}" for part, size in known.items()}
            assert set(words["unknown"]) == {part for part, size in known.items() if size is None}
            if not exact and budget.largest:
                assert words["advice"] == ADVICE[budget.largest]


def test_curves_are_those_of_the_spectrum(records, text):
    record, view = Trajectory(records)[0], data_in(text)["views"][0]
    for name in ("linear", "asinh"):
        packed = view[name]
        heights = packed["floor"] * 10 ** (np.cumsum(packed["level"]) / 1000)
        x = packed["origin"] + (packed["first"] + np.arange(heights.size)) * packed["step"]
        grid = x if packed["s"] is None else packed["s"] * np.sinh(x)
        density = record.spectrum.density(view=name, grid=grid, linear_threshold=packed["s"])
        seen = heights > packed["floor"]
        np.testing.assert_allclose(heights[seen], density.values[seen], rtol=2e-3)
        upper = heights * 10 ** (np.array(packed["above"]) / 1000)
        np.testing.assert_allclose(upper[seen], density.upper[seen], rtol=4e-3)
        # Nothing of the mass is left out.
        assert np.trapezoid(heights, dx=packed["step"]) == pytest.approx(1, abs=5e-3)
    nodes = view["stems"]["s"] * np.sinh(np.cumsum(view["stems"]["node"]) / 1000)
    known = np.concatenate([t.nodes for t in record.spectrum.tridiagonals])
    np.testing.assert_allclose(nodes, known, rtol=1e-3, atol=1e-3 * view["stems"]["s"])


def test_checks_and_warnings_are_counted():
    noted = make_record(0.0, checks=FULL_CHECKS, notes=("CHECK FAILED: the trace",))
    text = page(noted)
    counts = {verdict: sum(check.verdict == verdict for check in FULL_CHECKS) for verdict in ("agrees", "disagrees")}
    assert f"{counts['agrees']} of {len(FULL_CHECKS)} agree" in text
    assert f"{counts['disagrees']} disagree" in text
    assert "<li>CHECK FAILED: the trace</li>" in text


def test_an_exact_number_is_said_to_be_exact():
    record = make_record(0.0)
    record.__dict__["headlines"] = {**record.headlines, "trace": exactly(31.377)}
    row = Tables(page(record)).series["0-0-0"][0]
    assert row["trace"] == "31.377 exact"


# --- texts that are not ours --------------------------------------------------------------------------------------


def hostile_record():
    record = make_record(0.0, notes=(HOSTILE, "\x1b[2K\u202e"))
    place = Place(checkpoint=HOSTILE, sha256=record.checkpoint_sha256, epoch=0.0)
    known = record.spectrum
    sizes = {HOSTILE: 120, "<img src=x onerror=alert(1)>": 8, "a\u202eb": 72}
    spectrum = Spectrum(
        known.tridiagonals, known.n, noise=known.noise, tensor_sizes=sizes, tensor_forms=known.tensor_forms
    )
    return dataclasses.replace(
        record,
        place=place,
        spectrum=spectrum,
        settings=record.settings | {"task": HOSTILE, "loss": "'\"><b>", "data": HOSTILE},
        provenance=record.provenance | {"command": HOSTILE},
        sharpness={HOSTILE: Measure(value=1.0, form=HOSTILE, reason=HOSTILE)},
    )


def test_every_text_is_escaped():
    text = page(hostile_record(), path=f"{HOSTILE}.h5", notes=(HOSTILE,))
    plain = page(make_record(0.0))
    assert "alert(1)</script>" not in text
    assert Tables(text).tags.count("script") == Tables(plain).tags.count("script")
    assert not {"b", "img"} & (set(Tables(text).tags) - set(Tables(plain).tags))
    assert not set("\x1b\u202e\u2028") & set(text)
    assert data_in(text)["records"][0]["checkpoint"] == HOSTILE
    assert data_in(text)["records"][0]["file"] == f"{HOSTILE}.h5"
    assert HOSTILE in data_in(text)["records"][0]["tensor_traces"]


def test_nothing_is_loaded_and_no_other_script_runs(text):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    policy = policy.replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        (allowed,) = re.findall(rf"{kind}-src ([^;]*)", policy)
        contents = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        assert allowed.split() == [f"'sha256-{one}'" for one in hashes]
        assert len(hashes) == 2
    assert not re.search(r'(src|href)="(?!#|data:,")', text)
    assert " style=" not in text  # the policy would refuse it
    assert "@import" not in text


def test_the_chart_library_comes_with_its_version_and_its_licence(text):
    folder = resources.files("spectra.report") / "static"
    assert f"(v{UPLOT_VERSION})" in (folder / "uPlot.iife.min.js").read_text(encoding="utf-8")[:100]
    assert f"uPlot {UPLOT_VERSION}" in text
    assert (folder / "uPlot.LICENSE").read_text(encoding="utf-8") in html.unescape(text)


def test_it_is_small(text):
    assert len(text.encode()) < 400_000  # of 12 records


# --- options of the file ------------------------------------------------------------------------------------------


def test_it_is_written_in_one_step_and_replaces_a_page(tmp_path):
    run = Run("run.h5", Trajectory([make_record(0.0)], path="run.h5"))
    target = tmp_path / "page.html"
    target.write_text("an old page")
    assert write_report([run], target) == target
    assert target.read_text(encoding="utf-8") == page_of([run])
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["run.h5", "page", "page.html.gz", "notes.txt"])
def test_only_a_page_is_written(tmp_path, name):
    there = tmp_path / name
    there.write_text("mine")
    with pytest.raises(ArgumentError, match=r"ends in \.html"):
        write_report([Run("run.h5", Trajectory([make_record(0.0)]))], there)
    assert there.read_text() == "mine"


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(StorageError, match="create it first"):
        write_report([Run("run.h5", Trajectory([make_record(0.0)]))], tmp_path / "none" / "page.html")


def test_without_records_there_is_no_page():
    with pytest.raises(ArgumentError, match="no record"):
        page_of([Run("run.h5", Trajectory([]))])


def test_failed_records_alone_have_a_page():
    data = data_in(page(failed_record(0.0)))
    assert data["views"][0]["reason"] == "NaN weights"
