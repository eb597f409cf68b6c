"""An interrupted record is continued with the width and the threads of its finished probes."""

from __future__ import annotations

import pytest
import torch
from unfinished_runs import PROBES, Notes, asked, interrupt, make_task

import spectra.analysis.analyze
from spectra import load_trajectory
from spectra.analysis.run import analyze_run


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
