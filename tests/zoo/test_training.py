"""Training: it learns, repeats itself bit for bit, also when killed, and leaves checkpoints that say what they are."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import environment
from torch import nn

from spectra import analyze, save_checkpoint
from spectra.checkpoints.checkpoint import load_checkpoint, order_checkpoints
from spectra.errors import ArgumentError, CheckpointError, DataError, NumericsError, TaskError
from spectra.zoo.recipes import PAPERS
from spectra.zoo.tasks import build_task
from spectra.zoo.training import TrainingListener, train
from spectra.zoo.training_state import split

pytest.importorskip("sklearn")
REAL = Path(os.environ.get("SPECTRA_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


class Seen(TrainingListener):
    """Keeps what it is told; at a chosen step it raises."""

    def __init__(self, stop_at=math.inf):
        self.epochs, self.begun, self.stop_at = [], None, stop_at

    def begins(self, step, steps, path):
        self.begun = (step, steps, path)

    def stepped(self, step):
        if step >= self.stop_at:
            raise KeyboardInterrupt

    def epoch(self, epoch):
        self.epochs.append(epoch)


def content(path):
    return torch.load(path, weights_only=True)


def differing(a, b, where=""):
    """The places where two contents are not the same to the bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or list(a) != list(b):
            return [f"{where} (keys)"]
        return [place for key in a for place in differing(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where} (length)"]
        return [place for i, pair in enumerate(zip(a, b)) for place in differing(*pair, f"{where}[{i}]")]
    return [] if a == b and type(a) is type(b) else [where]


def test_training_learns_and_leaves_a_checkpoint_per_epoch(tmp_path):
    seen = Seen()
    paths = train("digits-convnet", tmp_path / "run", epochs=2, width=8, listener=seen)
    assert [path.name for path in paths] == ["epoch_000.pt", "epoch_001.pt", "epoch_002.pt"]
    found = [load_checkpoint(path) for path in paths]
    assert [(c.epoch, c.step) for c in found] == [(0, 0), (1, 23), (2, 46)]
    assert seen.begun == (0, 46, None)
    assert seen.epochs[0].loss is None
    assert seen.epochs[2].accuracy > 0.9
    assert seen.epochs[2].loss < seen.epochs[1].loss
    assert found[2].metadata["accuracy"] == seen.epochs[2].accuracy
    assert order_checkpoints(paths[::-1]) == paths
    for checkpoint in found:
        task = build_task(checkpoint.task, **checkpoint.task_args)
        assert checkpoint.load_into(task.model) == []
        assert (checkpoint.key, checkpoint.others, checkpoint.notes) == ("model", (), ())
    untrained = build_task("digits-convnet", width=8).model.state_dict()
    assert all(torch.equal(found[0].state_dict[key], untrained[key]) for key in untrained)


def test_a_checkpoint_has_the_losses_and_accuracies_that_the_analysis_measures(tmp_path):
    path = train("digits-convnet", tmp_path / "run", epochs=1, width=4, validation=138, label_noise=0.3)[-1]
    checkpoint = load_checkpoint(path)
    task = build_task(checkpoint.task, **checkpoint.task_args)
    checkpoint.load_into(task.model)
    (record,) = analyze(task, lanczos_steps=2, num_probes=1, test_data=True, metrics="none")
    for name, of in (("train_loss", "loss"), ("train_accuracy", "accuracy"), ("test_loss", "test_loss")):
        assert checkpoint.metadata[name] == pytest.approx(record.facts[of], rel=1e-5)
    assert record.facts["n_samples"] == 1300
    validation = build_task(checkpoint.task, **{**checkpoint.task_args, "split": "validation"})
    right = sum(int((task.model.eval()(x).argmax(1) == y).sum()) for x, y in validation.data)
    assert checkpoint.metadata["validation_accuracy"] == right / 138


def test_the_state_of_the_optimizer_is_that_of_torch(tmp_path):
    path = train("digits-logistic", tmp_path / "run", epochs=1, momentum=0.8, weight_decay=0.01, learning_rate=0.02)[-1]
    found = content(path)["optimizer"]
    (group,) = found["param_groups"]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.8, 0.01)
    assert [tuple(found["state"][i]["momentum_buffer"].shape) for i in (0, 1)] == [(10, 64), (10,)]
    by_hand = torch.optim.SGD(build_task("digits-logistic").model.parameters(), lr=1.0, momentum=0.1)
    by_hand.load_state_dict(found)


