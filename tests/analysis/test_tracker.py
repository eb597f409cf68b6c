"""A tracker in a training loop: the loop ends where it would have ended without it, and the file is one of a run."""

from __future__ import annotations

import copy
import logging
import random
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spectra
from spectra import Task, Tracker, analyze, load_trajectory
from spectra.errors import ArgumentError, DataError, NumericsError, StorageError
from spectra.results.storage import reader as loading
from spectra.results.storage import runfile

QUICK = {"lanczos_steps": 5, "num_probes": 2}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(40, 4, generator=generator), torch.randint(3, (40,), generator=generator))


def trained(optimizer: str, generator: torch.Generator | None, track=None, epochs: int = 2):
    """A loop that draws from every generator there is, and what it leaves."""
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    model = network().train()
    criterion = nn.CrossEntropyLoss()
    options = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.01}}[optimizer]
    opt = getattr(torch.optim, optimizer)(model.parameters(), **options)
    loader = DataLoader(data(), batch_size=10, shuffle=True, generator=generator)
    follow = None if track is None else track(model, criterion, loader)
    losses = []
    for epoch in range(epochs):
        if follow is not None:
            follow(epoch=epoch)
        for x, y in loader:
            opt.zero_grad()
            noisy = x + 0.01 * random.random() + 0.01 * float(np.random.rand())  # noqa: NPY002
            loss = criterion(model(noisy), y)
            loss.backward()
            opt.step()
            losses.append(loss.item())
        assert all(module.training for module in model.modules())
    if follow is not None:
        follow(epoch=epochs)
        follow.close()
    gradients = [parameter.grad for parameter in model.parameters()]
    return losses, copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict()["state"]), gradients


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    return one == other


@pytest.mark.parametrize(("optimizer", "own_generator"), [("SGD", True), ("Adam", False)])
def test_training_ends_bit_for_bit_where_it_would_have_ended_without(tmp_path, optimizer, own_generator):
    """Dropout, batch norm, a shuffling loader; the tracker reads the very loader that trains, and another one."""

    def generator():
        return torch.Generator().manual_seed(1) if own_generator else None

    def track(model, criterion, loader):
        task = Task(model, criterion, loader, test_data=DataLoader(data(), batch_size=20, generator=loader.generator))
        return Tracker(
            task,
            out=tmp_path / "run.h5",
            snapshot=True,
            test_data=True,
            operators=("hessian", "ggn"),
            bn_modes=("eval", "train"),
            eigenpairs=2,
            **QUICK,
        )

    plain, tracked = trained(optimizer, generator()), trained(optimizer, generator(), track)
    for what, one, other in zip(("losses", "weights", "optimizer", "gradients"), plain, tracked):
        assert same(one, other), what
    trajectory = load_trajectory(tmp_path / "run.h5")
    assert len(trajectory) == 4 * 3
    assert trajectory["ggn", "train"].epochs.tolist() == [0, 1, 2]


def test_gradients_that_are_there_or_not_are_the_same_objects_afterwards(tmp_path):
    task = Task(network(), nn.CrossEntropyLoss(), [data().tensors])
    loss = task.loss_of(task.data[0])
    loss.backward()
    parameters = list(task.model.parameters())
    parameters[0].grad = None
    before = [(parameter.grad, None if parameter.grad is None else parameter.grad.clone()) for parameter in parameters]
    with Tracker(task, out=tmp_path / "run.h5", metrics="all", **QUICK) as tracker, torch.no_grad():
        assert tracker(epoch=0)
    for parameter, (gradient, content) in zip(parameters, before):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, content)


def test_the_records_are_those_of_analyze(tmp_path):
    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])
    with Tracker(task, out=tmp_path / "run.h5", **QUICK) as tracker:
        assert tracker(epoch=2.5, step=7)
    (record,) = tracker.trajectory
    (direct,) = analyze(task, **QUICK)
    np.testing.assert_array_equal(record.spectrum.nodes, direct.spectrum.nodes)
    assert record.estimates == direct.estimates
    assert (record.checkpoint, record.epoch, record.step, record.label) == (None, 2.5, 7, "epoch 2.5 hessian eval")
    assert tracker.seconds > 0


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([{"epoch": epoch} for epoch in range(7)], [0, 3, 6]),
        ([{"epoch": epoch} for epoch in range(4, 8)], [6]),
        ([{}] * 5, [0, 3]),
    ],
)
def test_every_counts_epochs_else_calls(tmp_path, calls, expected):
    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])
    with Tracker(task, out=tmp_path / "run.h5", every=3, check=False, metrics="none", **QUICK) as tracker:
        for call in calls:
            tracker(**call)
    assert [record.epoch for record in tracker.trajectory] == expected


def test_steps_alone_are_kept_as_steps(tmp_path):
    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])
    with Tracker(task, out=tmp_path / "run.h5", every=10, check=False, metrics="none", **QUICK) as tracker:
        assert [tracker(step=step) for step in (0, 5, 10)] == [True, False, True]
    assert [(record.epoch, record.step) for record in tracker.trajectory] == [(None, 0), (None, 10)]


