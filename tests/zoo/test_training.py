"""The training recipe: it learns, repeats itself bit for bit, and leaves checkpoints that say what they are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from spectra.checkpoints.checkpoint import load_checkpoint, order_checkpoints
from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.zoo.__main__ import main
from spectra.zoo.tasks import build_task, list_tasks
from spectra.zoo.training import _split, scheduled_rate, train

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


@pytest.mark.parametrize(
    ("done", "rate"),
    [(0, 0.1), (149, 0.1), (150, 0.1), (180, 0.07525), (210, 0.0505), (240, 0.02575), (270, 0.001), (299, 0.001)],
)
def test_the_linear_schedule_has_its_printed_values(done, rate):
    """T = 300 and a = 0.1: constant to 150, on the line between (150, 0.1) and (270, 0.001), then constant."""
    assert scheduled_rate(0.1, done, 300) == pytest.approx(rate, rel=1e-12)
    assert scheduled_rate(0.1, done, 300, "constant") == 0.1


def test_the_linear_schedule_never_rises_and_ends_at_a_hundredth():
    for epochs in (1, 2, 3, 7, 10, 50):
        rates = [scheduled_rate(1.0, done, epochs) for done in range(epochs + 1)]
        assert all(a >= b for a, b in pairwise(rates))
        assert (rates[0], rates[-1]) == (1.0, 0.01)


def test_training_follows_the_schedule(tmp_path):
    """Ten epochs: the first six have the full rate, the last one a hundredth of it."""

    def weights(schedule):
        paths = train("digits-logistic", tmp_path / schedule, epochs=10, schedule=schedule, momentum=0.0)
        found = [load_checkpoint(path) for path in paths]
        assert all(checkpoint.metadata["recipe"]["schedule"] == schedule for checkpoint in found)
        return [checkpoint.state_dict["1.weight"] for checkpoint in found]

    constant, linear = weights("constant"), weights("linear")
    assert [torch.equal(a, b) for a, b in zip(constant, linear)] == [True] * 7 + [False] * 4
    steps = [float((b - a).norm()) for a, b in pairwise(linear)]
    assert steps[-1] < 0.03 * steps[5]


def test_dropout_repeats_itself_and_leaves_the_global_state_alone(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "cifar10.npz", x_train=rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), y_train=range(6))
    before = torch.get_rng_state()
    options = {"epochs": 2, "batch_size": 3, "data": str(tmp_path), "width": 4}
    runs = []
    for name in "ab":
        runs.append(load_checkpoint(train("cifar10-vgg11-bn", tmp_path / name, **options)[-1]).state_dict)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)  # another global state for the second run
        before = torch.get_rng_state()
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


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
        ({"schedule": "cosine"}, ArgumentError, "schedule='cosine': one of constant, linear"),
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


def test_the_module_lists_its_tasks_with_their_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert [line.split()[0] for line in lines] == list(list_tasks())
    assert lines[0] == "digits-convnet      convolutions with batch norm on 8 x 8 digits (width=16)"
    assert "cifar10-preresnet   PreResNet on CIFAR-10 (depth=164, block=bottleneck, width=16)" in lines


def test_the_module_passes_options_of_the_network_on(tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        main(["digits-mlp", "--task-arg", "hidden=5", "--schedule", "linear", "--epochs", "0", "--out", str(out)]) == 0
    )
    checkpoint = load_checkpoint(out / "epoch_000.pt")
    assert checkpoint.task_args["hidden"] == 5
    assert checkpoint.metadata["recipe"]["schedule"] == "linear"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-mlp", "--task-arg", "hidden"], "--task-arg 'hidden': key=value is needed"),
        (["digits-mlp", "--task-arg", "hidden=x"], "--task-arg hidden=x: an integer is needed"),
        (["digits-mlp", "--task-arg", "depth=3"], "--task-arg depth: the network of digits-mlp takes hidden"),
        (["digits-mlp", "--task-arg", "seed=3"], "--task-arg seed: the network of digits-mlp takes hidden"),
        (["digits-logistic", "--task-arg", "a=3"], "--task-arg a: the network of digits-logistic has no options"),
        (["digits-mlp", "--task-arg", "hidden=3", "--task-arg", "hidden=4"], "--task-arg hidden is given twice"),
        (["digits-ml", "--task-arg", "hidden=3"], "did you mean digits-mlp? there are digits-convnet"),
    ],
)
def test_options_that_the_network_does_not_have_are_refused(tmp_path, capsys, arguments, words):
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
