"""Held-out (test) data of a record: facts, settings, notes and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from spectra.errors import SpectraError
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.modes import batch_norm_layers
from spectra.task.task import Task

Report = Callable[[int, int], None]


def held_out_facts(
    facts: Mapping[str, float | int | None], test: Mapping[str, float | int | None], reduces_to: str
) -> dict[str, float | int | None]:
    """The facts of the test data under their names in a record, and their differences from the training data.

    ``generalization_gap = test_loss - loss``, both without the l2 term; left out for a sum over the data, which grows
    with their number. ``accuracy_gap = accuracy - test_accuracy``, a difference of fractions.

    Example:
        >>> held_out_facts({"loss": 0.25, "accuracy": 0.9}, {"loss": 1.0, "accuracy": 0.4, "n_samples": 7}, "mean")
        {'test_loss': 1.0, 'test_accuracy': 0.4, 'test_n_samples': 7, 'generalization_gap': 0.75, 'accuracy_gap': 0.5}
    """
    named = {f"test_{name}": test.get(name) for name in ("loss", "accuracy", "n_samples")}
    if reduces_to == "mean":
        named["generalization_gap"] = _difference(test["loss"], facts["loss"])
    accuracies = facts.get("accuracy"), test.get("accuracy")
    if None not in accuracies:
        named["accuracy_gap"] = _difference(*accuracies)
    return named


def _difference(a: float | int | None, b: float | int | None) -> float | None:
    return None if a is None or b is None else a - b


def held_out_settings(task: Task) -> dict[str, Any]:
    """The settings of a run that describe its test data. A run without test data has none of them.

    Raises:
        DataError: the task has none, or they cannot be used.
    """
    held_out = task.held_out()
    with errors_name_test_data(True):
        survey = held_out.survey()
    return {"test_data": survey.fingerprint, "test_batch_sizes": run_lengths(survey.rows)}


def held_out_notes(operator: CurvatureOperator, training_notes: Sequence[str]) -> list[str]:
    """Notes on the numbers of the test data.

    Args:
        operator: on the test data.
        training_notes: the notes on the training data, which are not repeated.
    """
    notes = [f"test data: {note}" for note in operator.self_test.notes if note not in training_notes]
    if operator.bn_mode == "recalibrated" and batch_norm_layers(operator.task.model):
        notes.append("the numbers of the test data take the running statistics estimated over the training data")
    if operator.task.reduces_to == "sum":
        notes.append("the loss is a sum over the data: those of training and test data are not comparable")
    return notes


@contextmanager
def errors_name_test_data(of_test_data: bool) -> Iterator[None]:
    """Begin the message of an error with "test data:" where the computation is of the test data."""
    try:
        yield
    except SpectraError as error:
        if of_test_data:
            error.args = (f"test data: {error}",)
        raise


def shared_progress(report: Report, parts: int) -> list[Report]:
    """Progress functions for several parts of equal size, which report to one function for the whole.

    Example:
        >>> first, second = shared_progress(lambda done, total: print(done, total), 2)
        >>> first(3, 8), second(3, 8)
        3 16
        11 16
        (None, None)
    """

    def of_part(part: int) -> Report:
        return lambda done, total: report(part * total + done, parts * total)

    return [of_part(part) for part in range(parts)]


def run_lengths(sizes: Sequence[int | None]) -> list[list[int | None]]:
    """Batch sizes as [size, number of consecutive batches], so that a list of many batches stays short.

    >>> run_lengths([64, 64, 10])
    [[64, 2], [10, 1]]
    """
    runs: list[list[int | None]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1][1] = (runs[-1][1] or 0) + 1
        else:
            runs.append([size, 1])
    return runs
