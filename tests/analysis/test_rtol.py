"""An analysis to a relative error: what a record says, exact traces, test data, and runs that are stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from choices import crossed
from torch import nn
from unfinished_runs import Notes, interrupt, make_task

from spectra import Task, Tracker, analyze, load_trajectory, save_checkpoint
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import ArgumentError
from spectra.spectrum.probe_planning import MOST, PILOT, relative_half_width


def task_with(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3))
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    return Task(model, nn.CrossEntropyLoss(), [(x, y)], test_data=[(x[:20] + 0.1, y[:20])])


def bits(spectrum):
    return b"".join(np.concatenate([t.alphas, t.betas]).tobytes() for t in spectrum.tridiagonals)


def test_the_record_is_an_ordinary_one_of_as_many_probes_and_steps():
    task = task_with(nn.Tanh())
    (record,) = analyze(task, rtol={"frobenius_norm": 0.1, "lambda_max": 0.01}, metrics="none")
    k, m = record.spectrum.num_probes, record.spectrum.lanczos_steps
    assert record.status == "complete"
    assert (record.settings["num_probes"], record.settings["lanczos_steps"]) == (k, m)
    assert record.settings["rtol"] == {"frobenius_norm": 0.1, "lambda_max": 0.01}
    assert record.provenance["products"] >= k * m
    for name, rtol in record.settings["rtol"].items():
        assert relative_half_width(record.estimates[name]) <= rtol
        assert any(note.startswith(f"rtol: {name} is within ") for note in record.notes)
    (plain,) = analyze(task, num_probes=k, lanczos_steps=m, metrics="none")
    assert bits(plain.spectrum) == bits(record.spectrum)
    assert plain.to_json()["estimates"] == record.to_json()["estimates"]
    assert "rtol" not in plain.settings


def test_an_exact_trace_needs_no_probe_beyond_the_pilot():
    (record,) = analyze(task_with(nn.ReLU()), rtol={"trace": 1e-6, "mean_eigenvalue": 1e-6}, metrics="none")
    assert record.spectrum.num_probes == PILOT
    assert record.provenance["products"] < 10 * PILOT
    assert record.headlines["trace"].exact
    assert record.exact.method.startswith("exact")
    assert not any(check.failed for check in record.checks)
    assert record.notes.count("rtol: trace is exact, no probe was needed for it") == 1


def test_probes_are_for_the_other_numbers_where_the_trace_is_exact():
    (record,) = analyze(task_with(nn.ReLU()), rtol={"trace": 1e-6, "frobenius_norm": 0.1}, metrics="none")
    assert record.headlines["trace"].exact
    assert relative_half_width(record.estimates["frobenius_norm"]) <= 0.1
    assert record.spectrum.num_probes < MOST


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        (nn.Tanh(), {}),  # the exact trace is not the Hessian's
        pytest.param(nn.ReLU(), {"check": False}, marks=pytest.mark.slow),
        (nn.ReLU(), {"operators": "empirical_fisher"}),
    ],
)
def test_without_an_exact_trace_the_probes_are_as_many_as_needed(activation, options):
    aims = {"rtol": {"trace": 0.1}, "metrics": "none"}
    (record,) = analyze(task_with(activation), **aims, **options)
    assert relative_half_width(record.estimates["trace"]) <= 0.1
    (limited,) = analyze(task_with(activation), **{**aims, "rtol": {"trace": 1e-4}}, lanczos_steps=3, **options)
    assert limited.spectrum.num_probes == MOST
    assert any("the aim of 0.0001 is not met; about " in note for note in limited.notes)


def test_a_given_number_of_probes_is_the_limit():
    options = {"metrics": "none", "check": False, "lanczos_steps": 3}
    (record,) = analyze(task_with(nn.Tanh()), rtol={"trace": 1e-4}, num_probes=6, **options)
    assert record.spectrum.num_probes == record.settings["num_probes"] == 6


def test_the_test_data_are_measured_with_the_same_probes_and_steps():
    (record,) = analyze(task_with(nn.Tanh()), rtol={"frobenius_norm": 0.1}, metrics="none", test_data=True)
    test = record.test_spectrum
    assert (test.num_probes, test.lanczos_steps) == (record.spectrum.num_probes, record.spectrum.lanczos_steps)


def test_eigenpairs_and_a_plan_go_together():
    (record,) = analyze(task_with(nn.Tanh()), rtol={"trace": 0.1}, metrics="none", eigenpairs=2)
    assert record.spectrum.overlaps.shape == (record.spectrum.num_probes, 2)


def test_a_tracker_plans_each_record(tmp_path):
    task = task_with(nn.Tanh())
    with Tracker(task, out=tmp_path / "run.h5", rtol={"lambda_max": 0.01}, metrics="none", check=False) as tracker:
        tracker(epoch=0)
    (record,) = tracker.trajectory
    assert relative_half_width(record.estimates["lambda_max"]) <= 0.01


@pytest.mark.parametrize(("after", "width"), crossed([2, 1, 3], [None, 2]))
def test_a_stopped_run_goes_on_with_the_same_numbers(tmp_path, monkeypatch, after, width):
    path = tmp_path / "net.pt"
    save_checkpoint(path, make_task(None).model, epoch=0)
    settings = Settings(
        rtol={"frobenius_norm": 0.15},
        lanczos_steps=4,
        num_probes=40,
        width=width,
        metrics="none",
        check=False,
        test_data=True,
    )
    whole, parts, notes = tmp_path / "whole.h5", tmp_path / "parts.h5", Notes()
    analyze_run([path], make_task, settings, out=whole)
    interrupt(monkeypatch, after, lambda: analyze_run([path], make_task, settings, out=parts))
    analyze_run([path], make_task, settings, out=parts, listener=notes)
    assert any("probes of an unfinished record are there already" in words for words in notes.said), notes.said
    (one,), (other,) = load_trajectory(whole), load_trajectory(parts)
    assert PILOT < one.spectrum.num_probes < 40
    assert bits(one.spectrum) == bits(other.spectrum)
    assert bits(one.test_spectrum) == bits(other.test_spectrum)
    assert one.spectrum.start_overlaps.tobytes() == other.spectrum.start_overlaps.tobytes()
    assert one.settings == other.settings
    assert one.notes == other.notes
    assert one.provenance["products"] == other.provenance["products"]


def test_a_file_of_other_aims_is_not_continued(tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, make_task(None).model, epoch=0)
    options = {"lanczos_steps": 3, "num_probes": 4, "metrics": "none", "check": False}
    analyze_run([path], make_task, Settings(rtol={"trace": 0.2}, **options), out=tmp_path / "run.h5")
    with pytest.raises(Exception, match="other settings: rtol is"):
        analyze_run([path], make_task, Settings(rtol={"trace": 0.1}, **options), out=tmp_path / "run.h5")


def test_the_settings_are_checked_and_can_be_compared():
    assert Settings(rtol={"trace": 0.1}) == Settings(rtol=(("trace", 0.1),))
    assert hash(Settings(rtol={"trace": 0.1}).rtol)
    with pytest.raises(ArgumentError, match="rtol: 'tr' is no estimate"):
        Settings(rtol={"tr": 0.1})
