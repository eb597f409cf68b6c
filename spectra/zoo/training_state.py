"""The state of a training: network, optimizer, schedule, average of the weights, and random generators.

All of it goes into each checkpoint, so that a training continues from any of them bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, update_bn

from spectra.runtime.rng_state import random_state_kept
from spectra.sharpness.training import BNSharpnessOptimizer
from spectra.zoo.augmentation import augmented
from spectra.zoo.data import ImageSet
from spectra.zoo.data_sets import LOSSES
from spectra.zoo.entropy_sgd import EntropySGD
from spectra.zoo.schedules import rate_factor

EVALUATION_ROWS = 1000  # of a batch, where no gradient is taken


class TrainingState:
    """A network on its way.

    Args:
        model: with its first weights; moved to the device.
        images: for training.
        options: as ``training_options`` completes them.
        seed: of the order of the images, of dropout and of augmentation.
        device: where to compute.
    """

    def __init__(
        self, model: nn.Module, images: ImageSet, options: Mapping[str, Any], seed: int, device: torch.device
    ) -> None:
        self.model = model.to(device)
        self.images, self.options, self.seed, self.device = images, options, seed, device
        self.done = 0  # epochs
        self.step = 0  # batches
        self.sharpness: BNSharpnessOptimizer | None = None
        self.optimizer = self._optimizer()
        self.average = None if options["average"] == "none" else AveragedModel(self.model)
        self.order = torch.Generator().manual_seed(seed)
        self.draws = torch.Generator().manual_seed((seed + 2**63) % 2**64)  # of augmentation: another stream
        self.schedule = self._schedule()

    def seed_generators(self) -> None:
        """Seed the global generators, which dropout draws from. The caller keeps and restores their states."""
        torch.default_generator.manual_seed(self.seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(self.seed)

    @property
    def learning_rate(self) -> float:
        """That of the last epoch, or of the first one before training."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train_epoch(self, on_step: Callable[[int], None]) -> tuple[float, float]:
        """One pass over the images in a random order; the mean loss and accuracy on the way.

        Args:
            on_step: called with the number of batches so far, over all epochs.
        """
        if self.schedule.last_epoch < self.done:
            self.schedule.step()
        if self.sharpness is not None:
            self.sharpness.set_epoch(self.done)
        averaging = self.average is not None and self.done + 1 >= self.options["average_from"]
        self.model.train()
        total, correct = 0.0, 0
        for group in self._groups():
            self._update(group)
            self.step += len(group)
            total += sum(batch.first_loss * len(batch.y) for batch in group)
            correct += sum(batch.correct for batch in group)
            if averaging and self.options["average"] == "step":
                self._add_to_average()
            on_step(self.step)
        if averaging and self.options["average"] == "epoch":
            self._add_to_average()
        self.done += 1
        return total / len(self.images), correct / len(self.images)

    def _groups(self) -> Iterator[list[_Batch]]:
        """The batches of an epoch, as many at a time as a step of the optimizer takes."""
        rows = torch.randperm(len(self.images), generator=self.order)
        parts = list(split(len(self.images), self.options["batch_size"]))
        size = self.options.get("langevin_steps", 1)
        for start in range(0, len(parts), size):
            yield [self._batch(rows[part]) for part in parts[start : start + size]]

    def _batch(self, rows: torch.Tensor) -> _Batch:
        if self.options["augment"]:
            x = self.images.normalised(augmented(self.images.pixels[rows], self.draws))
            y = self.images.targets(rows)
        else:
            x, y = self.images.batch(rows)
        return _Batch(self, x.to(self.device), y.to(self.device))

    def _update(self, group: list[_Batch]) -> None:
        if isinstance(self.optimizer, EntropySGD):
            self.optimizer.step([batch.backward for batch in group])
        elif self.sharpness is not None:
            self.sharpness.step(group[0].loss)
        else:
            group[0].backward()
            self.optimizer.step()

    def _add_to_average(self) -> None:
        assert self.average is not None
        self.average.update_parameters(self.model)

    @property
    def averaged(self) -> int:
        """Weights in the average so far."""
        return 0 if self.average is None else int(self.average.n_averaged)

    def final_model(self) -> nn.Module:
        """The network to analyse: the average of the weights where there is one, with its own batch-norm statistics."""
        if not self.averaged or self.average is None:
            return self.model
        model: nn.Module = copy.deepcopy(self.average.module)
        batches = (x.to(self.device) for x in self._inputs())
        with random_state_kept():  # of dropout
            update_bn(batches, model)
        return model

    def _inputs(self) -> Iterator[torch.Tensor]:
        for part in split(len(self.images), self.options["batch_size"]):
            yield self.images.batch(part)[0]

    def content(self) -> dict[str, Any]:
        """What a checkpoint needs besides the weights of ``final_model`` to continue from it."""
        rng = {"order": self.order.get_state(), "augment": self.draws.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        averaged = {"averaged": self.averaged, "iterate": self.model.state_dict()} if self.averaged else {}
        return {"optimizer": self.optimizer.state_dict(), "rng": rng, **averaged}

    def restore(self, content: Mapping[str, Any]) -> None:
        """Continue from the content of a checkpoint; the global generators are set too.

        Raises:
            KeyError, RuntimeError, ValueError: it is not of this training.
        """
        self.model.load_state_dict(content.get("iterate", content["model"]))
        if self.average is not None and content.get("averaged"):
            self.average.module.load_state_dict(content["model"])
            self.average.n_averaged.fill_(content["averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.done, self.step = int(content["epoch"]), int(content["step"])
        rng = content["rng"]
        self.order.set_state(rng["order"])
        self.draws.set_state(rng["augment"])
        torch.set_rng_state(rng["torch"])
        if self.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        self.schedule = self._schedule()

    def _schedule(self) -> LambdaLR:
        """The schedule at the rate of the next epoch."""
        return LambdaLR(self.optimizer, lambda done: rate_factor(done, self.options), last_epoch=self.done - 1)

    def _optimizer(self) -> torch.optim.Optimizer:
        given, parameters = self.options, list(self.model.parameters())
        rate, decay = given["learning_rate"], given["weight_decay"]
        if given["optimizer"] in ("sgd", "sgds"):
            sgd = torch.optim.SGD(
                parameters, rate, momentum=given["momentum"], nesterov=given["nesterov"], weight_decay=decay
            )
            if given["optimizer"] == "sgds":
                own = ("strength", "growth", "delta", "ascent_steps", "max_norm", "form")
                self.sharpness = BNSharpnessOptimizer(sgd, self.model, **{name: given[name] for name in own})
            return sgd
        if given["optimizer"] == "entropy-sgd":
            names = ("langevin_rate", "langevin_noise", "gamma", "gamma_growth", "alpha", "momentum", "times_gamma")
            return EntropySGD(parameters, rate, weight_decay=decay, **{name: given[name] for name in names})
        adam = torch.optim.Adam if given["optimizer"] == "adam" else torch.optim.AdamW
        return adam(parameters, rate, (given["beta1"], given["beta2"]), given["eps"], decay)


class _Batch:
    """A batch and its loss; the first loss that is computed is the one at the weights before the step."""

    def __init__(self, state: TrainingState, x: torch.Tensor, y: torch.Tensor) -> None:
        self.state, self.x, self.y = state, x, y
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None

    def loss(self) -> torch.Tensor:
        """The mean loss."""
        output = self.state.model(self.x)
        loss = loss_of(self.state.images)(output, self.y)
        if self._first is None:
            self._first = loss.detach(), output.detach()
        return loss

    def backward(self) -> None:
        """The gradients of the loss, in ``.grad``."""
        self.state.optimizer.zero_grad()
        self.loss().backward()  # type: ignore[no-untyped-call]

    @property
    def first_loss(self) -> float:
        assert self._first is not None
        return float(self._first[0])

    @property
    def correct(self) -> int:
        assert self._first is not None
        return count_correct(self._first[1], self.y)


def loss_of(images: ImageSet) -> Callable[..., torch.Tensor]:
    """The loss of training on these images."""
    return LOSSES["mse" if images.one_hot else "cross-entropy"]


def count_correct(output: torch.Tensor, target: torch.Tensor) -> int:
    """How many of the largest outputs are at the label, or at the one of a one-hot vector."""
    return int((output.argmax(1) == (target.argmax(1) if target.ndim == 2 else target)).sum())


@torch.no_grad()
def evaluated(model: nn.Module, images: ImageSet, device: torch.device) -> tuple[float, float]:
    """The mean loss and the accuracy on the images, in eval mode; the mode of the network is restored."""
    was_training = model.training
    model.eval()
    total, correct = 0.0, 0
    for start in range(0, len(images), EVALUATION_ROWS):
        x, y = (tensor.to(device) for tensor in images.batch(slice(start, start + EVALUATION_ROWS)))
        output = model(x)
        total += float(loss_of(images)(output, y, reduction="sum")) / y[0].numel()
        correct += count_correct(output, y)
    model.train(was_training)
    return total / len(images), correct / len(images)


def split(rows: int, batch_size: int) -> Iterator[slice]:
    """Slices of ``batch_size`` rows; a last one of a single row joins the one before it, for batch norm's sake."""
    start = 0
    while start < rows:
        stop = start + batch_size
        if stop + 1 >= rows:
            stop = rows
        yield slice(start, stop)
        start = stop
