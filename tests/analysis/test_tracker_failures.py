"""Whatever goes wrong within a tracker: the moment is recorded as failed, and training goes on as it would have."""

from __future__ import annotations

import errno
import gc
import logging
import random

import numpy as np
import pytest
import torch
from choices import crossed
from torch import nn

from spectra import Task, Tracker, load_trajectory
from spectra.analysis import tracker as tracker_module
from spectra.errors import NumericsError, StorageError
from spectra.results.storage import atomic_write as replacing

QUICK = {"lanczos_steps": 4, "num_probes": 2, "check": False, "metrics": "none"}


class Unlucky(Exception):
    """An error that nobody has heard of."""


class Fuse:
    """Burns at the call of a place that is chosen, once."""

    def __init__(self) -> None:
        self.place, self.left, self.error = "", 0, None

    def set(self, place: str, error: BaseException, after: int = 0) -> None:
        self.place, self.error, self.left = place, error, after

    def burn(self, place: str) -> None:
        if place != self.place or self.error is None:
            return
        if self.left:
            self.left -= 1
            return
        error, self.error = self.error, None
        raise error


class Net(nn.Module):
    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))
        self.layers[0].bias.requires_grad_(False)
        self.fuse, self.seen = [fuse], 0
        self.register_buffer("counted", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        self.counted += 1
        hidden = self.layers[:3](x)
        self.fuse[0].burn("forward")
        return self.layers[3:](hidden)


class Criterion(nn.CrossEntropyLoss):
    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self.fuse, self.last = [fuse], None

    def forward(self, output, target):
        self.last = output.detach()
        self.fuse[0].burn("criterion")
        return super().forward(output, target)


class Data:
    """Draws from every global generator, as augmentations do, and may leave gradients off."""

    def __init__(self, fuse: Fuse) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator)
        self.fuse, self.batches = fuse, [(x[:12], y[:12]), (x[12:], y[12:])]

    def __iter__(self):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        self.fuse.burn("opening the data")
        for batch in self.batches:
            yield batch
            self.fuse.burn("within the data")


@pytest.fixture
def loop(tmp_path):
    """A tracker after its first moment, with gradients there and a network in train mode; and the fuse."""
    fuse = Fuse()
    torch.manual_seed(3)
    task = Task(
        Net(fuse).train(), Criterion(fuse), Data(fuse), weight=lambda batch: (fuse.burn("weight="), len(batch[1]))[1]
    )
    task.loss_of(task.data.batches[0]).backward()
    options = {"operators": ("hessian", "ggn"), "bn_modes": ("eval", "train"), **QUICK}
    with Tracker(task, out=tmp_path / "run.h5", **options) as tracker:
        tracker(epoch=0)
        yield tracker, fuse
        fuse.error = None


