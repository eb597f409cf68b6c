"""A record that was interrupted goes on from its last group of probes, and ends as one that was not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spectra import Task, load_trajectory, save_checkpoint
from spectra.errors import ArgumentError, StorageError
from spectra.krylov.slq import slq
from spectra.operators.dense import DenseOperator
from spectra.resuming import SameThreads, Unfinished, key_of, weights_sha256
from spectra.run import DataChoice, Listener, analyze_run
from spectra.settings import Settings
from spectra.storage.partial import PartialFile

ASKED = {"lanczos_steps": 5, "num_probes": 4, "width": 1, "check": False, "metrics": "none"}


class Interrupted(BaseException):
    """Not an error that anybody handles, as a kill is none."""


class Ear(Listener):
    """Interrupts at a product, counted over all records; keeps what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.heard, self.first = stop_at, [], {}
        self.before = 0

    def progress(self, operator, bn_mode, done, total):
        self.first.setdefault((operator, bn_mode), done)
        if self.stop_at is not None and self.before + done >= self.stop_at:
            raise Interrupted

    def record(self, record):
        self.before += sum(t.steps for t in record.spectrum.tridiagonals)

    def note(self, words):
        self.heard.append(words)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    return Task(network(), nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])], test_data=[(x[2:], y[2:])])


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net_3.pt"
    save_checkpoint(path, network(), epoch=3)
    return path


def run(checkpoint, out, ear=None, data=None, **options):
    made = task()
    return analyze_run(
        [checkpoint], lambda _: made, Settings(**(ASKED | options)), out=out, listener=ear, data=data or DataChoice()
    )


def interrupted(checkpoint, out, at, **options):
    with pytest.raises(Interrupted):
        run(checkpoint, out, Ear(at), **options)


def assert_same(one, other):
    one, other = load_trajectory(one), load_trajectory(other)
    assert one.settings == other.settings
    for a, b in zip(one, other, strict=True):
        assert (a.identity, a.facts, a.settings, a.estimates) == (b.identity, b.facts, b.settings, b.estimates)
        for s, t in ((a.spectrum, b.spectrum), (a.test_spectrum, b.test_spectrum)):
            assert (s is None) == (t is None)
            if s is not None:
                np.testing.assert_array_equal(s.nodes, t.nodes)
                np.testing.assert_array_equal(s.weights, t.weights)
                np.testing.assert_array_equal(s.tensor_forms, t.tensor_forms)
                np.testing.assert_array_equal(s.batch_forms, t.batch_forms)
                assert (s.eigenpairs is None) == (t.eigenpairs is None)
                if s.eigenpairs is not None:
                    np.testing.assert_array_equal(s.eigenpairs.values, t.eigenpairs.values)
                    np.testing.assert_array_equal(s.overlaps, t.overlaps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 3, "num_probes": 7},
        {"operators": ("hessian", "ggn"), "bn_modes": ("eval", "train")},
        {"test_data": True, "eigenpairs": 2},
        {"dtype": "float64", "distribution": "rademacher"},
    ],
    ids=["plain", "groups of three", "four records", "held-out data and eigenpairs", "float64"],
)
@pytest.mark.parametrize("at", [8, 33])
def test_an_interrupted_run_ends_with_the_numbers_of_one_that_was_not(tmp_path, checkpoint, options, at):
    run(checkpoint, tmp_path / "whole.h5", **options)
    products = sum(
        t.steps
        for record in load_trajectory(tmp_path / "whole.h5")
        for s in (record.spectrum, record.test_spectrum)
        if s is not None
        for t in s.tridiagonals
    )
    out = tmp_path / "run.h5"
    interrupted(checkpoint, out, min(at, products), **options)
    run(checkpoint, out, **options)
    assert_same(out, tmp_path / "whole.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net_3.pt", "run.h5", "whole.h5"]


def test_only_what_is_missing_is_computed(tmp_path, checkpoint):
    out = tmp_path / "run.h5"
    interrupted(checkpoint, out, 17)  # in the fourth probe of five products each
    assert len(PartialFile(out).read().parts[0]) == 3
    ear = Ear()
    run(checkpoint, out, ear)
    assert ear.heard == [f"{out}.partial: 3 probes of an unfinished record are there already"]
    assert ear.first == {("hessian", "eval"): 16}  # the first product it makes


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 1}, "settings"), ({"lanczos_steps": 4}, "settings"), ({"operators": ("ggn",)}, "operator")],
)
def test_probes_of_another_question_are_not_used_and_that_is_said(tmp_path, checkpoint, change, words):
    out = tmp_path / "run.h5"
    interrupted(checkpoint, out, 17)
    ear = Ear()
    run(checkpoint, out, ear, **change)
    assert ear.heard == [f"{out}.partial: is of another record or computation ({words}): not used"]
    run(checkpoint, tmp_path / "whole.h5", **change)
    assert_same(out, tmp_path / "whole.h5")


