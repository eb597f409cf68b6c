"""A record that was interrupted goes on from where its probes were, to the numbers of an uninterrupted one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contents import contents
from torch import nn

import spectra.analysis.analyze
import spectra.krylov.slq
from spectra import Task, load_trajectory, save_checkpoint
from spectra.analysis.resume import Unfinished
from spectra.analysis.run import Listener, analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import NumericsError
from spectra.operators.curvature import CurvatureOperator
from spectra.results.storage.partial import PartialFile
from spectra.results.storage.vectors import VectorFile

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


# -- in the middle of a group


@pytest.fixture
def at_each_step(monkeypatch):
    """How far the probes are is kept after each of their steps."""
    monkeypatch.setattr("spectra.analysis.resume.INTERVAL", 0.0)


@pytest.fixture
def products(monkeypatch):
    """How many vectors were multiplied in each pass over the data, of probes alone."""
    passes = []
    real = CurvatureOperator._pass

    def counted(self, block, seen):
        passes.append(len(block))
        return real(self, block, seen)

    monkeypatch.setattr(CurvatureOperator, "_pass", counted)
    return passes


MIDST = {
    "one probe at a time": asked(width=1),
    "two at a time": asked(),
    "an odd last group": asked(width=3),
    "two operators": asked(operators=("hessian", "ggn")),
    "in train mode": asked(bn_modes="train"),
    "in the test data": asked(test_data=True, width=4),
    "in float64": asked(dtype="float64"),
    "recurrences that end early": asked(lanczos_steps=100, params="3.bias", num_probes=3),
}


@pytest.mark.parametrize("case", list(MIDST))
def test_a_record_that_is_interrupted_after_every_step_loses_none(
    case, paths, out, monkeypatch, at_each_step, products
):
    settings, whole = MIDST[case], out.parents[1] / "whole.h5"
    analyze_run(paths[:1], make_task, settings, out=whole)
    expected = sum(products)
    products.clear()
    interruptions = 0
    while not out.exists() or len(load_trajectory(out)) < len(settings.pairs()):
        try:
            interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, settings, out=out))
            interruptions += 1
        except pytest.fail.Exception:  # it was not interrupted any more
            break
    assert interruptions >= 5
    assert sum(products) == expected
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


def test_it_is_said_how_many_probes_are_in_their_midst(paths, out, monkeypatch, at_each_step):
    interrupt(monkeypatch, STEPS + 3, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    ear = Notes()
    analyze_run(paths[:1], make_task, asked(), out=out, listener=ear)
    assert ear.said == [f"{out}.partial: 2 probes of an unfinished record are there already, and 2 in their midst"]


def test_the_clock_says_when_they_are_kept(paths, out, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("spectra.analysis.resume.time.perf_counter", lambda: now[0])
    real = spectra.krylov.slq.tridiagonalize

    def slow(operator, starts, *arguments, tick, **options):
        def ticking(products):
            now[0] += 11.0
            tick(products)

        return real(operator, starts, *arguments, tick=ticking, **options)

    monkeypatch.setattr("spectra.krylov.slq.tridiagonalize", slow)
    written = []

    def write(self, partial):
        written.append((now[0], partial.under_way is not None, len(partial.parts)))

    monkeypatch.setattr(PartialFile, "write", write)
    analyze_run(paths[:1], make_task, asked(lanczos_steps=8, width=4), out=out)
    assert written == [(33.0, True, 0), (66.0, True, 0), (88.0, False, 1)]


def test_vectors_are_added_and_not_written_again(paths, out, monkeypatch, at_each_step):
    sizes = []
    real = VectorFile.extend

    def extend(self, rows):
        sizes.append(sum(part.nbytes for part in rows))
        return real(self, rows)

    monkeypatch.setattr(VectorFile, "extend", extend)
    analyze_run(paths[:1], make_task, asked(width=4, lanczos_steps=5), out=out)
    vector = 4 * 4 * sum(p.numel() for p in network().parameters())
    assert sizes == [2 * vector, vector, vector, vector, 0]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_vectors_are_told_and_the_finished_probes_are_used(
    damage, paths, out, monkeypatch, at_each_step, computed
):
    whole = out.parents[1] / "whole.h5"
    analyze_run(paths[:1], make_task, asked(), out=whole)
    interrupt(monkeypatch, STEPS + 3, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    vectors = out.with_name("run.h5.basis")
    if damage == "flipped":
        flip(vectors)
    elif damage == "cut":
        vectors.write_bytes(vectors.read_bytes()[:-1])
    else:
        vectors.unlink()
    ear = Notes()
    computed.clear()
    analyze_run(paths[:1], make_task, asked(), out=out, listener=ear)
    assert f"{out}.basis: " in ear.said[1]
    assert ear.said[1].endswith("; it is not used")
    assert computed == [2]
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


def test_what_a_killed_write_left_behind_the_vectors_is_not_used(paths, out, monkeypatch, at_each_step):
    whole = out.parents[1] / "whole.h5"
    analyze_run(paths[:1], make_task, asked(), out=whole)
    interrupt(monkeypatch, 2, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    with out.with_name("run.h5.basis").open("ab") as file:
        file.write(b"half a vector")
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    analyze_run(paths[:1], make_task, asked(), out=out)
    assert contents(out) == contents(whole)


def test_vectors_that_would_take_too_much_are_not_kept_and_it_is_said(paths, out, monkeypatch, at_each_step):
    vector = 4 * sum(p.numel() for p in network().parameters())
    monkeypatch.setattr("spectra.analysis.resume.LARGEST", 5 * vector)
    kept = []
    real = PartialFile.write
    monkeypatch.setattr(PartialFile, "write", lambda self, partial: kept.append(partial) or real(self, partial))
    ear = Notes()
    analyze_run(paths[:1], make_task, asked(lanczos_steps=6, num_probes=2), out=out, listener=ear)
    assert [partial.under_way is not None for partial in kept] == [True, False]  # two vectors of each, then the group
    assert len(ear.said) == 1
    assert "run.h5.basis: would take more than " in ear.said[0]
    assert "probes are kept when they are finished" in ear.said[0]


def test_probes_in_their_midst_are_of_their_width_weights_and_settings(paths, out, monkeypatch, at_each_step, computed):
    interrupt(monkeypatch, 2, lambda: analyze_run(paths[:1], make_task, asked(), out=out))
    left = out.with_name("run.h5.partial").read_bytes(), out.with_name("run.h5.basis").read_bytes()
    for checkpoints, settings in ((paths[:1], asked(width=1)), (paths[1:], asked()), (paths[:1], asked(seed=1))):
        whole = out.parents[1] / "whole.h5"
        whole.unlink(missing_ok=True)
        analyze_run(checkpoints, make_task, settings, out=whole)
        out.unlink(missing_ok=True)
        out.with_name("run.h5.partial").write_bytes(left[0])
        out.with_name("run.h5.basis").write_bytes(left[1])
        analyze_run(checkpoints, make_task, settings, out=out)
        assert contents(out) == contents(whole)
        assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


def test_probes_in_their_midst_of_a_later_record_outlive_one_that_fails_again(paths, out, monkeypatch, at_each_step):
    """The first checkpoint fails before its first step, each time it is tried."""
    weights = torch.load(paths[0])["model"]["0.weight"]
    real = spectra.krylov.slq.tridiagonalize

    def failing(operator, *arguments, **options):
        if torch.equal(operator.task.model[0].weight.detach(), weights):
            raise NumericsError("a product holds NaN")
        return real(operator, *arguments, **options)

    monkeypatch.setattr("spectra.krylov.slq.tridiagonalize", failing)
    interrupt(monkeypatch, 2, lambda: analyze_run(paths, make_task, asked(), out=out))
    ear = Notes()
    analyze_run(paths, make_task, asked(), out=out, listener=ear)
    assert "0 probes of an unfinished record are there already, and 2 in their midst" in ear.said[1]
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


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
    monkeypatch.setattr(spectra.analysis.analyze, "lockstep_width", lambda *_: 1)
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(width=None), out=out))
    monkeypatch.setattr(spectra.analysis.analyze, "lockstep_width", lambda *_: 4)
    analyze_run(paths[:1], make_task, asked(width=None), out=out)
    assert computed == [1] * PROBES
    assert load_trajectory(out)[0].settings["width"] == 1


@pytest.mark.parametrize(("fits", "width"), [(1, 2), (2, 4)])
def test_a_width_that_does_not_fit_any_more_is_not(fits, width, paths, out, monkeypatch, computed):
    monkeypatch.setattr(spectra.analysis.analyze, "lockstep_width", lambda *_: width)
    asking = asked(width=None, num_probes=6)
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asking, out=out))
    # Half of what is free is what a width is chosen for: twice the width fits, and more does not.
    monkeypatch.setattr(spectra.analysis.analyze, "lockstep_width", lambda *_: fits - (width == 4))
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
    assert "computing with 1 threads, like the records in the file" in ear.said


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
    assert "the records in the file were computed with 2 threads; here are 1 cores" in ear.said
    assert [record.provenance["threads"] for record in load_trajectory(out)] == [2, 1]


def test_what_is_left_is_told_as_unusable_when_it_is_not_hdf5(tmp_path):
    said = []
    (tmp_path / "run.h5.partial").write_text("notes")
    assert Unfinished(tmp_path / "run.h5", said.append).left is None
    assert len(said) == 1
    assert "is not an HDF5 file" in said[0]