def test_training_is_the_literal_loop(tmp_path):
    """The same numbers from torch alone: order of the images, SGD, and nothing else."""
    path = train("digits-mlp", tmp_path / "run", epochs=2, momentum=0.5, weight_decay=1e-3, batch_size=100, seed=5)[-1]
    task = build_task("digits-mlp", seed=5)
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    weights = [p.detach().clone() for p in task.model.parameters()]
    velocity = [torch.zeros_like(p) for p in weights]
    order = torch.Generator().manual_seed(5)
    for _ in range(2):
        for rows in torch.randperm(len(x), generator=order).split(100):
            hidden = torch.relu(x[rows].flatten(1) @ weights[0].T + weights[1])
            scores = hidden @ weights[2].T + weights[3]
            scores = torch.softmax(scores, 1) - nn.functional.one_hot(y[rows], 10)
            scores = scores / len(rows)
            back = (scores @ weights[2]) * (hidden > 0)
            slopes = [back.T @ x[rows].flatten(1), back.sum(0), scores.T @ hidden, scores.sum(0)]
            for i, slope in enumerate(slopes):
                velocity[i] = 0.5 * velocity[i] + slope + 1e-3 * weights[i]
                weights[i] = weights[i] - 0.05 * velocity[i]
    for p, expected in zip(content(path)["model"].values(), weights):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)


def test_training_repeats_itself_and_leaves_the_global_state_alone(tmp_path):
    before = torch.get_rng_state()
    runs = [train("digits-mlp", tmp_path / name, epochs=1, seed=3)[-1] for name in "ab"]
    other = train("digits-mlp", tmp_path / "c", epochs=1, seed=4)[-1]
    assert torch.equal(torch.get_rng_state(), before)
    assert differing(content(runs[0]), content(runs[1])) == []
    first, different = (load_checkpoint(path).state_dict for path in (runs[0], other))
    assert not any(torch.equal(first[key], different[key]) for key in first)


def test_training_follows_the_schedule(tmp_path):
    """Ten epochs: the first six have the full rate, the last one a hundredth of it."""

    def weights(schedule):
        paths = train("digits-logistic", tmp_path / schedule, epochs=10, schedule=schedule, momentum=0.0)
        found = [load_checkpoint(path) for path in paths]
        assert all(checkpoint.metadata["recipe"]["schedule"] == schedule for checkpoint in found)
        rates = [checkpoint.metadata["learning_rate"] for checkpoint in found]
        assert [content(path)["optimizer"]["param_groups"][0]["lr"] for path in paths] == rates
        return [checkpoint.state_dict["1.weight"] for checkpoint in found], rates

    (constant, flat), (linear, falling) = weights("constant"), weights("linear")
    assert set(flat) == {0.05}
    assert falling[:7] == [0.05] * 7  # that of the first epoch before it, then that of each
    assert falling[-1] == pytest.approx(0.05 * 0.01, rel=1e-12)
    assert [torch.equal(a, b) for a, b in zip(constant, linear)] == [True] * 7 + [False] * 4
    steps = [float((b - a).norm()) for a, b in pairwise(linear)]
    assert steps[-1] < 0.03 * steps[5]


@pytest.fixture
def cifar(tmp_path):
    """Six images of CIFAR-10 for training, and two for the test."""
    rng = np.random.default_rng(0)
    pixels = {
        f"x_{name}": rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for name, n in (("train", 6), ("test", 2))
    }
    np.savez(tmp_path / "cifar10.npz", **pixels, y_train=range(6), y_test=range(2))
    return str(tmp_path)


def test_dropout_and_augmentation_repeat_themselves_and_leave_the_global_state_alone(tmp_path, cifar):
    options = {"epochs": 2, "batch_size": 3, "data": cifar, "width": 4, "augment": True}
    before = torch.get_rng_state()
    runs = []
    for name in "ab":
        runs.append(content(train("cifar10-vgg11-bn", tmp_path / name, **options)[-1]))
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)  # another global state for the second run
        before = torch.get_rng_state()
    assert differing(*runs) == []
    without = content(train("cifar10-vgg11-bn", tmp_path / "c", **{**options, "augment": False})[-1])
    assert not torch.equal(without["model"]["classifier.6.weight"], runs[0]["model"]["classifier.6.weight"])


