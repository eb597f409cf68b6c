"""Unexpected errors after the spectrum: the record is kept as unverified, and the same command computes it again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import spectra.analysis.findings
import spectra.analysis.validation
import spectra.sharpness.bounds
import spectra.sharpness.norms
from spectra import Task, analyze, load_trajectory, save_checkpoint
from spectra.errors import ArgumentError, CheckpointError, DataError, NumericsError, SpectraError, TaskError
from spectra.results.record import Record
from spectra.results.storage.merge import merge
from spectra_cli.main import main

TASKS = """
import spectra, torch
from torch import nn

def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

def task():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    return spectra.Task(network(), nn.CrossEntropyLoss(), [(x, (x[:, 0] > 0).long())])
"""
QUICK = ("--task", "tasks.py:task", "-m", "4", "-k", "2", "--metrics", "none")
KINDS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    MemoryError("cannot allocate"),
    ValueError("two\nlines"),
    AssertionError(),
    KeyError("name"),
]
PARTS = {
    "the check of the traces": ("spectra.analysis.validation.exact_trace", {}),
    "measure gradient_norm": ("spectra.sharpness.norms.gradient_norm", {"metrics": "gradient_norm"}),
    "the bounds": ("spectra.sharpness.suite.pac_bayes_bounds", {"bounds": True}),
    "the exact spectrum": (
        "spectra.analysis.validation.exact_ggn_spectrum",
        {"exact_spectrum": 12, "operators": ("ggn",)},
    ),
}


def raising(error: BaseException):
    def function(*args, **options):
        raise error

    return function


def make_task() -> Task:
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return Task(model, nn.CrossEntropyLoss(), [(x, (x[:, 0] > 0).long())])


def analysed(**options) -> Record:
    (record,) = analyze(make_task(), lanczos_steps=4, num_probes=2, **options)
    return record


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("part", PARTS)
def test_an_unexpected_error_in_a_part_leaves_an_unverified_record_and_is_logged(part, error, monkeypatch, caplog):
    target, options = PARTS[part]
    whole = analysed(**options)
    assert (whole.status, whole.reason) == ("complete", None)
    assert "tracebacks" not in whole.provenance
    monkeypatch.setattr(target, raising(error))
    record = analysed(**options)
    assert record.status == "unverified"
    assert record.reason.startswith(f"{part}: {type(error).__name__}")
    assert "\n" not in record.reason
    assert (record.spectrum.nodes == whole.spectrum.nodes).all()
    assert record.notes[0].startswith("UNVERIFIED: ")
    assert "in raise" not in record.reason
    assert type(error).__name__ in record.provenance["tracebacks"][0]
    assert "Traceback" in record.provenance["tracebacks"][0]
    assert [entry.levelname for entry in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("kind", [TaskError, DataError, NumericsError])
@pytest.mark.parametrize("part", PARTS)
def test_a_refusal_is_a_reason_in_a_complete_record(part, kind, monkeypatch):
    target, options = PARTS[part]
    monkeypatch.setattr(target, raising(kind("does not exist here")))
    record = analysed(**options)
    assert record.status == "complete"
    reasons = [*record.notes, *(str(measure.reason) for measure in record.sharpness.values())]
    assert any("does not exist here" in words for words in reasons)


class FailsLater(nn.Module):
    """Raises in every forward pass from some moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.error: Exception | None = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return self.layer(x)


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
def test_an_error_in_the_users_forward_pass_is_no_refusal(error, monkeypatch):
    model, x = FailsLater(), torch.randn(6, 3)
    original = spectra.analysis.findings.verify

    def from_now_on(*args):
        model.error = error
        return original(*args)

    monkeypatch.setattr(spectra.analysis.findings, "verify", from_now_on)
    task = Task(model, nn.CrossEntropyLoss(), [(x, (x[:, 0] > 0).long())])
    (record,) = analyze(task, lanczos_steps=2, num_probes=2, metrics="gradient_norm")
    assert record.status == "unverified"
    assert record.reason.startswith("the check of the traces: ")
    assert "measure gradient_norm: " in record.reason
    assert math.isnan(record.sharpness["gradient_norm"].value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("part", PARTS)
def test_an_interrupt_passes(part, stop, monkeypatch):
    target, options = PARTS[part]
    monkeypatch.setattr(target, raising(stop()))
    with pytest.raises(stop):
        analysed(**options)


def test_measures_alone_raise_what_was_not_foreseen(monkeypatch):
    monkeypatch.setattr(spectra.sharpness.norms, "gradient_norm", raising(IndexError("7")))
    with pytest.raises(IndexError, match="7"):
        spectra.sharpness.suite.measure_all(make_task(), "gradient_norm")


@pytest.mark.parametrize("status", ["complete", "unverified"])
def test_only_a_failed_record_is_without_a_spectrum_and_only_a_complete_one_without_a_reason(status):
    with pytest.raises(ArgumentError, match="spectrum=None"):
        Record(operator="hessian", bn_mode="eval", status=status, reason="why")
    if status == "unverified":
        with pytest.raises(ArgumentError, match="reason=None"):
            Record(operator="hessian", bn_mode="eval", status=status, spectrum=analysed().spectrum)
    with pytest.raises(ArgumentError, match="one of failed, unverified, complete"):
        Record(operator="hessian", bn_mode="eval", status="done", spectrum=analysed().spectrum)


# -- in a file, from the command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tasks.py").write_text(TASKS)
    torch.manual_seed(0)
    for epoch in range(2):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        save_checkpoint(f"net_{epoch}.pt", model, epoch=epoch)
    return tmp_path


def run(*words: str):
    return CliRunner().invoke(main, [*words])


def analyze_both(*more: str):
    return run(
        "analyze",
        "net_0.pt",
        "net_1.pt",
        "--task",
        "tasks.py:task",
        "--lanczos-steps",
        "4",
        "--probes",
        "2",
        "--metrics",
        "none",
        *more,
    )


def broken(monkeypatch) -> None:
    monkeypatch.setattr("spectra.analysis.validation.exact_trace", raising(RuntimeError("CUDA error\nassert")))


def statuses() -> list[str]:
    return [record.status for record in load_trajectory("run.h5")]


def test_the_command_tells_it_exits_with_1_and_computes_it_again(here, monkeypatch):
    with monkeypatch.context() as patch:
        broken(patch)
        result = analyze_both()
    assert result.exit_code == 1
    words = "the check of the traces: RuntimeError: CUDA error assert"
    assert f"spectra: error: net_0.pt, hessian, BN eval: unexpected error in {words}" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("spectra: error: 2 of 2 records unverified; the reasons are in run.h5; the same command ")
    assert "(unverified)" in result.stdout
    assert "! UNVERIFIED: net_0.pt, hessian, BN eval: unexpected error in the check" in result.stdout
    assert statuses() == ["unverified", "unverified"]
    before = [record.spectrum.nodes for record in load_trajectory("run.h5")]
    shown = run("show", "run.h5", "--epoch", "0")
    assert shown.exit_code == 0
    assert "! UNVERIFIED: " in shown.stdout
    again = analyze_both()
    assert again.exit_code == 0, again.stderr
    assert statuses() == ["complete", "complete"]
    after = load_trajectory("run.h5")
    assert all((old == new.spectrum.nodes).all() for old, new in zip(before, after))
    assert all(record.checks and "tracebacks" not in record.provenance for record in after)
    kept = analyze_both()
    assert "in the file already" in kept.stderr


def test_a_failed_record_does_not_replace_an_unverified_one(here, monkeypatch):
    with monkeypatch.context() as patch:
        broken(patch)
        analyze_both()
    with monkeypatch.context() as patch:
        patch.setattr("spectra.analysis.run.records_of", raising(NumericsError("not now")))
        result = analyze_both()
    assert "not now; its records in the file are kept" in result.stderr
    assert statuses() == ["unverified", "unverified"]


def test_an_unverified_record_is_kept_if_the_first_checkpoint_fails_before_the_file_is_open(here, monkeypatch):
    with monkeypatch.context() as patch:
        broken(patch)
        analyze_both()
    original, seen = "spectra.analysis.run.Recipient.load", []
    load = spectra.analysis.run.Recipient.load

    def failing_once(self, checkpoint, model):
        seen.append(checkpoint)
        if len(seen) == 1:
            raise CheckpointError("net_0.pt: does not fit now")
        return load(self, checkpoint, model)

    with monkeypatch.context() as patch:
        patch.setattr(original, failing_once)
        result = analyze_both()
    assert result.exit_code == 0, result.stderr
    assert "does not fit now; its records in the file are kept" in result.stderr
    assert statuses() == ["unverified", "complete"]


def test_strict_stores_the_record_and_stops(here, monkeypatch):
    broken(monkeypatch)
    result = analyze_both("--strict")
    assert result.exit_code == 1
    assert "net_0.pt epoch 0 hessian eval: unverified: the check of the traces: RuntimeError" in result.stderr
    assert statuses() == ["unverified"]


def test_json_lines_have_the_status(here, monkeypatch):
    broken(monkeypatch)
    result = analyze_both("--progress", "json")
    assert '"status": "unverified"' in result.stderr


def test_a_complete_record_takes_the_place_of_an_unverified_one_in_a_merge(here, monkeypatch):
    with monkeypatch.context() as patch:
        broken(patch)
        run(
            "analyze",
            "net_0.pt",
            "--task",
            "tasks.py:task",
            "--lanczos-steps",
            "4",
            "--probes",
            "2",
            "--metrics",
            "none",
            "--out",
            "a.h5",
        )
        run(
            "analyze",
            "net_1.pt",
            "--task",
            "tasks.py:task",
            "--lanczos-steps",
            "4",
            "--probes",
            "2",
            "--metrics",
            "none",
            "--out",
            "c.h5",
        )
    run(
        "analyze",
        "net_0.pt",
        "--task",
        "tasks.py:task",
        "--lanczos-steps",
        "4",
        "--probes",
        "2",
        "--metrics",
        "none",
        "--out",
        "b.h5",
    )
    for parts in (["a.h5", "b.h5", "c.h5"], ["c.h5", "b.h5", "a.h5"]):
        Path("all.h5").unlink(missing_ok=True)
        done = merge([Path(part) for part in parts], Path("all.h5"))
        assert (done.records, done.failed, done.unverified) == (2, 0, 1)
        assert [record.status for record in load_trajectory("all.h5")] == ["complete", "unverified"]


def test_the_class_of_an_error_says_whether_the_users_code_raised_it():
    assert not CheckpointError("x").of_called_code
    assert issubclass(CheckpointError, SpectraError)
