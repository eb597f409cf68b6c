"""Runs of many checkpoints on the command line: which ones, in parts, as they come, and what is told of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from spectra import load_trajectory, save_checkpoint
from spectra_cli.main import main

TASK = """
import torch, spectra
from torch import nn

def task():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return spectra.Task(model, nn.CrossEntropyLoss(), [(x[:10], y[:10]), (x[10:], y[10:])])
"""
QUICK = ("--task", "tasks.py:task", "-m", "6", "-k", "2", "--no-check", "--metrics", "none")


def write(path: Path, epoch: int) -> Path:
    torch.manual_seed(epoch)
    save_checkpoint(path, nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), epoch=epoch)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a task and five checkpoints."""
    (tmp_path / "tasks.py").write_text(TASK)
    (tmp_path / "run").mkdir()
    for epoch in range(5):
        write(tmp_path / "run" / f"ckpt_{epoch}.pt", epoch)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in [name for name in sys.modules if "tasks" in name]:
        del sys.modules[name]


def spectra(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="spectra")


def succeeds(*arguments: object):
    result = spectra(*arguments)
    assert result.exit_code == 0, result.output
    return result


def epochs_in(file: str) -> list[float]:
    return [record.epoch for record in load_trajectory(file)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--every", "2"), [0, 2, 4]),
        (("--every", "3", "--last"), [0, 3, 4]),
        (("--last",), [4]),
        (("--epochs", "1:4:2"), [1, 3]),
        (("--epochs", "0,2:"), [0, 2, 3, 4]),
        (("--epochs", ":2", "--every", "2", "--last"), [0, 2, 4]),
    ],
)
def test_some_of_the_checkpoints_are_chosen(here, options, expected):
    succeeds("analyze", "run", *QUICK, *options)
    assert epochs_in("run.h5") == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--every", "0"), "every=0: at least 1 is needed"),
        (("--epochs", "0:x"), "epochs '0:x': epochs and ranges FIRST:LAST:STEP are needed"),
        (("--epochs", "0:4:0"), "epochs '0:4:0': epochs and ranges"),
        (("--epochs", "0,7"), "epochs 0,7: no checkpoint of epoch 7; there are 0, 1, 2, 3, 4"),
        (("--epochs", "10:20"), "epochs 10:20: no checkpoint of epoch 10:20; there are 0, 1, 2, 3, 4"),
        (("--shard", "3/2"), "shard '3/2': I/N is needed, I from 1 to N"),
        (("--shard", "6/6"), "shard 6/6: there are 5 checkpoints, so at most 5 shards"),
    ],
)
def test_a_choice_that_says_nothing_is_one_line(here, options, words):
    result = spectra("analyze", "run", *QUICK, *options)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert result.stderr.startswith(f"spectra: error: {words}")
    assert not list(here.glob("*.h5"))


def test_shards_that_are_merged_are_the_run(here):
    for number in (1, 2):
        succeeds("analyze", "run", *QUICK, "--shard", f"{number}/2")
    assert epochs_in("run.shard-1-of-2.h5") == [0, 2, 4]
    assert epochs_in("run.shard-2-of-2.h5") == [1, 3]
    result = succeeds("merge", "run.shard-1-of-2.h5", "run.shard-2-of-2.h5")
    assert result.stderr == "spectra: 5 records of 2 files, in run.h5; next: spectra show run.h5\n"
    succeeds("analyze", "run", *QUICK, "--out", "whole.h5")
    merged, whole = load_trajectory("run.h5"), load_trajectory("whole.h5")
    assert merged.settings == whole.settings
    for one, other in zip(merged, whole, strict=True):
        assert one.identity == other.identity
        np.testing.assert_array_equal(one.spectrum.nodes, other.spectrum.nodes)
        assert one.estimates == other.estimates
    again = succeeds("analyze", "run", *QUICK, "--out", "run.h5")
    assert again.stderr.count("in the file already") == 5


def test_a_merge_says_which_shards_are_absent_and_refuses_what_it_cannot_name(here):
    succeeds("analyze", "run", *QUICK, "--shard", "2/3")
    assert succeeds("merge", "run.shard-2-of-3.h5").stderr.splitlines()[1:] == [
        "spectra: not among them: shard 1/3, 3/3"
    ]
    result = spectra("merge", "run.h5")
    assert result.exit_code == 1
    assert result.stderr == (
        "spectra: error: the files are not the shards of one run by their names: say where with --out\n"
    )


