"""Linearised: one batch after its forward pass, with the squared per-sample gradients for any cotangents.

All exact quantities use this class. Each column is pulled back through the whole batch once, and each recorded call
computes its sums from its cotangent (:mod:`spectra.exact.layers`). Parameters without a closed form use per-sample
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectra.errors import TaskError
from spectra.exact.capture import Recorder, Use
from spectra.exact.factors import Factor, Layout, factor_of
from spectra.exact.layers import Sums, squares
from spectra.exact.samples import GROUP_BYTES, SampleGradients
from spectra.exact.use_checks import checked, separated
from spectra.operators.function import LossFunction
from spectra.operators.jacobian import outputs_of
from spectra.task.averaging import kind_of
from spectra.task.batches import rows_of
from spectra.task.task import Task

# For each shape of the calls of a forward pass: the parameters with verified uses, and those that need the fallback.
Plans = dict[Any, tuple[set[int], set[int]]]


@dataclass
class Linearised:
    """One batch after its forward pass: squared per-sample gradients for columns of cotangents."""

    function: LossFunction
    batch: Any
    outputs: list[torch.Tensor]
    layout: Layout
    factor: Factor
    uses: list[Use]
    others: list[int]  # the parameters left to the fallback

    def groups(self, columns: range) -> Iterator[range]:
        """The columns in groups whose cotangents of all uses fit in `GROUP_BYTES`."""
        entries_per_column = sum(math.prod(use.shape) for use in self.uses) + self.layout.samples * self.layout.width
        entries_per_column *= self.outputs[0].element_size()
        step = max(1, min(len(columns), GROUP_BYTES // max(1, entries_per_column)))
        for start in range(0, len(columns), step):
            yield columns[start : start + step]

    def squares(self, columns: torch.Tensor, signs: torch.Tensor | None, diagonal: bool) -> Sums:
        """The sums for columns ``(G, B, M)`` with signs ``(G, B)``."""
        sums: Sums = {}
        if self.uses:
            edges = [use.edge for use in self.uses]
            pulled = [
                torch.autograd.grad(self.outputs, edges, self.layout.unflatten(column), retain_graph=True)
                for column in columns
            ]
            for place, use in enumerate(self.uses):
                sums |= squares(use, [pieces[place] for pieces in pulled], signs, self.layout.samples, diagonal)
        if self.others:
            flat = self.layout.flatten([output.detach() for output in self.outputs])
            single = SampleGradients(self.function, self.others)
            sums |= single.squares(self.batch, flat, columns, signs, diagonal)
        return sums


def linearise(function: LossFunction, batch: Any, plans: Plans) -> Linearised:
    """The forward pass of a batch with its verified uses; verified once for every shape of the calls."""
    with Recorder(function.theta) as recorder:
        output = function.output(batch)
    outputs = outputs_of(output)
    if not outputs:
        raise TaskError("the output of the model does not depend on the parameters")
    target = function.task.target_of(batch)
    layout = Layout(outputs, samples_of(function.task, batch, outputs))
    signature = (tuple(use.signature for use in recorder.uses), tuple(sorted(recorder.others)), layout.samples)
    generator = torch.Generator().manual_seed(7)
    flat = torch.randn(layout.samples, layout.width, generator=generator, dtype=torch.float64).to(outputs[0])
    plan = plans.get(signature)
    if plan is not None:
        rest = [p for index, p in enumerate(function.theta) if index not in plan[0] | plan[1]]
        if not separated(recorder.restricted(plan[0]), rest, outputs, flat, layout.unflatten):
            plan = None
    if plan is None:
        plan = plans[signature] = checked(recorder, function.theta, outputs, flat, layout.unflatten)
    uses, others = recorder.restricted(plan[0]), plan[1]
    factor = factor_of(function, output, target, layout)
    return Linearised(function, batch, outputs, layout, factor, uses, sorted(others))


def samples_of(task: Task, batch: Any, outputs: list[torch.Tensor]) -> int:
    """The number of samples: the rows of the batch, if the outputs have as many rows or a multiple of it."""
    if kind_of(task.criterion) is nn.CrossEntropyLoss and outputs[0].ndim == 1:
        return 1  # the logits of one sample
    lengths = {output.shape[0] if output.ndim else 1 for output in outputs}
    rows = rows_of(batch)
    if rows and all(length % rows == 0 for length in lengths):
        return rows
    if len(lengths) > 1:
        raise TaskError(f"the outputs have {sorted(lengths)} rows, so the rows of a sample are not known")
    return lengths.pop()
