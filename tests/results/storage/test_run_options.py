"""What a run does with what is there: force, strict, duplicates, checkpoints that were replaced, two runs at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from contents import contents
from programs import environment
from torch import nn

from spectra import Task, load_trajectory, save_checkpoint
from spectra.analysis.run import Listener, analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import CheckpointError, StorageError
from spectra.results.storage.lock import only_writer

QUICK = Settings(lanczos_steps=2, num_probes=2, metrics="none", check=False)


class Notes(Listener):
    def __init__(self):
        self.said, self.twins, self.kept_ones = [], [], []

    def note(self, words):
        self.said.append(words)

    def duplicate(self, path, of, records):
        self.twins.append((path.name, of.name, records))

    def kept(self, path, operator, bn_mode):
        self.kept_ones.append(path.name)


def network():
    return nn.Linear(4, 3)


def make_task(checkpoint):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)
    return Task(network(), nn.CrossEntropyLoss(), [(x, y)], name="net")


def save(path, seed, epoch):
    torch.manual_seed(seed)
    save_checkpoint(path, network(), epoch=epoch)
    return path


@pytest.fixture
def paths(tmp_path):
    return [save(tmp_path / f"net_{epoch}.pt", epoch, epoch) for epoch in range(3)]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "run.h5"


def epochs(path):
    return [(record.epoch, record.status) for record in load_trajectory(path)]


# -- force


def test_force_begins_a_file_of_other_settings_anew_when_its_first_record_is_there(paths, out):
    analyze_run(paths, make_task, QUICK, out=out)
    before = out.read_bytes()
    other = Settings(lanczos_steps=3, num_probes=2, metrics="none", check=False)

    class Stopping(Notes):
        def progress(self, *_):
            assert out.read_bytes() == before  # what is there stays until something takes its place
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze_run(paths[:2], make_task, other, out=out, force=True, listener=Stopping())
    assert out.read_bytes() == before
    ear = Notes()
    analyze_run(paths[:2], make_task, other, out=out, force=True, listener=ear)
    assert ear.said == [f"{out}: is begun anew: lanczos_steps is 2 in the file, 3 now"]
    whole = out.with_name("whole.h5")
    analyze_run(paths[:2], make_task, other, out=whole)
    assert contents(out) == contents(whole)


def test_force_with_the_same_settings_computes_nothing_again(paths, out):
    analyze_run(paths, make_task, QUICK, out=out)
    before = out.read_bytes()
    outcome = analyze_run(paths, make_task, QUICK, out=out, force=True)
    assert (outcome.kept, outcome.records) == (3, ())
    assert out.read_bytes() == before


def test_a_replaced_checkpoint_is_refused_with_both_sums_and_by_force_computed_again(paths, out):
    analyze_run(paths, make_task, QUICK, out=out)
    before, first = out.read_bytes(), load_trajectory(out)[1]
    save(paths[1], 99, 1)
    with pytest.raises(StorageError) as caught:
        analyze_run(paths, make_task, QUICK, out=out)
    message = str(caught.value)
    assert (
        f"{paths[1]} was another file when it was analysed: its SHA-256 was {first.checkpoint_sha256[:12]}" in message
    )
    assert message.endswith("or --force")
    assert "\n" not in message
    assert out.read_bytes() == before
    outcome = analyze_run(paths, make_task, QUICK, out=out, force=True)
    assert (outcome.kept, [record.epoch for record in outcome.records]) == (2, [1])
    whole = out.with_name("whole.h5")
    analyze_run(paths, make_task, QUICK, out=whole)
    assert contents(out) == contents(whole)


def test_a_checkpoint_that_was_replaced_by_a_broken_one_does_not_cost_its_record(paths, out):
    analyze_run(paths, make_task, QUICK, out=out)
    paths[1].write_bytes(b"")
    for force in (False, True):
        outcome = analyze_run(paths, make_task, QUICK, out=out, force=force)
        assert [record.status for record in outcome.records] == ["failed"]
        assert (1, "complete") in epochs(out)


# -- strict


def test_strict_stops_at_the_first_failure_and_keeps_what_was_finished(paths, out):
    paths[1].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"net_1\.pt: an empty file"):
        analyze_run(paths, make_task, QUICK, out=out, strict=True)
    assert epochs(out) == [(0, "complete")]
    assert os.listdir(out.parent) == ["run.h5"]
    outcome = analyze_run(paths, make_task, QUICK, out=out)
    assert [record.status for record in outcome.records] == ["failed", "complete"]
    assert outcome.kept == 1
    save(paths[1], 1, 1)
    assert [record.epoch for record in analyze_run(paths, make_task, QUICK, out=out, strict=True).records] == [1]
    assert epochs(out) == [(epoch, "complete") for epoch in range(3)]


# -- duplicates


def test_a_checkpoint_with_the_content_of_one_before_it_is_told_and_passed_over(paths, out):
    twins = [shutil.copy(paths[0], paths[0].with_name(name)) for name in ("best.pt", "last.pt")]
    run = [*paths, *map(type(paths[0]), twins)]
    ear = Notes()
    outcome = analyze_run(run, make_task, QUICK, out=out, listener=ear)
    assert ear.twins == [("best.pt", "net_0.pt", 1), ("last.pt", "net_0.pt", 1)]
    assert (len(outcome.records), outcome.kept) == (3, 2)
    assert len(load_trajectory(out)) == 3


def test_a_copy_of_a_checkpoint_that_fails_is_not_counted_as_kept(paths, out):
    torch.save({"model": {name: tensor * torch.nan for name, tensor in network().state_dict().items()}}, paths[1])
    twin = paths[1].with_name("twin.pt")
    shutil.copy(paths[1], twin)
    outcome = analyze_run([*paths, twin], make_task, QUICK, out=out)
    assert (len(outcome.failed), outcome.kept) == (1, 0)


# -- two at once

ANALYZE = """
import sys
from pathlib import Path
from spectra.errors import StorageError
sys.path.insert(0, sys.argv[1])
from task import make_task, QUICK
from spectra.analysis.run import Listener, analyze_run

