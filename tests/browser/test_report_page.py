"""The report page in Chromium: what it draws, its controls, its texts, and that it needs nothing but itself."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_pages import HOSTILE, data_in

from spectra.results.headline_budgets import SHORT
from spectra.results.number_text import plain, rounded
from spectra_cli.main import main

DATA = Path(__file__).parents[1] / "data"
FULL = {"value": "value", "stderr": "standard error", "lower": "lower", "upper": "upper", "tau": "tolerance τ"}
OLD = sorted(file.stem for file in DATA.glob("*.h5"))
PAGES = ("whole", "hostile", "single", "failed", "edge", "several", *OLD)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_disk_without_a_request_or_an_error(opened, name):
    """The fixture asserts both at the end; here, that every switch is tried."""
    state = opened(name)
    for choice in ("operator", "mode"):
        options = state.page.locator(f"#{choice} option").count()
        assert state.page.locator(f"#{choice}").is_enabled() == (options > 1)
        for index in range(options if options > 1 else 0):
            state.page.select_option(f"#{choice}", index=index)
    for axis in ("linear", "asinh"):
        state.page.check(f"input[value={axis}]")
    for _ in range(2):
        if state.page.locator("#before").is_enabled():
            state.page.click("#before")
    assert state.page.title().startswith("spectra report: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("name", ["whole", "several", "findings", "failed"])
def test_nothing_is_wider_than_the_window_and_no_words_overlap(opened, name, width, scheme):
    state = opened(name, width, scheme)
    assert state.run("document.documentElement.scrollWidth") <= width
    overlaps = state.run("""() => {
        const boxes = [...document.querySelectorAll('h1, h2, h3, figcaption, .hint, .tile p, dt, dd, legend, label')]
            .filter((one) => one.checkVisibility() && one.textContent.trim())
            .map((one) => [one, one.getBoundingClientRect()]);
        const found = [];
        for (const [i, [a, p]] of boxes.entries()) for (const [b, q] of boxes.slice(i + 1)) {
            if (a.contains(b) || b.contains(a) || a.closest('#controls') || b.closest('#controls')) continue;
            if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
                found.push([a.textContent.trim().slice(0, 40), b.textContent.trim().slice(0, 40)]);
        }
        return found;
    }""")
    assert overlaps == []


def test_the_slider_changes_the_curves_the_words_and_the_row(opened):
    state = opened()
    before = {chart: state.curve(chart) for chart in ("density-chart", "degeneracy-chart")}
    stems = state.run("document.getElementById('stems-chart').getAttribute('aria-label')")
    state.page.locator("#moment").fill("0")
    assert state.page.locator("#now").inner_text() == "epoch 0"
    for chart, data in before.items():
        assert state.curve(chart) != data
    assert state.run("document.getElementById('stems-chart').getAttribute('aria-label')") != stems
    chosen = state.page.locator("table[data-series='0-0-0'] tr[aria-selected=true]")
    assert chosen.get_attribute("data-moment") == "0"
    assert "epoch 0, hessian, BN eval" in state.page.locator("#density h2").inner_text()
    assert state.page.locator("#moment").get_attribute("aria-valuetext") == "epoch 0"
    state.page.locator("#moment").fill("3")
    assert state.curve() == before["density-chart"]


def test_a_pin_stays_as_a_shadow_and_goes(opened):
    state = opened()
    state.page.click("#pin")
    kept = len(state.run("DATA.views[recordOf(CHOSEN)].asinh.value"))
    state.page.click("#pin")  # once more changes nothing
    assert state.page.locator("#pins button").count() == 1
    state.page.click("#before")
    data = state.curve()
    assert len(data) == 5  # x, the pinned one, and value, lower and upper of the chosen one
    assert sum(value is not None for value in data[1]) == kept
    assert len(state.curve("degeneracy-chart")) == 5
    state.page.click("#pins button")
    assert len(state.curve()) == 4
    assert state.run("document.activeElement.id") == "pin"


def test_a_pinned_density_has_mass_one_on_the_axis_of_another(opened):
    state = opened()
    state.page.click("#pin")
    state.page.locator("#moment").fill("0")
    assert state.run("DATA.views[recordOf(CHOSEN)].asinh.s") != state.run("DATA.views[recordOf(PINS[0])].asinh.s")
    mass = state.run("""() => {
        const [x, y] = charts.get('density-chart').data;
        const points = x.map((at, i) => [at, 10 ** y[i]]).filter(([, v]) => Number.isFinite(v));
        return points.slice(1).reduce((sum, [at, v], i) => sum + (at - points[i][0]) * (v + points[i][1]) / 2, 0);
    }""")
    assert mass == pytest.approx(1, abs=0.01)


def test_switches_choose_matrix_mode_and_axis(opened):
    state = opened()
    seen = [state.curve()]
    for act in (
        lambda: state.page.select_option("#operator", label="ggn"),
        lambda: state.page.select_option("#operator", label="hessian"),
        lambda: state.page.check("input[value=linear]"),
        lambda: state.page.select_option("#mode", label="train"),
    ):
        act()
        seen.append(state.curve())
    assert seen[3] != seen[2]
    visible = state.page.locator(".scroll[data-series]:visible")
    assert visible.get_attribute("data-series") == "0-0-1"
    assert "batch norm in train mode" in visible.locator("caption").inner_text()
    assert "hessian, BN train" in state.page.locator("#degeneracy h2").inner_text()


def test_a_missing_record_says_why(opened):
    state = opened()
    state.page.select_option("#mode", label="train")
    state.page.locator("#moment").fill("1")
    assert state.page.locator("#density-chart").inner_text() == "epoch 1, hessian, BN train failed: NaN weights"
    state.page.locator("#moment").fill("2")
    assert state.page.locator("#density-chart canvas").count() == 1


def test_the_budget_of_a_number_is_that_of_show(opened, pages):
    """Value and interval in full as in the JSON, the parts as in `spectra show --budget`."""
    state = opened()
    records = {(r["epoch"], r["operator"], r["bn_mode"]): r for r in data_in(pages["whole"].read_text())["records"]}
    rows = state.page.locator("table[data-series='0-0-0'] tbody tr")
    for row in range(rows.count()):
        record = records[float(row), "hessian", "eval"]
        for name in ("trace", "lambda_max", "rank_degeneracy", "stable_rank"):
            rows.nth(row).locator(f"td[data-name={name}]").hover()
            estimate = record["headline"].get(name, record["estimates"][name])
            known = {words: estimate[part] for part, words in FULL.items() if estimate[part] is not None}
            assert {words: float(cell) for words, cell in rows_of_tip(state, "full").items()} == known
            budget, shown = record["estimates"][name]["budget"], rows_of_tip(state, "budget")
            for part, words in SHORT.items():
                size, why = budget[part], budget["unknown"].get(part)
                assert shown[words] == (plain(size, 2) if size is not None else f"not known: {why}")


def rows_of_tip(state, kind):
    """The rows of a table of the tooltip, name -> words."""
    cells = (
        f"[...document.querySelectorAll('#tip table.{kind} tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    return dict(state.run(cells))


def test_words_on_the_page_are_those_of_show(opened, tmp_path):
    """From a file, through both commands."""
    shown = CliRunner().invoke(main, ["show", str(DATA / "training.h5"), "--json"])
    state = opened("training")
    written = state.run("DATA.records")
    expected = json.loads(shown.stdout)
    assert [r | {"file": ""} for r in written] == [r | {"file": ""} for r in expected]


def test_columns_sort_by_number(opened):
    state = opened()
    table = state.page.locator("table[data-series='0-0-0']")
    records = state.run("DATA.files[0].operators[0].modes.eval.map((i) => numberOf(i, 'lambda_max').value)")
    table.locator("th[data-name=lambda_max] button").click()
    order = table.locator("tbody tr").evaluate_all("(rows) => rows.map((row) => Number(row.dataset.moment))")
    assert [records[i] for i in order] == sorted(records)
    assert table.locator("th[data-name=lambda_max]").get_attribute("aria-sort") == "ascending"
    table.locator("th[data-name=lambda_max] button").click()
    order = table.locator("tbody tr").evaluate_all("(rows) => rows.map((row) => Number(row.dataset.moment))")
    assert [records[i] for i in order] == sorted(records, reverse=True)


def test_a_click_on_a_row_or_a_panel_chooses_its_checkpoint(opened):
    state = opened()
    state.page.locator("table[data-series='0-0-0'] tr[data-moment='2'] th").click()
    assert state.page.locator("#now").inner_text() == "epoch 2"
    over = state.page.locator("#panel-trace .u-over")
    box = over.bounding_box()
    over.click(position={"x": 12, "y": box["height"] / 2})
    assert state.page.locator("#now").inner_text() == "epoch 0"


def test_all_of_it_works_from_the_keyboard(opened):
    state = opened()
    press = state.page.keyboard.press
    state.page.locator("#moment").focus()
    press("Home")
    assert state.page.locator("#now").inner_text() == "epoch 0"
    press("ArrowRight")
    assert state.page.locator("#now").inner_text() == "epoch 1"
    state.page.locator("#pin").focus()
    press("Enter")
    assert state.page.locator("#pins button").count() == 1
    # One stop in the table; arrow keys move in it, the budget follows the focus, Enter chooses.
    cell = state.page.locator("table[data-series='0-0-0'] [tabindex='0']")
    assert cell.count() == 1
    cell.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):
        press(key)
    assert state.run("document.activeElement.dataset.name") == "trace"
    assert state.page.locator("#tip").is_visible()
    assert state.run("document.activeElement.getAttribute('aria-describedby')") == "tip"
    press("Enter")
    assert state.page.locator("#now").inner_text() == "epoch 2"
    press("Escape")
    assert not state.page.locator("#tip").is_visible()
    press("End")
    assert state.run("document.activeElement.dataset.name") == "stable_rank"
    state.page.locator("input[value=asinh]").focus()
    press("ArrowRight")
    assert state.page.locator("input[value=linear]").is_checked()


def test_cursors_of_the_panels_move_together(opened):
    state = opened()
    state.page.locator("#panel-trace .u-over").hover()
    indices = state.run("[...charts].filter(([id]) => id.startsWith('panel-')).map(([, u]) => u.cursor.idx)")
    assert len(indices) > 5
    assert len(set(indices)) == 1
    assert indices[0] is not None
    readout = state.page.locator("#panel-trace + .readout").inner_text()
    assert readout.startswith("epoch ")


def test_a_stability_edge_is_drawn(opened):
    """With a line at 40, the axis of the largest eigenvalue reaches it."""
    state = opened("edge")
    assert state.run("charts.get('panel-lambda_max').scales.y.max") > 40
    assert state.run("edgeOf(0)") == 40


@pytest.mark.parametrize(
    ("optimizer", "edge"),
    [
        ("{edge: 7}", 7),
        ("{stability_edge: 7}", 7),
        ("{edge: null}", None),
        ('"SGD"', None),
        ("null", None),
        ("{lr: 1}", None),
    ],
)
def test_a_stability_edge_is_read_from_a_plain_mapping(opened, optimizer, edge):
    state = opened("single")
    assert state.run(f"(() => {{ DATA.records[0].optimizer = {optimizer}; return edgeOf(0); }})()") == edge


def test_a_zoom_and_back(opened):
    state = opened()
    whole = state.run("[charts.get('density-chart').scales.x.min, charts.get('density-chart').scales.x.max]")
    state.page.locator("#density-chart .u-over").scroll_into_view_if_needed()
    box = state.page.locator("#density-chart .u-over").bounding_box()
    mouse = state.page.mouse
    mouse.move(box["x"] + 300, box["y"] + 100)
    mouse.down()
    mouse.move(box["x"] + 600, box["y"] + 120, steps=5)
    mouse.up()
    part = state.run("[charts.get('density-chart').scales.x.min, charts.get('density-chart').scales.x.max]")
    assert whole[0] < part[0] < part[1] < whole[1]
    mouse.dblclick(box["x"] + 300, box["y"] + 100)
    assert state.run("[charts.get('density-chart').scales.x.min, charts.get('density-chart').scales.x.max]") == whole


def test_downloads_are_those_of_show(opened, tmp_path):
    state = opened("training")
    saved = {}
    for kind in ("json", "csv"):
        with state.page.expect_download() as download:
            state.page.click(f"#save-{kind}")
        saved[kind] = Path(download.value.path()).read_text(encoding="utf-8")
        assert download.value.suggested_filename == f"spectra.{kind}"
    shown = {kind: CliRunner().invoke(main, ["show", str(DATA / "training.h5"), f"--{kind}"]).stdout for kind in saved}
    first, second = ([record | {"file": ""} for record in json.loads(text["json"])] for text in (saved, shown))
    assert first == second
    rows = [list(csv.DictReader(io.StringIO(text["csv"]))) for text in (saved, shown)]

    def cell(text):
        try:
            return float(text)
        except ValueError:
            return text

    first, second = (
        [{name: cell(text) for name, text in row.items() if name != "file"} for row in one] for one in rows
    )
    assert first == second
    assert list(rows[0][0]) == list(rows[1][0])


def number(text):
    """The number of a cell, or the text that it is."""
    try:
        return float(text)
    except ValueError:
        return text


def test_hostile_names_are_text(opened):
    state = opened("hostile")
    assert state.page.locator("header dd").first.inner_text() == HOSTILE  # the task
    assert HOSTILE in state.page.locator("table.numbers caption").inner_text()
    assert state.page.locator("script").count() == 3
    assert state.run("document.querySelectorAll('main script, main img').length") == 0
    assert HOSTILE in state.page.locator("#sharpness-table").inner_text()
    state.page.click("#all summary")
    assert state.page.locator("#notes li").all_inner_texts() == [HOSTILE, r"a\u202eb"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["whole", "several", "failed", "v1"])
def test_axe_finds_no_fault_of_accessibility(opened, name, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-core: make browser installs it")
    source = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    state = opened(name, scheme=scheme)
    for details in state.page.locator("details:visible").all():
        details.evaluate("(one) => (one.open = true)")
    state.run(source)
    found = state.run("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})")
    faults = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found["violations"]]
    assert faults == []
    assert len(found["passes"]) > 20


def test_what_is_printed_has_no_controls(opened):
    state = opened()
    state.page.emulate_media(media="print")
    assert not state.page.locator("#controls").is_visible()
    assert state.page.locator("#density-chart canvas").is_visible()


def test_the_tensors_are_those_of_the_record_the_largest_trace_first(opened):
    state = opened("training")
    record = state.run("DATA.records[recordOf(CHOSEN)]")
    exact = record["exact"]["by_layer"]
    rows = state.page.locator("#tensor-table tbody tr")
    names = rows.locator("th").all_inner_texts()
    assert names == sorted(exact, key=lambda name: -abs(exact[name]))
    for index, name in enumerate(names):
        cells = rows.nth(index).locator("td").all_inner_texts()
        estimate = record["tensor_traces"][name]
        value, error = rounded(estimate["value"], estimate["stderr"])
        verdict = next(check["verdict"] for check in record["check"] if check["name"] == f"trace of {name}")
        assert cells[2:] == [f"{value} ± {error}", plain(exact[name]), verdict]
    state.page.select_option("#tensor-order", "network")
    assert rows.locator("th").all_inner_texts() == list(record["tensor_traces"])
