"""``spectra inspect`` shows what is in a file, to people and to programs, and runs nothing of it."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from spectra.checkpoints.checkpoint import save_checkpoint
from spectra_cli.main import main


def run(*arguments: object):
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    path = tmp_path / "net.pt"
    save_checkpoint(path, model, "digits-convnet", {"width": 4}, 3, 120, lr=0.1)
    return path


def test_everything_is_shown(path):
    result = run(path)
    assert result.exit_code == 0
    for words in (
        str(path),
        "saved by spectra, weights under 'model'",
        "epoch       3",
        "step        120",
        "digits-convnet (width=4)",
        "weights     99, and 9 of batch-norm statistics",
        "finite      yes",
        "epoch, lr, step",
        "4 x 1 x 3 x 3",
        "scalar",
        "running_var",
    ):
        assert words in result.stdout


def test_json_has_the_numbers(path):
    (entry,) = json.loads(run(path, "--json").stdout)
    assert entry["n_tensors"] == 9
    assert entry["n_weights"] == 36 + 4 + 4 + 4 + 48 + 3
    assert entry["norm"] == pytest.approx(math.sqrt(99 * 0.25), rel=1e-12)
    assert (entry["epoch"], entry["step"], entry["task"]) == (3, 120, "digits-convnet")
    assert len(entry["sha256"]) == 64
    assert entry["tensors"][0] == {
        "name": "0.weight",
        "shape": [4, 1, 3, 3],
        "size": 36,
        "dtype": "float32",
        "norm": 3.0,
        "finite": True,
        "statistic": False,
    }


def test_weights_that_are_not_finite_are_named_and_no_nan_is_in_the_json(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"good": torch.ones(4), "bad": torch.tensor([1.0, float("nan")])}, path)
    assert "NO: NaN or infinity in bad" in run(path).stdout
    (entry,) = json.loads(run(path, "--json").stdout)
    assert entry["not_finite"] == ["bad"]
    assert entry["norm"] is None
    assert [t["norm"] for t in entry["tensors"]] == [2.0, None]


def test_tensors_that_share_their_numbers_count_once(tmp_path):
    path = tmp_path / "a.pt"
    weight = torch.ones(3, 3)
    torch.save({"embed": weight, "head": weight, "bias": torch.ones(3)}, path)
    (entry,) = json.loads(run(path, "--json").stdout)
    assert (entry["n_tensors"], entry["n_weights"], entry["n_shared"]) == (3, 12, 1)
    assert entry["norm"] == pytest.approx(math.sqrt(12))


def test_long_lists_are_cut_unless_all_is_asked_for(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({f"layer{i}.weight": torch.ones(2) for i in range(30)}, path)
    short, long = run(path).stdout, run(path, "--all").stdout
    assert "and 10 more" in short
    assert "layer20.weight" not in short
    assert "layer29.weight" in long


def test_long_names_are_not_cut_off(tmp_path):
    path = tmp_path / "a.pt"
    name = "a_very_long_name." * 20 + "weight"
    torch.save({name: torch.ones(2)}, path)
    assert name in run(path).stdout


def test_other_weights_in_the_file_can_be_chosen(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"w": torch.ones(1)}, "model_ema": {"w": torch.zeros(1)}}, path)
    assert "state_dict (--weights KEY)" in run(path).stdout
    (entry,) = json.loads(run(path, "--json", "--weights", "model").stdout)
    assert (entry["weights"], entry["norm"]) == ("state_dict", 1.0)


def test_a_file_that_cannot_be_read_does_not_hide_the_others(path, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"junk")
    result = run(tmp_path / "bad.pt", path)
    assert result.exit_code == 1
    assert str(path) in result.stdout
    assert result.stderr.count("\n") == 1
    assert "bad.pt: not a checkpoint" in result.stderr


def test_code_is_run_only_when_asked(tmp_path):
    trace = tmp_path / "ran"

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(1)}, "evil": Runs()}, path)
    result = run(path)
    assert result.exit_code == 1
    assert "--unsafe-load" in result.stderr
    assert not trace.exists()
    assert run(path, "--unsafe-load").exit_code == 0
    assert trace.is_dir()


def test_a_missing_file_is_one_line(tmp_path):
    result = run(tmp_path / "no.pt")
    assert result.exit_code == 1
    assert result.stderr == f"spectra: error: {tmp_path}/no.pt: no such file\n"
