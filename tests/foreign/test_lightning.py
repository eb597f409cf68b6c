"""Checkpoints that Lightning's trainer wrote: read from the command line, with the curvature of their weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases import dense_hessian
from foreign_networks import analysed, classifier, command, library, rows
from torch.nn import functional as F

pytestmark = pytest.mark.foreign
TASK = (
    "x, y = rows(); return Task(classifier(), nn.CrossEntropyLoss(), list(zip(x.split((10, 14)), y.split((10, 14)))))"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with what two equal fits left: a checkpoint per epoch and the last one, and copies called ``-v1``."""
    lightning = library("pytorch_lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self, width=6):
            super().__init__()
            self.save_hyperparameters()
            self.net = classifier()

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    folder = tmp_path_factory.mktemp("lightning")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows()), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            torch.manual_seed(0)
            saving = lightning.callbacks.ModelCheckpoint(folder / "run", save_top_k=-1, save_last=True)
            lightning.Trainer(max_epochs=3, callbacks=[saving], **quiet).fit(Classifier(), data)
    return folder


def truth(path):
    """Loss, and the eigenvalues of the dense Hessian in float64, of the weights in a file."""
    weights = torch.load(path, weights_only=True)["state_dict"]
    model = classifier().double()
    model.load_state_dict({name.removeprefix("net."): tensor for name, tensor in weights.items()})
    x, y = rows()
    loss = F.cross_entropy(model(x.double()), y)
    return loss.item(), torch.linalg.eigvalsh(dense_hessian(loss, list(model.parameters())))


def test_a_checkpoint_has_the_curvature_of_its_weights(run, monkeypatch):
    monkeypatch.chdir(run)
    names = {path.name for path in (run / "run").iterdir()}
    assert {"last.ckpt", "last-v1.ckpt", "epoch=2-step=9.ckpt", "epoch=2-step=9-v1.ckpt"} <= names
    (record,) = analysed(run, TASK, "run/epoch=2-step=9.ckpt")
    loss, eigenvalues = truth(run / "run" / "epoch=2-step=9.ckpt")
    assert (record["epoch"], record["step"]) == (2, 9)
    assert record["facts"]["loss"] == pytest.approx(loss, rel=1e-5)
    estimates, slack = record["estimates"], 1e-5 * float(eigenvalues[-1])
    assert abs(estimates["trace"]["value"] - float(eigenvalues.sum())) < 4 * estimates["trace"]["stderr"]
    for end, value in (("lambda_max", float(eigenvalues[-1])), ("lambda_min", float(eigenvalues[0]))):
        assert estimates[end]["lower"] - slack <= value <= estimates[end]["upper"] + slack


def test_a_folder_of_a_fit_that_was_made_twice_has_each_epoch_once(run, monkeypatch):
    """Files of equal weights are one checkpoint, whatever else they hold: ``-v1`` copies, and ``last``."""
    monkeypatch.chdir(run)
    records = analysed(run, TASK, "run")
    expected = [truth(run / "run" / f"epoch={epoch}-step={3 * epoch + 3}.ckpt")[0] for epoch in range(3)]
    assert [record["facts"]["loss"] for record in records] == pytest.approx(expected, rel=1e-5)
    assert expected[0] > expected[1] > expected[2]


def test_inspect_names_the_trainer(run):
    assert "lightning" in command("inspect", run / "run" / "last.ckpt").lower()
