"""A record that was interrupted goes on from where its probes were, to the numbers of an uninterrupted one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from contents import contents
from unfinished_runs import PROBES, STEPS, Notes, asked, interrupt, make_task, network

import spectra.analysis.measuring
import spectra.krylov.slq
from spectra import load_trajectory
from spectra.analysis.resume import Unfinished
from spectra.analysis.run import analyze_run
from spectra.errors import NumericsError
from spectra.operators.curvature import CurvatureOperator
from spectra.results.storage.partial import PartialFile
from spectra.results.storage.vectors import VectorFile

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


# -- eigenpairs


def network_size():
    return sum(p.numel() for p in network().parameters())


@pytest.fixture
def searches(monkeypatch):
    """The number of eigenpairs of each search."""
    asked_for = []
    real = spectra.analysis.measuring.eigsh

    def eigsh(operator, k, *arguments, **options):
        asked_for.append(k)
        return real(operator, k, *arguments, **options)

    monkeypatch.setattr("spectra.analysis.measuring.eigsh", eigsh)
    return asked_for


@pytest.mark.parametrize(
    ("settings", "after", "parts"), [({}, 1, 1), ({"test_data": True}, 1, 1), ({"test_data": True}, 3, 2)]
)
def test_eigenpairs_are_searched_once(settings, after, parts, paths, out, monkeypatch, searches):
    settings = asked(eigenpairs=2, save_eigenvectors=True, **settings)
    whole = out.parents[1] / "whole.h5"
    analyze_run(paths[:1], make_task, settings, out=whole)
    total = list(searches)
    searches.clear()
    interrupt(monkeypatch, after, lambda: analyze_run(paths[:1], make_task, settings, out=out))
    assert len(searches) == parts
    ear = Notes()
    analyze_run(paths[:1], make_task, settings, out=out, listener=ear)
    assert searches == total
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]
    assert f"{out}.pairs: 2 eigenpairs of an unfinished record are there already" in ear.said


@pytest.mark.parametrize("change", [{"seed": 1}, {"eigenpairs": 3}, {"dtype": "float64"}])
def test_eigenpairs_of_another_record_are_not_used(change, paths, out, monkeypatch, searches):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(eigenpairs=2), out=out))
    searches.clear()
    analyze_run(paths[:1], make_task, asked(**{"eigenpairs": 2} | change), out=out)
    assert searches == [change.get("eigenpairs", 2)]


@pytest.mark.parametrize("vectors", [np.ones((3, 2)), np.full((network_size(), 2), np.nan), np.ones(network_size())])
def test_eigenpairs_of_a_forged_file_are_searched_again(vectors, paths, out, monkeypatch, searches):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(eigenpairs=2), out=out))
    file = PartialFile(out, "pairs")
    left = file.read()
    file.write(dataclasses.replace(left, parts=[[left.parts[0][0] | {"vectors": vectors}]]))
    ear = Notes()
    analyze_run(paths[:1], make_task, asked(eigenpairs=2), out=out, listener=ear)
    assert searches == [2, 2]
    assert any("run.h5.pairs: is damaged: " in words for words in ear.said)


def test_damaged_eigenpairs_are_searched_again(paths, out, monkeypatch, searches):
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(eigenpairs=2), out=out))
    file = out.with_name("run.h5.pairs")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    ear = Notes()
    analyze_run(paths[:1], make_task, asked(eigenpairs=2), out=out, listener=ear)
    assert searches == [2, 2]
    assert any("run.h5.pairs" in words and "it is not used" in words for words in ear.said)
    assert not file.exists()


def test_eigenpairs_too_large_to_keep_are_searched_again(paths, out, monkeypatch, searches):
    monkeypatch.setattr("spectra.analysis.kept_pairs.LARGEST", 10)
    interrupt(monkeypatch, 1, lambda: analyze_run(paths[:1], make_task, asked(eigenpairs=2), out=out))
    assert not out.with_name("run.h5.pairs").exists()
    analyze_run(paths[:1], make_task, asked(eigenpairs=2), out=out)
    assert searches == [2, 2]


# -- in the middle of a group


@pytest.fixture
def at_each_step(monkeypatch):
    """How far the probes are is kept after each of their steps."""
    monkeypatch.setattr("spectra.analysis.resume.INTERVAL", 0.0)


@pytest.fixture
def products(monkeypatch):
    """How many vectors were multiplied in each pass over the data, of probes alone."""
    passes = []
    real = CurvatureOperator.apply_to_blocks

    def counted(self, jobs, seen=None):
        passes.append(sum(len(block) for _, block in jobs))
        return real(self, jobs, seen)

    monkeypatch.setattr(CurvatureOperator, "apply_to_blocks", counted)
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


def test_what_a_killed_write_left_after_the_vectors_is_not_used(paths, out, monkeypatch, at_each_step):
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


def test_what_is_left_is_told_as_unusable_when_it_is_not_hdf5(tmp_path):
    said = []
    (tmp_path / "run.h5.partial").write_text("notes")
    assert Unfinished(tmp_path / "run.h5", said.append).left is None
    assert len(said) == 1
    assert "is not an HDF5 file" in said[0]


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
    """A kill between the two: the record is in the file, and the file of its probes still exists."""

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


def test_a_run_that_is_interrupted_in_the_blocks_takes_up_the_probes_and_computes_the_blocks_again(
    paths, out, monkeypatch, computed
):
    settings, whole = asked(blocks="layer"), out.parents[1] / "whole.h5"
    analyze_run(paths[:1], make_task, settings, out=whole)
    total = sum(computed)
    computed.clear()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("spectra.analysis.block_analysis.block_slq", interrupted)
        with pytest.raises(KeyboardInterrupt):
            analyze_run(paths[:1], make_task, settings, out=out)
    analyze_run(paths[:1], make_task, settings, out=out)
    assert sum(computed) == total  # none of the probes twice
    resumed, uninterrupted = contents(out), contents(whole)
    assert resumed == uninterrupted
    (record,) = load_trajectory(out)
    assert len(record.blocks) > 1