def test_parts_of_other_settings_are_not_merged(here):
    succeeds("analyze", "run/ckpt_0.pt", *QUICK, "--out", "a.h5")
    succeeds("analyze", "run/ckpt_1.pt", *QUICK, "--out", "b.h5", "--seed", "1")
    result = spectra("merge", "a.h5", "b.h5", "--out", "c.h5")
    assert result.exit_code == 1
    assert result.stderr == ("spectra: error: b.h5: is of a run with other settings: seed is 0 in a.h5, 1 in b.h5\n")
    assert not Path("c.h5").exists()


def test_a_checkpoint_that_is_there_twice_is_analysed_once(here):
    shutil.copy("run/ckpt_4.pt", "run/ckpt_4_best.pt")
    result = succeeds("analyze", "run", *QUICK)
    assert "has the content of ckpt_4.pt: skipped" in result.stderr
    assert epochs_in("run.h5") == [0, 1, 2, 3, 4]


def test_a_copy_of_the_weights_in_another_file_is_passed_over_in_a_line(here):
    content = torch.load("run/ckpt_4.pt")
    torch.save({**content, "callbacks": {"a": 1}}, "run/ckpt_4-v1.pt")
    result = succeeds("analyze", "run", *QUICK, "--progress", "lines")
    assert "[6/6] ckpt_4-v1.pt (6/6): has the weights of ckpt_4.pt: skipped\n" in result.stderr
    assert epochs_in("run.h5") == [0, 1, 2, 3, 4]
    events = succeeds("analyze", "run", *QUICK, "--progress", "json").stderr.splitlines()
    (event,) = [json.loads(line) for line in events if '"duplicate"' in line]
    assert (event["checkpoint"], event["of"], event["same"]) == ("run/ckpt_4-v1.pt", "run/ckpt_4.pt", "weights")
    drawn = succeeds("analyze", "run", *QUICK, "--progress", "bar")
    assert "ckpt_4-v1.pt: has the weights of ckpt_4.pt: skipped" in drawn.stderr


def test_a_copy_is_passed_over_in_a_later_call_unless_the_task_is_made_for_each_checkpoint(here):
    torch.save({**torch.load("run/ckpt_4.pt"), "extra": 1}, "run/last.pt")
    Path("run/epoch_9.pt").write_bytes(Path("run/last.pt").read_bytes())  # the epoch in it is that of ckpt_4
    succeeds("analyze", "run/ckpt_4.pt", *QUICK)
    assert "in the file already" in succeeds("analyze", "run/last.pt", *QUICK).stderr
    Path("each.py").write_text(TASK.replace("def task():", "def task(checkpoint):"))
    options = ("--task", "each.py:task", *QUICK[2:], "--out", "each.h5")
    succeeds("analyze", "run/ckpt_4.pt", *options)
    assert "in the file already" not in succeeds("analyze", "run/last.pt", *options).stderr
    assert epochs_in("each.h5") == [4, 4]


def test_folders_of_a_trainer_are_a_run_and_a_line_says_what_was_taken(here):
    for step in (8, 16):
        folder = here / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        torch.save(torch.load(f"run/ckpt_{step // 8}.pt")["model"], folder / "pytorch_model.bin")
        torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": step / 16, "global_step": step}))
    shutil.copy(folder / "pytorch_model.bin", here / "out" / "pytorch_model.bin")
    result = succeeds("analyze", "out", *QUICK)
    said = "spectra: out: taken are pytorch_model.bin in it, and its folders checkpoint-8, checkpoint-16"
    assert result.stderr.splitlines()[0] == said
    assert "pytorch_model.bin (3/3): has the content of checkpoint-16: skipped" in result.stderr
    records = list(load_trajectory("run.h5"))
    assert [(record.checkpoint, record.epoch, record.step) for record in records] == [
        ("out/checkpoint-8", 0.5, 8), ("out/checkpoint-16", 1, 16)
    ]  # fmt: skip
    single = succeeds("analyze", "out/checkpoint-8", *QUICK)
    assert "in the file already" in single.stderr


@pytest.mark.parametrize("command", [("analyze",), ("watch", "--settle", "0", "--idle", "0")])
def test_a_part_of_the_weights_is_analysed_with_the_option_alone(here, command):
    name, *options = command
    head = {key: value for key, value in torch.load("run/ckpt_1.pt")["model"].items() if key.startswith("2.")}
    (here / "part").mkdir()
    torch.save(head, "part/head.pt")
    refused = spectra(name, "part", *options, *QUICK)
    assert refused.exit_code == 1
    last = refused.stderr.splitlines()[-1]
    assert "2 of 4 keys missing (0.weight, 0.bias); --partial (partial=True) leaves them as the task made them" in last
    assert not Path("run.h5").exists()
    result = succeeds(name, "part", *options, *QUICK, "--partial")
    words = "2 of 4 tensors are from the checkpoint, 2 are the task's own (2 trainable)"
    assert f"spectra: part/head.pt: {words}\n" in result.stderr
    assert words in result.stdout
    assert words in succeeds("show", "run.h5").stdout