# -- continuing

SLOW = ("adam", "adamw", "average per step")  # gadam has what they have
KINDS = {
    "sgd": {"momentum": 0.9, "schedule": "linear", "epochs": 4, "augment": True},
    "adam": {"optimizer": "adam", "epochs": 3},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "epochs": 3, "schedule": "step", "milestones": "1-2"},
    "gadam": {"optimizer": "gadam", "weight_decay": 0.1, "epochs": 4, "average_from": 2, "schedule": "linear"},
    "average per step": {"average": "step", "average_from": 2, "epochs": 3},
    "sgds": {"optimizer": "sgds", "strength": 0.1, "epochs": 3, "ascent_steps": 1},
    "entropy-sgd": {"optimizer": "entropy-sgd", "langevin_steps": 5, "epochs": 3},
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in KINDS])
def test_an_interrupted_training_continues_bit_for_bit(tmp_path, kind):
    """Stopped within an epoch, twice; on a network with dropout, or with batch norm where the optimizer needs it."""
    task = ("digits-convnet", {"width": 2}) if kind == "sgds" else ("digits-mlp", {"hidden": 6, "dropout": 0.3})
    options = {**task[1], **KINDS[kind], "batch_size": 240}
    whole = train(task[0], tmp_path / "whole", **options)
    for stop in (8, 14):
        with pytest.raises(KeyboardInterrupt):
            train(task[0], tmp_path / "broken", listener=Seen(stop_at=stop), **options)
        torch.rand(5)
    seen = Seen()
    broken = train(task[0], tmp_path / "broken", listener=seen, **options)
    assert seen.begun == (12, 6 * options["epochs"], tmp_path / "broken" / "epoch_002.pt")
    assert [path.name for path in broken] == [path.name for path in whole]
    for a, b in zip(whole, broken):
        assert differing(content(a), content(b)) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["gadam", "sgds", "entropy-sgd"])
