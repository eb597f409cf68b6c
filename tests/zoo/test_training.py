"""The training recipe: it learns, repeats itself bit for bit, and leaves checkpoints that say what they are."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from spectra.checkpoints.checkpoint import load_checkpoint, order_checkpoints
from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.zoo.__main__ import main
from spectra.zoo.tasks import build_task
from spectra.zoo.training import _split, train

pytest.importorskip("sklearn")


def test_training_learns_and_leaves_a_checkpoint_per_epoch(tmp_path):
    seen = []
    paths = train("digits-convnet", tmp_path / "run", epochs=2, width=8, on_epoch=seen.append)
    assert [path.name for path in paths] == ["epoch_000.pt", "epoch_001.pt", "epoch_002.pt"]
    found = [load_checkpoint(path) for path in paths]
    assert [(c.epoch, c.step) for c in found] == [(0, 0), (1, 23), (2, 46)]
    assert seen[0].loss is None
    assert seen[2].accuracy > 0.9
    assert seen[2].loss < seen[1].loss
    assert found[2].metadata["accuracy"] == seen[2].accuracy
    assert order_checkpoints(paths[::-1]) == paths
    for checkpoint in found:
        task = build_task(checkpoint.task, **checkpoint.task_args)
        assert checkpoint.load_into(task.model) == []
    untrained = build_task("digits-convnet", width=8).model.state_dict()
    assert all(torch.equal(found[0].state_dict[key], untrained[key]) for key in untrained)


def test_training_repeats_itself_and_leaves_the_global_state_alone(tmp_path):
    before = torch.get_rng_state()
    runs = [train("digits-mlp", tmp_path / name, epochs=1, seed=3)[-1] for name in "ab"]
    other = train("digits-mlp", tmp_path / "c", epochs=1, seed=4)[-1]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, different = (load_checkpoint(path).state_dict for path in (*runs, other))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], different[key]) for key in first)


@pytest.mark.parametrize(("rows", "size", "lengths"), [(6, 3, [3, 3]), (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (1, 3, [1])])
def test_no_step_is_made_on_a_single_left_over_image(rows, size, lengths):
    slices = list(_split(rows, size))
    assert [part.stop - part.start for part in slices] == lengths
    assert slices[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(slices))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": -1}, ArgumentError, "epochs=-1"),
        ({"learning_rate": 0.0}, ArgumentError, "learning_rate=0.0"),
        ({"momentum": 1.0}, ArgumentError, "momentum=1.0"),
        ({"weight_decay": -0.1}, ArgumentError, "weight_decay=-0.1"),
        ({"batch_size": 0}, ArgumentError, "batch_size=0"),
        ({"depth": 2}, TaskError, "no option 'depth'"),
        ({"learning_rate": 1e30}, NumericsError, "lower learning_rate=1e"),
    ],
)
def test_arguments_outside_their_range_are_refused(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        train("digits-mlp", tmp_path / "run", **{"epochs": 1, **options})


def test_the_module_trains_from_the_command_line(tmp_path, capsys):
    assert main(["digits-logistic", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "epoch 1, step 23: loss" in capsys.readouterr().out
    assert (tmp_path / "run" / "epoch_001.pt").is_file()
    assert main(["digits-logisti", "--out", str(tmp_path / "other")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("spectra: error: no built-in task")
    assert error.count("\n") == 1
    assert main(["digits-logistic", "--out", str(tmp_path / "no" / "run")]) == 1
    assert not (tmp_path / "other").exists()
