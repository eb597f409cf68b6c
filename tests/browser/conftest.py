"""A page of the report in a browser, with all that it requests and complains about."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from every_finding import FULL_CHECKS
from report_pages import HOSTILE
from run_files import failed_record, make_record

from spectra.report.page import write_report
from spectra.report.runs import Run
from spectra.results.measure import Measure
from spectra.results.optimizer import OptimizerSettings
from spectra.results.storage.runfile import load_trajectory
from spectra.results.trajectory import Trajectory

DATA = Path(__file__).parents[1] / "data"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class Opened:
    """A page, the addresses that it requested, and its errors."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def curve(self, chart: str = "density-chart") -> list[Any]:
        """What a chart shows: its data."""
        found: list[Any] = self.run(f"JSON.parse(JSON.stringify(charts.get({chart!r}).data))")
        return found


@pytest.fixture(scope="session")
def browser():
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright: make browser installs it")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, installed by the system's package manager")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Name -> page: a run with everything, with a failed record; hostile names; an old file; a single record."""
    folder = tmp_path_factory.mktemp("pages")
    kinds = [(operator, mode) for operator in ("hessian", "ggn") for mode in ("eval", "train")]
    measures = {"minimum_sharpness": Measure(value=6.0, stderr=0.5, form="bias-free")}
    records = [
        make_record(float(epoch), *kind, sharpness=measures, checks=FULL_CHECKS) for epoch in range(4) for kind in kinds
    ]
    del records[5]
    records.append(failed_record(1.0, bn_mode="train"))
    optimizer = OptimizerSettings("sgd", ({"lr": 0.05},))  # 2 / lr = 40
    edge = [make_record(float(epoch), optimizer=optimizer) for epoch in range(3)]
    hostile = make_record(
        0.0, notes=(HOSTILE, "a\u202eb"), settings={"task": HOSTILE}, sharpness={HOSTILE: measures["minimum_sharpness"]}
    )
    runs = {
        "whole": [Run("run.h5", Trajectory(records, path="run.h5"))],
        "hostile": [Run(f"{HOSTILE}.h5", Trajectory([hostile]))],
        "single": [Run("one.h5", Trajectory([make_record(0.0)]))],
        "failed": [Run("failed.h5", Trajectory([failed_record(0.0)]))],
        "edge": [Run("edge.h5", Trajectory(edge))],
        **{file.stem: [Run(file.name, load_trajectory(file))] for file in DATA.glob("*.h5")},
    }
    runs["several"] = [*runs["whole"], *runs["v1"]]
    return {name: write_report(shown, folder / f"{name}.html") for name, shown in runs.items()}


@pytest.fixture
def opened(browser, pages):
    """A function that opens a page by its name; every page must have loaded only itself, without an error."""
    found: list[Opened] = []

    def open_page(name: str = "whole", width: int = 1400, scheme: str = "light") -> Opened:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
        page.set_default_timeout(5000)
        state = Opened(page)
        page.on("request", lambda request: state.requests.append(request.url))
        page.on("console", lambda message: state.errors.append(message.text) if message.type != "info" else None)
        page.on("pageerror", lambda error: state.errors.append(str(error)))
        page.on("dialog", lambda dialog: (state.errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(pages[name].as_uri())
        page.wait_for_function("typeof charts !== 'undefined' && !document.getElementById('controls').hidden")
        found.append(state)
        return state

    yield open_page
    for state in found:
        outside = [url for url in state.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert (outside, state.errors) == ([], [])
        assert len([url for url in state.requests if url.startswith("file:")]) == 1
        state.page.close()