def test_probes_of_other_weights_under_the_same_name_are_not_used(tmp_path, checkpoint):
    out = tmp_path / "run.h5"
    interrupted(checkpoint, out, 17)
    torch.manual_seed(9)
    save_checkpoint(checkpoint, network(), epoch=3)
    ear = Ear()
    run(checkpoint, out, ear)
    assert ear.heard == [f"{out}.partial: is of another record or computation (weights): not used"]
    run(checkpoint, tmp_path / "whole.h5")
    assert_same(out, tmp_path / "whole.h5")


def test_probes_of_other_data_are_not_used(tmp_path, checkpoint):
    out = tmp_path / "run.h5"
    interrupted(checkpoint, out, 17, data=DataChoice(samples=9, data_seed=0))
    ear = Ear()
    run(checkpoint, out, ear, data=DataChoice(samples=9, data_seed=1))
    assert "not used" in ear.heard[0]


def test_a_damaged_file_of_probes_is_said_and_not_used(tmp_path, checkpoint):
    out = tmp_path / "run.h5"
    interrupted(checkpoint, out, 17)
    partial = tmp_path / "run.h5.partial"
    content = partial.read_bytes()
    partial.write_bytes(content[:500] + b"?" + content[501:])
    ear = Ear()
    run(checkpoint, out, ear)
    assert ear.heard == [f"{partial}: is damaged: its content does not match its SHA-256; it is not used"]
    run(checkpoint, tmp_path / "whole.h5")
    assert_same(out, tmp_path / "whole.h5")


def test_a_part_that_memory_chose_the_width_of_goes_on_with_that_width(tmp_path):
    model = network()
    out = tmp_path / "run.h5"
    key = key_of(model, torch.device("cpu"), {"seed": 0})
    first = Unfinished(out, print)
    assert first.begin(key, 3, fixed=False) == 3
    first.keep(0, [])
    for now, fixed, expected in ((5, False, 3), (2, False, 3), (1, False, 1), (5, True, 5)):
        assert Unfinished(out, print).begin(key, now, fixed=fixed) == expected
    assert Unfinished(out, print).threads == torch.get_num_threads()


def test_the_threads_are_those_of_what_is_there_and_are_put_back():
    before, said = torch.get_num_threads(), []
    with SameThreads(before, said.append):
        assert torch.get_num_threads() == before
    with SameThreads(None, said.append):
        assert torch.get_num_threads() == before
    assert said == []
    with pytest.raises(ZeroDivisionError), SameThreads(1 if before > 1 else 2, said.append):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with SameThreads(10_000, said.append):
        assert torch.get_num_threads() == before
    assert said[-1].startswith("what is in the file was computed with 10000 threads; here are ")


def test_the_hash_of_weights_is_of_names_types_shapes_and_bytes():
    torch.manual_seed(0)
    model = network()
    first = weights_sha256(model)
    assert weights_sha256(model) == first
    model[1].running_mean += 1e-7  # buffers, too
    second = weights_sha256(model)
    assert len({first, second, weights_sha256(model.double())}) == 3


def test_finished_probes_of_slq_are_taken_up_as_they_are():
    operator = DenseOperator(np.diag(np.linspace(-1, 3, 30)))
    kept = []
    whole = slq(operator, 6, 5, width=2, group_done=lambda finished: kept.append(list(finished)))
    assert [len(group) for group in kept] == [2, 4, 5]
    for done in kept:
        again = slq(operator, 6, 5, width=2, done=done)
        np.testing.assert_array_equal(again.nodes, whole.nodes)
    with pytest.raises(ArgumentError, match="done has 5 probes: at most num_probes=4"):
        slq(operator, 6, 4, done=kept[-1])


def test_a_disk_that_is_full_for_the_probes_is_one_line(tmp_path, checkpoint, monkeypatch):
    from spectra.storage import partial as room

    def full(*arguments, **options):
        raise StorageError("run.h5.partial: cannot be written: no space left on device")

    monkeypatch.setattr(room, "replace_file", full)
    with pytest.raises(StorageError, match="no space left"):
        run(checkpoint, tmp_path / "run.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["net_3.pt"]
