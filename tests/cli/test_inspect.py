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


def test_a_folder_is_shown_with_its_checkpoints_in_the_order_of_training(tmp_path):
    state = {"weight": torch.ones(2, 2)}
    for step in (100, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        torch.save(state, folder / "pytorch_model.bin")
        torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": step / 8, "global_step": step}))
    result = run(tmp_path)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()[:4]]
    assert lines == [
        [f"{tmp_path}:", "2", "checkpoints"],
        ["checkpoint", "epoch", "step", "weights", "in", "other", "files"],
        ["checkpoint-8", "1", "8", "pytorch_model.bin", "optimizer.pt,", "trainer_state.json"],
        ["checkpoint-100", "12.5", "100", "pytorch_model.bin", "optimizer.pt,", "trainer_state.json"],
    ]
    entries = json.loads(run(tmp_path, "--json").stdout)
    assert [(entry["step"], entry["files"]) for entry in entries] == [
        (8, ["pytorch_model.bin"]),
        (100, ["pytorch_model.bin"]),
    ]
    assert entries[0]["bytes"] == (folder / "pytorch_model.bin").stat().st_size


def test_a_folder_of_shards_is_one_checkpoint_and_a_broken_one_is_a_line(tmp_path):
    folder = tmp_path / "checkpoint-8"
    folder.mkdir()
    mapping = {}
    for number in (1, 2):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({f"w{number}": torch.ones(number)}, folder / name)
        mapping[f"w{number}"] = name
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": mapping}))
    result = run(folder)
    assert "pytorch_model.bin.index.json and 2 shards" in result.stdout
    assert f"files       {index.name}, {', '.join(sorted(mapping.values()))}" in result.stdout
    (entry,) = json.loads(run(folder, "--json").stdout)
    assert (entry["n_weights"], entry["step"], len(entry["files"])) == (3, 8, 3)
    index.write_text(json.dumps({"weight_map": {"w1": "../../x"}}))
    broken = run(folder)
    assert broken.exit_code == 1
    assert "the file of 'w1' is '../../x': the name of a file in the same folder is needed" in broken.stdout
    assert broken.stderr.count("\n") == 1


def test_what_is_not_used_of_a_folder_is_noted(tmp_path):
    folder = tmp_path / "checkpoint-8"
    folder.mkdir()
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text("[]")
    assert (
        f"note        {folder}/trainer_state.json: holds a list, not a JSON object; it is not used"
        in run(folder).stdout
    )
