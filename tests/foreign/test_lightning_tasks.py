"""``--task lightning:module:Class``: checkpoints of a Trainer analysed by the module's own training step."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from cases import dense_hessian
from click.testing import CliRunner
from foreign_networks import command, library, rows
from torch import nn
from torch.nn import functional as F

from spectra_cli.main import main

pytestmark = pytest.mark.foreign
QUICK = ["-m", "12", "-k", "16", "--metrics", "none", "--out", "out.h5", "--force"]
MODULE = """
import sys, torch, torchmetrics
import pytorch_lightning as pl
from torch import nn
sys.path.insert(0, {here!r})
from foreign_networks import rows

class Net(pl.LightningModule):
    def __init__(self, width, activation="relu"):
        super().__init__()
        self.save_hyperparameters()
        act = {{"relu": nn.ReLU, "tanh": nn.Tanh}}[activation]()
        self.net = nn.Sequential(nn.Linear(4, width), act, nn.Dropout(0.5), nn.Linear(width, 3))
        self.areas = torchmetrics.AUROC(task="multiclass", num_classes=3)  # keeps all that it has seen

    def training_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        loss = nn.functional.cross_entropy(scores, batch[1])
        self.areas(scores.softmax(1), batch[1])
        self.log("areas", self.areas, on_epoch=True)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({{"again": loss}})
        return {{"loss": loss, "more": 1}}

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(*rows())
        return torch.utils.data.DataLoader(data, batch_size=5, shuffle=True, drop_last=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)

class Half(pl.LightningDataModule):
    def setup(self, stage):
        self.data = torch.utils.data.TensorDataset(*(part[:12] for part in rows()))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.data, batch_size=5, shuffle=True)

class Manual(Net):
    def __init__(self, **given):
        super().__init__(4)
        self.automatic_optimization = False

class Two(Net):
    def train_dataloader(self):
        return [super().train_dataloader()] * 2

class NoLoss(Net):
    def training_step(self, batch):
        pass

class Configured(pl.LightningModule):
    def __init__(self, config):
        super().__init__()
        self.save_hyperparameters(config)
        self.net = Net(config.width, config["activation"]).net
        self.areas = torchmetrics.AUROC(task="multiclass", num_classes=3)

    training_step, train_dataloader = Net.training_step, Net.train_dataloader
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the module and what a fit left there."""
    lightning = library("pytorch_lightning")
    import os
    import sys

    folder = tmp_path_factory.mktemp("fit")
    (folder / "my_net.py").write_text(MODULE.format(here=os.path.dirname(os.path.dirname(__file__))))
    sys.path.insert(0, str(folder))
    import my_net

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        saving = lightning.callbacks.ModelCheckpoint(folder / "run", save_top_k=-1)
        lightning.Trainer(max_epochs=2, callbacks=[saving], **quiet).fit(my_net.Net(6, activation="tanh"))
    sys.path.remove(str(folder))
    yield folder
    del sys.modules["my_net"]


@pytest.fixture(autouse=True)
def _in_folder(run, monkeypatch):
    monkeypatch.chdir(run)


def truth(path, count=24):
    """The loss and the eigenvalues of its dense Hessian, in float64, without dropout."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Identity(), nn.Linear(6, 3)).double()
    weights = torch.load(path, weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("net."): tensor for name, tensor in weights.items()})
    x, y = (part[:count] for part in rows())
    loss = F.cross_entropy(model(x.double()), y)
    return loss.item(), torch.linalg.eigvalsh(dense_hessian(loss, list(model.parameters())))


@pytest.mark.parametrize(
    ("spec", "args", "count"),
    [
        ("lightning:my_net:Net", [], 24),
        ("lightning:my_net.py:Net", [], 24),
        ("lightning:my_net:Net", ["datamodule=my_net:Half"], 12),
    ],
)
def test_a_run_has_the_curvature_of_the_loss_that_the_training_step_returns(run, spec, args, count):
    """All rows count although the loader drops the last batch, in one order although it shuffles, without dropout."""
    given = [word for arg in args for word in ("--task-arg", arg)]
    command("analyze", "run", "--task", spec, *given, *QUICK)
    records = json.loads(command("show", "out.h5", "--json"))
    assert [record["epoch"] for record in records] == [0, 1]
    for record, path in zip(records, sorted((run / "run").iterdir())):
        loss, eigenvalues = truth(path, count)
        assert record["facts"]["loss"] == pytest.approx(loss, rel=1e-5)
        estimates, slack = record["estimates"], 1e-5 * float(eigenvalues[-1])
        for end, value in (("lambda_max", float(eigenvalues[-1])), ("lambda_min", float(eigenvalues[0]))):
            assert estimates[end]["lower"] - slack <= value <= estimates[end]["upper"] + slack


def refusal(*words):
    ran = CliRunner().invoke(main, ["analyze", *map(str, words), *QUICK])
    assert ran.exit_code != 0
    lines = [line for line in ran.output.splitlines() if "rror" in line]
    assert len(lines) == 1, ran.output
    return " ".join(ran.output.split())


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("Manual", [], "automatic_optimization=False"),
        ("Two", [], "no single loader"),
        ("NoLoss", [], "returned no loss"),
        ("Half", [], "training_step"),
        ("Other", [], "there is no 'Other'"),
        ("Net", ["depth=3"], "no argument 'depth'"),
        ("Net", ["width=7"], "does not fit the model"),
        ("Net", ["datamodule=my_net"], "is needed"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(run, name, args, words):
    given = [word for arg in args for word in ("--task-arg", arg)]
    path = next((run / "run").iterdir())
    assert words in refusal(path, "--task", f"lightning:my_net:{name}", *given)


def test_hyperparameters_of_one_object_are_passed_as_one_and_missing_ones_are_named(run):
    path = next((run / "run").iterdir())
    content = torch.load(path, weights_only=True)
    loss, _ = truth(path)
    content["hparams_name"] = "config"
    torch.save(content, run / "one.ckpt")
    command("analyze", "one.ckpt", "--task", "lightning:my_net:Configured", *QUICK)
    (record,) = json.loads(command("show", "out.h5", "--json"))
    assert record["facts"]["loss"] == pytest.approx(loss, rel=1e-5)
    del content["hyper_parameters"], content["hparams_name"]
    torch.save(content, run / "none.ckpt")
    assert "--task-arg width=VALUE" in refusal("none.ckpt", "--task", "lightning:my_net:Net")
    given = ["--task-arg", "width=6", "--task-arg", "activation=tanh"]
    command("analyze", "none.ckpt", "--task", "lightning:my_net:Net", *given, *QUICK)
    (record,) = json.loads(command("show", "out.h5", "--json"))
    assert record["facts"]["loss"] == pytest.approx(loss, rel=1e-5)