def state(task: Task) -> list:
    """All that training goes on from."""
    model, criterion = task.model, task.criterion
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [tensor.detach().clone() for tensor in tensors],
        [tensor.requires_grad for tensor in tensors],
        [id(p.grad) for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [(m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None)) for m in model.modules()],
        (model.seen, criterion.last.clone(), criterion.training),
        (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
        (torch.backends.mha.get_fastpath_enabled(), torch.get_float32_matmul_precision()),
        (torch.get_rng_state(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
    ]


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def moved_on(task: Task) -> None:
    with torch.no_grad():
        task.model.layers[4].bias += 0.1


ERRORS = [
    RuntimeError("it broke"),
    ValueError("two\nlines"),
    OSError(errno.EIO, "Input/output error"),
    MemoryError(),
    KeyError("labels"),
    StopIteration(),
    Unlucky("who knows"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RecursionError("maximum recursion depth exceeded"),
    AssertionError(),
    NumericsError("the loss is nan"),
]


def named(entry: BaseException | str) -> str:
    return entry if isinstance(entry, str) else f"{type(entry).__name__} {entry}".split("\n")[0][:30]


@pytest.mark.parametrize(
    ("place", "error"),
    crossed(["within the data", "forward", "criterion", "opening the data", "weight="], ERRORS, named),
)
def test_an_error_is_recorded_and_training_goes_on_from_where_it_was(loop, tmp_path, place, error):
    tracker, fuse = loop
    moved_on(tracker.task)
    before = state(tracker.task)
    fuse.set(place, error)
    assert tracker(epoch=1)
    assert fuse.error is None  # it was met
    assert same(before, state(tracker.task))
    moved_on(tracker.task)
    assert tracker(epoch=2)
    by_epoch = {epoch: [r for r in tracker.trajectory if r.epoch == epoch] for epoch in (0, 1, 2)}
    assert {r.status for epoch in (0, 2) for r in by_epoch[epoch]} == {"complete"}
    assert [len(records) for records in by_epoch.values()] == [4, 4, 4]
    reasons = {r.reason for r in by_epoch[1]}
    assert {r.status for r in by_epoch[1]} == {"failed"}
    (reason,) = reasons
    assert "\n" not in reason
    words = " ".join(str(error).split()) or type(error).__name__
    assert words in reason or "out of memory" in reason


@pytest.mark.parametrize(
    ("place", "after"),
    [
        *(("forward", calls) for calls in (1, 3, 7, 12, 20, 28, 36)),
        *(("criterion", calls) for calls in (1, 3, 7, 40)),
        *(("within the data", calls) for calls in (1, 3, 7, 12)),
    ],
)
def test_it_does_not_matter_in_the_midst_of_what_it_happens(loop, place, after):
    tracker, fuse = loop
    moved_on(tracker.task)
    before = state(tracker.task)
    fuse.set(place, RuntimeError("late"), after)
    tracker(epoch=1)
    assert fuse.error is None
    assert same(before, state(tracker.task))
    statuses = [r.status for r in tracker.trajectory if r.epoch == 1]
    assert len(statuses) == 4
    assert "failed" in statuses  # those that were complete before stay


@pytest.mark.parametrize(
    "name", ["analyze_into", "check_finite", "training_kept", "weights_sha256", "SameThreads", "Place"]
)
@pytest.mark.parametrize("error", [RuntimeError("a bug"), Unlucky("a bug"), MemoryError("a bug")], ids=named)
def test_an_error_of_spectra_itself_is_recorded_with_a_traceback(loop, monkeypatch, caplog, name, error):
    tracker, _ = loop
    moved_on(tracker.task)
    before = state(tracker.task)

    def broken(*arguments, **options):
        raise error

    if name == "Place":  # in the arithmetic of a record
        name, where = "slq", __import__("spectra.analysis.measuring", fromlist=["slq"])
    else:
        where = tracker_module
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "spectra"):
        patched.setattr(where, name, broken)
        assert tracker(epoch=1)
    assert same(before, state(tracker.task))
    assert {r.status for r in tracker.trajectory if r.epoch == 1} == {"failed"}
    traced = [record for record in caplog.records if record.exc_info]
    if not isinstance(error, MemoryError):
        (one,) = traced
        assert "epoch 1: unexpected" in one.getMessage()
        assert "a bug" in one.getMessage()
        assert one.exc_info[1] is error
    else:
        assert not traced
    assert tracker(epoch=2)
    assert {r.status for r in tracker.trajectory if r.epoch == 2} == {"complete"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=named)
@pytest.mark.parametrize("place", ["forward", "criterion", "within the data"])
def test_an_interrupt_passes_through_with_the_state_as_it_was(loop, place, error):
    tracker, fuse = loop
    moved_on(tracker.task)
    before = state(tracker.task)
    fuse.set(place, error, after=5)
    with pytest.raises(type(error)):
        tracker(epoch=1)
    assert same(before, state(tracker.task))
    assert tracker(epoch=1)  # nothing was recorded as failed, and the same moment can be taken again
    assert {r.status for r in tracker.trajectory if r.epoch == 1} == {"complete"}


def test_data_that_turn_gradients_off_do_not_leave_them_off(loop):
    tracker, fuse = loop
    moved_on(tracker.task)

    class Off(Exception):
        def __init__(self) -> None:
            torch.set_grad_enabled(False)

    fuse.set("opening the data", RuntimeError("x"))
    original = fuse.burn

    def burn(place: str) -> None:
        if place == "opening the data":
            torch.set_grad_enabled(False)
        original(place)

    fuse.burn = burn
    before = state(tracker.task)
    tracker(epoch=1)
    after = state(tracker.task)
    torch.set_grad_enabled(True)
    assert same(before, after)


def test_a_flag_or_a_gradient_that_user_code_changes_is_put_back(loop):
    tracker, fuse = loop
    moved_on(tracker.task)
    model = tracker.task.model
    live = list(model.parameters())

    def burn(place: str) -> None:
        if place == "criterion":
            live[0].requires_grad_(False)
            live[2].grad = None
            live[1].requires_grad_(True)

    before = state(tracker.task)
    fuse.burn = burn
    tracker(epoch=1)
    del fuse.burn
    assert same(before, state(tracker.task))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), StorageError("run.h5: cannot be written: no space"), Unlucky()],
    ids=named,
)
def test_a_write_that_fails_is_a_warning_and_the_next_call_tries_again(loop, monkeypatch, caplog, error):
    tracker, _ = loop
    moved_on(tracker.task)
    before = state(tracker.task)

    def full(*arguments, **options):
        raise error

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "spectra"):
        patched.setattr(replacing, "replace_file", full)
        for module in ("runfile", "partial"):
            patched.setattr(f"spectra.results.storage.{module}.replace_file", full, raising=False)
        patched.setattr("spectra.results.storage.runfile.extend_file", full)
        assert tracker(epoch=1)
    assert same(before, state(tracker.task))
    assert any("epoch 1" in message for message in caplog.messages)
    moved_on(tracker.task)
    assert tracker(epoch=2)
    found = {(r.epoch, r.status) for r in tracker.trajectory}
    assert found == {(0, "complete"), (2, "complete")}
    with caplog.at_level(logging.WARNING, "spectra"):
        tracker.close()
    assert caplog.messages[-1].endswith("1 moment could not be recorded")


