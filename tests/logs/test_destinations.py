"""Records go to each destination, and an error there ends nothing; with stand-ins, tests/foreign has the libraries."""

from __future__ import annotations

import dataclasses
import logging
import random
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from run_files import failed_record, make_record, write
from small_runs import QUICK, Ear, maker, network, rows
from torch import nn

from spectra import Task, Tracker, load_trajectory, save_checkpoint
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import RunSettings
from spectra.errors import ArgumentError, MissingDependency
from spectra.logs import destinations
from spectra.logs.destinations import Logs, checked_log
from spectra_cli.main import main

#: Without checks and measures.
BARE = dataclasses.replace(QUICK, check=False, metrics="none")


class Packages:
    """Stand-ins for the two packages, which remember what they are given."""

    def __init__(self) -> None:
        self.events, self.error, self.run = [], None, None
        self.SummaryWriter = lambda folder: self._called("writer", folder) or self
        self.Histogram = lambda np_histogram: ("histogram", len(np_histogram[0]))

    def _called(self, name, *values, **named):
        if self.error is not None:
            raise self.error
        self.events.append((name, *values, *named.values()))

    def init(self, project):
        self._called("init", project)
        return self

    def __getattr__(self, name):
        return lambda *values, **named: self._called(name, *values, **named)

    def of(self, name):
        return [event[1:] for event in self.events if event[0] == name]


@pytest.fixture
def packages(monkeypatch):
    made = Packages()
    monkeypatch.setattr(destinations, "imported", lambda name, extra: made)
    return made


@pytest.mark.parametrize("wrong", ["tensorboard", "tensorboard:", "wandb: ", "csv:x.csv", "", ":x"])
def test_a_destination_of_another_form_is_refused(wrong):
    with pytest.raises(ArgumentError, match="tensorboard:DIR or wandb:PROJECT is needed"):
        RunSettings(log=wrong)


def test_destinations_are_kept_once_in_their_order():
    assert checked_log("tensorboard:C:/runs") == ("tensorboard:C:/runs",)
    assert checked_log(["wandb:p", "tensorboard:d", "wandb:p"]) == ("wandb:p", "tensorboard:d")
    assert RunSettings().log == ()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_before_anything_is_computed(tmp_path, monkeypatch, kind):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(destinations.importlib, "import_module", missing)
    remedy = rf"--log {kind} needs {kind}, .*: pip install 'hessian-spectra\[{kind}\]'"
    with pytest.raises(MissingDependency, match=remedy):
        Tracker(maker()(None), out=tmp_path / "run.h5", log=f"{kind}:x")
    assert not list(tmp_path.iterdir())
    Tracker(maker()(None), out=tmp_path / "run.h5").close()  # and the lock is free


def test_tensorboard_gets_numbers_texts_and_histograms(packages):
    logs = Logs("tensorboard:folder", pytest.fail)
    assert not packages.events  # nothing is created before the first record
    record = make_record(2.0)
    assert logs.add(record)
    assert logs.add(failed_record(3.0))
    logs.close()
    assert packages.of("writer") == [("folder",)]
    scalars = {(tag, x): value for tag, value, x in packages.of("add_scalar")}
    assert scalars["spectra/hessian/eval/lambda_max", 200] == record.estimates["lambda_max"].value
    assert scalars["spectra/hessian/eval/failed", 300] == 1
    assert packages.of("add_text") == [("spectra/hessian/eval/reason", "failed: NaN weights", 300)]
    ((tag, low, high, total, *_, limits, counts, x),) = packages.of("add_histogram_raw")
    assert (tag, total, x, len(limits), len(counts)) == ("spectra/hessian/eval/density", 200, 200, 64, 64)
    assert low < limits[0] < limits[-1] == high
    assert packages.events[-1] == ("close",)


@pytest.mark.parametrize("active", [False, True])
def test_wandb_joins_the_active_run_or_has_one_of_its_own(packages, active):
    packages.run = Packages() if active else None
    logs = Logs(["wandb:project"], pytest.fail)
    logs.add(make_record(1.0))
    logs.add(make_record(2.0))
    logs.close()
    used = packages.run if active else packages
    assert packages.of("init") == [] if active else [("project",)]
    assert used.of("define_metric") == [("spectra/*", "spectra/x")]
    first, second = (values for (values,) in used.of("log"))
    assert (first["spectra/x"], second["spectra/x"]) == (100, 200)
    assert second["spectra/hessian/eval/density"] == ("histogram", 64)
    assert used.of("finish") == ([] if active else [()])


def test_records_without_a_time_are_counted(packages):
    logs = Logs("tensorboard:folder", pytest.fail)
    for operator in ("hessian", "hessian", "ggn"):
        logs.add(make_record(operator=operator, epoch=None, step=None))
    found = [(tag.split("/")[1], x) for tag, _, x in packages.of("add_scalar") if tag.endswith("/failed")]
    assert found == [("hessian", 0), ("hessian", 1), ("ggn", 0)]


