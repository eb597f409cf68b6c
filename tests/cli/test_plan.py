"""``spectra plan``: its table, its JSON, and its predictions against real runs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from click.testing import CliRunner
from programs import environment

from spectra import load_trajectory
from spectra_cli.main import main

TASKS = textwrap.dedent(
    """
    import spectra, torch
    from torch import nn
    from spectra.zoo.networks.residual import preresnet

    def data(rows, size, batch, *shape):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(rows, *shape, generator=generator), torch.randint(size, (rows,), generator=generator)
        return list(zip(x.split(batch), y.split(batch)))

    def small():
        return spectra.Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), data(60, 3, 20, 4))

    def mlp(batch=256):
        layers = nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        return spectra.Task(nn.Sequential(*layers), nn.CrossEntropyLoss(), data(2048, 10, int(batch), 256))

    def resnet():
        return spectra.Task(preresnet(8, "basic"), nn.CrossEntropyLoss(), data(128, 10, 32, 3, 16, 16))
    """
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASKS)
    return tmp_path


def weights(name):
    space: dict = {}
    exec(TASKS, space)
    torch.manual_seed(0)
    torch.save(space[name]().model.state_dict(), f"{name}.pt")


def plan_of(options):
    weights("small")
    return CliRunner().invoke(main, ["plan", "small.pt", "--task", "task.py:small", *options.split()])


def test_the_table_names_products_and_savings(folder):
    done = plan_of("-m 8 -k 4 --operator ggn --bn both")
    assert done.exit_code == 0, done.output
    for words in ("ggn", "eval", "train", "products", "64", "peak memory", "results file"):
        assert words in done.output
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["small.pt", "task.py"]


def test_json_holds_what_the_table_shows(folder):
    done = plan_of("-m 8 -k 4 --json --quiet")
    found = json.loads(done.stdout)
    assert (found["checkpoints"], [record["products"] for record in found["records"]]) == (1, [32])
    assert 0 < found["records"][0]["seconds"] < found["seconds"]
    assert all(saving["seconds"] > 0 for saving in found["savings"])


def test_a_limit_that_is_too_small_is_one_line(folder):
    done = plan_of("--memory 1M --quiet")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "the limit is memory=1.0 MiB" in done.stderr
    assert done.stderr.endswith("M would fit\n")


def measured(*arguments):
    """The output of the command in a process of its own, its CPU seconds and the peak of its memory in bytes."""
    command = [sys.executable, "-m", "spectra_cli.main", *arguments]
    with open("out.txt", "w") as out:
        process = subprocess.Popen(command, stdout=out, env=environment() | {"MKL_NUM_THREADS": "1"})
        _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    with open("out.txt") as out:
        return out.read(), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", "-m 40 -k 4"),
        ("mlp", "-m 40 -k 2 --dtype float64 --no-check --metrics none"),
        ("mlp", "-m 40 -k 4 --task-arg batch=2048 --operator ggn"),
        ("resnet", "-m 10 -k 2 --operator hessian --operator ggn --bn both"),
    ],
)
def test_a_prediction_is_right_within_a_factor_of_one_and_a_half(folder, name, options):
    weights(name)
    common = [f"{name}.pt", "--task", f"task.py:{name}", "--quiet", "--out", "run.h5", *options.split()]
    plan = json.loads(measured("plan", *common, "--json")[0])
    _, seconds, peak = measured("analyze", *common)
    found = load_trajectory("run.h5")
    assert [record["products"] for record in plan["records"]] == [record.provenance["products"] for record in found]
    print(f"seconds {plan['cpu_seconds']:.1f} / {seconds:.1f}, memory {plan['peak_memory_bytes'] / peak:.2f}")
    assert 1 / 1.5 < plan["cpu_seconds"] / seconds < 1.5
    assert 1 / 1.5 < plan["peak_memory_bytes"] / peak < 1.5
    assert 1 / 1.5 < plan["file_bytes"] / os.path.getsize("run.h5") < 1.5


def test_several_processes_share_time_and_memory_and_send_sums(folder):
    found = json.loads(plan_of("-m 8 -k 4 --json --quiet --processes 3").stdout)
    n, shared = 15, found["shared"]  # parameters
    assert shared["processes"] == 3
    assert shared["sent_bytes_per_process"] == 32 * 2 * 2 * n * 8 / 3  # 32 products, ring over three
    assert 0 < shared["seconds_without_communication"] <= found["seconds"]
    assert shared["peak_memory_bytes_per_process"] <= found["peak_memory_bytes"]
    words = plan_of("-m 8 -k 4 --quiet --processes 5").output
    assert "each of 5 processes:" in words
    assert "! 3 batches: no more processes can share them; a smaller --batch-size gives more" in words
