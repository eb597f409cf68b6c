"""`spectra analyze` from end to end, and every bad input: one clear line, an exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from functools import partialmethod
from pathlib import Path

import h5py
import pytest
import torch
from click.testing import CliRunner
from rich.progress import Progress
from torch import nn

from spectra import Task, analyze, load_trajectory, save_checkpoint
from spectra.krylov import slq as slq_room
from spectra_cli.main import main

TASKS = """
import os, torch, spectra
from torch import nn
from helper_of_analyze import CLASSES

def network(width=5, norm=False):
    layers = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(4, width), *layers, nn.Tanh(), nn.Linear(width, CLASSES))

def rows():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(CLASSES, (24,), generator=generator)
    return [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]

def task(width: int = 5):
    return spectra.Task(network(width), nn.CrossEntropyLoss(), rows())

def with_norm():
    return spectra.Task(network(norm=True), nn.CrossEntropyLoss(), rows())

def per_checkpoint(checkpoint):
    return spectra.Task(network(checkpoint["config"]["width"]), nn.CrossEntropyLoss(), rows())

# -- what is wrong in one way or another

def raises():
    widths = {}
    return network(widths["hidden"])

def empty():
    return spectra.Task(network(), nn.CrossEntropyLoss(), [])

def labels():
    return spectra.Task(network(), nn.CrossEntropyLoss(), [(x, y + 5) for x, y in rows()])

def nan_loss():
    return spectra.Task(network(), nn.CrossEntropyLoss(), [(x / 0, y) for x, y in rows()])

def independent():
    return spectra.Task(network(), nn.CrossEntropyLoss(), rows(), forward=lambda m, b: b[0])

def piecewise_linear():
    return spectra.Task(network(), nn.L1Loss(), [(x, x[:, :3]) for x, _ in rows()])

def slow():
    class Slow(list):
        def __iter__(self):
            import time
            time.sleep(0.3)
            return super().__iter__()
    return spectra.Task(network(), nn.CrossEntropyLoss(), Slow(rows()))
"""
QUICK = ("--task", "tasks.py:task", "-m", "6", "-k", "2")


@pytest.fixture(autouse=True)
def modules_and_path_kept():
    """What user code adds to Python's state is taken away again."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "task" in name or name == "helper_of_analyze":
            del sys.modules[name]


def network(seed: int = 0, width: int = 5, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(4, width), *layers, nn.Tanh(), nn.Linear(width, 3))