def test_a_loop_that_starts_again_keeps_what_is_there_and_refuses_other_weights(tmp_path):
    out = tmp_path / "run.h5"
    options = {"check": False, "metrics": "none", **QUICK}

    def task(shift=0.0):
        model = network().eval()
        with torch.no_grad():
            model[0].bias += shift
        return Task(model, nn.CrossEntropyLoss(), [data().tensors])

    with Tracker(task(), out=out, **options) as tracker:
        tracker(epoch=0)
        tracker(epoch=1)  # the same weights at another epoch are another record
    before = out.read_bytes()
    with Tracker(task(), out=out, **options) as tracker:
        tracker(epoch=0)
        assert out.read_bytes() == before
    refusal = r"epoch 1 had other weights when it was analysed: .* or force=True"
    with Tracker(task(0.1), out=out, **options) as tracker, pytest.raises(StorageError, match=refusal):
        tracker(epoch=1)
    assert out.read_bytes() == before
    with Tracker(task(0.1), out=out, force=True, **options) as tracker:
        tracker(epoch=1)
    assert [record.epoch for record in tracker.trajectory] == [0, 1]
    assert out.read_bytes() != before


def test_a_moment_that_fails_is_recorded_and_training_goes_on(tmp_path, caplog):
    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])
    weights = copy.deepcopy(task.model.state_dict())
    with Tracker(task, out=tmp_path / "run.h5", check=False, metrics="none", **QUICK) as tracker:
        tracker(epoch=0)
        with torch.no_grad():
            task.model[0].weight[0, 0] = float("nan")
        with caplog.at_level(logging.WARNING, "spectra"):
            assert tracker(epoch=1)
        task.model.load_state_dict(weights)
        tracker(epoch=2)
    assert [record.status for record in tracker.trajectory] == ["complete", "failed", "complete"]
    warning, summary = caplog.messages
    assert summary.endswith("1 of 3 records failed; the file has the reasons (spectra show)")
    assert warning.endswith("epoch 1 hessian eval: failed: NaN or infinite weights in 1 of 9 tensors: 0.weight")
    with Tracker(task, out=tmp_path / "strict.h5", strict=True, **QUICK) as tracker:
        tracker(epoch=0)
        with torch.no_grad():
            task.model[0].weight[0, 0] = float("nan")
        with pytest.raises(NumericsError, match="NaN or infinite weights"):
            tracker(epoch=1)


def test_a_full_disk_in_the_middle_of_training_is_a_warning_and_the_next_call_tries_again(
    tmp_path, caplog, monkeypatch
):
    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])

    def full(*arguments, **options):
        raise StorageError("run.h5: cannot be written: no space left on device")

    with Tracker(task, out=tmp_path / "run.h5", check=False, metrics="none", **QUICK) as tracker:
        tracker(epoch=0)
        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "spectra"):
            patched.setattr(runfile, "replace_file", full)
            assert tracker(epoch=1)
        tracker(epoch=2)
    assert [record.epoch for record in tracker.trajectory] == [0, 2]
    assert caplog.messages[1].endswith("epoch 1: run.h5: cannot be written: no space left on device")


def test_what_is_wrong_from_the_start_raises_at_once(tmp_path):
    task = Task(network(), nn.CrossEntropyLoss(), DataLoader(data(), batch_size=10, shuffle=True))
    with pytest.raises(ArgumentError, match="every=0: at least 1 is needed"):
        Tracker(task, out=tmp_path / "run.h5", every=0)
    with pytest.raises(ArgumentError, match="probes=: there is no such option; there are operators, bn_modes"):
        Tracker(task, out=tmp_path / "run.h5", probes=3)
    with pytest.raises(StorageError, match="does not exist"):
        Tracker(task, out=tmp_path / "nowhere" / "run.h5")
    with (
        Tracker(task, out=tmp_path / "run.h5", bn_modes="train", **QUICK) as tracker,
        pytest.raises(DataError, match="snapshot"),
    ):
        tracker(epoch=0)
    with pytest.raises(ArgumentError, match="the tracker is closed"):
        tracker(epoch=1)
    with Tracker(task, out=tmp_path / "run.h5") as tracker, pytest.raises(ArgumentError, match="epoch=-1"):
        tracker(epoch=-1)
    assert not list(tmp_path.iterdir())


def test_two_trackers_of_one_file_are_refused_until_the_first_is_closed_or_gone(tmp_path):
    task = Task(network(), nn.CrossEntropyLoss(), [data().tensors])
    first = Tracker(task, out=tmp_path / "run.h5")
    with pytest.raises(StorageError, match="this process is writing it already"):
        Tracker(task, out=tmp_path / "run.h5")
    del first
    spectra.Tracker(task, out=tmp_path / "run.h5").close()
    assert not list(tmp_path.iterdir())


class Counting(nn.Module):
    """Keeps something of each forward pass, as networks with statistics of their own do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last, self.seen = 0, None, []

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x.detach().mean()
        self.seen.append(float(self.last))
        return x


class Augmented(torch.utils.data.Dataset):
    """Draws from a generator of its own that nobody else knows of."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index):
        return torch.tensor(self.random.normal(size=4), dtype=torch.float32), index % 3


