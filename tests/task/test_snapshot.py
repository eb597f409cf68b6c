"""A frozen pass: the same batches for every product, whatever draws them, and nothing else moved."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from spectra import HessianOperator, Task, load_trajectory, save_checkpoint
from spectra.analysis.run import DataChoice, analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import ArgumentError, DataError, StorageError
from spectra.task import snapshot
from spectra.task.batches import tensors_of
from spectra.task.snapshot import take_snapshot

QUICK = Settings(lanczos_steps=4, num_probes=2)
FROZEN = DataChoice(snapshot=True, data_seed=3)


class Noisy:
    """Rows that a loader's workers would augment, from all three global generators."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)

    def __len__(self):
        return 12

    def __getitem__(self, row):
        noise = random.gauss(0, 1) + np.random.standard_normal()  # noqa: NPY002 (what augmentations draw from)
        return self.x[row] + 0.1 * noise + 0.1 * torch.randn(4), self.y[row]


class Passes:
    """Batches with new noise on every pass, which are counted."""

    def __init__(self):
        self.count = 0

    def __iter__(self):
        self.count += 1
        return iter(DataLoader(Noisy(), 5, shuffle=True))


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def same(a, b):
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(tensors_of(a), tensors_of(b), strict=True))


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize("own", [False, True])
def test_the_snapshot_follows_from_its_seed_and_leaves_every_generator_as_it_was(own):
    generator = torch.Generator().manual_seed(5) if own else None
    data = DataLoader(Noisy(), 5, shuffle=True, generator=generator)
    before, held = states(), None if generator is None else generator.get_state()
    first = take_snapshot(data, 1)
    assert states() == before
    assert generator is None or torch.equal(generator.get_state(), held)
    torch.rand(7)
    assert same(first, take_snapshot(data, 1))
    assert not same(first, take_snapshot(data, 2))
    assert sorted(map(int, torch.cat([y for _, y in first]))) == sorted(Noisy().y.tolist())
    with pytest.raises(ArgumentError, match="seed=-1: at least 0"):
        take_snapshot(data, -1)


def test_the_generators_come_back_after_an_error_too():
    def failing():
        yield torch.rand(2), torch.zeros(2)
        raise KeyError("gone")

    before = states()
    with pytest.raises(KeyError):
        take_snapshot(failing())
    assert states() == before


def test_copies_share_nothing_with_the_loader_and_have_no_history():
    whole, ids = torch.randn(1000, 4, requires_grad=True), np.arange(2)
    batch = {"x": (whole * 1)[:2], "meta": SimpleNamespace(ids=ids)}
    (frozen,) = take_snapshot([batch])
    assert frozen["x"].is_leaf
    assert frozen["x"].untyped_storage().nbytes() == 2 * 4 * 4  # of the view, not of what is behind it
    assert torch.equal(frozen["x"], batch["x"])
    ids[:] = -1
    with torch.no_grad():
        batch["x"].zero_()
    assert frozen["meta"].ids.tolist() == [0, 1]
    assert bool((frozen["x"] != 0).all())


def test_what_does_not_fit_in_half_of_the_memory_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(snapshot, "available_bytes", lambda device: 2000)
    rows = [(torch.zeros(100),)]
    assert len(take_snapshot(rows * 2)) == 2
    with pytest.raises(DataError, match=r"does not fit: after 2 batches .* on cpu .*--samples N"):
        take_snapshot(rows * 3)
    with pytest.raises(DataError, match=r"batch 0 cannot be copied"):
        take_snapshot([(torch.zeros(1), (i for i in range(3)))])


def test_curvature_of_a_snapshot_is_that_of_a_task_on_the_frozen_batches():
    task = Task(network(), nn.CrossEntropyLoss(), Passes())
    with pytest.raises(DataError, match="--snapshot-data"):
        HessianOperator(task) @ torch.zeros(43)
    frozen = task.snapshot(3)
    built = Task(task.model, nn.CrossEntropyLoss(), take_snapshot(Passes(), 3))
    assert frozen.survey().fingerprint == built.survey().fingerprint
    assert frozen.survey().order == "fixed"
    v = torch.randn(43)
    assert torch.equal(HessianOperator(frozen) @ v, HessianOperator(built) @ v)


def test_test_data_are_frozen_only_where_it_is_asked_for():
    task = Task(network(), nn.CrossEntropyLoss(), Passes(), test_data=Passes())
    assert task.snapshot().test_data is task.test_data
    assert task.test_data.count == 0
    assert same(list(task.snapshot(2, test=True).held_out().data), take_snapshot(Passes(), 2))


@pytest.fixture
def run(tmp_path):
    for epoch in range(2):
        torch.manual_seed(epoch)
        save_checkpoint(tmp_path / f"net_{epoch}.pt", network(), epoch=epoch)
    return [tmp_path / "net_0.pt", tmp_path / "net_1.pt"]


def test_all_checkpoints_of_a_run_share_one_snapshot_also_of_a_task_made_for_each(run, tmp_path):
    data = Passes()
    out = tmp_path / "run.h5"
    analyze_run(run, lambda _: Task(network(), nn.CrossEntropyLoss(), data), QUICK, out=out, data=FROZEN)
    assert data.count == 1
    found = load_trajectory(out)
    assert [record.settings["snapshot_data"] for record in found] == [True, True]
    assert {record.settings["data_seed"] for record in found} == {3}
    frozen = Task(network(), nn.CrossEntropyLoss(), take_snapshot(Passes(), 3))
    assert found.settings["data"] == frozen.survey().fingerprint


def test_a_run_goes_on_with_the_same_snapshot_and_with_no_other_choice(run, tmp_path):
    out = tmp_path / "run.h5"

    def go(paths, **choice):
        make = Task(network(), nn.CrossEntropyLoss(), DataLoader(Noisy(), 5, shuffle=True))
        return analyze_run(paths, lambda _: make, QUICK, out=out, data=DataChoice(**choice))

    go(run[:1], snapshot=True, data_seed=3)
    torch.rand(5)  # the state of the generators does not matter
    assert go(run, snapshot=True, data_seed=3).kept == 1
    with pytest.raises(StorageError, match=r"data_seed is 3 in the file, 4 now"):
        go(run, snapshot=True, data_seed=4)
    out.unlink()
    plain = Task(network(), nn.CrossEntropyLoss(), list(DataLoader(Noisy(), 5)))
    analyze_run(run[:1], lambda _: plain, QUICK, out=out)
    with pytest.raises(StorageError, match=r"snapshot_data is not set in the file, true now"):
        analyze_run(run[:1], lambda _: plain, QUICK, out=out, data=DataChoice(snapshot=True))


def test_data_of_a_task_made_anew_that_draw_for_themselves_are_noticed(run, tmp_path):
    """The snapshot of the second checkpoint would be another one: the fingerprint tells."""
    seeds = iter(range(100))

    def make(_):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(next(seeds)))
        return Task(network(), nn.CrossEntropyLoss(), [(x, torch.zeros(6, dtype=torch.long))])

    with pytest.raises(Exception, match="not that of the first one: data is"):
        analyze_run(run, make, QUICK, out=tmp_path / "run.h5", data=FROZEN)


def test_samples_are_chosen_from_the_snapshot(run, tmp_path):
    out = tmp_path / "run.h5"
    task = Task(network(), nn.CrossEntropyLoss(), Passes())
    analyze_run(run[:1], lambda _: task, QUICK, out=out, data=DataChoice(samples=7, data_seed=3, snapshot=True))
    expected = task.snapshot(3).subset(7, 3)
    assert load_trajectory(out).settings["data"] == expected.survey().fingerprint
