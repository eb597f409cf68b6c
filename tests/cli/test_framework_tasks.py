"""Tasks of other packages' checkpoints without these packages: what is missing, classes of the user, loaders."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from spectra import HessianOperator
from spectra.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from spectra.errors import DataError, MissingDependency, SpectraError, TaskError
from spectra.frameworks.lightning import in_order
from spectra_cli.main import main
from spectra_cli.task_source import resolve

pytestmark = pytest.mark.usefixtures("user_code_forgotten")

#: What a module of Lightning is to spectra: a class with training_step and train_dataloader.
MODULE = """
import torch
from torch import nn

def data(rows=7):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(3, (rows, 5), generator=generator)
    return torch.utils.data.TensorDataset(x, x.roll(1, 1).masked_fill(x == 2, -100))

class Metric(nn.Module):
    seen = 0
    def update(self): self.seen += 1
    def compute(self): pass
    def reset(self): self.seen = 0

class Net(nn.Module):
    def __init__(self, width=4, act="tanh"):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(3, width), {"tanh": nn.Tanh(), "relu": nn.ReLU()}[act])
        self.metric = Metric()

    def configure_model(self):
        self.head = nn.Linear(self.net[0].embedding_dim, 3)

    def training_step(self, batch):
        self.metric.update()
        assert self.metric.seen == 1
        self.log("x", 1, on_step=True)
        return nn.functional.cross_entropy(self.head(self.net(batch[0])).transpose(1, 2), batch[1])

    def train_dataloader(self):
        return torch.utils.data.DataLoader(data(), batch_size=3, shuffle=True)

class Other:
    def __init__(self, rows):
        self.rows = rows

    def setup(self, stage):
        self.data = data(self.rows)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.data, batch_size=2, shuffle=True, drop_last=True)

def counted(batch):
    return (batch[1] != -100).sum()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task_net.py").write_text(MODULE)
    return tmp_path


def saved(folder, width=4, act="tanh", **extra):
    """A checkpoint as Lightning writes it."""
    torch.manual_seed(0)
    tensors = {"net.0.weight": torch.randn(3, width), "head.weight": torch.randn(3, width), "head.bias": torch.randn(3)}
    content = {"hyper_parameters": {"width": width, "act": act}, "hparams_name": "kwargs", "epoch": 1, **extra}
    torch.save({"state_dict": tensors, **{k: v for k, v in content.items() if v is not None}}, folder / "a.ckpt")
    return load_checkpoint(folder / "a.ckpt")


def task_of(checkpoint, *args, spec="lightning:my_task_net:Net"):
    task = resolve(spec, args, checkpoint).task(checkpoint)
    checkpoint.load_into(task.model)
    return task


def product_by_hand(checkpoint, act, x, y, v):
    tensors = [tensor.double().requires_grad_() for tensor in checkpoint.state_dict.values()]
    scores = act(tensors[0])[x] @ tensors[1].T + tensors[2]
    loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors, create_graph=True)])
    return torch.cat([g.flatten() for g in torch.autograd.grad(gradient @ v, tensors)])


@pytest.mark.parametrize("act", ["tanh", "relu"])
@pytest.mark.parametrize("other", [False, True])
def test_a_training_step_has_the_products_of_its_loss_over_all_rows(folder, act, other):
    """The hyperparameters of the checkpoint make the network; weight= counts the tokens; a loader drops no row."""
    checkpoint = saved(
        folder, width=5, act=act, datamodule_hyper_parameters={"rows": 5}, datamodule_hparams_name="kwargs"
    )
    given = ["weight=my_task_net:counted", *(["datamodule=my_task_net:Other"] if other else [])]
    operator = HessianOperator(task_of(checkpoint, *given), dtype="float64")
    from my_task_net import data

    x, y = data(5 if other else 7).tensors
    v = torch.randn(operator.n, dtype=torch.float64)
    truth = product_by_hand(checkpoint, {"tanh": torch.tanh, "relu": torch.relu}[act], x, y, v)
    assert float((operator @ v - truth).norm()) <= 1e-12 * float(truth.norm())


def test_a_loss_that_is_no_mean_over_rows_needs_its_weight(folder):
    with pytest.raises(TaskError, match="weight="):
        _ = HessianOperator(task_of(saved(folder))) @ np.ones(27, np.float32)