def test_a_training_on_a_gpu_continues_with_its_random_states(tmp_path, kind):
    options = {"dropout": 0.3, "hidden": 6, **KINDS[kind], "batch_size": 240, "device": "cuda"}
    whole = train("digits-mlp", tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train("digits-mlp", tmp_path / "broken", listener=Seen(stop_at=8), **options)
    torch.rand(5, device="cuda")
    broken = train("digits-mlp", tmp_path / "broken", **options)
    first, second = (load_checkpoint(paths[-1]).state_dict for paths in (whole, broken))
    for name, weights in first.items():
        assert weights.device.type == "cpu"
        torch.testing.assert_close(weights, second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_killed_process_leaves_whole_checkpoints_and_the_same_command_continues(tmp_path):
    command = [sys.executable, "-m", "spectra_cli.main", "train", "digits-mlp", "--epochs", "40", "--quiet", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment())
    started = time.monotonic()
    while not (tmp_path / "killed" / "epoch_003.pt").exists():
        assert time.monotonic() - started < 120
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    left = len(list((tmp_path / "killed").glob("*.pt")))
    assert left < 41  # it was killed on its way
    subprocess.run([*command, str(tmp_path / "killed")], env=environment(), check=True, timeout=120)
    subprocess.run([*command, str(tmp_path / "whole")], env=environment(), check=True, timeout=120)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
    for name in names[:: max(1, len(names) - 1)]:
        assert differing(content(tmp_path / "killed" / name), content(tmp_path / "whole" / name)) == []


def test_a_finished_training_goes_on_to_more_epochs_where_the_schedule_allows(tmp_path):
    short, whole = tmp_path / "short", tmp_path / "whole"
    train("digits-logistic", short, epochs=1)
    paths = train("digits-logistic", short, epochs=3)
    assert differing(content(paths[-1]), content(train("digits-logistic", whole, epochs=3)[-1])) == []
    assert len(train("digits-logistic", short, epochs=2)) == 3  # the first three are there already
    train("digits-logistic", tmp_path / "linear", epochs=1, schedule="linear")
    with pytest.raises(CheckpointError, match="epochs=1 in place of 2"):
        train("digits-logistic", tmp_path / "linear", epochs=2, schedule="linear")


def test_every_says_which_epochs_have_a_checkpoint_and_changes_no_number(tmp_path):
    seen = Seen()
    some = train("digits-logistic", tmp_path / "some", epochs=5, every=2, listener=seen)
    assert [path.name for path in some] == [f"epoch_00{i}.pt" for i in (0, 2, 4, 5)]
    assert [epoch.path is None for epoch in seen.epochs] == [False, True, False, True, False, False]
    assert seen.epochs[1].loss > seen.epochs[3].loss
    all_of_them = train("digits-logistic", tmp_path / "all", epochs=5)
    assert differing(content(some[-1]), content(all_of_them[-1])) == []


def test_a_folder_of_another_training_is_refused_and_restart_replaces_it(tmp_path):
    out = tmp_path / "run"
    train("digits-logistic", out, epochs=2)
    for options, words in (
        ({"learning_rate": 0.1}, "learning_rate=0.05 in place of 0.1"),
        ({"seed": 1}, "seed=0 in place of 1"),
        ({"label_noise": 0.2}, "label_noise=None in place of 0.2"),
        ({"optimizer": "adam"}, "optimizer='sgd' in place of 'adam'"),
    ):
        with pytest.raises(CheckpointError, match=rf"epoch_002\.pt: is of another training \(.*{words}"):
            train("digits-logistic", out, epochs=2, **options)
    assert len(train("digits-logistic", out, epochs=1, learning_rate=0.1, restart=True)) == 2
    assert not (out / "epoch_002.pt").exists()


@pytest.mark.parametrize("damage", ["other", "cut", "text", "bit"])
def test_a_last_checkpoint_that_cannot_be_continued_is_refused(tmp_path, damage):
    out = tmp_path / "run"
    (path, *_) = train("digits-logistic", out, epochs=0)
    if damage == "other":
        save_checkpoint(path, nn.Linear(2, 2), epoch=0)
    elif damage == "bit":
        whole = bytearray(path.read_bytes())
        whole[whole.index(content(path)["model"]["1.weight"].numpy().tobytes()) + 100] ^= 1
        path.write_bytes(whole)
    else:
        path.write_bytes(path.read_bytes()[:3000] if damage == "cut" else b"hello")
    words = {"other": r"was not written by `spectra train`"}.get(damage, "cannot be continued")
    with pytest.raises(CheckpointError, match=words) as caught:
        train("digits-logistic", out, epochs=1)
    assert "\n" not in str(caught.value)


def test_files_of_a_killed_write_are_removed(tmp_path):
    out = tmp_path / "run"
    train("digits-logistic", out, epochs=1)
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    leftover = out / f".epoch_002.pt.{os.uname().nodename}-{int(gone)}-{'0' * 16}.part"
    leftover.write_bytes(b"half")
    train("digits-logistic", out, epochs=2)
    assert sorted(path.name for path in out.iterdir()) == ["epoch_000.pt", "epoch_001.pt", "epoch_002.pt"]


# -- what is refused


@pytest.mark.parametrize(("rows", "size", "lengths"), [(6, 3, [3, 3]), (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (1, 3, [1])])
def test_no_step_is_made_on_a_single_left_over_image(rows, size, lengths):
    slices = list(split(rows, size))
    assert [part.stop - part.start for part in slices] == lengths
    assert slices[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(slices))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": -1}, ArgumentError, "epochs=-1"),
        ({"every": 0}, ArgumentError, "every=0"),
        ({"learning_rate": 0.0}, ArgumentError, r"learning_rate=0\.0: a positive number is needed"),
        ({"learning_rate": math.nan}, ArgumentError, "learning_rate=nan: training needs a number"),
        ({"schedule": "cosine"}, ArgumentError, "schedule='cosine': one of constant, linear, step"),
        ({"optimizer": "lion"}, ArgumentError, "optimizer='lion': one of sgd, adam, adamw, gadam, sgds, entropy-sgd"),
        ({"momentum": 1.0}, ArgumentError, r"momentum=1\.0: at least 0 and below 1"),
        ({"momentum": 0.0, "nesterov": True}, ArgumentError, "nesterov=True: a momentum above 0"),
        ({"weight_decay": -0.1}, ArgumentError, r"weight_decay=-0\.1"),
        ({"batch_size": 0}, ArgumentError, "batch_size=0"),
        ({"batch_size": 2.5}, ArgumentError, r"batch_size=2\.5: training needs an integer"),
        ({"augment": 1}, ArgumentError, "augment=1: training needs true or false"),
        ({"schedule": "step", "milestones": "5-3"}, ArgumentError, "milestones='5-3': rising epochs"),
        ({"block": 2}, TaskError, "digits-mlp has no option 'block': it takes batch_size, hidden, depth,"),
        ({"split": "test"}, TaskError, "no option 'split'"),
        ({"milestones": "3"}, TaskError, "milestones='3': an option of schedule=step"),
        ({"average_from": 3}, TaskError, "average_from=3: an option of average=epoch or step"),
        ({"average": "step", "average_from": 3}, ArgumentError, "average_from=3: at most 1 is possible"),
        ({"label_noise": 0.5, "label_noise_seed": -1}, ArgumentError, "label_noise_seed=-1: 0 to"),
        ({"ascent_steps": 3}, TaskError, "ascent_steps=3: an option of optimizer=sgds"),
        ({"optimizer": "adam", "momentum": 0.5}, TaskError, "momentum=0.5: an option of optimizer=sgd, optimizer=sgds"),
        ({"device": "tpu"}, ArgumentError, "device='tpu': cpu, cuda or cuda:1 is needed"),
        ({"device": "cuda:99"}, ArgumentError, "device='cuda:99': there is no such GPU here"),
        ({"label_noise": 1.5}, ArgumentError, r"label_noise=1\.5: a fraction"),
        ({"label_noise": 0.5, "label_noise_kind": "odd"}, ArgumentError, "label_noise_kind='odd': one of shuffled"),
        ({"validation": 1438}, ArgumentError, "validation=1438: 1438 training images are there"),
        ({"learning_rate": 1e30}, NumericsError, "lower learning_rate=1e"),
    ],
)
def test_arguments_outside_their_range_are_refused(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        train("digits-mlp", tmp_path / "run", **{"epochs": 1, **options})
    if error is not NumericsError:
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "cifar10.npz").is_file(), reason="CIFAR-10 is not in SPECTRA_TEST_DATA")
def test_lenet_learns_cifar10_with_augmentation_and_validation_images(tmp_path):
    options = {"optimizer": "adam", "augment": True, "validation": 1000, "batch_size": 128, "epochs": 4, "every": 4}
    last = content(train("cifar10-lenet-bn", tmp_path / "run", data=str(REAL), linear_norm=True, **options)[-1])
    assert last["step"] == 4 * 71
    for name in ("train", "validation", "test"):
        assert 0.4 < last[f"{name}_accuracy"] < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PAPERS)
