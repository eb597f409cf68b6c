"""Task: a model, a criterion and data, which together define the loss whose curvature is analysed.

With batches ``b``, criterion values ``L_b`` and weights ``w_b`` (what the criterion averages over in the batch), the
loss is the mean over all data, whatever the batch sizes::

    L(theta) = sum_b w_b L_b(theta) / sum_b w_b  +  (l2 / 2) |theta|^2

A criterion that sums gives the sum over all data, ``L = sum_b L_b``; ``reduction=`` overrides either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from spectra.errors import ArgumentError, DataError, TaskError
from spectra.runtime.memo import remembered
from spectra.runtime.rng_state import random_state_kept
from spectra.task import averaging as reductions
from spectra.task.batches import Rebatched, choose_samples, rows_of
from spectra.task.data_summary import Survey, take_survey
from spectra.task.model_io import check_data, described, input_of, scalar, target_in, tensor_of, unwrapped
from spectra.task.snapshot import take_snapshot
from spectra.task.user_errors import batches_of, calling


@dataclass(frozen=True, eq=False)
class Task:
    """A model, a criterion and data: the loss that is analysed.

    Args:
        model: the network. It is never changed: no buffer, mode, gradient or random state.
        criterion: ``criterion(output, target) -> scalar``. For losses of ``torch.nn`` and ``torch.nn.functional`` the
            averaging is known. Any other criterion is tested on split batches, and refused if it is not a mean over the
            rows of its target, unless ``weight`` says what it averages over. Losses of ``torch.nn`` receive one tensor
            of the model's output: its ``logits``, its only tensor, or the first entry of a tuple.
        data: re-iterable batches, the same on every pass: a list, or a ``DataLoader`` that does not shuffle.
        forward: ``forward(model, batch) -> output``, for batches that are not ``(x, y)``, ``[x]`` or a tensor ``x``.
        target: ``target(batch)``, likewise.
        weight: ``weight(batch) -> float``: the weight of the batch in the mean, where it is not the criterion's own.
        l2: the coefficient of ``(l2 / 2) |theta|^2``, added analytically. SGD's ``weight_decay`` is exactly this;
            decoupled decay (AdamW) is a term of no loss.
        reduction: ``"mean"`` or ``"sum"`` over the data; by default what the criterion does.
        name: what the task is called in records.
        test_data: held-out batches, as ``data``, for the same numbers on them: see :meth:`held_out`.
        calibration: the task over whose data recalibrated batch norm takes its statistics; by default this one.

    Example:
        >>> import torch
        >>> x, y = torch.randn(10, 4), torch.randint(3, (10,))
        >>> batches = [(x[:7], y[:7]), (x[7:], y[7:])]
        >>> task = Task(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(), batches)
        >>> task.survey().total_weight
        10.0
    """

    model: nn.Module
    criterion: Callable[[Any, Any], torch.Tensor] | None
    data: Iterable[Any]
    forward: Callable[[Any, Any], Any] | None = None
    target: Callable[[Any], Any] | None = None
    weight: Callable[[Any], Any] | None = None
    l2: float = 0.0
    reduction: str | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    loss_fn: Callable[[Any, Any], torch.Tensor] | None = field(default=None, kw_only=True, repr=False)
    test_data: Iterable[Any] | None = field(default=None, kw_only=True, repr=False)
    calibration: Task | None = field(default=None, kw_only=True, repr=False)
    _survey: list[Survey] = field(default_factory=list, init=False, repr=False)
    _held_out: list[Task] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TaskError(f"model is a {type(self.model).__name__}: a torch.nn.Module is needed")
        object.__setattr__(self, "model", unwrapped(self.model))
        if (self.criterion is None) == (self.loss_fn is None):
            raise TaskError("a task needs a criterion(output, target); use Task.from_loss for a loss_fn(model, batch)")
        if not callable(self.criterion or self.loss_fn):
            raise TaskError("the criterion is not callable: criterion(output, target) -> scalar is needed")
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise ArgumentError(f"l2={self.l2}: a finite number of at least 0 is needed")
        if self.reduction not in (None, "mean", "sum"):
            raise ArgumentError(f"reduction={self.reduction!r}: 'mean' or 'sum' is needed")
        check_data("data", self.data)
        if self.test_data is not None:
            check_data("test_data", self.test_data)
        if self.criterion is not None and reductions.averaging_of(self.criterion) is None:
            raise TaskError("the criterion has reduction='none' and returns no scalar: use 'mean' or 'sum'")

    @classmethod
    def from_loss(
        cls,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        data: Iterable[Any],
        weight: Callable[[Any], Any] | None = None,
        *,
        l2: float = 0.0,
        reduction: str | None = None,
        name: str | None = None,
        test_data: Iterable[Any] | None = None,
    ) -> Task:
        """A task from ``loss_fn(model, batch) -> scalar``, without separate output and target.

        The Hessian works. The GGN and other quantities that need the criterion separately are refused with the reason.
        """
        return cls(
            model,
            None,
            data,
            weight=weight,
            l2=l2,
            reduction=reduction,
            name=name,
            loss_fn=loss_fn,
            test_data=test_data,
        )

    # -- the loss of a batch, as the plain functions of the model that they are

    @property
    def splits(self) -> bool:
        """Whether the loss is a criterion of an output and a target."""
        return self.criterion is not None

    def batches(self) -> Iterator[Any]:
        """One pass over the data.

        Raises:
            DataError: reading the data fails; the message names the place in the user's code.
        """
        return batches_of(self.data)

    def output_of(self, batch: Any) -> Any:
        """The output of the model for a batch; for a criterion of ``torch.nn`` only the tensor that it takes.

        Raises:
            TaskError: the model raises an error, or what it returns holds no single tensor.
        """
        with calling("the forward pass"):
            output = self.model(input_of(batch)) if self.forward is None else self.forward(self.model, batch)
        return output if reductions.kind_of(self.criterion) is None else tensor_of(output)

    def target_of(self, batch: Any) -> Any:
        """The target of a batch."""
        if self.target is None:
            return target_in(batch)
        with calling("target="):
            return self.target(batch)

    def criterion_of(self, output: Any, target: Any) -> torch.Tensor:
        """The value of the criterion for an output and a target, a scalar tensor.

        Raises:
            DataError: a label is out of range.
            TaskError: the criterion raises an error, or returns more than one number.
        """
        assert self.criterion is not None
        given = "" if isinstance(output, torch.Tensor) else f", which is given {described(output)},"
        with calling(f"the criterion{given}"):
            try:
                return scalar(self.criterion(output, target))
            except IndexError as error:
                if "out of bounds" in str(error):  # cross-entropy on the CPU
                    raise DataError(f"a label is out of range: {error}") from error
                raise

    def loss_of(self, batch: Any) -> torch.Tensor:
        """The value of the criterion for a batch, a scalar tensor."""
        if self.loss_fn is None:
            return self.criterion_of(self.output_of(batch), self.target_of(batch))
        with calling("the loss"):
            return scalar(self.loss_fn(self.model, batch))

    # -- weights

    @property
    def averaging(self) -> reductions.Averaging:
        """What the loss of a batch averages over: read from the criterion, or assumed."""
        averaging = reductions.averaging_of(self.criterion) if self.criterion is not None else None
        if averaging is None:
            averaging = reductions.Averaging("mean", "rows of the batch", reductions.rows_of_target, known=False)
        if not averaging.known and self.reduction == "sum":
            averaging = replace(averaging, reduction="sum")
        return averaging if self.weight is None else replace(averaging, over="weight=", known=False)

    @property
    def reduces_to(self) -> str:
        """``"mean"`` or ``"sum"``: the loss over all data."""
        return self.reduction or self.averaging.reduction

    def weight_of(self, batch: Any) -> float:
        """The weight of a batch in the mean over all data.

        Raises:
            DataError: labels beyond the class weights.
            TaskError: the weight is negative, not a number, or unknown.
        """
        averaging = self.averaging
        try:
            if self.weight is not None:
                with calling("weight="):
                    value = float(self.weight(batch))
            elif self.splits:
                value = float(averaging.weight(self.target_of(batch)))
            else:
                rows = rows_of(batch)
                value = math.nan if rows is None else float(rows)
        except IndexError as error:
            raise DataError(f"a label is out of the range of the class weights: {error}") from error
        if not (math.isfinite(value) and value >= 0):
            raise TaskError(
                f"the weight of a batch is {value}: pass weight=, a function of the batch that returns what the "
                "criterion averages over (samples, tokens, elements), at least 0"
            )
        return value

    def total_factor(self, weight: float) -> float:
        """The factor that converts the criterion's value for a batch into its contribution to the sum over all data."""
        return 1.0 if self.averaging.reduction == "sum" else weight

    def divisor(self, total_weight: float) -> float:
        """The divisor of the sum over all data: the total weight for a mean, 1 for a sum."""
        return total_weight if self.reduces_to == "mean" else 1.0

    # -- other data

    def subset(self, samples: int, seed: int = 0) -> Task:
        """The same task on a fixed random subset of ``samples`` rows."""
        with random_state_kept(), calling("reading the data", DataError):
            torch.manual_seed(seed)  # fixes the subset also for data that shuffle
            chosen = choose_samples(self.data, samples, seed)
        return replace(self, data=chosen)

    def rebatched(self, batch_size: int) -> Task:
        """The same task with its rows, also those of its test data, in batches of ``batch_size``."""
        test = None if self.test_data is None else Rebatched(self.test_data, batch_size)
        return replace(self, data=Rebatched(self.data, batch_size), test_data=test)

    def snapshot(self, seed: int = 0, *, test: bool = False) -> Task:
        """The same task on a copy of one pass of its data in memory: for loaders that augment or shuffle.

        One seed gives one snapshot, as far as the data draw from the generators of Python, NumPy, torch or the loader
        itself; see :func:`spectra.task.snapshot.take_snapshot`.

        Args:
            seed: of the pass.
            test: freeze the test data as well, if there are any.

        Raises:
            ArgumentError: a seed below 0.
            DataError: the data do not fit in half of the free memory, or a batch cannot be copied.
        """
        with calling("reading the data", DataError):
            frozen = replace(self, data=take_snapshot(self.data, seed))
            if not test or self.test_data is None:
                return frozen
            return replace(frozen, test_data=take_snapshot(self.test_data, seed))

    def held_out(self) -> Task:
        """The same task on its test data. Recalibrated batch norm keeps the statistics of the training data.

        Raises:
            DataError: the task has no test data.
        """
        if self.test_data is None:
            raise DataError(
                "the task has no test data: pass test_data=, batches like those of data, to spectra.Task; the built-in "
                "tasks have theirs for split=train"
            )
        if not self._held_out:  # made once, so that its data are surveyed once
            self._held_out.append(replace(self, data=self.test_data, test_data=None, calibration=self))
        return self._held_out[0]

    def survey(self) -> Survey:
        """The number of batches and rows, weights and fingerprint of the data. Two passes, made once per task."""

        def take() -> Survey:
            return self._survey[0] if self._survey else take_survey(self)

        # Tasks that differ in l2 only share their data, so the survey is shared within a record.
        objects = (self.data, self.criterion, self.target, self.weight)
        taken = remembered("survey", objects, (self.reduction,), take)
        if not self._survey:
            self._survey.append(taken)
        return self._survey[0]

    def describe(self) -> str:
        """The loss in words, as records state it."""
        if self.loss_fn is not None:
            loss_name = str(getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__))
        else:
            loss_name = reductions.describe(self.criterion)
        loss = f"{loss_name}, {self.reduces_to} over the data ({self.averaging.over})"
        return loss + (f" + (l2/2)|theta|^2 with l2={self.l2:g}" if self.l2 else "")