def refusal(kind, checkpoint, *args, **options):
    with pytest.raises(kind) as caught:
        task_of(checkpoint, *args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_hyperparameters_that_cannot_build_the_class_are_refused(folder):
    classes = {"width": 4, "act": {"class_path": "os.system", "init_args": {}}}
    assert "class_path" in refusal(TaskError, saved(folder, hyper_parameters=classes))
    assert "no plain values" in refusal(TaskError, saved(folder, hyper_parameters=None))
    assert "no argument 'depth'" in refusal(TaskError, saved(folder), "depth=2")
    assert "'sin'" in refusal(TaskError, saved(folder), "act=sin")
    assert "there is no module" in refusal(TaskError, saved(folder), spec="lightning:none_task:Net")
    assert "no training_step" in refusal(TaskError, saved(folder), "rows=3", spec="lightning:my_task_net:Other")
    refusal(SpectraError, saved(folder), "act=relu", "width=9")


def test_a_checkpoint_with_other_hyperparameters_has_another_network(folder):
    first, source = saved(folder), resolve("lightning:my_task_net:Net", [], None)
    one = source.task(first)
    assert source.task(saved(folder)) is one
    assert source.task(saved(folder, act="relu")) is not one
    assert source.per_checkpoint


def test_a_checkpoint_or_a_function_of_such_a_name_is_no_framework(folder):
    """A file cannot name a class to import, and a module of one's own called lightning keeps its functions."""
    save_checkpoint(folder / "b.pt", nn.Linear(2, 2), task="lightning:my_task_net:Net")
    with pytest.raises(TaskError, match="not built in"):
        resolve(None, [], load_checkpoint(folder / "b.pt"), folder)
    (folder / "hf.py").write_text("def task():\n    return 3\n")
    sys.modules.pop("hf", None)
    with pytest.raises(TaskError, match="it returned a int"):
        resolve("hf:task", [], None, folder).task()
    del sys.modules["hf"]


def test_a_toml_may_name_such_a_task_and_what_runs_is_announced(folder):
    said = []
    for spec, file, name in (
        ("lightning:my_task_net:Net", "my_task_net", "Net"),
        ("hf:causal-lm", None, "hf:causal-lm"),
    ):
        options = "" if file else "[task-args]\ndata = 'x.txt'\n"
        (folder / "spectra.toml").write_text(f'task = "{spec}"\n{options}')
        resolve(None, [], None, folder, announce=lambda *words: said.append(words[1:]))
        assert said.pop() == (file, name)


@pytest.mark.parametrize(
    ("spec", "module", "args"),
    [("hf:causal-lm", "transformers", ["data=x.txt"]), ("timm:resnet18", "timm", ["data=x.npz"])],
)
def test_a_missing_package_is_named_with_what_to_install(folder, monkeypatch, spec, module, args):
    monkeypatch.setitem(sys.modules, module, None)
    words = refusal(MissingDependency, saved(folder), *args, spec=spec)
    assert f"pip install {module}" in words
    ran = CliRunner().invoke(main, ["analyze", "a.ckpt", "--task", spec, "--task-arg", *args, "--out", "out.h5"])
    assert ran.exit_code == 1
    assert ran.stderr.splitlines()[-1] == f"spectra: error: {words}"
    assert not (folder / "out.h5").exists()


@pytest.mark.parametrize("spec", ["hf:masked-lm", "hf:", "hf:causal-lm:x"])
def test_an_unknown_task_of_transformers_lists_those_that_there_are(folder, spec):
    assert "hf:causal-lm, hf:sequence-classification" in refusal(TaskError, saved(folder), spec=spec)
    assert "no argument 'size'" in refusal(TaskError, saved(folder), "data=x", "size=3", spec="hf:causal-lm")


def test_a_network_of_timm_is_made_by_its_name_and_bytes_are_normalised_by_its_own_constants(folder, monkeypatch):
    """timm itself needs torchvision: here it is a stand-in."""
    asked = []

    def create_model(name, **options):
        asked.append((name, options))
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, options["num_classes"]))
        model.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}
        return model

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    np.savez("a.npz", images=np.full((5, 2, 2, 3), 255, np.uint8), labels=np.array([0, 1, 0, 1, 1]))
    torch.save(create_model("x", num_classes=2).state_dict(), "net.pt")
    task = task_of(load_checkpoint("net.pt"), "data=a.npz", "classes=2", "batch_size=3", spec="timm:net_a")
    assert asked[-1] == ("net_a", {"pretrained": False, "num_classes": 2, "in_chans": 3})
    assert [x.shape for x, _ in task.data] == [(3, 3, 2, 2), (2, 3, 2, 2)]
    assert task.data[0][0].unique().tolist() == [2.0]
    assert "nothing is fetched" in refusal(
        TaskError, load_checkpoint("net.pt"), "data=a.npz", spec="timm:hf-hub:somebody/net"
    )


def test_loaders_are_read_in_order_where_only_the_order_changes():
    data = TensorDataset(torch.arange(7))
    shuffled = DataLoader(data, batch_size=3, shuffle=True, drop_last=True)
    assert [batch[0].tolist() for batch in in_order(shuffled)] == [[0, 1, 2], [3, 4, 5], [6]]
    for kept in (
        DataLoader(data, sampler=WeightedRandomSampler([1.0] * 7, 7)),
        DataLoader(data, sampler=RandomSampler(data, replacement=True)),
        DataLoader(data, sampler=RandomSampler(data, num_samples=3)),
        [(torch.ones(2), torch.ones(2))],
    ):
        assert in_order(kept) is kept
    for several in (None, [shuffled, shuffled], {"a": shuffled}):
        with pytest.raises(DataError, match="no single loader"):
            in_order(several)


def test_the_configuration_of_a_folder_is_read_before_any_package_builds_from_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(logging=SimpleNamespace(set_verbosity_error=int)))
    checkpoint = saved(folder)
    assert "no config.json" in refusal(TaskError, checkpoint, "data=x.txt", spec="hf:causal-lm")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    assert "quantised" in refusal(TaskError, checkpoint, "data=x.txt", spec="hf:causal-lm")
    (folder / "config.json").write_text("[")
    assert "not JSON" in refusal(SpectraError, checkpoint, "data=x.txt", spec="hf:causal-lm")
