"""Training by the squared error, and full-batch gradient descent: the loss of training is that of the analysis."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectra
from spectra.errors import ArgumentError
from spectra.zoo.networks.small import mlp
from spectra.zoo.tasks import build_task
from spectra.zoo.training import train


def test_the_squared_error_is_the_mean_over_images_and_classes():
    task = build_task("digits-mlp", loss="mse", hidden=8, label_noise=0.2)
    plain = build_task("digits-mlp", hidden=8, label_noise=0.2)
    (x, targets), (_, labels) = next(iter(task.data)), next(iter(plain.data))
    assert targets.dtype == torch.float32
    assert torch.equal(targets.argmax(1), labels)
    assert torch.equal(targets.sum(1), torch.ones(len(labels)))
    wanted = ((task.model(x) - nn.functional.one_hot(labels, 10)) ** 2).sum() / (len(x) * 10)
    torch.testing.assert_close(task.criterion(task.model(x), targets), wanted)
    (_, held_out) = next(iter(task.test_data))
    assert held_out.shape[1] == 10


def test_full_batches_of_the_squared_error_are_gradient_descent_on_the_loss_of_the_analysis(tmp_path):
    options = {"loss": "mse", "activation": "tanh", "hidden": 6, "batch_size": 10000, "momentum": 0.0}
    paths = train("digits-mlp", tmp_path / "run", epochs=3, learning_rate=0.5, **options)
    task = build_task("digits-mlp", loss="mse", activation="tanh", hidden=6)
    task.model.load_state_dict(torch.load(paths[0], weights_only=True)["model"])
    x, y = (torch.cat(part) for part in zip(*task.data))
    for path in paths:
        saved = torch.load(path, weights_only=True)
        loss = nn.functional.mse_loss(task.model(x), y)
        assert saved["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        accuracy = float((task.model(x).argmax(1) == y.argmax(1)).double().mean())
        assert saved["train_accuracy"] == pytest.approx(accuracy)
        assert saved["step"] == saved["epoch"]  # a step per epoch
        for name, weight in task.model.named_parameters():
            torch.testing.assert_close(saved["model"][name], weight.detach(), rtol=1e-4, atol=1e-5)
        task.model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in task.model.parameters():
                weight -= 0.5 * weight.grad
    checkpoint = spectra.load_checkpoint(paths[-1])
    analysed = build_task(checkpoint.task, **checkpoint.task_args)
    checkpoint.load_into(analysed.model)
    (last,) = spectra.analyze(analysed, num_probes=2, lanczos_steps=5)
    assert last.facts["loss"] == pytest.approx(saved["train_loss"], rel=1e-5)


def test_augmented_images_have_the_same_targets(tmp_path, monkeypatch):
    import spectra.zoo.training_state as state

    monkeypatch.setattr(state, "augmented", lambda pixels, draws: pixels)
    kinds = [train("digits-mlp", tmp_path / str(on), epochs=1, loss="mse", augment=on)[-1] for on in (False, True)]
    weights = [torch.load(path, weights_only=True)["model"] for path in kinds]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_tanh_reaches_every_hidden_layer():
    kinds = [type(layer) for layer in mlp(4, 3, 2, depth=2, activation="tanh")]
    assert kinds == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "hinge"}, "loss='hinge': one of cross-entropy, mse is needed"),
        ({"activation": "gelu"}, "activation='gelu': one of relu, tanh is needed"),
    ],
)
def test_another_loss_or_activation_is_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        build_task("digits-mlp", **options)