def test_at_the_end_it_is_said_how_many_records_failed(loop, caplog):
    tracker, fuse = loop
    for epoch in (1, 2, 3):
        moved_on(tracker.task)
        if epoch < 3:
            fuse.set("forward", RuntimeError("x"))
        tracker(epoch=epoch)
    assert tracker.failed == 8
    caplog.clear()
    with caplog.at_level(logging.WARNING, "spectra"):
        tracker.close()
        tracker.close()
    (message,) = caplog.messages
    assert message.endswith("run.h5: 8 of 16 records failed; the file has the reasons (spectra show)")


def test_a_loop_that_never_closes_is_told_as_well(tmp_path, caplog):
    fuse = Fuse()
    task = Task(Net(fuse), Criterion(fuse), Data(fuse))
    tracker = Tracker(task, out=tmp_path / "run.h5", **QUICK)
    tracker(epoch=0)
    moved_on(task)
    fuse.set("forward", RuntimeError("x"))
    tracker(epoch=1)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "spectra"):
        del tracker
        gc.collect()
    assert [m for m in caplog.messages if m.endswith("1 of 2 records failed; the file has the reasons (spectra show)")]


def test_where_nothing_failed_nothing_is_said(tmp_path, caplog):
    fuse = Fuse()
    task = Task(Net(fuse), Criterion(fuse), Data(fuse))
    with (
        caplog.at_level(logging.WARNING, "spectra"),
        Tracker(task, out=tmp_path / "run.h5", **QUICK) as tracker,
    ):
        tracker(epoch=0)
    assert (caplog.messages, tracker.failed) == ([], 0)


def test_a_file_that_cannot_be_removed_at_the_end_is_a_warning(loop, monkeypatch, caplog):
    tracker, _ = loop

    def stays():
        raise StorageError("run.h5.vectors: cannot be removed")

    monkeypatch.setattr(tracker._run.store.eigenspaces, "close", stays)
    with caplog.at_level(logging.WARNING, "spectra"):
        tracker.close()
    assert any("cannot be removed" in message for message in caplog.messages)
    Tracker(tracker.task, out=tracker.out, **QUICK).close()  # the file is free


@pytest.mark.parametrize("error", ERRORS, ids=named)
def test_strict_and_the_first_call_raise_with_the_state_as_it_was(tmp_path, error):
    for strict in (False, True):
        fuse = Fuse()
        task = Task(Net(fuse), Criterion(fuse), Data(fuse))
        task.loss_of(task.data.batches[0]).backward()
        with Tracker(task, out=tmp_path / f"{strict}.h5", strict=strict, **QUICK) as tracker:
            if strict:
                tracker(epoch=0)
                moved_on(task)
            before = state(task)
            fuse.set("forward", error, after=3)
            with pytest.raises(Exception) as caught:
                tracker(epoch=1)
            assert caught.value is error or caught.value.__cause__ is error
            assert same(before, state(task))
            assert not (tmp_path / "False.h5").exists()
    assert [r.epoch for r in load_trajectory(tmp_path / "True.h5")] == [0]
