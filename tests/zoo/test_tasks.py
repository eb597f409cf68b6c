"""Built-in tasks: each can be built from its options, and options that do not exist are refused with the list."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spectra.errors import ArgumentError, DataError, TaskError
from spectra.task.task import Task
from spectra.zoo.tasks import BUILT_IN, all_names, build_task, list_tasks, task_options, tasks_by_data

WANTED = [
    *("digits-convnet", "digits-mlp", "digits-logistic"),
    *("mnist-lenet", "mnist-lenet-bn", "mnist-mlp", "mnist-logistic", "mnist-wrn"),
    *("fashion-lenet", "fashion-lenet-bn", "fashion-mlp", "fashion-logistic", "fashion-wrn"),
    *("cifar10-lenet", "cifar10-lenet-bn", "cifar10-vgg11-bn", "cifar10-vgg16", "cifar10-vgg16-bn"),
    *("cifar10-allcnn", "cifar10-preresnet", "cifar10-wrn", "cifar10-mlp"),
    *("cifar100-lenet", "cifar100-lenet-bn", "cifar100-vgg11-bn", "cifar100-vgg16", "cifar100-vgg16-bn"),
    *("cifar100-allcnn", "cifar100-preresnet", "cifar100-wrn", "cifar100-mlp"),
]
SMALL = {  # of the networks that are large as the papers have them
    "vgg11-bn": {"width": 2},
    "vgg16": {"width": 2},
    "vgg16-bn": {"width": 2},
    "allcnn": {"width": 2},
    "preresnet": {"depth": 11, "width": 2},
    "wrn": {"depth": 10, "width": 1},
}


@pytest.fixture
def data(tmp_path):
    """Files of three images each, under the names that the readers look for."""
    rng = np.random.default_rng(0)
    small, coloured = (3, 28, 28), (3, 3, 32, 32)
    for name, shape in {"mnist": small, "fashion_mnist": small, "cifar10": coloured, "cifar100": coloured}.items():
        arrays = {f"x_{split}": rng.integers(0, 256, shape, dtype=np.uint8) for split in ("train", "test")}
        labels = {f"y_{split}": np.array([3, 0, 9]) for split in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **arrays, **labels)
    return str(tmp_path)


@pytest.mark.parametrize("name", WANTED)
def test_every_built_in_task_defines_a_loss(name, data):
    if name.startswith("digits"):
        pytest.importorskip("sklearn")
    options = {} if name.startswith("digits") else {"data": data}
    set_name, _, network = name.partition("-")
    task = build_task(name, split="test", batch_size=2, **options, **SMALL.get(network, {}))
    assert isinstance(task, Task)
    x, y = next(iter(task.data))
    assert len(x) == len(y) == 2
    loss = task.criterion(task.model(x), y).detach()
    assert loss.ndim == 0
    classes = 100 if set_name == "cifar100" else 10
    assert task.model(x).shape == (2, classes)
    assert abs(float(loss) - np.log(classes)) < 2.5  # an untrained network guesses
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in task.model.modules())
    assert has_norm == (network.endswith("-bn") or network in ("convnet", "preresnet", "wrn"))


def test_the_list_has_a_line_for_each():
    assert list(list_tasks()) == WANTED
    assert all(words and "\n" not in words for words in list_tasks().values())


def test_names_are_grouped_by_data_set_in_every_list():
    groups = tasks_by_data()
    assert list(groups) == ["digits", "mnist", "fashion", "cifar10", "cifar100"]
    assert [name for names in groups.values() for name in names] == WANTED
    assert all(name.startswith(f"{data}-") for data, names in groups.items() for name in names)
    assert all_names().startswith(
        "digits-convnet, -mlp, -logistic; mnist-lenet, -lenet-bn, -mlp, -logistic, -wrn; fashion-"
    )


@pytest.mark.parametrize(
    ("name", "network", "parameters"),
    [
        ("cifar10-vgg16", "vgg16", 15_245_130),
        ("cifar10-vgg16-bn", "vgg16-bn", 15_253_578),
        ("cifar100-vgg11-bn", "vgg11-bn", 9_802_596),
        ("cifar10-preresnet", "preresnet", 1_703_258),
        ("cifar100-wrn", "wrn", 36_536_884),
        ("cifar100-allcnn", "allcnn", 1_387_108),
        ("cifar10-allcnn", "allcnn", 1_369_738),
        ("fashion-mlp", "mlp", 79_510),
    ],
)
def test_defaults_are_the_networks_of_the_papers(name, network, parameters):
    built_in = BUILT_IN[name]
    assert name.endswith(network)
    with torch.device("meta"):
        model = built_in.network(**built_in.options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_depth_and_block_reach_the_network(data):
    model = build_task("cifar10-preresnet", data=data, depth=14, block="basic", width=2).model
    assert len(model.units) == 6
    assert [len(unit.convolutions) for unit in model.units] == [2] * 6


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
        ("cifar10-vgg16", {"depth": 11}, TaskError, "no option 'depth': it takes data, split, batch_size, seed, width"),
        ("cifar10-preresnet", {"data": "x", "block": 3}, ArgumentError, "block=3: cifar10-preresnet needs a text"),
        ("cifar10-wrn", {"data": "x", "depth": "28"}, ArgumentError, "depth='28': cifar10-wrn needs an integer"),
        ("cifar100-wrn", {}, ArgumentError, r"needs data=PATH: the folder of CIFAR-100's binary version \(train\.bin"),
        ("fashion-mlp", {}, ArgumentError, "needs data=PATH: the folder of Fashion-MNIST's IDX files"),
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