def test_every_recipe_of_a_paper_trains_on_images_of_its_data_set(tmp_path, recipe):
    """Networks made small, three steps of noise, and the averages where the recipe has them."""
    data, network = PAPERS[recipe].task.split("-", 1)
    shape = (12, 28, 28) if data == "mnist" else (12, 3, 32, 32)
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, shape, dtype=np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / f"{data}.npz", **arrays, y_train=np.arange(12) % 10, y_test=np.arange(12) % 10)
    small = {"allcnn": {"width": 4}, "preresnet": {"depth": 11, "width": 2}, "wrn": {"depth": 10, "width": 1}}
    options = {"width": 4} if network.startswith("vgg") else small.get(network, {})
    last = content(train(recipe, tmp_path / "run", data=str(tmp_path), epochs=3, batch_size=6, **options)[-1])
    assert math.isfinite(last["train_loss"])
    assert last["step"] == 6
    assert ("iterate" in last) == recipe.endswith("gadam")


def test_missing_test_images_and_folders_are_refused_before_anything_is_written(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((4, 28, 28), np.uint8), y_train=np.arange(4))
    with pytest.raises(DataError, match="no x_test and no y_test"):
        train("mnist-logistic", tmp_path / "run", data=str(tmp_path), epochs=1)
    assert not (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match="the folder cannot be made"):
        train("digits-logistic", tmp_path / "no" / "run", epochs=1)