class Waiting(Listener):
    def checkpoint(self, index, total, path):
        if index == 1:
            print("under way", flush=True)
            sys.stdin.readline()

analyze_run(sorted(Path(sys.argv[1]).glob("net_*.pt")), make_task, QUICK, out=Path(sys.argv[2]), listener=Waiting())
"""
TASK = """
import torch
from torch import nn
from spectra import Task
from spectra.analysis.settings import Settings

QUICK = Settings(lanczos_steps=2, num_probes=2, metrics="none", check=False)

def make_task(checkpoint):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)
    return Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), [(x, y)], name="net")
"""


def test_a_second_run_is_refused_while_the_first_is_under_way_and_the_first_goes_on(paths, out):
    (paths[0].parent / "task.py").write_text(TASK)
    program = [sys.executable, "-c", ANALYZE, str(paths[0].parent), str(out)]
    first = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert first.stdout.readline() == "under way\n"
    before = out.read_bytes()
    with pytest.raises(StorageError, match=rf"process {first.pid} on .* is writing it"):
        analyze_run(paths, make_task, QUICK, out=out)
    assert out.read_bytes() == before
    first.communicate("\n")
    assert first.returncode == 0
    outcome = analyze_run(paths, make_task, QUICK, out=out)
    assert (outcome.kept, outcome.records) == (3, ())
    assert os.listdir(out.parent) == ["run.h5"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused_before_anything_is_computed(paths, out):
    out.parent.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="cannot be written: permission denied; choose a folder"):
            analyze_run(paths, make_task, QUICK, out=out)
    finally:
        out.parent.chmod(0o700)
    assert os.listdir(out.parent) == []


def test_the_lock_is_let_go_whatever_happens(paths, out):
    class Stopping(Notes):
        def checkpoint(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze_run(paths, make_task, QUICK, out=out, listener=Stopping())
    with only_writer(out):
        pass
    assert os.listdir(out.parent) == []
