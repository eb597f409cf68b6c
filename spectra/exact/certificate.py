"""Decides, per parameter tensor, whether the exact Gauss-Newton diagonal is also the Hessian's.

The conditions (:mod:`spectra.exact.certificate_conditions`) are tested on a few samples spread over the data, in
float64. If a condition fails or cannot be computed, the number is reported for the Gauss-Newton matrix, with the reason
(:mod:`spectra.exact.certificate_reasons`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spectra.errors import SpectraError
from spectra.exact.capture import Recorder
from spectra.exact.certificate_conditions import Conditions, examine
from spectra.exact.certificate_reasons import defects_in_words
from spectra.operators.checks import first_line
from spectra.operators.function import LossFunction
from spectra.runtime.allowance import affordable, cost, spend
from spectra.runtime.faults import is_limit, refusal_in
from spectra.task.batches import choose_rows, join, rows_of

# Number of rows used: fewer for many tensors, because each tensor costs a few passes over these rows.
ROWS, FEWEST_ROWS, ROWS_TIMES_TENSORS = 16, 4, 256


@dataclass(frozen=True)
class Certificate:
    """The result for each parameter tensor, and the reasons in sentences."""

    passed: dict[str, bool]
    reasons: tuple[str, ...] = ()
    unmet: frozenset[str] = frozenset()  # tensors that passed only because they do not affect the tested rows

    def with_traces(self, traces: dict[str, float]) -> Certificate:
        """The certificate given the traces: a tensor with a trace but without effect on the tested rows fails."""
        doubtful = [name for name in sorted(self.unmet) if traces[name] != 0]
        if not doubtful:
            return self
        why = (
            f"{', '.join(doubtful)}: no effect on the outputs of the rows looked at for the certificate, and some on "
            "others, so this is said to be the Gauss-Newton matrix's."
        )
        return Certificate(self.passed | dict.fromkeys(doubtful, False), (*self.reasons, why))

    @property
    def kind(self) -> str:
        """``"hessian"`` where every tensor passed, else ``"ggn"``."""
        return "hessian" if self.passed and all(self.passed.values()) else "ggn"


def passes_of(function: LossFunction) -> float:
    """The cost in forward and backward passes in float64 over all data: two for each tensor and ten for all."""
    return (2 * len(function.theta) + 10) * _share(function)


def _share(function: LossFunction) -> float:
    """The rows used, as a share of the data."""
    survey = function.task.survey()
    batches = min(4, survey.num_batches)
    if not survey.num_samples:
        return batches / survey.num_batches  # the rows of a batch cannot be selected
    return min(1.0, max(_rows_wanted(function), batches) / survey.num_samples)


def _rows_wanted(function: LossFunction) -> int:
    return min(ROWS, max(FEWEST_ROWS, ROWS_TIMES_TENSORS // len(function.theta)))


def certify(function: LossFunction, params: str | Sequence[str] | None = None, seed: int = 3) -> Certificate:
    """The certificate of every parameter tensor of a function.

    Args:
        function: the function with the parameters and buffers to test; it is not modified.
        params: the ``params`` argument that the function was created with.
        seed: of the vectors and weights.
    """
    nothing = dict.fromkeys(function.names, False)
    try:
        float64_copy = LossFunction(function.task, function.bn_mode, torch.float64, params)
        float64_copy.adopt(function)
        with float64_copy.evaluation():
            batch = _few_rows(float64_copy)
            if batch is None:
                return Certificate(nothing, ("No batch could be looked at for the certificate.",))
            test = Conditions(float64_copy, batch, torch.Generator().manual_seed(seed))
            examine(test)
            with Recorder(float64_copy.theta) as recorder:
                if any(test.defects):
                    float64_copy.output(batch)
        # Known only now, so it reduces what later computations may cost.
        spend(min(affordable(1.0), cost(test.extra * _share(function), torch.float64)))
    except SpectraError as error:
        return Certificate(nothing, (f"The certificate could not be computed: {refusal_in(error)}.",))
    except (RuntimeError, TypeError, ValueError) as error:
        if not is_limit(error):
            raise
        why = f"The certificate could not be computed in float64 with two derivatives: {first_line(error)}"
        return Certificate(nothing, (why,))
    passed = {name: test.defects[index] is None for index, name in enumerate(float64_copy.names)}
    unmet = frozenset(name for index, name in enumerate(float64_copy.names) if index not in test.effective)
    return Certificate(
        passed, () if all(passed.values()) else defects_in_words(float64_copy, test.defects, recorder.tied()), unmet
    )


def _few_rows(function: LossFunction) -> Any:
    """Up to 16 rows (4 for many tensors) from four places of the data; the first batch where rows cannot be chosen."""
    task = function.task
    count = task.survey().num_batches
    places = sorted({0, count // 3, 2 * count // 3, count - 1})
    parts: list[Any] = []
    for index, batch in enumerate(task.batches()):
        if index > places[-1]:
            break
        if task.weight_of(batch) <= 0 or (index not in places and parts):
            continue
        rows = rows_of(batch)
        if rows is None:
            return function.place(batch)
        rows_wanted = _rows_wanted(function)
        # Rounded down, because the cost is proportional to the rows, but not below the minimum.
        rows_per_batch = max(rows_wanted // len(places), -(-FEWEST_ROWS // len(places)))
        chosen = torch.linspace(0, rows - 1, min(rows, rows_per_batch)).round().to(torch.int64)
        parts.append(function.place(choose_rows(batch, chosen)))
    if not parts:
        return None
    try:
        return join(parts)
    except RuntimeError:  # batches of different lengths, as with padded sequences
        return parts[0]
