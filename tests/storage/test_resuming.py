"""A record that was interrupted goes on from its last group of probes, to the numbers of an uninterrupted one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contents import contents
from torch import nn

import spectra.analysis
import spectra.krylov.slq
from spectra import Task, load_trajectory, save_checkpoint
from spectra.errors import NumericsError
from spectra.resuming import Unfinished
from spectra.run import Listener, analyze_run
from spectra.settings import Settings
from spectra.storage.partial import PartialFile

STEPS, PROBES = 3, 4


class Notes(Listener):
    def __init__(self):
        self.said = []

    def note(self, words):
        self.said.append(words)


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def batches(seed, rows=12):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 4, generator=generator), torch.randint(3, (rows,), generator=generator)
    return [(x[:7], y[:7]), (x[7:], y[7:])]


def make_task(checkpoint):
    return Task(network(), nn.CrossEntropyLoss(), batches(0), test_data=batches(1), name="net")


def asked(**changes):
    return Settings(
        **{"lanczos_steps": STEPS, "num_probes": PROBES, "width": 2, "metrics": "none", "check": False} | changes
    )


@pytest.fixture
def home(tmp_path):
    for epoch in range(2):
        torch.manual_seed(epoch)
        save_checkpoint(tmp_path / f"net_{epoch}.pt", network(), epoch=epoch)
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def out(home):
    return home / "out" / "run.h5"


@pytest.fixture
def paths(home):
    return sorted(home.glob("net_*.pt"))


@pytest.fixture
def computed(monkeypatch):
    """The probes that are computed, by the number in their group."""
    groups = []
    real = spectra.krylov.slq.tridiagonalize

    def tridiagonalize(operator, starts, *arguments, **options):
        groups.append(len(starts))
        return real(operator, starts, *arguments, **options)

    monkeypatch.setattr("spectra.krylov.slq.tridiagonalize", tridiagonalize)
    return groups


def interrupt(monkeypatch, after, analyze):
    """Have a run interrupted when it has kept its probes so many times."""
    kept = []
    real = PartialFile.write

    def write(self, partial):
        real(self, partial)
        kept.append(1)
        if len(kept) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "write", write)
        with pytest.raises(KeyboardInterrupt):
            analyze()


CASES = {
    "one probe at a time": (asked(width=1), 3),
    "two at a time": (asked(), 1),
    "in the second checkpoint": (asked(), 3),
    "in the second record": (asked(operators=("hessian", "ggn")), 3),
    "in the second mode": (asked(bn_modes=("eval", "train")), 3),
    "with eigenpairs": (asked(eigenpairs=2, save_eigenvectors=True), 1),
    "in the test data": (asked(test_data=True), 3),
    "before the test data": (asked(test_data=True, operators=("hessian", "ggn")), 2),
    "in float64": (asked(dtype="float64", distribution="rademacher"), 1),
}


@pytest.mark.parametrize("case", list(CASES))
def test_an_interrupted_record_goes_on_to_the_same_bits_and_computes_what_is_missing(
    case, paths, out, monkeypatch, computed
):
    settings, after = CASES[case]
    paths = paths if case == "in the second checkpoint" else paths[:1]
    whole = out.parents[1] / "whole.h5"
    analyze_run(paths, make_task, settings, out=whole)
    total = sum(computed)
    computed.clear()
    interrupt(monkeypatch, after, lambda: analyze_run(paths, make_task, settings, out=out))
    assert sum(computed) == after * settings.width
    assert out.with_name("run.h5.partial").exists()
    ear = Notes()
    analyze_run(paths, make_task, settings, out=out, listener=ear)
    assert sum(computed) == total
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]
    assert any("probes of an unfinished record are there already" in words for words in ear.said)


def test_a_record_may_be_interrupted_after_each_group(paths, out, monkeypatch, computed):
    settings = asked(width=1)
    whole = out.parents[1] / "whole.h5"
    analyze_run(paths[:1], make_task, settings, out=whole)
    computed.clear()
    for _ in range(PROBES):
        interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, settings, out=out))
    analyze_run(paths[:1], make_task, settings, out=out)
    assert computed == [1] * PROBES
    assert contents(out) == contents(whole)


# -- what is not used


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_key_names_all_that_the_bits_depend_on(paths, out, monkeypatch):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    key = PartialFile(out).read().key
    versions = {"spectra", "torch", "numpy"}
    assert key.keys() == versions | {"platform", "device", "threads", "weights", "settings", "operator", "bn_mode"}


@pytest.mark.parametrize("name", ["torch", "spectra", "threads"])
def test_probes_of_another_computation_are_not_used(name, paths, out, monkeypatch, computed):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    file = PartialFile(out)
    left = file.read()
    assert name in left.key
    file.write(dataclasses.replace(left, key={**left.key, name: "another"}))
    computed.clear()
    ear = Notes()
    analyze_run(paths[:1], make_task, asked(), out=out, listener=ear)
    assert computed == [2, 2]
    assert [words for words in ear.said if f"run.h5.partial: is not of the next record ({name})" in words]
    assert not file.path.exists()


def test_probes_of_another_checkpoint_or_question_are_not_used(paths, out, monkeypatch, computed):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    computed.clear()
    ear = Notes()
    analyze_run(paths[1:], make_task, asked(seed=3), out=out, listener=ear)
    assert computed == [2, 2]
    assert "(settings, weights)" in ear.said[0]


def test_damaged_probes_are_told_and_not_used(paths, out, monkeypatch, computed):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    flip(out.with_name("run.h5.partial"))
    computed.clear()
    ear = Notes()
    analyze_run(paths[:1], make_task, asked(), out=out, listener=ear)
    assert computed == [2, 2]
    assert "is damaged: its content does not match its SHA-256; it is not used" in ear.said[0]


# -- what must not be lost


def test_a_failure_of_an_earlier_checkpoint_does_not_lose_the_probes_of_a_later_one(paths, out, monkeypatch, computed):
    bad = paths[0].with_name("bad.pt")
    bad.write_bytes(b"\x80")
    run = [bad, *paths]
    interrupt(monkeypatch, 3, lambda: analyze_run(run, make_task, asked(), out=out))  # in the second good one
    computed.clear()

    class Stopping(Notes):
        def checkpoint(self, index, total, path):
            if path == paths[1]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze_run(run, make_task, asked(), out=out, listener=Stopping())
    analyze_run(run, make_task, asked(), out=out)
    assert computed == [2]


def test_a_record_that_fails_again_on_its_way_leaves_the_probes_of_a_later_one(paths, out, monkeypatch, computed):
    """The first checkpoint fails in its second group, each time it is tried."""
    weights = torch.load(paths[0])["model"]["0.weight"]
    counting = spectra.krylov.slq.tridiagonalize

    def failing(operator, starts, *arguments, **options):
        if torch.equal(operator.task.model[0].weight.detach(), weights) and len(computed) % 2:
            raise NumericsError("a product holds NaN")
        return counting(operator, starts, *arguments, **options)

    monkeypatch.setattr("spectra.krylov.slq.tridiagonalize", failing)
    interrupt(monkeypatch, 2, lambda: analyze_run(paths, make_task, asked(), out=out))
    assert computed == [2, 2]  # one group of each
    ear = Notes()
    outcome = analyze_run(paths, make_task, asked(), out=out, listener=ear)
    assert computed == [2, 2, 2, 2]  # the first again, and what was missing of the second
    assert [record.status for record in outcome.records] == ["failed", "complete"]
    assert "is not of the next record (weights): not used for it" in ear.said[0]
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


def test_probes_of_a_record_that_is_stored_already_are_not_kept_any_longer(paths, out, monkeypatch):
    """A kill between the two: the record is in the file, and its probes are still beside it."""

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            analyze_run(paths, make_task, asked(), out=out)
    assert len(load_trajectory(out)) == 1
    stale = PartialFile(out).read().key
    written = []
    real = PartialFile.write

    def write(self, partial):
        written.append(partial.key)
        real(self, partial)

    monkeypatch.setattr(PartialFile, "write", write)
    analyze_run(paths, make_task, asked(), out=out)
    assert len(written) == PROBES // 2
    assert stale not in written
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


def test_probes_of_a_record_that_is_not_asked_for_any_more_are_removed_at_the_end(paths, out, monkeypatch):
    interrupt(monkeypatch, 3, lambda: analyze_run(paths, make_task, asked(), out=out))
    analyze_run(paths[:1], make_task, asked(), out=out)
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


# -- in the same way


def test_the_width_of_the_probes_that_are_there_is_used_again(paths, out, monkeypatch, computed):
    """Where memory has become free, so that a wider group would fit."""
    monkeypatch.setattr(spectra.analysis, "lockstep_width", lambda *_: 1)
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(width=None), out=out))
    monkeypatch.setattr(spectra.analysis, "lockstep_width", lambda *_: 4)
    analyze_run(paths[:1], make_task, asked(width=None), out=out)
    assert computed == [1] * PROBES
    assert load_trajectory(out)[0].settings["width"] == 1


@pytest.mark.parametrize(("fits", "width"), [(1, 2), (2, 4)])
def test_a_width_that_does_not_fit_any_more_is_not(fits, width, paths, out, monkeypatch, computed):
    monkeypatch.setattr(spectra.analysis, "lockstep_width", lambda *_: width)
    asking = asked(width=None, num_probes=6)
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asking, out=out))
    # Half of what is free is what a width is chosen for: twice the width fits, and more does not.
    monkeypatch.setattr(spectra.analysis, "lockstep_width", lambda *_: fits - (width == 4))
    analyze_run(paths[:1], make_task, asking, out=out)
    assert computed[1:] == ([2, 2] if width == 2 else [1, 1])


def test_another_width_that_is_asked_for_is_taken_and_the_probes_are_kept(paths, out, monkeypatch, computed):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(width=2), out=out))
    analyze_run(paths[:1], make_task, asked(width=1), out=out)
    assert computed == [2, 1, 1]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stop", [1, 3])  # in the first record, and in the second
def test_the_threads_of_what_is_there_are_used_again_and_set_back(stop, paths, out, monkeypatch, two_threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    torch.set_num_threads(1)
    interrupt(monkeypatch, stop, lambda: analyze_run(paths, make_task, asked(), out=out))
    torch.set_num_threads(2)
    ear = Notes()
    analyze_run(paths, make_task, asked(), out=out, listener=ear)
    assert [record.provenance["threads"] for record in load_trajectory(out)] == [1, 1]
    assert torch.get_num_threads() == 2
    assert "computing with 1 threads, as what is in the file" in ear.said


def test_the_threads_of_another_machine_are_not_taken(paths, out, monkeypatch, two_threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    torch.set_num_threads(1)
    with monkeypatch.context() as patch:
        patch.setattr("platform.node", lambda: "elsewhere")
        interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    torch.set_num_threads(2)
    ear = Notes()
    analyze_run(paths[:1], make_task, asked(), out=out, listener=ear)
    assert load_trajectory(out)[0].provenance["threads"] == 2
    assert [words for words in ear.said if "is not of the next record (platform, threads)" in words]


def test_the_threads_are_set_back_after_an_error(paths, out, two_threads):
    torch.set_num_threads(1)
    analyze_run(paths[:1], make_task, asked(), out=out)
    torch.set_num_threads(2)
    paths[1].write_bytes(b"")
    with pytest.raises(Exception, match="empty file"):
        analyze_run(paths[1:], make_task, asked(), out=out)
    assert torch.get_num_threads() == 2


def test_more_threads_than_there_are_cores_are_not_used_and_told(paths, out, monkeypatch, two_threads):
    torch.set_num_threads(2)
    analyze_run(paths[:1], make_task, asked(), out=out)
    torch.set_num_threads(1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    ear = Notes()
    analyze_run(paths, make_task, asked(), out=out, listener=ear)
    assert "what is in the file was computed with 2 threads; here are 1 cores" in ear.said
    assert [record.provenance["threads"] for record in load_trajectory(out)] == [2, 1]


def test_what_is_left_is_told_as_unusable_when_it_is_not_hdf5(tmp_path):
    said = []
    (tmp_path / "run.h5.partial").write_text("notes")
    assert Unfinished(tmp_path / "run.h5", said.append).left is None
    assert len(said) == 1
    assert "is not an HDF5 file" in said[0]
