"""Every bad input of `spectra analyze`, `show` and `plot`: one clear line, an exit code, nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import pytest
import torch
from analyze_command import QUICK, TASKS, content_of, refused, spectra

from spectra.krylov import slq as slq_room

BAD = {
    "missing file": (["none.pt", *QUICK], "none.pt: no such file"),
    "missing file among others": (["net_0.pt", "none.pt", *QUICK], "none.pt: no such file"),
    "empty file": (["empty.pt", *QUICK], "empty.pt: an empty file, not a checkpoint"),
    "truncated file": (["truncated.pt", *QUICK], "truncated.pt: truncated or damaged"),
    "a text": (["text.pt", *QUICK], "text.pt: "),
    "a list": (["list.pt", *QUICK], "list.pt: no weights in it: it holds a list"),
    "an optimizer": (["optimizer-state.pt", *QUICK], "optimizer-state.pt: the state of an optimizer"),
    "a pickle with code": (["trap.pt", *QUICK], "--unsafe-load"),
    "a checkpoint with code": (["trap-zip.pt", *QUICK], "--unsafe-load"),
    "keys that do not match": (["norm.pt", *QUICK], "norm.pt: does not fit the model: "),
    "shapes that do not match": (["wide.pt", *QUICK], "wide.pt: does not fit the model: "),
    "no such built-in task": (["net_0.pt", "--task", "digits"], "no built-in task is called 'digits'"),
    "no such task function": (["net_0.pt", "--task", "tasks.py:tusk"], "there is no 'tusk' in "),
    "no such task file": (["net_0.pt", "--task", "none.py:task"], "none.py"),
    "no such task argument": (["net_0.pt", *QUICK, "--task-arg", "depth=3"], "it has no argument 'depth'"),
    "a task that raises": (["net_0.pt", "--task", "tasks.py:raises"], "KeyError: 'hidden'"),
    "empty data": (["net_0.pt", "--task", "tasks.py:empty"], "the data are empty"),
    "labels out of range": (["net_0.pt", "--task", "tasks.py:labels"], "labels reach from 5 to 7"),
    "NaN weights": (["nan.pt", *QUICK], "nan.pt: NaN or infinite weights in 1 of 4 tensors: 2.weight"),
    "infinite weights": (["inf.pt", *QUICK], "inf.pt: NaN or infinite weights in 1 of 4 tensors: 2.weight"),
    "NaN loss": (["net_0.pt", "--task", "tasks.py:nan_loss"], "the loss is nan"),
    "independent loss": (["net_0.pt", "--task", "tasks.py:independent"], "does not depend on the parameters"),
    "no second derivative": (["net_0.pt", "--task", "tasks.py:piecewise_linear"], "no second derivative"),
    "no probes": (["net_0.pt", *QUICK, "--probes", "0"], "num_probes=0: at least 1 is needed; 8 is the default"),
    "no steps": (["net_0.pt", *QUICK, "--lanczos-steps", "0"], "lanczos_steps=0: at least 1 is needed; 100 is"),
    "a negative seed": (["net_0.pt", *QUICK, "--seed", "-1"], "seed=-1: at least 0 is needed"),
    "no samples": (["net_0.pt", *QUICK, "--samples", "0"], "samples=0: at least 1 is needed"),
    "too many samples": (["net_0.pt", *QUICK, "--samples", "25"], "samples=25: the data have only 24 rows"),
    "no batch": (["net_0.pt", *QUICK, "--batch-size", "0"], "batch_size=0: at least 1 is needed"),
    "a negative l2": (["net_0.pt", *QUICK, "--l2", "-1"], "l2=-1.0: a finite number of at least 0 is needed"),
    "l2 that is no number": (["net_0.pt", *QUICK, "--l2", "nan"], "l2=nan: a finite number of at least 0 is needed"),
    "no such parameters": (["net_0.pt", *QUICK, "--params", "conv*"], "no trainable parameter has such a name"),
    "no such weights": (["net_0.pt", *QUICK, "--weights", "ema"], "ema"),
    "no such device": (["net_0.pt", *QUICK, "--device", "gpu"], "device='gpu': 'cpu', 'cuda' or 'cuda:INDEX'"),
    "a batch of one in train mode": (
        ["norm.pt", "--task", "tasks.py:with_norm", "--bn", "both", "--batch-size", "23"],
        "holds a single sample",
    ),
    "no folder for the output": (["net_0.pt", *QUICK, "--out", "none/run.h5"], "none/run.h5: the folder none does"),
    "output beyond a file": (["net_0.pt", *QUICK, "--out", "text.pt/run.h5"], "text.pt is not a folder"),
    "output is a folder": (["net_0.pt", *QUICK, "--out", "."], "is a folder; name a file in it"),
    "output is not ours": (["net_0.pt", *QUICK, "--out", "text.pt"], "text.pt: is not an HDF5 file"),
}


@pytest.mark.parametrize("with_output", [False, True], ids=["no run.h5 before", "a run.h5 before"])
@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(here, existing, case, with_output):
    arguments, words = BAD[case]
    if with_output:
        (here / "run.h5").write_bytes(existing)
    line = refused(here, arguments, "" if with_output else words)
    assert words in line or "run.h5: is of a run with other settings: " in line  # which is looked at earlier
    assert not (here / "ran").exists()  # the code in the pickles


def test_without_a_task_the_error_shows_the_three_ways(here):
    before = content_of(here)
    result = spectra("analyze", "net_0.pt")
    assert result.exit_code == 1
    assert content_of(here) == before
    first, *rest = result.stderr.splitlines()
    assert first.startswith("spectra: error: no task to analyse")
    assert any("def task():" in line for line in rest)
    assert "Traceback" not in result.output


def test_the_line_of_a_task_that_raises_is_its_own_and_debug_shows_the_traceback(here):
    line = refused(here, ["net_0.pt", "--task", "tasks.py:raises"], "KeyError: 'hidden'")
    number = 1 + TASKS.splitlines().index('    return network(widths["hidden"])')
    assert f"tasks.py line {number}: KeyError: 'hidden' (--debug shows the traceback)" in line
    result = spectra("analyze", "net_0.pt", "--task", "tasks.py:raises", "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert 'return network(widths["hidden"])' in result.stderr
    assert result.stderr.splitlines()[-1] == line


def test_a_task_file_that_cannot_be_imported(here):
    Path("broken.py").write_text("import torch\n\ndef task(:\n    pass\n")
    refused(here, ["net_0.pt", "--task", "broken.py:task"], "broken.py line 3: SyntaxError")
    Path("lacking.py").write_text("import a_module_that_nobody_has\n")
    refused(here, ["net_0.pt", "--task", "lacking.py:task"], "No module named 'a_module_that_nobody_has'")


@pytest.mark.parametrize("arguments", [["--bn", "twice"], ["--operator", "fisher"], ["--probes", "many"], ["--nope"]])
def test_wrong_usage_is_one_line_too(here, arguments):
    refused(here, ["net_0.pt", *QUICK, *arguments], "(spectra analyze --help)", code=2)
    refused(here, [], "Missing argument", code=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there(here):
    refused(here, ["net_0.pt", *QUICK, "--device", "cuda"], "device='cuda': 0 CUDA devices are available here")


def test_a_basis_that_does_not_fit_in_memory_says_what_would(here, monkeypatch):
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 4000)
    refused(here, ["net_0.pt", *QUICK, "-m", "40"], "are free: lanczos_steps=14 would fit")
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 1000)
    refused(here, ["net_0.pt", *QUICK], "not even 2 steps fit")


def test_memory_that_runs_out_in_the_middle(here, monkeypatch):
    def fail(self, block):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("spectra.operators.hessian.HessianOperator.apply", fail)
    refused(here, ["net_0.pt", *QUICK], "try a smaller --batch-size, --samples or --lanczos-steps")


def test_other_settings_than_those_of_the_file_are_refused(here, existing):
    Path("run.h5").write_bytes(existing)
    line = refused(here, ["net_0.pt", *QUICK, "-m", "7"], "lanczos_steps is 6 in the file, 7 now")
    assert line.startswith("spectra: error: run.h5: is of a run with other settings")
    refused(here, ["net_0.pt", "--task", "tasks.py:per_checkpoint"], "KeyError")
    refused(here, ["wide.pt", *QUICK, "--task-arg", "width=7"], "task is")


@pytest.mark.parametrize("existed", [False, True])
def test_an_output_that_cannot_be_written_is_found_before_a_checkpoint_is_read(here, existing, existed, monkeypatch):
    if existed:
        Path("run.h5").write_bytes(existing)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("spectra.results.storage.atomic_write.os.open", refuse)
    read = "spectra_cli.checkpoint_choice.find_checkpoints"
    monkeypatch.setattr(read, lambda *_, **__: pytest.fail("a checkpoint was read"))
    refused(here, ["net_0.pt", *QUICK], "run.h5: cannot be written: permission denied")


def test_a_disk_that_fills_up_in_the_middle_leaves_what_was_there(here, existing, monkeypatch):
    Path("run.h5").write_bytes(existing)

    def full(descriptor, content, mode):
        os.write(descriptor, content[: len(content) // 2])
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spectra.analysis.analysis_run.check_output", lambda out: None)  # there was room at the start
    monkeypatch.setattr("spectra_cli.analyze.check_output", lambda out: None)
    monkeypatch.setattr("spectra.results.storage.runfile.check_writable", lambda *a, **k: None)
    monkeypatch.setattr("spectra.results.storage.atomic_write._write", full)
    before = content_of(here)
    result = spectra("analyze", "net_0.pt", *QUICK, "--quiet")
    assert result.exit_code == 1
    assert "no space left on device; free some space" in result.stderr
    assert result.stderr.count("\n") == 1
    assert content_of(here) == before


@pytest.mark.parametrize("command", ["show", "plot"])
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "checkpoint", "another program's", "truncated"])
def test_show_and_plot_refuse_files_that_are_not_ours(here, existing, command, kind):
    file = here / "x.h5"
    if kind == "another program's":
        with h5py.File(file, "w") as other:
            other["x"] = 1
    elif kind != "missing":
        contents = {"empty": b"", "text": b"numbers will follow", "truncated": existing[: len(existing) // 2]}
        file.write_bytes(contents.get(kind) if kind in contents else (here / "net_0.pt").read_bytes())
    refused(here, ["x.h5"], "x.h5: ", command=command)
