"""The state of the optimizer in checkpoints of the trainers of transformers and Lightning."""

from __future__ import annotations

import warnings

import pytest
import torch
from foreign_networks import classifier, library, network, rows
from torch.nn import functional as F

from spectra import load_checkpoint
from spectra.checkpoints.preconditioners import parameter_names, preconditioner_of

pytestmark = pytest.mark.foreign


def test_the_groups_of_the_trainer_of_transformers_are_matched_with_the_parameters(tmp_path):
    transformers = library("transformers")
    library("accelerate")
    model = network("gpt2").float()
    vocabulary = model.config.vocab_size
    data = [{"input_ids": row, "labels": row} for row in torch.randint(vocabulary, (16, 4))]
    options = {"max_steps": 4, "save_steps": 2, "weight_decay": 0.1, "report_to": [], "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = transformers.Trainer(model, arguments, train_dataset=data)
        trainer.train()
    checkpoint = load_checkpoint(tmp_path / "checkpoint-2", optimizer_state=True)
    assert (checkpoint.optimizer.kind, checkpoint.optimizer.steps, checkpoint.notes) == ("adamw", 2, ())
    assert sorted(group["weight_decay"] for group in checkpoint.optimizer.groups) == [0.0, 0.1]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [names[id(parameter)] for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert parameter_names(checkpoint.optimizer_state, model) == dict(enumerate(held))
    assert preconditioner_of(checkpoint.optimizer_state, model).keys() == set(held)


def test_a_checkpoint_of_lightning_has_the_settings_of_its_optimizer(tmp_path):
    lightning = library("pytorch_lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows()), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(max_epochs=1, callbacks=[saving], **quiet).fit(Classifier(), data)
    assert load_checkpoint(tmp_path / "last.ckpt").optimizer.words == "SGD, lr 0.05, momentum 0.9"
