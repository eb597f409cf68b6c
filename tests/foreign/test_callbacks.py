"""The callbacks in the real trainers: training continues bit for bit as without them, and the numbers are right."""

from __future__ import annotations

import copy
import functools
import importlib
import random
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import dense_hessian
from foreign_networks import data_of, library, network, next_symbols
from torch import nn
from torch.nn import functional as F

import spectra
from spectra import HuggingFaceCallback, LightningCallback, Task, load_trajectory

pytestmark = pytest.mark.foreign
QUICK = {"lanczos_steps": 8, "num_probes": 4, "check": False, "metrics": "none"}
LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    return one == other


def seeded():
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002


def drawn():
    """A number of each generator: equal after two trainings only if both have drawn as often."""
    return torch.rand(2).tolist(), random.random(), np.random.rand()  # noqa: NPY002


def points():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator)


def module_of(lightning):
    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3))
            self.losses = []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch, _):
            self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            adam = torch.optim.Adam(self.parameters(), lr=0.05)
            return [adam], [torch.optim.lr_scheduler.StepLR(adam, 1, 0.9)]

    return Net()


def fit(lightning, folder, callback=None, module=None, **options):
    """What a training with dropout, batch norm, validation and a shuffling loader leaves."""
    seeded()
    module = module or module_of(lightning)
    made = [] if callback is None else [callback(module)]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points()), batch_size=6, shuffle=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "default_root_dir": folder, "gradient_clip_val": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(callbacks=made, **quiet, **({"max_epochs": 3} | options))
        trainer.fit(module, loader, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points()), 24))
    return module.losses, copy.deepcopy(module.state_dict()), trainer.optimizers[0].state_dict(), drawn()


@pytest.mark.parametrize("name", LIGHTNING)
def test_a_training_of_lightning_goes_on_bit_for_bit(tmp_path, name):
    library("pytorch_lightning")
    lightning = pytest.importorskip(name, reason=f"{name} is not installed: make foreign installs it")
    x, y = points()
    seen = []

    def callback(module):
        module.on_train_epoch_end = lambda: seen.append(copy.deepcopy(module.net).double().eval())
        task = Task(module.net, nn.CrossEntropyLoss(), [(x, y)])
        return LightningCallback(task, out=tmp_path / "run.h5", bn_modes=("eval", "train"), eigenpairs=1, **QUICK)

    plain, tracked = fit(lightning, tmp_path), fit(lightning, tmp_path, callback)
    for what, one, other in zip(("losses", "weights", "optimizer", "random states"), plain, tracked):
        assert same(one, other), what
    series = load_trajectory(tmp_path / "run.h5")["hessian", "eval"]
    assert [(record.epoch, record.step) for record in series] == [(0, 0), (1, 4), (2, 8), (3, 12)]
    assert len(load_trajectory(tmp_path / "run.h5")["hessian", "train"]) == 4
    for record, net in zip(list(series)[1:], seen):
        loss = F.cross_entropy(net(x.double()), y)
        eigenvalues = torch.linalg.eigvalsh(dense_hessian(loss, list(net.parameters())))
        assert record.facts["loss"] == pytest.approx(loss.item(), rel=1e-5)
        top = record.estimates["lambda_max"]
        assert top.lower - 1e-5 * float(eigenvalues[-1]) <= float(eigenvalues[-1]) <= top.upper * (1 + 1e-5)


def test_a_training_of_lightning_that_stops_within_an_epoch_or_accumulates_gradients(tmp_path):
    lightning = library("pytorch_lightning")
    data = {"data": [points()], "criterion": nn.CrossEntropyLoss(), "out": tmp_path / "run.h5"}

    def callback(module):
        return LightningCallback(**data, every=2, **QUICK)

    fit(lightning, tmp_path, callback, max_epochs=-1, max_steps=6)
    assert [(record.epoch, record.step) for record in load_trajectory(tmp_path / "run.h5")] == [(0, 0), (1.5, 6)]
    (tmp_path / "run.h5").unlink()

    def by_step(module):
        return LightningCallback(**data, every=3, by="step", **QUICK)

    fit(lightning, tmp_path, by_step, max_epochs=2, accumulate_grad_batches=2)
    assert [(record.epoch, record.step) for record in load_trajectory(tmp_path / "run.h5")] == [
        (0, 0),
        (1.5, 3),
        (2, 4),
    ]


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_a_training_of_transformers_goes_on_bit_for_bit(tmp_path, by):
    library("accelerate")
    transformers = importlib.import_module("transformers")
    _, ids, labels = data_of("gpt2")
    seen = []

    def train(callback=None):
        seeded()
        model = network("gpt2")
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=2, learning_rate=1e-2,
            report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in ids]
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        if callback is not None:
            trainer.add_callback(callback(model))
        trainer.train()
        return copy.deepcopy(model.state_dict()), trainer.optimizer.state_dict(), drawn()

    class Seen(HuggingFaceCallback):
        """Also keeps what is analysed."""

        def on_epoch_end(self, args, state, control, **more):
            seen.append(copy.deepcopy(more["model"]).double().eval())
            super().on_epoch_end(args, state, control, **more)

    def callback(model):
        task = Task(
            model, nn.CrossEntropyLoss(), [ids], forward=next_symbols, target=lambda batch: batch[:, 1:].flatten()
        )
        every = {"epoch": 1, "step": 4}[by]
        return Seen(task, by=by, every=every, out=tmp_path / "run.h5", **QUICK)

    plain, tracked = train(), train(callback)
    for what, one, other in zip(("weights", "optimizer", "random states"), plain, tracked):
        assert same(one, other), what
    records = list(load_trajectory(tmp_path / "run.h5"))
    assert [(record.epoch, record.step) for record in records] == [(0, 0), (1, 4), (2, 8)]
    for record, model in zip(records[1:], seen):
        loss = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), labels)
        assert record.facts["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert records[1].facts["loss"] > records[2].facts["loss"]


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    library("accelerate")
    lightning, transformers = library("pytorch_lightning"), importlib.import_module("transformers")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "howto" / "training-loop.md").read_text(encoding="utf-8")
    codes = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "Callback(" in block]
    assert len(codes) == 2
    x, y = points()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 12)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    given = {"spectra": spectra, "nn": nn}
    trainer = functools.partial(lightning.Trainer, **quiet)
    (code,) = [code for code in codes if "LightningCallback" in code]
    code = code.replace("every=5", "every=5, lanczos_steps=4, num_probes=2").replace("max_epochs=100", "max_epochs=6")
    exec(code, given | {"Trainer": trainer, "batches": [(x, y)], "module": module_of(lightning), "loader": loader})
    assert [record.epoch for record in load_trajectory("run.h5")] == [0, 5, 6]
    Path("run.h5").unlink()
    arguments = transformers.TrainingArguments(
        "out", max_steps=4, per_device_train_batch_size=4, report_to=[], save_strategy="no", use_cpu=True
    )
    _, ids, labels = data_of("bert")
    data = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels)]
    batches = [{"input_ids": ids, "labels": labels}]
    (code,) = [code for code in codes if "HuggingFaceCallback" in code]
    code = code.replace("every=500", "every=2, lanczos_steps=4, num_probes=2").replace("samples=200", "samples=6")
    known = {"Trainer": transformers.Trainer, "arguments": arguments, "model": network("bert")}
    exec(code, given | known | {"data": data, "batches": batches})
    assert [record.step for record in load_trajectory("run.h5")] == [0, 2, 4]
