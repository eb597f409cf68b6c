"""Callbacks of trainers: when they analyse, with stand-ins for the trainers; tests/foreign has the real ones."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import spectra
from spectra import HuggingFaceCallback, LightningCallback, Task, load_trajectory
from spectra.errors import ArgumentError, MissingDependency, StorageError, TaskError

QUICK = {"lanczos_steps": 3, "num_probes": 2, "check": False, "metrics": "none"}
BATCHES = 4


class Callback:
    """In place of the base class of either package."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", SimpleNamespace(Callback=type("Callback", (), {})))
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(Callback=Callback))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(TrainerCallback=Callback))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, generator=generator), torch.randint(2, (8,), generator=generator))]


def step(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


def fit_lightning(callback, model, epochs=4, batches=BATCHES, accumulate=1, stop=math.inf, rank=0, strategy=object):
    """The hooks that Lightning calls, in its order; ``stop`` is the last step."""
    trainer = SimpleNamespace(strategy=strategy(), is_global_zero=rank == 0, current_epoch=0, global_step=0)
    trainer.num_training_batches, trainer.fit_loop = batches, SimpleNamespace(batch_idx=-1)
    callback.on_train_start(trainer, model)
    for _ in range(epochs):
        for index in range(BATCHES):
            trainer.fit_loop.batch_idx = index
            if (index + 1) % accumulate == 0:
                step(model)
                trainer.global_step += 1
            callback.on_train_batch_end(trainer, model, None, None, index)
            if trainer.global_step >= stop:
                break
        callback.on_train_epoch_end(trainer, model)
        trainer.current_epoch += 1
        if trainer.global_step >= stop:
            break
    callback.on_train_end(trainer, model)


def fit_transformers(callback, model, epochs=4, batches=BATCHES, accumulate=1, stop=math.inf, rank=0, **args):
    """The events of the Trainer of transformers, in its order; ``accumulate`` is that of Lightning alone."""
    state = SimpleNamespace(epoch=0, global_step=0, is_world_process_zero=rank == 0)
    given = (SimpleNamespace(**args), state, None)
    callback.on_train_begin(*given, model=model)
    for epoch in range(epochs):
        for index in range(BATCHES):
            step(model)
            state.global_step += 1
            state.epoch = epoch + (index + 1) / BATCHES
            callback.on_step_end(*given, model=model)
            if state.global_step >= stop:
                break
        callback.on_epoch_end(*given, model=model)
        if state.global_step >= stop:
            break
    callback.on_train_end(*given, model=model)


KINDS = {"lightning": (LightningCallback, fit_lightning), "transformers": (HuggingFaceCallback, fit_transformers)}


def times(out):
    return [(record.epoch, record.step) for record in load_trajectory(out)]


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.mark.parametrize(
    ("options", "fit", "expected"),
    [
        ({}, {}, [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16)]),
        ({"every": 3}, {}, [(0, 0), (3, 12), (4, 16)]),
        ({"every": 2}, {}, [(0, 0), (2, 8), (4, 16)]),  # the last state is analysed once
        ({"every": 2}, {"stop": 10}, [(0, 0), (2, 8), (2.5, 10)]),
        ({"every": 5, "by": "step"}, {}, [(0, 0), (1.25, 5), (2.5, 10), (3.75, 15), (4, 16)]),
    ],
)
def test_the_untrained_network_then_each_kth_then_the_last(tmp_path, kind, options, fit, expected):
    make, run = kind
    model = network()
    callback = make(Task(model, nn.CrossEntropyLoss(), data()), out=tmp_path / "run.h5", **options, **QUICK)
    run(callback, model, **fit)
    assert times(tmp_path / "run.h5") == expected
    traces = [record.estimates["trace"].value for record in load_trajectory(tmp_path / "run.h5")]
    assert len(set(traces)) == len(traces)  # of other weights each
    spectra.Tracker(Task(model, nn.CrossEntropyLoss(), data()), out=tmp_path / "run.h5", **QUICK).close()  # unlocked


def test_steps_that_accumulate_gradients_are_analysed_once(tmp_path):
    model = network()
    callback = LightningCallback(
        data=data(), criterion=nn.CrossEntropyLoss(), by="step", every=2, out=tmp_path / "run.h5", **QUICK
    )
    fit_lightning(callback, model, accumulate=2)
    assert [step for _, step in times(tmp_path / "run.h5")] == [0, 2, 4, 6, 8]


def test_epochs_of_unknown_length_are_whole_ones(tmp_path):
    model = network()
    callback = LightningCallback(data=data(), criterion=nn.CrossEntropyLoss(), out=tmp_path / "run.h5", **QUICK)
    fit_lightning(callback, model, epochs=2, batches=math.inf)
    assert times(tmp_path / "run.h5") == [(0, 0), (1, 4), (2, 8)]


def test_only_the_first_process_analyses(tmp_path, kind):
    make, run = kind
    callback = make(data=data(), criterion=nn.CrossEntropyLoss(), out=tmp_path / "run.h5", **QUICK)
    run(callback, network(), rank=1)
    assert not list(tmp_path.iterdir())


def test_distributed_weights_are_refused_in_every_process(tmp_path):
    options = {"data": data(), "criterion": nn.CrossEntropyLoss(), "out": tmp_path / "run.h5"}
    strategy = type("Ours", (type("FSDPStrategy", (), {}),), {})
    with pytest.raises(TaskError, match=r"Ours distributes the weights over processes.*spectra watch"):
        fit_lightning(LightningCallback(**options), network(), strategy=strategy, rank=1)
    with pytest.raises(TaskError, match="deepspeed in TrainingArguments distributes the weights"):
        fit_transformers(HuggingFaceCallback(**options), network(), deepspeed="zero3.json", rank=1)