def test_strict_stops_at_the_first_checkpoint_that_fails(here):
    Path("run/ckpt_2.pt").write_bytes(b"PK not a checkpoint")
    result = spectra("analyze", "run", *QUICK, "--strict")
    assert result.exit_code == 1
    assert "ckpt_2.pt" in result.stderr.splitlines()[-1]
    assert epochs_in("run.h5") == [0, 1]
    loose = spectra("analyze", "run", *QUICK)
    assert loose.exit_code == 1
    assert loose.stderr.splitlines()[-1] == "spectra: error: 1 of 3 records failed; the reasons are in run.h5"


def test_force_replaces_a_file_of_other_settings_and_says_so(here):
    succeeds("analyze", "run/ckpt_0.pt", *QUICK, "--seed", "1")
    refused = spectra("analyze", "run", *QUICK)
    assert refused.exit_code == 1
    assert "seed is 1 in the file, 0 now" in refused.stderr
    assert "--force" in refused.stderr
    result = succeeds("analyze", "run", *QUICK, "--force")
    assert "run.h5: is begun anew: seed is 1 in the file, 0 now" in result.stderr
    assert epochs_in("run.h5") == [0, 1, 2, 3, 4]


def test_progress_as_json_is_an_event_per_line(here):
    Path("run/ckpt_3.pt").write_bytes(b"PK not a checkpoint")
    result = spectra("analyze", "run", *QUICK, "--progress", "json")
    assert result.exit_code == 1
    *lines, _, error = result.stderr.splitlines()
    assert error.startswith("spectra: error: ")
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events if event["event"] not in ("phase", "progress")] == [
        "checkpoint", "note", "record", *("checkpoint", "record") * 4
    ]  # fmt: skip
    records = [event for event in events if event["event"] == "record"]
    assert [(event["status"], event["epoch"]) for event in records] == [
        *(("complete", epoch) for epoch in (0, 1, 2)), ("failed", None), ("complete", 4)
    ]  # fmt: skip
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["products"], last["of"], last["of_records"]) == (12, 12, 5)


def test_watch_ends_when_nothing_new_has_come_for_a_while(here):
    Path("run/ckpt_1.pt").write_bytes(b"not a checkpoint")  # of no format that says where it ends: taken, and failed
    result = spectra("watch", "run", *QUICK, "--settle", "0", "--idle", "0")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "spectra: error: 1 of 5 records failed; the reasons are in run.h5"
    assert [record.epoch for record in load_trajectory("run.h5") if record.status == "complete"] == [0, 2, 3, 4]


def test_watch_analyses_what_training_writes_until_it_is_told_to_stop(here):
    """A real process, a checkpoint written in two steps under its eyes, SIGTERM."""
    command = [sys.executable, "-m", "spectra_cli.main", "watch", "run", *QUICK, "--settle", "0.3"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            _wait_for("run.h5", 5)
            whole = write(here / "late", 5).read_bytes()
            with (here / "run" / "ckpt_5.pt").open("wb") as file:
                file.write(whole[:1000])
                file.flush()
                time.sleep(1)
                assert len(load_trajectory("run.h5")) == 5  # half a file is waited for
                file.write(whole[1000:])
            _wait_for("run.h5", 6)
            error = ""
            while "[6]" not in error:  # the record is in the file before its line is printed
                error += child.stderr.readline()
            time.sleep(1)  # until it waits again
            child.send_signal(signal.SIGTERM)
            out, rest = child.communicate(timeout=120)
            error += rest
        finally:
            child.kill()
    assert child.returncode == 0, error
    assert epochs_in("run.h5") == [0, 1, 2, 3, 4, 5]
    assert "trace" in out
    assert "[6] ckpt_5.pt (6): hessian, BN eval: trace" in error


def _wait_for(file: str, records: int) -> None:
    limit = time.monotonic() + 60
    while not Path(file).exists() or len(load_trajectory(file)) < records:
        assert time.monotonic() < limit, f"{file} does not get {records} records"
        time.sleep(0.1)