class Trap:
    """Code in a pickle: what it would do leaves a folder behind."""

    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Every file that a test may need, made once."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "tasks.py").write_text(TASKS)
    (folder / "helper_of_analyze.py").write_text("CLASSES = 3\n")
    for epoch in range(3):
        torch.save(network(epoch).state_dict(), folder / f"net_{epoch}.pt")
    torch.save(network(0, norm=True).state_dict(), folder / "norm.pt")
    torch.save(network(0, width=7).state_dict(), folder / "wide.pt")
    whole = (folder / "net_0.pt").read_bytes()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("weights will follow")
    torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, folder / "optimizer-state.pt")
    torch.save([1, 2, 3], folder / "list.pt")
    (folder / "trap.pt").write_bytes(pickle.dumps({"model": Trap()}))
    torch.save({"model": network().state_dict(), "extra": Trap()}, folder / "trap-zip.pt")
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        model = network()
        with torch.no_grad():
            model[2].weight[1, 2] = value
        torch.save(model.state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture
def here(shelf, tmp_path, monkeypatch):
    """A working directory with a copy of the shelf, outside of any repository."""
    folder = tmp_path / "work"
    shutil.copytree(shelf, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    return folder


def spectra(*arguments: str):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="spectra")


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder within, hidden ones too, apart from Python's own cache of what it compiled."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def analysed(*arguments: str):
    """The result of a call that must succeed."""
    result = spectra("analyze", *arguments)
    assert result.exit_code == 0, result.output
    return result


def direct(epoch: int = 0, **options):
    """The records of the same network and data, by the library."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator)
    batches = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]
    task = Task(network(epoch), nn.CrossEntropyLoss(), batches, l2=options.pop("l2", 0.0))
    return analyze(task, **({"lanczos_steps": 6, "num_probes": 2} | options))


# -- one checkpoint


def test_a_plain_state_dict_and_a_task_file_give_a_results_file(here):
    before = content_of(here)
    result = analysed("net_1.pt", *QUICK)
    (record,) = load_trajectory("run.h5")
    (same,) = direct(1)
    assert (record.spectrum.nodes == same.spectrum.nodes).all()
    assert record.facts == same.facts
    assert (record.checkpoint, record.step, record.epoch) == ("net_1.pt", None, 1)
    assert "trace" in result.stdout
    assert "rank_degeneracy" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0] == "spectra: task tasks.py:task, by --task"
    assert lines[1].startswith("[1/1] net_1.pt: hessian, BN eval: trace ")
    assert lines[2] == "spectra: saved in run.h5; next: spectra show run.h5, spectra plot run.h5"
    assert len(lines) == 3
    assert content_of(here) == {**before, "run.h5": Path("run.h5").read_bytes()}
    assert spectra("show", "run.h5").exit_code == 0


def test_json_has_the_promised_fields_and_nothing_that_was_not_asked_for(here):
    result = analysed("net_0.pt", *QUICK, "--json", "--no-check", "--metrics", "none")
    (entry,) = json.loads(result.stdout)
    assert set(entry) == {
        *("checkpoint", "checkpoint_sha256", "epoch", "step", "operator", "bn_mode", "status", "reason"),
        *("loss", "n_parameters", "n_samples", "estimates", "headline", "tensor_traces"),
        *("facts", "settings", "provenance", "notes"),
    }
    for estimate in (*entry["estimates"].values(), *entry["tensor_traces"].values()):
        assert {"value", "stderr", "lower", "upper"} <= set(estimate)
    (same,) = direct()
    assert (entry["checkpoint"], entry["operator"], entry["bn_mode"]) == ("net_0.pt", "hessian", "eval")
    assert (entry["status"], entry["reason"]) == ("complete", None)
    assert (entry["loss"], entry["n_parameters"], entry["n_samples"]) == (same.facts["loss"], 43, 24)
    assert {name: e["value"] for name, e in entry["estimates"].items()} == {
        name: e.value for name, e in same.estimates.items()
    }
    assert set(entry["estimates"]) == {
        *("trace", "mean_eigenvalue", "second_moment", "frobenius_norm"),
        *("spectral_norm", "lambda_max", "lambda_min", "rank_degeneracy", "negative_mass"),
        *("stable_rank", "participation_rank", "entropy_rank"),
        *("closest_one_mass", "closest_one_value", "closest_two_mass", "closest_two_value"),
    }
    shown = json.loads(spectra("show", "run.h5", "--json").stdout)
    assert [{"file": "run.h5", **entry}] == shown


def test_the_traces_are_checked_unless_that_is_not_wanted(here):
    (entry,) = json.loads(analysed("net_0.pt", *QUICK, "--json").stdout)
    assert {"total", "by_layer", "applies", "reasons", "remainder"} <= set(entry["exact"])
    assert {"name", "z", "dof", "detectable", "verdict"} <= set(entry["check"][0])
    shown = spectra("show", "run.h5", "--all").stdout
    assert "cross-check: estimated against exact traces" in shown
    assert "exact trace of the " in shown
    printed = analysed("net_0.pt", *QUICK, "--all").stdout
    assert printed[printed.index("\n") :] == shown[shown.index("\n") :]  # the record is there: all of it but the title


def test_bounds_are_in_the_table_and_say_when_they_are_vacuous(here):
    printed = analysed("net_0.pt", *QUICK, "--metrics", "none", "--bounds", "--all").stdout
    for said in (printed, spectra("show", "run.h5", "--all").stdout):
        assert all(name in said for name in ("bound_units", "bound_matrices", "bound_parameters"))
    words = " ".join(printed.split())
    assert "bound_units, bound_matrices, bound_parameters: vacuous: not below 1" in words
    assert "not a guarantee" in words


def test_measures_are_computed_by_name_and_shown(here):
    (entry,) = json.loads(analysed("net_0.pt", *QUICK, "--json", "--metrics", "gradient_norm").stdout)
    assert list(entry["sharpness"]) == ["gradient_norm"]
    assert {"value", "form", "certificate", "reason"} <= set(entry["sharpness"]["gradient_norm"])
    assert "sharpness measures" in spectra("show", "run.h5", "--all").stdout
    assert "minimum_sharpness" in spectra("metrics").stdout
    assert json.loads(spectra("metrics", "--json").stdout)["bn_sharpness"]["cheap"] is False


def test_a_failed_check_is_loud_and_ends_in_an_error(here, monkeypatch):
    from spectra.operators.hessian import HessianOperator

    right = HessianOperator.linearise

    def linearise(self, batch):
        product = right(self, batch)
        return lambda block: 3 * product(block)

    monkeypatch.setattr(HessianOperator, "linearise", linearise)
    result = spectra("analyze", "net_0.pt", "--task", "tasks.py:task", "-m", "2", "-k", "200")
    assert result.exit_code == 1
    assert "! CHECK FAILED: the trace of " in result.stdout
    assert result.stderr.splitlines()[-1].startswith("spectra: error: ")
    assert "cross-checks failed, the first: the trace of " in result.stderr.splitlines()[-1]
    assert any(check.failed for check in load_trajectory("run.h5")[0].checks)  # the record says so too


def test_two_operators_in_both_modes_are_four_records(here):
    arguments = ("norm.pt", "--task", "tasks.py:with_norm", "-m", "6", "-k", "2")
    analysed(*arguments, "--operator", "hessian", "--operator", "ggn", "--bn", "both")
    stored = load_trajectory("run.h5")
    pairs = [(record.operator, record.bn_mode) for record in stored]
    assert pairs == [("hessian", "eval"), ("hessian", "train"), ("ggn", "eval"), ("ggn", "train")]
    traces = {record.estimates["trace"].value for record in stored}
    assert len(traces) == 4
    assert stored["hessian", "eval"].records[0].facts["loss"] == stored["ggn", "eval"].records[0].facts["loss"]
    assert stored["hessian", "eval"].records[0].facts["loss"] != stored["hessian", "train"].records[0].facts["loss"]


def test_the_empirical_fisher_matrix_is_a_record_like_any_other(here):
    result = analysed("net_0.pt", *QUICK, "--operator", "hessian", "--operator", "empirical_fisher", "--json")
    (record,) = direct(operators="empirical_fisher")
    hessian, found = json.loads(result.stdout)
    assert (hessian["operator"], found["operator"], record.operator) == ("hessian", *["empirical_fisher"] * 2)
    assert found["estimates"]["trace"]["value"] == record.estimates["trace"].value
    assert found["estimates"]["trace"]["value"] != hessian["estimates"]["trace"]["value"]
    assert found["loss"] == hessian["loss"]
    assert any(note.startswith("a sample is one row of the target") for note in record.notes)
    assert load_trajectory("run.h5")["empirical_fisher", "eval"].trace.value[0] == record.estimates["trace"].value
    assert "empirical_fisher, BN eval" in spectra("show", "run.h5").stdout
    spectra("plot", "run.h5", "--operator", "empirical_fisher", "--what", "density")
    assert [path.name for path in here.rglob("density*")] == ["density-empirical_fisher-epoch0.png"]


def test_the_empirical_fisher_matrix_needs_samples_that_are_not_coupled(here):
    arguments = ["norm.pt", "--task", "tasks.py:with_norm", "-m", "6", "--operator", "empirical_fisher", "--bn", "both"]
    refused(here, arguments, "depend on the others of its batch: use bn_mode='eval' (--bn eval)")


@pytest.mark.parametrize(
    ("arguments", "settings", "options"),
    [
        (["--samples", "11", "--data-seed", "3"], {"samples": 11, "data_seed": 3}, None),
        (["--samples", "11"], {"samples": 11, "data_seed": 0, "batch_sizes": [[10, 1], [1, 1]]}, None),
        (["--batch-size", "8"], {"batch_sizes": [[8, 3]], "samples": None, "data_seed": None}, None),
        (["--l2", "0.25"], {"l2": 0.25}, {"l2": 0.25}),
        (["--params", "2.*"], {"params": ["2.*"]}, {"params": "2.*"}),
        (["--params", "0.bias", "--params", "2.*"], {"params": ["0.bias", "2.*"]}, {"params": ["0.bias", "2.*"]}),
        (["--dtype", "float64"], {"dtype": "float64"}, {"dtype": "float64"}),
        (["--seed", "5"], {"seed": 5}, {"seed": 5}),
        (["--device", "cpu"], {}, {}),
        (["--lanczos-steps", "9"], {"lanczos_steps": 9}, {"lanczos_steps": 9}),
        (["--probes", "3"], {"num_probes": 3}, {"num_probes": 3}),
        (["--lanczos-steps", "1000"], {"lanczos_steps": 1000}, {"lanczos_steps": 43}),
    ],
)
def test_options_do_what_they_say_and_are_in_the_record(here, arguments, settings, options):
    analysed("net_0.pt", *QUICK, *arguments, "--out", "b.h5")
    (record,) = load_trajectory("b.h5")
    for name, value in settings.items():
        assert record.settings[name] == value, name
    if options is not None:
        (same,) = direct(**options)
        assert (record.spectrum.nodes == same.spectrum.nodes).all()
    else:
        assert record.facts["n_samples"] == (settings["samples"] or 24)


def test_the_data_seed_chooses_other_rows_and_the_seed_does_not(here):
    for out, arguments in (("a", []), ("b", ["--data-seed", "1"]), ("c", ["--seed", "1"])):
        analysed("net_0.pt", *QUICK, "--samples", "12", *arguments, "--out", f"{out}.h5")
    a, b, c = (load_trajectory(f"{name}.h5")[0] for name in "abc")
    assert a.settings["data"] == c.settings["data"] != b.settings["data"]
    assert a.facts["loss"] == c.facts["loss"] != b.facts["loss"]


def test_the_command_is_recorded_so_that_it_can_be_typed_again(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/spectra", "analyze", "net 0.pt"])
    analysed("net_0.pt", *QUICK)
    assert load_trajectory("run.h5")[0].provenance["command"] == "spectra analyze 'net 0.pt'"


def test_quiet_prints_the_table_and_nothing_else(here):
    result = analysed("net_0.pt", *QUICK, "--quiet")
    assert result.stderr == ""
    assert "trace" in result.stdout


def test_weights_chooses_among_several(here):
    torch.save({"model": network(0).state_dict(), "ema": network(1).state_dict()}, "both.pt")
    result = analysed("both.pt", *QUICK, "--out", "ema.h5")
    assert "--weights" in result.stdout  # the note beside the numbers
    analysed("both.pt", *QUICK, "--weights", "model", "--out", "model.h5")
    for out, epoch in (("ema.h5", 1), ("model.h5", 0)):
        assert load_trajectory(out)[0].facts["loss"] == direct(epoch)[0].facts["loss"]


def test_a_checkpoint_with_code_runs_only_when_told_to_and_warns(here):
    result = analysed("trap-zip.pt", *QUICK, "--unsafe-load")
    assert (here / "ran").is_dir()
    assert any(line.startswith("spectra: warning: ") for line in result.stderr.splitlines())


# -- which task


def test_arguments_of_the_task_reach_it_and_are_recorded(here):
    result = analysed("wide.pt", *QUICK, "--task-arg", "width=7")
    assert "spectra: task tasks.py:task(width=7), by --task" in result.stderr
    assert load_trajectory("run.h5").settings["task"] == "tasks.py:task(width=7)"
    assert "tasks.py:task(width=7)" in result.stdout


def test_a_task_with_a_parameter_checkpoint_is_made_for_each(here):
    for name, width in (("a_1", 5), ("a_2", 5), ("b", 7)):
        torch.save({"model": network(width, width).state_dict(), "config": {"width": width}}, f"{name}.pt")
    task = ("--task", "tasks.py:per_checkpoint", "-m", "4", "-k", "1")
    analysed("a_1.pt", "a_2.pt", *task)
    analysed("b.pt", *task, "--out", "b.h5")
    assert [r.facts["n_parameters"] for r in load_trajectory("run.h5")] == [43, 43]
    assert load_trajectory("b.h5")[0].facts["n_parameters"] == 59


def test_a_checkpoint_that_names_a_built_in_task_needs_no_task(here):
    pytest.importorskip("sklearn")
    save_checkpoint("own.pt", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task="digits-logistic", epoch=3)
    result = analysed("own.pt", "-m", "3", "-k", "2", "--samples", "40", "--quiet")
    (record,) = load_trajectory("run.h5")
    assert (record.epoch, record.facts["n_samples"], record.facts["n_parameters"]) == (3, 40, 650)
    assert record.settings["task"].startswith("digits-logistic(")
    assert "digits-logistic" in result.stdout


def test_spectra_toml_names_the_task(here):
    Path("spectra.toml").write_text('task = "tasks.py:task"\n[task-args]\nwidth = 7\n')
    result = analysed("wide.pt", "-m", "4", "-k", "1")
    assert "spectra.toml" in result.stderr.splitlines()[0]
    assert load_trajectory("run.h5").settings["task"] == "tasks.py:task(width=7)"


# -- several checkpoints, and a file that is there already


def test_a_file_is_continued_with_other_operators_and_checkpoints(here):
    analysed("net_0.pt", *QUICK)
    result = analysed("net_0.pt", "net_1.pt", *QUICK, "--operator", "hessian", "--operator", "ggn")
    assert "3 records added, 1 kept as they were" in result.stdout
    assert "[1/4] net_0.pt (1/2): hessian, BN eval: in the file already" in result.stderr
    assert len(load_trajectory("run.h5")) == 4
    before = Path("run.h5").read_bytes()
    result = analysed("net_0.pt", *QUICK, "--json")
    assert len(json.loads(result.stdout)) == 4  # all that is there
    assert Path("run.h5").read_bytes() == before


def test_checkpoints_are_put_in_the_order_of_training(here):
    analysed("net_2.pt", "net_0.pt", "net_1.pt", *QUICK)
    assert [record.checkpoint for record in load_trajectory("run.h5")] == ["net_0.pt", "net_1.pt", "net_2.pt"]
    Path("other").mkdir()
    for epoch in (2, 10):
        shutil.copy("net_0.pt" if epoch == 2 else "net_1.pt", f"other/net_{epoch}.pt")
    analysed("other", *QUICK, "--out", "other.h5")
    assert [record.epoch for record in load_trajectory("other.h5")] == [2, 10]


def test_failures_among_several_are_told_recorded_and_the_exit_code(here):
    result = spectra("analyze", "truncated.pt", "net_0.pt", "nan.pt", "net_1.pt", *QUICK)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "spectra: error: 2 of 4 records failed; the reasons are in run.h5"
    assert result.stderr.count("spectra: error:") == 1
    assert "truncated or damaged" in result.stdout
    assert "NaN or infinite weights" in result.stdout
    states = {record.checkpoint: record.status for record in load_trajectory("run.h5")}
    assert states == {"truncated.pt": "failed", "net_0.pt": "complete", "nan.pt": "failed", "net_1.pt": "complete"}
    printed = spectra("analyze", "truncated.pt", "net_2.pt", *QUICK, "--json")
    entries = json.loads(printed.stdout)
    assert [(entry["checkpoint"], entry["status"]) for entry in entries] == [
        ("net_2.pt", "complete"),
        ("truncated.pt", "failed"),
    ]
    assert entries[1]["loss"] is None
    assert "damaged" in entries[1]["reason"]


def test_when_all_of_several_fail_there_is_no_file(here):
    refused(here, ["nan.pt", "inf.pt", "empty.pt", *QUICK], "none of the checkpoints could be analysed")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_readable_file_and_the_same_command_goes_on(here, stop):
    """By a real signal, in a process of its own: each pass over its data takes 0.3 s, a record some seconds."""
    arguments = ["analyze", *(f"net_{i}.pt" for i in range(3)), "--task", "tasks.py:slow", "-m", "3", "-k", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spectra_cli.main", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not Path("run.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in stderr.splitlines() if line]
    assert lines[-2:] == [
        "spectra: the records finished so far are in run.h5; the same command goes on from there",
        "spectra: interrupted",
    ]
    assert 1 <= len(load_trajectory("run.h5")) < 3
    with h5py.File("run.h5", "r") as file:
        assert "growing" not in file.attrs
    assert [name for name in content_of(here) if name.endswith(".part")] == []
    settings = load_trajectory("run.h5").settings
    assert settings["task"] == "tasks.py:slow"


# -- bad input: one clear line, an exit code, nothing half-written


def refused(folder: Path, arguments: list[str], words: str, *, command: str = "analyze", code: int = 1) -> str:
    """Call the command, which must fail as it should; the line it printed."""
    before = content_of(folder)
    result = spectra(command, *arguments)
    assert content_of(folder) == before  # no file, no temporary file, and what was there unchanged
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("spectra: task ", "["))]  # progress
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("spectra: error: ")
    assert words in lines[0], lines[0]
    assert "(unexpected; --debug" not in lines[0]
    return lines[0]


BAD = {
    "missing file": (["none.pt", *QUICK], "none.pt: no such file"),
    "missing file among others": (["net_0.pt", "none.pt", *QUICK], "none.pt: no such file"),
    "empty file": (["empty.pt", *QUICK], "empty.pt: an empty file, not a checkpoint"),
    "truncated file": (["truncated.pt", *QUICK], "truncated.pt: truncated or damaged"),
    "a text": (["text.pt", *QUICK], "text.pt: "),
    "a list": (["list.pt", *QUICK], "list.pt: no weights in it: it holds a list"),
    "an optimizer": (["optimizer-state.pt", *QUICK], "optimizer-state.pt: the state of an optimizer"),
    "a pickle with code": (["trap.pt", *QUICK], "--unsafe-load"),
    "a checkpoint with code": (["trap-zip.pt", *QUICK], "--unsafe-load"),
    "keys that do not match": (["norm.pt", *QUICK], "norm.pt: does not fit the model: "),
    "shapes that do not match": (["wide.pt", *QUICK], "wide.pt: does not fit the model: "),
    "no such built-in task": (["net_0.pt", "--task", "digits"], "no built-in task is called 'digits'"),
    "no such task function": (["net_0.pt", "--task", "tasks.py:tusk"], "there is no 'tusk' in "),
    "no such task file": (["net_0.pt", "--task", "none.py:task"], "none.py"),
    "no such task argument": (["net_0.pt", *QUICK, "--task-arg", "depth=3"], "it has no argument 'depth'"),
    "a task that raises": (["net_0.pt", "--task", "tasks.py:raises"], "KeyError: 'hidden'"),
    "empty data": (["net_0.pt", "--task", "tasks.py:empty"], "the data are empty"),
    "labels out of range": (["net_0.pt", "--task", "tasks.py:labels"], "labels reach from 5 to 7"),
    "NaN weights": (["nan.pt", *QUICK], "nan.pt: NaN or infinite weights in 1 of 4 tensors: 2.weight"),
    "infinite weights": (["inf.pt", *QUICK], "inf.pt: NaN or infinite weights in 1 of 4 tensors: 2.weight"),
    "NaN loss": (["net_0.pt", "--task", "tasks.py:nan_loss"], "the loss is nan"),
    "independent loss": (["net_0.pt", "--task", "tasks.py:independent"], "does not depend on the parameters"),
    "no second derivative": (["net_0.pt", "--task", "tasks.py:piecewise_linear"], "no second derivative"),
    "no probes": (["net_0.pt", *QUICK, "--probes", "0"], "num_probes=0: at least 1 is needed; 8 is the default"),
    "no steps": (["net_0.pt", *QUICK, "--lanczos-steps", "0"], "lanczos_steps=0: at least 1 is needed; 100 is"),
    "a negative seed": (["net_0.pt", *QUICK, "--seed", "-1"], "seed=-1: at least 0 is needed"),
    "no samples": (["net_0.pt", *QUICK, "--samples", "0"], "samples=0: at least 1 is needed"),
    "too many samples": (["net_0.pt", *QUICK, "--samples", "25"], "samples=25: the data have only 24 rows"),
    "no batch": (["net_0.pt", *QUICK, "--batch-size", "0"], "batch_size=0: at least 1 is needed"),
    "a negative l2": (["net_0.pt", *QUICK, "--l2", "-1"], "l2=-1.0: a finite number of at least 0 is needed"),
    "l2 that is no number": (["net_0.pt", *QUICK, "--l2", "nan"], "l2=nan: a finite number of at least 0 is needed"),
    "no such parameters": (["net_0.pt", *QUICK, "--params", "conv*"], "no trainable parameter has such a name"),
    "no such weights": (["net_0.pt", *QUICK, "--weights", "ema"], "ema"),
    "no such device": (["net_0.pt", *QUICK, "--device", "gpu"], "device='gpu': 'cpu', 'cuda' or 'cuda:INDEX'"),
    "a batch of one in train mode": (
        ["norm.pt", "--task", "tasks.py:with_norm", "--bn", "both", "--batch-size", "23"],
        "holds a single sample",
    ),
    "no folder for the output": (["net_0.pt", *QUICK, "--out", "none/run.h5"], "none/run.h5: the folder none does"),
    "output beyond a file": (["net_0.pt", *QUICK, "--out", "text.pt/run.h5"], "text.pt is not a folder"),
    "output is a folder": (["net_0.pt", *QUICK, "--out", "."], "is a folder; name a file in it"),
    "output is not ours": (["net_0.pt", *QUICK, "--out", "text.pt"], "text.pt: is not an HDF5 file"),
}


@pytest.fixture(scope="module")
def existing(shelf, tmp_path_factory):
    """The bytes of a good results file of the quick task."""
    folder = tmp_path_factory.mktemp("existing")
    for name in ("net_2.pt", "tasks.py", "helper_of_analyze.py"):
        shutil.copy(shelf / name, folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        analysed("net_2.pt", *QUICK, "--quiet")
    finally:
        os.chdir(before)
    return (folder / "run.h5").read_bytes()


@pytest.mark.parametrize("with_output", [False, True], ids=["no run.h5 before", "a run.h5 before"])
@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(here, existing, case, with_output):
    arguments, words = BAD[case]
    if with_output:
        (here / "run.h5").write_bytes(existing)
    line = refused(here, arguments, "" if with_output else words)
    assert words in line or "run.h5: is of a run with other settings: " in line  # which is looked at earlier
    assert not (here / "ran").exists()  # the code in the pickles


def test_without_a_task_the_error_shows_the_three_ways(here):
    before = content_of(here)
    result = spectra("analyze", "net_0.pt")
    assert result.exit_code == 1
    assert content_of(here) == before
    first, *rest = result.stderr.splitlines()
    assert first.startswith("spectra: error: no task to analyse")
    assert any("def task():" in line for line in rest)
    assert "Traceback" not in result.output


def test_the_line_of_a_task_that_raises_is_its_own_and_debug_shows_the_traceback(here):
    line = refused(here, ["net_0.pt", "--task", "tasks.py:raises"], "KeyError: 'hidden'")
    number = 1 + TASKS.splitlines().index('    return network(widths["hidden"])')
    assert f"tasks.py line {number}: KeyError: 'hidden' (--debug shows the traceback)" in line
    result = spectra("analyze", "net_0.pt", "--task", "tasks.py:raises", "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert 'return network(widths["hidden"])' in result.stderr
    assert result.stderr.splitlines()[-1] == line


def test_a_task_file_that_cannot_be_imported(here):
    Path("broken.py").write_text("import torch\n\ndef task(:\n    pass\n")
    refused(here, ["net_0.pt", "--task", "broken.py:task"], "broken.py line 3: SyntaxError")
    Path("lacking.py").write_text("import a_module_that_nobody_has\n")
    refused(here, ["net_0.pt", "--task", "lacking.py:task"], "No module named 'a_module_that_nobody_has'")


@pytest.mark.parametrize("arguments", [["--bn", "twice"], ["--operator", "fisher"], ["--probes", "many"], ["--nope"]])
def test_wrong_usage_is_one_line_too(here, arguments):
    refused(here, ["net_0.pt", *QUICK, *arguments], "(spectra analyze --help)", code=2)
    refused(here, [], "Missing argument", code=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there(here):
    refused(here, ["net_0.pt", *QUICK, "--device", "cuda"], "device='cuda': 0 CUDA devices are available here")


def test_a_basis_that_does_not_fit_in_memory_says_what_would(here, monkeypatch):
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 4000)
    refused(here, ["net_0.pt", *QUICK, "-m", "40"], "are free: lanczos_steps=14 would fit")
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 1000)
    refused(here, ["net_0.pt", *QUICK], "not even 2 steps fit")


def test_memory_that_runs_out_in_the_middle(here, monkeypatch):
    def fail(self, block):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("spectra.operators.hessian.HessianOperator.apply", fail)
    refused(here, ["net_0.pt", *QUICK], "try a smaller --batch-size, --samples or --lanczos-steps")


def test_other_settings_than_those_of_the_file_are_refused(here, existing):
    Path("run.h5").write_bytes(existing)
    line = refused(here, ["net_0.pt", *QUICK, "-m", "7"], "lanczos_steps is 6 in the file, 7 now")
    assert line.startswith("spectra: error: run.h5: is of a run with other settings")
    refused(here, ["net_0.pt", "--task", "tasks.py:per_checkpoint"], "KeyError")
    refused(here, ["wide.pt", *QUICK, "--task-arg", "width=7"], "task is")


@pytest.mark.parametrize("existed", [False, True])
def test_an_output_that_cannot_be_written_is_found_before_a_checkpoint_is_read(here, existing, existed, monkeypatch):
    if existed:
        Path("run.h5").write_bytes(existing)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("spectra.results.storage.atomic_write.os.open", refuse)
    monkeypatch.setattr("spectra_cli.analyze.find_checkpoints", lambda paths: pytest.fail("a checkpoint was read"))
    refused(here, ["net_0.pt", *QUICK], "run.h5: cannot be written: permission denied")


def test_a_disk_that_fills_up_in_the_middle_leaves_what_was_there(here, existing, monkeypatch):
    Path("run.h5").write_bytes(existing)

    def full(descriptor, content, mode):
        os.write(descriptor, content[: len(content) // 2])
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spectra.analysis.analysis_run.check_output", lambda out: None)  # there was room at the start
    monkeypatch.setattr("spectra_cli.analyze.check_output", lambda out: None)
    monkeypatch.setattr("spectra.results.storage.runfile.check_writable", lambda *a, **k: None)
    monkeypatch.setattr("spectra.results.storage.atomic_write._write", full)
    before = content_of(here)
    result = spectra("analyze", "net_0.pt", *QUICK, "--quiet")
    assert result.exit_code == 1
    assert "no space left on device; free some space" in result.stderr
    assert result.stderr.count("\n") == 1
    assert content_of(here) == before


@pytest.mark.parametrize("command", ["show", "plot"])
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "checkpoint", "another program's", "truncated"])
def test_show_and_plot_refuse_files_that_are_not_ours(here, existing, command, kind):
    file = here / "x.h5"
    if kind == "another program's":
        with h5py.File(file, "w") as other:
            other["x"] = 1
    elif kind != "missing":
        contents = {"empty": b"", "text": b"numbers will follow", "truncated": existing[: len(existing) // 2]}
        file.write_bytes(contents.get(kind) if kind in contents else (here / "net_0.pt").read_bytes())
    refused(here, ["x.h5"], "x.h5: ", command=command)


# -- the display


def test_a_bar_on_a_terminal_shows_file_names_as_they_are(here, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    # a run may end between two redraws of the bar: draw at every update
    monkeypatch.setattr(Progress, "update", partialmethod(Progress.update, refresh=True))
    shutil.copy("net_0.pt", "[bold]net[red].pt")
    result = analysed("[bold]net[red].pt", *QUICK)
    assert "[bold]net[red].pt: " in result.stderr
    assert "products/s" in result.stderr
    assert load_trajectory("run.h5")[0].checkpoint == "[bold]net[red].pt"
