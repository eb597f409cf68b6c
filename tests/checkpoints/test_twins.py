"""Checkpoints with the same weights in other files: one of them is analysed, and a line says which was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spectra import Task, load_trajectory
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.analysis.store import Listener
from spectra.checkpoints.discovery import find_checkpoints, order_checkpoints
from spectra.results.storage.merge import merge

QUICK = Settings(lanczos_steps=3, num_probes=2, metrics="none", check=False)


def network(seed: int, act: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), act(), nn.Linear(5, 3))


def lightning(path: Path, seed: int, epoch: int, **more: object) -> Path:
    """A file as Lightning writes it; what it keeps of its callbacks makes the bytes of two of them differ."""
    weights = {f"model.{key}": value for key, value in network(seed).state_dict().items()}
    content = {
        "epoch": epoch,
        "global_step": 4 + 4 * epoch,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": weights,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | {"callbacks": {"path": path.name}} | more, path)
    return path


class Ear(Listener):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []

    def duplicate(self, path, of, records):
        self.heard.append((path.name, of.name, "content"))

    def same_weights(self, path, of, records):
        self.heard.append((path.name, of.name, "weights"))


def maker(model: nn.Module | None = None):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    task = Task(model or network(0), nn.CrossEntropyLoss(), [(x, y)], name="net")
    return lambda checkpoint: task


def analyzed(paths, out: Path, make=None, settings: Settings = QUICK, **options):
    ear = Ear()
    outcome = analyze_run(paths, make or maker(), settings, out=out, listener=ear, **options)
    return outcome, ear.heard


@pytest.fixture
def run(tmp_path):
    """What Lightning leaves where two callbacks save into one folder."""
    for epoch in (0, 1):
        for suffix in ("", "-v1"):
            lightning(tmp_path / "run" / f"epoch={epoch}-step={4 + 4 * epoch}{suffix}.ckpt", epoch, epoch)
    lightning(tmp_path / "run" / "last.ckpt", 1, 1, hparams={"lr": 0.1})
    return tmp_path / "run"


def test_copies_by_lightning_are_one_checkpoint(run, tmp_path):
    out = tmp_path / "run.h5"
    outcome, heard = analyzed(order_checkpoints(find_checkpoints([run])), out)
    assert heard == [
        ("epoch=0-step=4-v1.ckpt", "epoch=0-step=4.ckpt", "weights"),
        ("epoch=1-step=8-v1.ckpt", "epoch=1-step=8.ckpt", "weights"),
        ("last.ckpt", "epoch=1-step=8.ckpt", "weights"),
    ]
    assert (len(outcome.new), outcome.kept) == (2, 3)
    records = list(load_trajectory(out))
    assert [Path(record.checkpoint).name for record in records] == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]
    assert [record.own_tensors for record in records] == [None, None]
    again, heard = analyzed(order_checkpoints(find_checkpoints([run])), out)
    assert (again.new, again.kept, len(heard)) == (frozenset(), 5, 3)


def test_a_copy_is_known_by_the_file_of_an_earlier_call(run, tmp_path):
    out = tmp_path / "run.h5"
    analyzed([run / "epoch=1-step=8.ckpt"], out)
    outcome, heard = analyzed([run / "last.ckpt"], out)
    assert (outcome.new, outcome.kept, heard) == (frozenset(), 1, [])
    assert len(load_trajectory(out)) == 1


def test_the_file_of_an_earlier_version_goes_on_without_a_product(run, tmp_path, monkeypatch):
    """It has no hashes of weights, and records of the copies too: all of them are kept."""
    from spectra.analysis import run as module
    from spectra.results.identity import Place

    out = tmp_path / "run.h5"
    paths = order_checkpoints(find_checkpoints([run]))
    with monkeypatch.context() as patch:
        patch.setattr(module, "weights_sha256", lambda model: None)
        patch.setattr(module.Seen, "weights", lambda self, place, model, one_task: None)
        analyzed(paths, out)
    assert len(load_trajectory(out)) == 5
    assert Place().weights is None
    monkeypatch.setattr(module, "records_of", lambda run, *a, skip, **k: iter(set(run.settings.pairs()) - {*skip}))
    outcome, heard = analyzed(paths, out)
    assert (outcome.new, outcome.kept, len(heard)) == (frozenset(), 5, 3)
    assert len(load_trajectory(out)) == 5


def test_the_same_weights_in_another_container_are_the_same(tmp_path):
    first = lightning(tmp_path / "a.ckpt", 3, 2)
    state = network(3).state_dict()
    paths = [first]
    for name, content, options in (
        ("bare.pt", state, {}),
        ("legacy.pt", state, {"_use_new_zipfile_serialization": False}),
        ("reversed.pt", dict(reversed(state.items())), {}),
        ("wrapped.pt", {"model": {f"module.{key}": value for key, value in state.items()}}, {}),
    ):
        torch.save(content, tmp_path / name, **options)
        paths.append(tmp_path / name)
    outcome, heard = analyzed(paths, tmp_path / "run.h5")
    assert len(outcome.new) == 1
    assert [(path, what) for path, _, what in heard] == [(path.name, "weights") for path in paths[1:]]


@pytest.mark.parametrize("change", ["value", "statistic", "dtype"])
def test_weights_that_differ_in_anything_are_not_the_same(tmp_path, change):
    state = network(3).state_dict()
    torch.save(state, tmp_path / "a.pt")
    if change == "dtype":
        state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    else:
        key = "0.weight" if change == "value" else "1.running_mean"
        state[key] = state[key].clone()
        state[key].view(-1)[0] += 2**-20
    torch.save(state, tmp_path / "b.pt")
    outs = [tmp_path / "a.h5", tmp_path / ("b.h5" if change == "dtype" else "a.h5")]
    for name, out in zip("ab", outs):
        analyzed([tmp_path / f"{name}.pt"], out)
    records = [record for out in sorted(set(outs)) for record in load_trajectory(out)]
    assert len({record.weights_sha256 for record in records}) == 2


def test_the_same_weights_at_two_moments_of_training_are_two_checkpoints(tmp_path):
    """A learning rate of 0 leaves the weights alone; the trajectory still has both epochs."""
    paths = [lightning(tmp_path / f"epoch={epoch}.ckpt", 3, epoch) for epoch in (0, 1)]
    outcome, heard = analyzed(paths, tmp_path / "run.h5")
    assert (len(outcome.new), heard) == (2, [])
    again, heard = analyzed(paths, tmp_path / "run.h5")
    assert (again.kept, heard) == (2, [])


def test_the_same_weights_in_another_network_are_another_checkpoint(tmp_path):
    """A task that is made for each checkpoint may make another network of them."""
    paths = [lightning(tmp_path / f"{name}.ckpt", 3, 0, args={"act": name}) for name in ("Tanh", "ReLU")]
    data = maker()(None).data

    def make(checkpoint):
        act = getattr(nn, checkpoint.metadata["args"]["act"])
        return Task(network(0, act), nn.CrossEntropyLoss(), data, name="net")

    outcome, heard = analyzed(paths, tmp_path / "run.h5", make)
    assert (len(outcome.new), heard) == (2, [])


def test_copies_are_known_for_a_task_that_is_made_for_each_checkpoint_where_they_say_the_same_moment(tmp_path):
    paths = [lightning(tmp_path / f"{name}.ckpt", 3, 0) for name in ("epoch=0", "epoch=0-v1")]
    for name in ("bare_a.pt", "bare_b.pt"):
        torch.save(network(4).state_dict(), tmp_path / name)
    bare = [tmp_path / "bare_a.pt", tmp_path / "bare_b.pt"]
    data = maker()(None).data
    outcome, heard = analyzed(
        [*paths, *bare],
        tmp_path / "run.h5",
        lambda checkpoint: Task(network(0), nn.CrossEntropyLoss(), data, name="net"),
    )
    assert (len(outcome.new), heard) == (3, [("epoch=0-v1.ckpt", "epoch=0.ckpt", "weights")])


def test_what_follows_a_copy_is_compared_with_what_was_copied(tmp_path):
    """The overlap of eigenvectors: with the record before, whatever was passed over in between."""
    settings = Settings(lanczos_steps=3, num_probes=2, metrics="none", check=False, eigenpairs=1)
    first = lightning(tmp_path / "epoch=0.ckpt", 0, 0)
    copies = [lightning(tmp_path / "epoch=0-v1.ckpt", 0, 0), tmp_path / "same.ckpt"]
    copies[1].write_bytes(first.read_bytes())
    last = lightning(tmp_path / "epoch=1.ckpt", 1, 1)
    outs = [tmp_path / "with.h5", tmp_path / "without.h5"]
    analyzed([first, *copies, last], outs[0], settings=settings)
    analyzed([first, last], outs[1], settings=settings)
    overlaps = [list(load_trajectory(out))[-1].overlap for out in outs]
    assert overlaps[0].before == overlaps[1].before == str(first)
    assert (overlaps[0].matrix == overlaps[1].matrix).all()


def test_parts_with_a_copy_each_are_merged_into_one_record(run, tmp_path):
    parts = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, out in zip(("epoch=0-step=4.ckpt", "epoch=0-step=4-v1.ckpt"), parts):
        analyzed([run / path], out)
    done = merge(parts, tmp_path / "run.h5")
    assert (done.records, done.equal) == (1, 1)
    assert [Path(record.checkpoint).name for record in load_trajectory(tmp_path / "run.h5")] == ["epoch=0-step=4.ckpt"]
