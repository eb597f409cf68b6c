"""What is shown while a run goes on: the phase, how much of it is done and how long it will take."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from spectra import Task, save_checkpoint
from spectra.analysis.run import Listener, analyze_run
from spectra.analysis.settings import Settings
from spectra_cli import phase_clock
from spectra_cli.main import main
from spectra_cli.phase_clock import Phase
from spectra_cli.progress import JsonDisplay, RunDisplay

TASK = """
import time, torch, spectra
from torch import nn

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.02)
        return x

def task():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), Slow())
    return spectra.Task(model, nn.CrossEntropyLoss(), [(x[:10], y[:10]), (x[10:], y[10:])])
"""


@pytest.fixture
def quickly(monkeypatch):
    """A phase is shown when it has lasted a twentieth of a second, and again at this interval."""
    monkeypatch.setattr(phase_clock, "FIRST", 0.05)
    monkeypatch.setattr(phase_clock, "AGAIN", 0.05)
    monkeypatch.setattr(phase_clock, "TICK", 0.01)


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "slow_tasks.py").write_text(TASK)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "net.pt", nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), epoch=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spectra(*arguments: object):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="spectra")
    assert result.exit_code == 0, result.output
    return result


class Phases(Listener):
    """Keeps what is said, each phase once as long as it lasts."""

    def __init__(self):
        self.said = []

    def phase(self, name, done, of, what):
        self.said.append((name, done, of, what))

    @property
    def names(self):
        names = [name for name, *_ in self.said]
        return [name for before, name in zip([None, *names], names) if name != before]


def analyse(folder: Path, **settings):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    save_checkpoint(folder / "net.pt", model, epoch=0)
    x, y = torch.randn(24, 4), torch.randint(3, (24,))
    task = Task(model, nn.CrossEntropyLoss(), [(x[:10], y[:10]), (x[10:], y[10:])], test_data=[(x, y)])
    ear = Phases()
    asked = Settings(**{"lanczos_steps": 6, "num_probes": 2, "width": 1} | settings)
    analyze_run([folder / "net.pt"], lambda _: task, asked, out=folder / "run.h5", listener=ear)
    return ear


# -- what an analysis says


def test_an_analysis_says_what_it_is_doing_in_order(tmp_path):
    ear = analyse(tmp_path, eigenpairs=1, test_data=True, bounds=True)
    assert ear.names == [
        *("reading", "checking", "self-test", "checking", "self-test", "loss and gradient", "eigenpairs", "probes"),
        *("certificate", "exact trace", "measures", "bounds", "eigenvectors", "self-test", "held-out"),
    ]
    assert analyse(tmp_path / "ggn", operators="ggn", exact_spectrum=24, metrics="none").names[-2:] == [
        "exact trace",
        "exact spectrum",
    ]


def test_of_every_phase_no_more_is_done_than_there_is_and_never_less_than_before(tmp_path):
    ear = analyse(tmp_path, eigenpairs=1, test_data=True, bounds=True)
    for name in ("self-test", "eigenpairs", "probes", "certificate", "exact trace", "measures", "held-out"):
        steps = [(done, of) for said, done, of, _ in ear.said if said == name]
        assert len(steps) > 1, name
        assert all(0 <= done <= of for done, of in steps), name
        if name != "self-test":  # which there are two of
            assert [done for done, _ in steps] == sorted(done for done, _ in steps), name
    assert [(done, of) for said, done, of, _ in ear.said if said == "probes"] == [(done, 12) for done in range(13)]


def test_measures_say_which_of_them_and_what_of_it(tmp_path):
    said = [what for name, _, _, what in analyse(tmp_path).said if name == "measures"]
    assert "node_minimum_sharpness: exact diagonal" in said
    assert "gradient_norm" in said


# -- what is shown


def test_a_phase_in_words():
    assert Phase("checking", 0, 0, "", 0.0, 0).words(3.0) == "checking"
    assert Phase("exact trace", 1.5, 4, "", 0.0, 0).words(30.0) == "exact trace, 38%, 50 s left"
    assert Phase("probes", 30, 100, "", 0.0, 20).words(60.0) == "probes, product 30 of 100, 7 min left"  # 20 before
    assert (
        Phase("measures", 2, 8, "ns: exact diagonal", 0.0, 0).words(9e4).startswith("measures (ns: exact diagonal), ")
    )
    assert Phase("probes", 20, 100, "", 0.0, 20).seconds_left(60.0) is None  # nothing was done yet


@pytest.mark.usefixtures("quickly")
def test_without_a_terminal_a_long_phase_is_shown_again_and_again_though_nothing_is_said(capsys):
    with RunDisplay(1, drawn=False) as display:
        display.checkpoint(0, 1, Path("net.pt"))
        display.phase("self-test", 1, 4, "in float64")
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 11
    assert set(lines) <= {line for line in lines if line.startswith("spectra: net.pt: self-test (in float64), 25%")}


@pytest.mark.usefixtures("quickly")
def test_a_phase_that_is_short_and_the_time_between_records_are_not_shown(capsys):
    with RunDisplay(1, drawn=False) as display:
        display.phase("reading", 0, 0, "")
        display.duplicate(Path("a.pt"), Path("b.pt"), 1)
        time.sleep(0.3)
    assert capsys.readouterr().err == "[1/1] : has the content of b.pt: skipped\n"


@pytest.mark.usefixtures("quickly")
def test_quiet_shows_nothing(capsys):
    with RunDisplay(1, quiet=True, drawn=False) as display:
        display.phase("reading", 0, 0, "")
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("quickly")
def test_a_slow_run_shows_its_phases_on_plain_lines(here):
    result = spectra("analyze", "net.pt", "--task", "slow_tasks.py:task", "-m", 4, "-k", 2, "--progress", "lines")
    lines = [line for line in result.stderr.splitlines() if line.startswith("spectra: net.pt: ")]
    shown = {line.removeprefix("spectra: net.pt: ").split(",")[0].split(" (")[0] for line in lines}
    assert {"checking", "self-test", "probes", "certificate", "measures"} <= shown
    assert any(", product " in line and line.endswith(" s left") for line in lines)


def test_as_json_every_phase_has_an_event_with_what_is_done_and_the_seconds_left(here):
    result = spectra("analyze", "net.pt", "--task", "slow_tasks.py:task", "-m", 4, "-k", 2, "--progress", "json")
    events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    phases = [event for event in events if event["event"] == "phase"]
    names = [event["phase"] for event in phases]
    assert list(dict.fromkeys(names)) == [
        *("reading", "checking", "self-test", "loss and gradient", "probes", "certificate", "exact trace", "measures")
    ]
    assert all({"done", "of", "seconds_left", "what"} <= event.keys() for event in phases)
    progress = [event for event in events if event["event"] == "progress"]
    assert all(event["phase"] == "probes" for event in progress)
    last = progress[-1]
    assert (last["done"], last["products"], last["of"], last["seconds_left"]) == (8, 8, 8, 0.0)


@pytest.mark.usefixtures("quickly")
def test_as_json_a_long_step_has_events_too(capsys):
    with JsonDisplay(1) as display:
        display.phase("self-test", 1, 4, "in float64")
        time.sleep(0.3)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(events) >= 3
    assert {(event["phase"], event["done"], event["of"]) for event in events} == {("self-test", 1, 4)}
