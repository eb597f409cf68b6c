"""EmpiricalFisherOperator: exact products with the second moment of the per-sample gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.jacobian import Jacobian, slope_of
from spectra.operators.kept import Product
from spectra.operators.modes import batch_norm_layers, couples_samples
from spectra.task.batches import choose_rows, rows_of
from spectra.task.task import Task

# Relative tolerance for the sum of the row weights against the weight of the batch.
_ADDITIVE = 1e-6


class EmpiricalFisherOperator(CurvatureOperator):
    """The empirical Fisher matrix ``F = (1/N) sum_n g_n g_n'``, ``g_n`` the gradient of the loss of sample ``n``.

    The labels come from the data, so ``F`` is neither the Fisher matrix of the model's own distribution nor the GGN. It
    is the uncentred second moment of the gradients, and vanishes if every sample is fitted exactly.

    **A sample** is one row of the target and of the outputs that the criterion receives. If a row holds several items
    that the criterion averages over (tokens, elements), ``g_n`` is the gradient of their mean within the row. To make
    each token a sample, let ``forward`` and ``target`` flatten the tokens into rows. The weight ``w_n`` of a row is 1,
    the number of its targets not ignored, the sum of their class weights, the number of its elements, or the value of
    ``weight=``. With the loss ``L = sum_n w_n l_n / sum_n w_n``::

        F = sum_n w_n g_n g_n' / sum_n w_n,    g_n = grad l_n

    without the division for a sum over the data. A row has the same loss and weight in every batch, so ``F`` does not
    depend on the batch sizes. ``F`` is positive semi-definite, of rank at most ``N``. As for the other operators,
    ``l2`` adds ``l2 I``; it belongs to no sample.

    Per-sample gradients are never stored: with ``s_n`` the gradient of ``l_n`` in the outputs, ``g_n = J_n' s_n``, so
    ``F v = (1/N) sum_n J_n' s_n (s_n' J_n v)`` costs one product with ``J`` and one with ``J'``, like the GGN. No
    second derivative of the criterion is needed, so a piecewise linear criterion is allowed.

    Raises:
        TaskError: the task was made from a ``loss_fn``, or batch norm couples the samples of a batch, so that no
            sample has a loss of its own. On the first product: the criterion is no sum over rows.

    References:
        F. Kunstner, L. Balles, P. Hennig, Limitations of the empirical Fisher approximation for natural gradient
        descent, NeurIPS 2019 (equation 3, there a sum and not a mean).

    Example:
        >>> import torch
        >>> from spectra.task.task import Task
        >>> x, y = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> F = EmpiricalFisherOperator(Task(model, torch.nn.MSELoss(), [(x, y)]))
        >>> F @ torch.ones(2, dtype=torch.float64)  # the gradients are (-2, 0) and (0, -6)
        tensor([ 2., 18.], dtype=torch.float64)
    """

    kind = "empirical_fisher"
    semidefinite = True
    per_sample = True

    def __init__(
        self,
        task: Task,
        bn_mode: str = "eval",
        *,
        dtype: str | torch.dtype | None = None,
        params: str | Sequence[str] | None = None,
    ) -> None:
        if not task.splits:
            raise TaskError(
                "the empirical Fisher matrix needs the loss of every sample, and a task made with Task.from_loss has "
                "only that of a batch: use Task(model, criterion, data, forward=..., target=...), or the Hessian"
            )
        super().__init__(task, bn_mode, dtype=dtype, params=params)
        if couples_samples(task.model, bn_mode):
            advice = (
                "use bn_mode='eval' (--bn eval)"
                if all(layer.running_mean is not None for layer in batch_norm_layers(task.model))
                else "a layer keeps no running statistics, so there is no mode without it"
            )
            raise TaskError(
                f"the empirical Fisher matrix needs the gradient of every sample, and batch norm with "
                f"bn_mode={bn_mode!r} makes the loss of a sample depend on the others of its batch: {advice}"
            )

    def linearise(self, batch: Any) -> Product:
        function, target = self.function, self.task.target_of(batch)
        output = function.output(batch)
        jacobian = Jacobian(function, output)
        if not jacobian.reaches:
            raise TaskError(
                "the gradient of the model's output cannot be differentiated again as far as autograd can tell: a "
                "custom backward computes without a graph"
            )
        _, slopes = slope_of(function, output, target, create_graph=False)
        factors = self.row_factors(batch, target, output, slopes)

        def product(
            vector: Sequence[torch.Tensor], within: Sequence[int] | None = None
        ) -> Sequence[torch.Tensor | None]:
            pushed = jacobian.push(vector, within)
            if pushed is None:
                return [None] * len(vector)
            return jacobian.pull(self._bend(slopes, pushed, factors), within)

        return product

    @staticmethod
    def _bend(
        slopes: Sequence[torch.Tensor | None], pushed: Sequence[torch.Tensor], factors: torch.Tensor
    ) -> list[torch.Tensor]:
        """``s_n (s_n' u_n)`` times the factor of the row, for ``u`` shaped like the outputs."""
        along = torch.zeros_like(factors)  # s_n' u_n over all tensors of the output, (rows,)
        for s, u in zip(slopes, pushed):
            if s is not None:
                along += (s * u).reshape(len(along), -1).sum(1)
        along *= factors
        return [
            torch.zeros_like(u) if s is None else s * along.view(-1, *[1] * (s.ndim - 1))
            for s, u in zip(slopes, pushed)
        ]

    def row_factors(self, batch: Any, target: Any, output: Any, slopes: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The factor of each row's outer product of output gradients, ``(rows,)``.

        The output gradients are those of the criterion's value for the whole batch. For a mean, row ``n`` has the share
        ``w_n / w_b`` in it: ``s_n = (w_n / w_b) grad l_n``. For a sum, ``s_n = w_n grad l_n``.
        """
        nonzero_slopes = [slope for slope in slopes if slope is not None]
        weights = self._row_weights(batch, target, output)
        if not nonzero_slopes or any(slope.ndim == 0 or slope.shape[0] != len(weights) for slope in nonzero_slopes):
            shapes = ", ".join(str(tuple(slope.shape)) for slope in nonzero_slopes)
            raise TaskError(
                f"the target has {len(weights)} rows and the outputs of the model have the shapes {shapes}: the "
                "empirical Fisher matrix needs one row per sample in both"
            )
        weights = weights.to(nonzero_slopes[0].device, torch.float64)
        whole = self.task.weight_of(batch)
        if abs(float(weights.sum()) - whole) > _ADDITIVE * whole:
            raise TaskError(
                f"a batch has the weight {whole:g} and its rows have {float(weights.sum()):g} together: the empirical "
                "Fisher matrix needs a weight= that is a sum over rows"
            )
        absent = weights == 0
        if any(bool(slope[absent].any()) for slope in nonzero_slopes):
            raise TaskError(
                "a sample of weight 0 contributes to the loss (a class weight of 0 with label smoothing), so the "
                "empirical Fisher matrix is not defined: leave the sample out, or give the class a positive weight"
            )
        inverse = torch.where(absent, torch.zeros_like(weights), 1 / weights)
        scale = 1.0 if self.task.averaging.reduction == "sum" else whole
        return (scale * inverse).to(self.torch_dtype)

    def _row_weights(self, batch: Any, target: Any, output: Any) -> torch.Tensor:
        task = self.task
        if task.weight is None:
            return task.averaging.by_row(target)
        rows = rows_of([output, target, batch])
        if rows is None:
            raise TaskError(
                "a batch has no common number of rows in its parts, so weight= cannot be asked for the weight of a "
                "sample, which the empirical Fisher matrix needs"
            )
        weights = [task.weight_of(choose_rows(batch, torch.tensor([row]))) for row in range(rows)]
        return torch.tensor(weights, dtype=torch.float64)
