"""Built-in tasks: each can be built from its options, and options that do not exist are refused with the list."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spectra.errors import ArgumentError, DataError, TaskError
from spectra.task import Task
from spectra.zoo.tasks import BUILT_IN, build_task, list_tasks, task_options

WANTED = [
    *("digits-convnet", "digits-mlp", "digits-logistic"),
    *("mnist-lenet", "mnist-lenet-bn", "mnist-mlp", "mnist-logistic"),
    *("cifar10-lenet", "cifar10-lenet-bn"),
]


@pytest.fixture
def data(tmp_path):
    """Files of three images each, under the names that the readers look for."""
    rng = np.random.default_rng(0)
    for name, shape in (("mnist", (3, 28, 28)), ("cifar10", (3, 3, 32, 32))):
        arrays = {f"x_{split}": rng.integers(0, 256, shape, dtype=np.uint8) for split in ("train", "test")}
        labels = {f"y_{split}": np.array([3, 0, 9]) for split in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **arrays, **labels)
    return str(tmp_path)


@pytest.mark.parametrize("name", WANTED)
def test_every_built_in_task_defines_a_loss(name, data):
    if name.startswith("digits"):
        pytest.importorskip("sklearn")
    options = {} if name.startswith("digits") else {"data": data}
    task = build_task(name, split="test", batch_size=2, **options)
    assert isinstance(task, Task)
    x, y = next(iter(task.data))
    assert len(x) == len(y) == 2
    loss = task.criterion(task.model(x), y).detach()
    assert loss.ndim == 0
    assert 1 < float(loss) < 5  # an untrained network of ten classes: near log(10)
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in task.model.modules())
    assert has_norm == (name.endswith("-bn") or name == "digits-convnet")


def test_the_list_has_a_line_for_each():
    assert list(list_tasks()) == WANTED
    assert all(words and "\n" not in words for words in list_tasks().values())


def test_options_reach_the_network_and_the_data():
    pytest.importorskip("sklearn")
    task = build_task("digits-convnet", width=4, batch_size=100, split="test")
    assert task.model[0].out_channels == 4
    assert [len(y) for _, y in task.data] == [100, 100, 100, 59]
    first, again, other = (build_task("digits-mlp", hidden=5, seed=seed).model[1].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_default_batch_size_leaves_a_last_batch_of_one():
    size = BUILT_IN["digits-convnet"].defaults["batch_size"]
    assert all(rows % size != 1 for rows in (1438, 359, 60000, 10000, 50000, 2000, 512))


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("digits-convne", {}, TaskError, "did you mean digits-convnet"),
        ("os:system", {}, TaskError, "no built-in task is called 'os:system'"),
        ("digits-mlp", {"width": 3}, TaskError, "no option 'width': it takes split, batch_size, seed, hidden"),
        ("digits-mlp", {"hidden": "3"}, ArgumentError, "hidden='3'"),
        ("digits-mlp", {"hidden": True}, ArgumentError, "hidden=True"),
        ("digits-mlp", {"hidden": 0}, ArgumentError, "hidden=0"),
        ("digits-mlp", {"batch_size": 0}, ArgumentError, "batch_size=0"),
        ("digits-mlp", {"split": "val"}, ArgumentError, "split='val'"),
        ("digits-mlp", {"split": 1}, ArgumentError, "split=1"),
        ("digits-mlp", {"seed": -1}, ArgumentError, "seed=-1"),
        ("mnist-mlp", {}, ArgumentError, "needs data=PATH"),
        ("mnist-mlp", {"data": "/nonexistent"}, DataError, "no MNIST here"),
    ],
)
def test_what_no_task_can_be_built_from_is_refused(name, options, error, words):
    if name.startswith("digits"):
        pytest.importorskip("sklearn")
    with pytest.raises(error, match=words):
        build_task(name, **options)


def test_all_options_are_filled_in_with_their_defaults():
    assert task_options("digits-convnet", width=8) == {"split": "train", "batch_size": 256, "seed": 0, "width": 8}