def test_what_modules_count_and_what_data_sets_draw_from_is_put_back(tmp_path):
    source = Augmented()
    model = nn.Sequential(Counting(), network().eval())
    task = Task(model, nn.CrossEntropyLoss(), DataLoader(source, batch_size=6))
    model(torch.ones(3, 4))
    before = (model[0].calls, model[0].last.clone(), list(model[0].seen), source.random.bit_generator.state)
    with Tracker(task, out=tmp_path / "run.h5", snapshot=True, **QUICK) as tracker:
        tracker(epoch=0)
    after = (model[0].calls, model[0].last, model[0].seen, source.random.bit_generator.state)
    assert same(before, after)


def test_workers_that_live_on_are_refused(tmp_path):
    loader = DataLoader(Augmented(), 6, num_workers=1, persistent_workers=True)
    with (
        Tracker(Task(network(), nn.CrossEntropyLoss(), loader), out=tmp_path / "run.h5", **QUICK) as tracker,
        pytest.raises(DataError, match="persistent_workers=True"),
    ):
        tracker(epoch=0)


def test_now_goes_before_every_and_weights_that_stay_are_warned_of(tmp_path, caplog):
    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])
    with (
        caplog.at_level(logging.WARNING, "spectra"),
        Tracker(task, out=tmp_path / "run.h5", every=5, check=False, metrics="none", **QUICK) as tracker,
    ):
        assert [tracker(epoch=epoch, now=epoch == 7) for epoch in (0, 4, 7)] == [True, False, True]
    (warning,) = caplog.messages
    assert "the weights are those of the call before: the task must hold the network that is trained" in warning


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "howto" / "training-loop.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "spectra.Tracker(" in block]
    monkeypatch.chdir(tmp_path)
    model = network().eval()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_one_epoch(model, loader, optimizer):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(loader[0][0]), loader[0][1]).backward()
        optimizer.step()

    code = code.replace("range(100)", "range(7)").replace("epoch=100", "epoch=7").replace("samples=2000", "samples=30")
    given = {"spectra": spectra, "model": model, "criterion": nn.CrossEntropyLoss(), "data": [data().tensors]}
    exec(code, given | {"loader": [data().tensors], "optimizer": sgd, "train_one_epoch": train_one_epoch})
    assert load_trajectory("run.h5").epochs.tolist() == [0, 5, 7]


@pytest.mark.gpu
def test_a_network_on_the_gpu_stays_there_and_trains_on_bit_for_bit(tmp_path):
    def run(tracked: bool):
        model = network().cuda()
        x, y = (tensor.cuda() for tensor in data().tensors)
        adam = torch.optim.Adam(model.parameters())
        task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
        tracker = Tracker(task, out=tmp_path / "run.h5", **QUICK) if tracked else None
        for epoch in range(3):
            adam.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            adam.step()
            if tracker is not None:
                tracker(epoch=epoch)
        assert all(parameter.is_cuda for parameter in model.parameters())
        return model.state_dict()

    assert same(run(False), run(True))
    assert load_trajectory(tmp_path / "run.h5")[0].provenance["device"] != "cpu"


def test_a_long_training_reads_its_file_no_more_often_than_a_short_one(tmp_path, monkeypatch):
    read = []
    for module in (runfile, loading):
        real = module.whole
        monkeypatch.setattr(module, "whole", lambda *a, real=real, **b: read.append(1) or real(*a, **b))
    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])
    out, counts = tmp_path / "run.h5", []
    options = {"check": False, "metrics": "none", **QUICK}
    with Tracker(task, out=out, **options) as tracker:
        for epoch in range(24):
            tracker(epoch=epoch)
            counts.append(len(read))
        assert len(tracker.trajectory) == 24  # of which some are not in the HDF5 data yet
        with h5py.File(out, "r") as file:
            assert len(file["records"]) < 24
    assert counts[-1] < 14  # as often as the file is written anew: each time a third longer
    with h5py.File(out, "r") as file:
        assert len(file["records"]) == 24
    with Tracker(task, out=out, **options) as tracker:
        for epoch in range(24, 32):
            tracker(epoch=epoch)
    with h5py.File(out, "r") as file:
        assert len(file["records"]) == 32
        assert "growing" not in file.attrs


def test_a_disk_that_is_full_when_a_tracker_is_closed_is_a_warning(tmp_path, caplog, monkeypatch):
    def full(*arguments, **options):
        raise StorageError("run.h5: cannot be written: no space left on device")

    task = Task(network().eval(), nn.CrossEntropyLoss(), [data().tensors])
    out = tmp_path / "run.h5"
    with Tracker(task, out=out, check=False, metrics="none", **QUICK) as tracker:
        for epoch in range(8):
            tracker(epoch=epoch)
        with caplog.at_level(logging.WARNING, "spectra"), monkeypatch.context() as patched:
            patched.setattr(runfile, "replace_file", full)
            tracker.close()
    assert caplog.messages[-1:] == ["run.h5: cannot be written: no space left on device"]
    assert [record.epoch for record in load_trajectory(out)] == list(range(8))
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]  # and the lock is free