def test_a_destination_with_an_error_is_warned_of_once_and_left_out(packages):
    warnings = []
    logs = Logs(["tensorboard:folder", "wandb:project"], warnings.append)
    packages.error = OSError("no space\nleft")
    assert not logs.add(make_record(0.0))
    packages.error = None
    assert not logs.add(make_record(1.0))
    logs.close()
    assert [warning.split(";")[0] for warning in warnings] == [
        "log tensorboard:folder: OSError: no space left", "log wandb:project: OSError: no space left"
    ]  # fmt: skip
    assert not packages.events


def test_a_run_logs_each_new_record_and_those_that_failed(packages, tmp_path):
    for epoch, model in enumerate((network(), network(), network(7))):
        torch.save({"state_dict": model.state_dict(), "epoch": epoch}, tmp_path / f"{epoch}.pt")
    paths = [tmp_path / f"{epoch}.pt" for epoch in range(3)]
    options = {"out": tmp_path / "run.h5", "log": ("tensorboard:folder",)}
    analyze_run(paths[:1], maker(), BARE, **options)
    analyze_run(paths, maker(), BARE, **options)
    found = [(value, x) for tag, value, x in packages.of("add_scalar") if tag == "spectra/hessian/eval/failed"]
    assert [value for value, _ in found] == [0, 0, 1]  # the first record is logged once
    assert [x for _, x in found][:2] == [0, 1]


def test_a_log_that_fails_does_not_end_a_run(packages, tmp_path):
    torch.save(network().state_dict(), tmp_path / "net.pt")
    packages.error = RuntimeError("no network")
    heard = Ear()
    heard.note = heard.heard.append
    analyze_run([tmp_path / "net.pt"], maker(), BARE, listener=heard, out=tmp_path / "run.h5", log="wandb:p")
    assert any("log wandb:p: RuntimeError: no network" in str(one) for one in heard.heard)
    assert [record.status for record in load_trajectory(tmp_path / "run.h5")] == ["complete"]


@pytest.mark.parametrize("quiet", [[], ["--quiet"], ["--progress", "json"]])
def test_the_warning_is_printed(packages, tmp_path, monkeypatch, quiet):
    save_checkpoint(tmp_path / "net.pt", network(), epoch=0)
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text("from small_runs import maker\ndef task():\n    return maker()(None)\n")
    packages.error = RuntimeError("no network")
    options = ["--task", "task.py:task", "-m", "4", "-k", "2", "--metrics", "none", "--no-check", "--log", "wandb:p"]
    done = CliRunner().invoke(main, ["analyze", "net.pt", *options, *quiet])
    assert done.exit_code == 0, done.output
    assert "log wandb:p: RuntimeError: no network; nothing more is logged there" in done.stderr


def test_a_tracker_logs_and_draws_nothing_from_the_generators_of_training(packages, tmp_path, caplog):
    packages.flush = lambda: (torch.rand(3), random.random())
    task = Task(network(), nn.CrossEntropyLoss(), rows())
    quick = {"lanczos_steps": 4, "num_probes": 2, "check": False, "metrics": "none"}
    with Tracker(task, out=tmp_path / "run.h5", log=["tensorboard:folder"], **quick) as tracker:
        tracker(epoch=0, step=0)
        before = torch.get_rng_state(), random.getstate()
        with torch.no_grad():
            task.model[0].weight[0, 0] = float("nan")
        tracker(epoch=1, step=10)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()
        packages.error = OSError("gone")
        with caplog.at_level(logging.WARNING, "spectra"):
            tracker(epoch=2, step=20)
    assert [x for tag, _, x in packages.of("add_scalar") if tag.endswith("/failed")] == [0, 10]
    assert packages.of("add_text")[0][0] == "spectra/hessian/eval/reason"
    assert any("run.h5: log tensorboard:folder: OSError: gone" in message for message in caplog.messages)
    assert len(load_trajectory(tmp_path / "run.h5")) == 3


def test_the_command_logs_a_whole_file(packages, tmp_path):
    path = write(tmp_path / "run.h5", make_record(0.0), make_record(1.0, "ggn"), failed_record(2.0))
    done = CliRunner().invoke(main, ["log", str(path), "tensorboard:folder", "wandb:project"])
    assert done.exit_code == 0, done.output
    assert "3 records of" in done.stderr
    assert [x for tag, _, x in packages.of("add_scalar") if tag.endswith("/failed")] == [0, 100, 200]
    assert len(packages.of("log")) == 3
    packages.error = OSError("gone")
    done = CliRunner().invoke(main, ["log", str(path), "tensorboard:folder"])
    assert done.exit_code == 1
    assert "warning: log tensorboard:folder: OSError: gone" in done.stderr
    assert "not all records are logged" in done.stderr
    done = CliRunner().invoke(main, ["log", str(path), "csv:folder"])
    assert done.exit_code == 1
    assert "tensorboard:DIR or wandb:PROJECT is needed" in done.stderr


def test_the_option_is_a_setting_that_is_not_in_the_file(packages, tmp_path):
    save_checkpoint(tmp_path / "net.pt", network(), epoch=3)
    analyze_run([tmp_path / "net.pt"], maker(), BARE, out=tmp_path / "run.h5", log="tensorboard:folder")
    assert "log" not in load_trajectory(tmp_path / "run.h5").settings
