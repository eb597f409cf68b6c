"""SampleGradients: per-sample gradients held in memory, for parameter uses without a closed form.

They are computed by ``vmap`` over the rows of the batch, in chunks under a memory budget. If the model does not support
``vmap``, or returns other outputs under it, each row gets its own pass. The result is correct if the outputs of a row
depend on that row only, which is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.exact.factors import Layout
from spectra.exact.layers import Sums, of_gradients
from spectra.operators.function import LossFunction
from spectra.operators.jacobian import outputs_of
from spectra.task.batches import choose_rows, map_tensors, rows_of

#: Memory for the columns or rows that are treated together. Their number changes the rounding of sums, so it must not
#: depend on the memory that happens to be free.
GROUP_BYTES = 2**28


@dataclass(frozen=True)
class SampleGradients:
    """The gradients of chosen parameters from each sample of a batch, for columns of cotangents.

    Args:
        function: the function with the parameters; called within its evaluation.
        indices: of the parameters.
        budget: bytes that the gradients of a chunk may take; by default `GROUP_BYTES`.
    """

    function: LossFunction
    indices: Sequence[int]
    budget: int | None = None

    def squares(
        self, batch: Any, flat_output: torch.Tensor, columns: torch.Tensor, signs: torch.Tensor | None, diagonal: bool
    ) -> Sums:
        """As :func:`spectra.exact.layers.squares`, for the flat outputs ``(B, M)`` and columns ``(G, B, M)``.

        Raises:
            TaskError: the batch has no rows, or the outputs of a row depend on the others.
        """
        samples = len(flat_output)
        if rows_of(batch) != samples:
            names = ", ".join(self.function.names[index] for index in self.indices)
            raise TaskError(
                f"{names} needs the gradients of single samples, and the batch has no common number of rows in its "
                f"parts that its {samples} samples could be"
            )
        sums: Sums = {}
        for rows, gradients in self.chunks(batch, flat_output, columns):
            chunk_signs = None if signs is None else signs[:, rows]
            for index, piece in zip(self.indices, gradients):
                trace, entries = of_gradients(piece, chunk_signs, diagonal)
                if index in sums:
                    sum_so_far = sums[index]
                    trace = trace + sum_so_far[0]
                    entries = None if entries is None or sum_so_far[1] is None else entries + sum_so_far[1]
                sums[index] = trace, entries
        return sums

    def chunks(
        self, batch: Any, flat_output: torch.Tensor, columns: torch.Tensor
    ) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        """Rows, and the gradients ``(G, b, *shape)`` of each parameter."""
        function, samples = self.function, len(flat_output)
        bytes_per_row = (
            sum(function.sizes[i] for i in self.indices) * flat_output.element_size() * (2 * len(columns) + 2)
        )
        budget = GROUP_BYTES if self.budget is None else self.budget
        step = max(1, min(samples, budget // max(1, bytes_per_row)))
        together = True
        start = 0
        while start < samples:
            if not together:
                step = 1
            rows = slice(start, min(samples, start + step))
            part = choose_rows(batch, torch.arange(rows.start, rows.stop))
            gradients = self._vmapped(part, flat_output[rows], columns[:, rows]) if together else None
            if gradients is None and together:
                together = False
                continue
            if gradients is None:
                gradients = self._single(part, flat_output[rows], columns[:, rows], start)
            yield rows, gradients
            start = rows.stop

    def _single(self, row: Any, flat: torch.Tensor, columns: torch.Tensor, index: int) -> list[torch.Tensor]:
        outputs = outputs_of(self.function.output(row))
        layout = Layout(outputs, 1)
        if layout.width != flat.shape[1] or not self._same(layout.flatten(outputs), flat):
            raise TaskError(
                f"row {index} of a batch has other outputs alone than in its batch: its samples depend on each other, "
                "so that none has a gradient of its own"
            )
        leaves = [self.function.theta[i] for i in self.indices]
        return _pulled(outputs, leaves, layout, columns, leading=True)

    def _same(self, actual: torch.Tensor, expected: torch.Tensor) -> bool:
        unit = max(torch.finfo(expected.dtype).eps, torch.finfo(self.function.carried).eps)
        difference = float((actual.detach() - expected).abs().max()) if expected.numel() else 0.0
        return difference <= min(1e4 * unit, 0.1) * (1.0 + float(expected.abs().max()))

    def _vmapped(self, part: Any, flat: torch.Tensor, columns: torch.Tensor) -> list[torch.Tensor] | None:
        """The same for several rows at once; None where the model does not allow it."""
        function = self.function
        theta, num_rows = function.theta, len(flat)
        leaves = [theta[i].detach().expand(num_rows, *theta[i].shape).clone().requires_grad_() for i in self.indices]
        rows, put_back = _tensor_rows(part)

        def one(parameters: tuple[torch.Tensor, ...], row: tuple[torch.Tensor, ...]) -> torch.Tensor:
            replaced = list(theta)
            for index, tensor in zip(self.indices, parameters):
                replaced[index] = tensor
            function.theta = replaced
            outputs = outputs_of(function.output(put_back([tensor[None] for tensor in row])))
            return torch.cat([output.reshape(-1) for output in outputs])

        try:
            output = torch.func.vmap(one)(tuple(leaves), tuple(rows))
            if output.shape != flat.shape or not self._same(output, flat):
                return None
            return _pulled([output], leaves, Layout([output], num_rows), columns, leading=False)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            return None  # what vmap cannot do is done row by row
        finally:
            function.theta = theta


def _pulled(
    outputs: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    layout: Layout,
    columns: torch.Tensor,
    *,
    leading: bool,
) -> list[torch.Tensor]:
    """``(G, b, *shape)`` for each leaf; ``leading``: the leaves have no dimension of samples yet."""
    collected: list[list[torch.Tensor]] = [[] for _ in leaves]
    for column in columns:
        pieces = torch.autograd.grad(
            list(outputs), list(leaves), layout.unflatten(column), retain_graph=True, allow_unused=True
        )
        for store, piece, leaf in zip(collected, pieces, leaves):
            store.append(torch.zeros_like(leaf) if piece is None else piece.to_dense())
    return [torch.stack(store)[:, None] if leading else torch.stack(store) for store in collected]


def _tensor_rows(batch: Any) -> tuple[list[torch.Tensor], Any]:
    tensors: list[torch.Tensor] = []
    map_tensors(batch, lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]

    def put_back(replacements: list[torch.Tensor]) -> Any:
        given = iter(replacements)
        return map_tensors(batch, lambda _: next(given))

    return tensors, put_back