def test_synchronised_batch_norm_would_wait_for_other_processes(tmp_path, monkeypatch, kind):
    make, run = kind
    model = nn.Sequential(nn.Linear(3, 2), nn.SyncBatchNorm(2))
    options = {"data": data(), "criterion": nn.CrossEntropyLoss(), "out": tmp_path / "run.h5", **QUICK}
    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(TaskError, match="synchronised batch norm in train mode waits for the other processes"):
        run(make(**options, bn_modes=("eval", "train")), model)
    assert not list(tmp_path.iterdir())


def test_a_task_may_be_a_function_of_the_network_or_of_a_part_of_it(tmp_path, kind):
    make, run = kind
    model, made = nn.ModuleDict({"net": network()}), []

    def task(trained):
        made.append(trained)
        return Task(trained["net"], nn.CrossEntropyLoss(), data())

    run(make(task, out=tmp_path / "run.h5", **QUICK), model, epochs=1)
    assert len(made) == 1
    assert made[0] is model
    assert len(times(tmp_path / "run.h5")) == 2


def test_a_copy_of_the_network_is_refused(tmp_path, kind):
    make, run = kind
    model = network()
    task = Task(copy.deepcopy(model), nn.CrossEntropyLoss(), data())
    with pytest.raises(ArgumentError, match="shares no parameter with the network that is trained"):
        run(make(task, out=tmp_path / "run.h5"), model)
    with pytest.raises(ArgumentError, match=r"task returns a list: a spectra\.Task is needed"):
        run(make(lambda trained: [], out=tmp_path / "run.h5"), model)


def test_what_is_asked_for_is_checked_when_the_callback_is_made(kind):
    make, _ = kind
    task = Task(network(), nn.CrossEntropyLoss(), data())
    for wrong in ({}, {"data": data()}, {"criterion": nn.MSELoss()}, {"task": task, "data": data()}):
        with pytest.raises(ArgumentError, match="give a task, or data= and criterion= in its place"):
            make(**wrong)
    with pytest.raises(ArgumentError, match="by='batch': 'epoch' or 'step' is needed"):
        make(task, by="batch")
    with pytest.raises(ArgumentError, match="every=0: at least 1 is needed"):
        make(task, every=0)


def test_an_error_ends_training_at_the_first_analysis_only(tmp_path, kind):
    make, run = kind
    model = network()
    task = Task(model, nn.CrossEntropyLoss(), data())
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    callback = make(task, out=tmp_path / "run.h5", **QUICK)
    with pytest.raises(spectra.SpectraError, match="NaN or infinite weights"):
        run(callback, model)
    with torch.no_grad():
        model[0].weight[0, 0] = 1.0

    class Failing(nn.CrossEntropyLoss):
        broken = False

        def forward(self, output, target):
            if self.broken:
                raise RuntimeError("no such luck")
            return super().forward(output, target)

    criterion = Failing()

    def breaking(trained):
        return Task(trained, criterion, data())

    callback = make(breaking, out=tmp_path / "run.h5", **QUICK)
    begin = callback.followed.begin
    callback.followed.begin = lambda *given: (begin(*given), setattr(criterion, "broken", True))
    run(callback, model, epochs=2)
    assert [record.status for record in load_trajectory(tmp_path / "run.h5")] == ["complete", "failed", "failed"]


def test_an_exception_of_lightning_closes_the_file(tmp_path):
    model = network()
    task = Task(model, nn.CrossEntropyLoss(), data())
    callback = LightningCallback(task, out=tmp_path / "run.h5", **QUICK)
    callback.on_train_end = lambda *_: callback.on_exception(None, model, KeyboardInterrupt())
    fit_lightning(callback, model, epochs=1)
    spectra.Tracker(task, out=tmp_path / "run.h5", **QUICK).close()
    with pytest.raises(StorageError, match="settings"), spectra.Tracker(task, out=tmp_path / "run.h5") as tracker:
        tracker(epoch=0)


def test_a_callback_is_one_of_each_package_in_use(monkeypatch):
    made = LightningCallback(lambda model: None)
    for name in ("lightning.pytorch", "pytorch_lightning"):
        assert isinstance(made, sys.modules[name].Callback)
    assert isinstance(made, LightningCallback)
    assert type(made).__qualname__ == "LightningCallback"
    assert isinstance(HuggingFaceCallback(lambda model: None), Callback)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert type(LightningCallback(lambda model: None)).__mro__[1:3] == (LightningCallback, Callback)


def test_a_callback_can_be_copied_and_pickled(kind):
    make, _ = kind
    callback = make(network, every=3, out="elsewhere.h5")
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert isinstance(other, Callback)
        assert (other.followed.every, other.followed.options) == (3, {"out": "elsewhere.h5"})


@pytest.mark.parametrize(
    ("make", "package"), [(LightningCallback, "pytorch_lightning"), (HuggingFaceCallback, "transformers")]
)
def test_a_package_that_is_missing_is_named_with_its_remedy(monkeypatch, make, package):
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def missing(name, *_):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependency, match=rf"Callback needs {package}, .*: pip install {package}"):
        make(lambda model: None)
