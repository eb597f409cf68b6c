"""Checkpoints that fail are recorded with their reasons, and the rest of the run goes on."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import torch
from choices import crossed
from small_runs import BOTH, QUICK, Ear, maker, network, rows, status

from spectra import load_trajectory, save_checkpoint
from spectra.analysis import run as run_room
from spectra.analysis.run import analyze_run
from spectra.checkpoints import discovery
from spectra.errors import CheckpointError, DataError, NumericsError, OutOfMemory, TaskError
from spectra.operators.ggn import GGNOperator


def damage(path: Path, value: float = float("nan"), width: int = 5) -> None:
    model = network(width)
    with torch.no_grad():
        model[2].bias[0] = value
    save_checkpoint(path, model, epoch=9)


def test_failures_among_several_are_recorded_with_their_reasons(run, out):
    """A corrupt file first, when the run is not known yet; then NaN, then keys that do not fit; the rest goes on."""
    folder = run[0].parent
    corrupt, nan, infinite, wide = (folder / name for name in ("corrupt.pt", "nan.pt", "inf.pt", "wide.pt"))
    corrupt.write_bytes(run[0].read_bytes()[:-100])
    damage(nan)
    damage(infinite, float("inf"))
    damage(wide, 0.0, width=7)
    ear = Ear()
    paths = [corrupt, run[0], nan, infinite, wide, run[1]]
    outcome = analyze_run(paths, maker(), BOTH, out=out, listener=ear)
    assert [Path(record.checkpoint).name for record in outcome.failed[::2]] == [
        "corrupt.pt",
        "nan.pt",
        "inf.pt",
        "wide.pt",
    ]
    stored = load_trajectory(out)
    reasons = {(Path(r.checkpoint).name, r.operator): r.reason for r in stored if r.status == "failed"}
    assert len(reasons) == 8
    for name, words in {
        "corrupt.pt": "damaged",
        "nan.pt": "NaN or infinite weights in 1 of 4 tensors: 2.bias",
        "inf.pt": "NaN or infinite weights in 1 of 4 tensors: 2.bias",
        "wide.pt": "does not fit the model",
    }.items():
        for operator in ("hessian", "ggn"):
            assert words in reasons[name, operator]
            assert "\n" not in reasons[name, operator]
    complete = [record for record in stored if record.status == "complete"]
    assert [(record.epoch, record.operator) for record in complete] == [
        (epoch, operator) for epoch in range(2) for operator in ("hessian", "ggn")
    ]
    # As they were told, so they are stored: the early failure has the settings of the run, too.
    assert {record.identity for record in outcome.records} == {record.identity for record in stored}
    assert all(record.settings["seed"] == 0 for record in outcome.records)
    assert ear.heard[1] == ("hessian", "eval", "failed")
    for record in stored:
        if record.status == "failed":
            entry = record.to_json()
            assert (entry["loss"], entry["estimates"], entry["reason"]) == (None, {}, record.reason)


def test_a_loss_that_is_not_finite_is_a_failure_of_its_checkpoint(run, out):
    far = run[0].with_name("far.pt")
    model = network()
    with torch.no_grad():
        model[2].weight.fill_(1e38)
    model[2].weight.data[1:] *= -1
    save_checkpoint(far, model)
    outcome = analyze_run([run[0], far, run[1]], maker(), QUICK, out=out)
    (failed,) = outcome.failed
    assert failed.checkpoint == str(far)
    assert "nan" in failed.reason or "inf" in failed.reason
    assert [entry[2] for entry in status(out)].count("complete") == 2


def test_a_failure_after_the_first_operator_keeps_what_was_finished_and_is_tried_again(run, out, monkeypatch):
    whole = GGNOperator.apply_to_blocks
    poison = torch.load(run[1])["model"]["0.weight"].flatten()

    def broken(self, jobs, seen=None):
        if torch.equal(self.function.theta[0].flatten(), poison):
            raise NumericsError("a product with the ggn holds NaN or infinity")
        return whole(self, jobs, seen)

    monkeypatch.setattr(GGNOperator, "apply_to_blocks", broken)
    outcome = analyze_run(run, maker(), BOTH, out=out)
    assert [(record.operator, record.epoch) for record in outcome.failed] == [("ggn", 1)]
    assert len(load_trajectory(out)) == 6
    monkeypatch.undo()
    again = analyze_run(run, maker(), BOTH, out=out)
    assert (again.kept, [(r.operator, r.epoch, r.status) for r in again.records]) == (5, [("ggn", 1, "complete")])
    assert len(load_trajectory(out)) == 6


@pytest.mark.parametrize("existing", [False, True])
def test_a_single_checkpoint_that_fails_raises_and_leaves_no_file(run, out, existing):
    if existing:
        analyze_run(run[1:], maker(), QUICK, out=out)
    before = out.read_bytes() if existing else None
    damage(run[0])
    with pytest.raises(NumericsError, match="NaN or infinite weights"):
        analyze_run(run[:1], maker(), QUICK, out=out)
    assert (out.read_bytes() if existing else None) == before
    assert [path.name for path in out.parent.iterdir()] == (["run.h5"] if existing else [])


def test_when_every_checkpoint_fails_there_is_no_file_and_the_first_reason_is_told(run, out):
    for path in run:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints could be analysed; the first: .*net_0\.pt"):
        analyze_run(run, maker(), QUICK, out=out)
    assert list(out.parent.iterdir()) == []
    with pytest.raises(CheckpointError, match="no checkpoint to analyse"):
        analyze_run([], maker(), QUICK, out=out)


def test_what_is_wrong_with_the_task_stops_the_run(run, out):
    x, y = rows()[0]
    with pytest.raises(DataError, match="labels reach from 8 to 9"):
        analyze_run(run, maker([(x, y % 2 + 8)]), QUICK, out=out)

    def no_task(checkpoint):
        raise TaskError("the function raised") from KeyError("inner")

    with pytest.raises(TaskError, match="the function raised") as caught:
        analyze_run(run, no_task, QUICK, out=out)
    assert isinstance(caught.value.__cause__, KeyError)  # which --debug shows
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "error"),
    crossed(
        ["reading", "putting in"],
        [
            MemoryError(),
            OutOfMemory("the weights need 9 GB and 2 GB are free"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            torch.OutOfMemoryError("CUDA out of memory"),
            RecursionError("maximum recursion depth exceeded"),
            OSError(5, "Input/output error"),
            FileNotFoundError(2, "No such file or directory"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            KeyError("weight"),
            OverflowError(),
            struct.error("unpack requires a buffer of 4 bytes"),
        ],
        lambda entry: entry if isinstance(entry, str) else type(entry).__name__,
    ),
)
def test_whatever_ends_the_loading_of_one_checkpoint_is_recorded_and_the_rest_goes_on(
    run, tmp_path, monkeypatch, where, error
):
    load, put = run_room.load_checkpoint, run_room.Recipient.load

    def loading(path, **options):
        if where == "reading" and path == run[1]:
            raise error
        return load(path, **options)

    def putting(self, checkpoint, model):
        if where == "putting in" and checkpoint.path == run[1]:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))  # half of it is there
            raise error
        return put(self, checkpoint, model)

    monkeypatch.setattr(run_room, "load_checkpoint", loading)
    monkeypatch.setattr(run_room.Recipient, "load", putting)
    outcome = analyze_run(run, maker(), QUICK, out=tmp_path / "run.h5")
    assert [record.status for record in outcome.records] == ["complete", "failed", "complete"]
    (failed,) = outcome.failed
    words = " ".join(str(error).split()) or type(error).__name__
    assert words in failed.reason
    assert "\n" not in failed.reason
    for options, paths in (({"strict": True}, run), ({}, run[1:2])):
        with pytest.raises(CheckpointError, match=re.escape(words)):
            analyze_run(paths, maker(), QUICK, out=tmp_path / "strict.h5", **options)


def test_memory_that_runs_out_while_checkpoints_are_ordered_is_of_that_checkpoint(run, monkeypatch):
    read = discovery.read_raw

    def reading(path, **options):
        if path.name == "net_1.pt":
            raise MemoryError
        return read(path, **options)

    monkeypatch.setattr(discovery, "read_raw", reading)
    assert [one.epoch for one in discovery.in_training_order(run)] == [0, 1, 2]
