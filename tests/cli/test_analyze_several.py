"""`spectra analyze` of several checkpoints, and into a file that is there already."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from analyze_command import QUICK, analysed, content_of, refused, spectra

from spectra import load_trajectory


def test_a_file_is_continued_with_other_operators_and_checkpoints(here):
    analysed("net_0.pt", *QUICK)
    result = analysed("net_0.pt", "net_1.pt", *QUICK, "--operator", "hessian", "--operator", "ggn")
    assert "3 records added, 1 kept as they were" in result.stdout
    assert "[1/4] net_0.pt (1/2): hessian, BN eval: in the file already" in result.stderr
    assert len(load_trajectory("run.h5")) == 4
    before = Path("run.h5").read_bytes()
    result = analysed("net_0.pt", *QUICK, "--json")
    assert len(json.loads(result.stdout)) == 4  # all that is there
    assert Path("run.h5").read_bytes() == before


def test_checkpoints_are_put_in_the_order_of_training(here):
    analysed("net_2.pt", "net_0.pt", "net_1.pt", *QUICK)
    assert [record.checkpoint for record in load_trajectory("run.h5")] == ["net_0.pt", "net_1.pt", "net_2.pt"]
    Path("other").mkdir()
    for epoch in (2, 10):
        shutil.copy("net_0.pt" if epoch == 2 else "net_1.pt", f"other/net_{epoch}.pt")
    analysed("other", *QUICK, "--out", "other.h5")
    assert [record.epoch for record in load_trajectory("other.h5")] == [2, 10]


def test_failures_among_several_are_told_recorded_and_the_exit_code(here):
    result = spectra("analyze", "truncated.pt", "net_0.pt", "nan.pt", "net_1.pt", *QUICK)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "spectra: error: 2 of 4 records failed; the reasons are in run.h5"
    assert result.stderr.count("spectra: error:") == 1
    assert "truncated or damaged" in result.stdout
    assert "NaN or infinite weights" in result.stdout
    states = {record.checkpoint: record.status for record in load_trajectory("run.h5")}
    assert states == {"truncated.pt": "failed", "net_0.pt": "complete", "nan.pt": "failed", "net_1.pt": "complete"}
    printed = spectra("analyze", "truncated.pt", "net_2.pt", *QUICK, "--json")
    entries = json.loads(printed.stdout)
    assert [(entry["checkpoint"], entry["status"]) for entry in entries] == [
        ("net_2.pt", "complete"),
        ("truncated.pt", "failed"),
    ]
    assert entries[1]["loss"] is None
    assert "damaged" in entries[1]["reason"]


def test_when_all_of_several_fail_there_is_no_file(here):
    refused(here, ["nan.pt", "inf.pt", "empty.pt", *QUICK], "none of the checkpoints could be analysed")


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_leaves_a_readable_file_and_the_same_command_goes_on(here, stop):
    """By a real signal, in a process of its own: each pass over its data takes 0.3 s, a record some seconds."""
    arguments = ["analyze", *(f"net_{i}.pt" for i in range(3)), "--task", "tasks.py:slow", "-m", "3", "-k", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spectra_cli.main", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not Path("run.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in stderr.splitlines() if line]
    assert lines[-2:] == [
        "spectra: the records finished so far are in run.h5; the same command goes on from there",
        "spectra: interrupted",
    ]
    assert 1 <= len(load_trajectory("run.h5")) < 3
    with h5py.File("run.h5", "r") as file:
        assert "growing" not in file.attrs
    assert [name for name in content_of(here) if name.endswith(".part")] == []
    settings = load_trajectory("run.h5").settings
    assert settings["task"] == "tasks.py:slow"
