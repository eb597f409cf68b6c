"""exact_ggn_spectrum: all eigenvalues of the Gauss-Newton matrix of a few samples, from a Gram matrix.

``G = B S B' + l2 I``. ``B`` has a column ``J_n' s_nc`` for each sample and each signed column of the criterion's
Hessian, weighted as in the loss. The eigenvalues of ``G`` other than ``l2`` are those of ``K^(1/2) S K^(1/2)`` with the
Gram matrix ``K = B'B``, ``(R, R)`` with ``R = N (C - 1)`` for softmax cross-entropy. ``K`` is summed over chunks of the
parameter tensors, so that ``B`` is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spectra.errors import ArgumentError, DataError, NumericsError, TaskError
from spectra.exact.capture import Use
from spectra.exact.gradients import bias_rows, embedding_rows, is_vector, numbers_of, units_of, weight_rows
from spectra.exact.linearised import Linearised, Plans, linearise
from spectra.exact.samples import SampleGradients
from spectra.operators.checks import check_loss_once, check_partition
from spectra.operators.function import LossFunction
from spectra.operators.ggn import GGNOperator
from spectra.operators.modes import check_bn_mode, couples_samples
from spectra.operators.recalibration import recalibrate
from spectra.runtime.exclusive import exclusively
from spectra.runtime.memory import available_bytes, in_words
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.task.task import Task

#: More columns than this are refused unless a limit is given: the eigenvalues of a matrix of this size take a minute.
LIMIT = 6000
_BLOCK_BYTES = 2**28  # of gradients held at once


@exclusively
def exact_ggn_spectrum(
    task: Task,
    bn_mode: str = "eval",
    *,
    params: str | Sequence[str] | None = None,
    dtype: str | torch.dtype | None = "float64",
    samples: int | None = None,
    seed: int = 0,
    limit: int = LIMIT,
) -> GGNSpectrum:
    """Every eigenvalue of the Gauss-Newton matrix of the loss, for as many samples as fit.

    Cost: a forward pass, ``C - 1`` back-propagations for each part of the network that fits in memory together, ``R^2``
    times the number of parameters for the Gram matrix (linear layers: times inputs plus outputs), ``R^3`` for its
    eigenvalues. Memory: a few times ``R^2`` numbers, and the activations of all samples.

    Args:
        task: the task; its ``l2`` is included.
        bn_mode: ``"eval"``; ``"recalibrated"``, by statistics of the same samples; in train mode the samples of a batch
            are coupled.
        params: which trainable parameters; all by default.
        dtype: of the products; all sums are float64.
        samples: a fixed random subset of so many rows of the data; the spectrum is that of the loss over it.
        seed: of that subset.
        limit: the most columns ``R``.

    Returns:
        The spectrum, with rank, degeneracy, log-determinants and density.

    Raises:
        ArgumentError: more columns than the limit; or an argument outside its range.
        TaskError: no sample has a curvature of its own: batch norm in train mode, a task from a ``loss_fn``.
        DataError, NumericsError: as for the operators.

    Example:
        >>> model = torch.nn.Linear(2, 3, bias=False).double()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([0])
        >>> found = exact_ggn_spectrum(Task(model, torch.nn.CrossEntropyLoss(), [(x, y)]))
        >>> found.eigenvalues.round(5).tolist(), found.rank_bound  # |x|^2 / 3, twice
        ([8.33333, 8.33333], 2)
    """
    if limit < 1:
        raise ArgumentError(f"limit={limit}: at least 1 column is needed; {LIMIT} is the default")
    if check_bn_mode(bn_mode) and couples_samples(task.model, bn_mode):
        raise TaskError(
            f"batch norm with bn_mode={bn_mode!r} couples the samples of a batch, so the Gauss-Newton matrix is no sum "
            "over samples: use bn_mode='eval', or Lanczos"
        )
    chosen = task if samples is None else task.subset(samples, seed)
    operator = GGNOperator(chosen, bn_mode, dtype=dtype, params=params)
    function, survey = operator.function, chosen.survey()
    function.check_finite()
    check_partition(chosen, bn_mode, survey)
    if bn_mode == "recalibrated":
        recalibrate(function)
    check_loss_once(function, survey, split=True)
    with function.evaluation(twice=False):
        batches = _batch_columns(operator, limit)
        values = _eigenvalues(function, batches)
    values = np.sort(values)[::-1][: function.n] + chosen.l2
    if not np.isfinite(values).all():
        raise NumericsError("the Gram matrix of the gradients holds NaN or infinity")
    columns = sum(batch_columns.rows for batch_columns in batches)
    return GGNSpectrum(
        eigenvalues=values,
        n=function.n,
        num_samples=sum(batch_columns.samples for batch_columns in batches),
        rank_bound=min(function.n, columns),
        l2=chosen.l2,
        noise=float(torch.finfo(function.dtype).eps) * float(np.sqrt(columns)),
        bn_mode=bn_mode,
        data=survey.fingerprint,
    )


@dataclass
class _BatchColumns:
    """One batch: its forward pass, and the columns of its samples."""

    linear: Linearised
    columns: torch.Tensor  # (G, B, M), with the weight of the batch in the loss
    signs: torch.Tensor  # (G * B,)

    @property
    def samples(self) -> int:
        return self.linear.layout.samples

    @property
    def rows(self) -> int:
        return self.columns.shape[0] * self.samples


def _batch_columns(operator: GGNOperator, limit: int) -> list[_BatchColumns]:
    task, batches, plans, total = operator.task, [], Plans(), 0
    divisor = task.divisor(task.survey().total_weight)
    for batch, weight in operator.batches():
        linear = linearise(operator.function, batch, plans)
        factor = linear.factor
        total += factor.columns * linear.layout.samples
        if total > limit:
            many = task.survey().num_samples
            raise ArgumentError(
                f"more than {limit} columns: {factor.columns} for each of {many} samples; take at most "
                f"samples={max(1, limit // factor.columns)}, or raise limit="
            )
        need = 4 * 8 * total**2
        if need > available_bytes(operator.device):
            raise ArgumentError(f"a Gram matrix of {total} columns needs {in_words(need)}: take fewer samples=")
        scale = (task.total_factor(weight) / divisor) ** 0.5
        columns = scale * torch.stack([factor.column(index) for index in range(factor.columns)])
        signs = torch.ones(columns.shape[:2]) if factor.signs is None else factor.signs
        batches.append(_BatchColumns(linear, columns, signs.reshape(-1).double().to(columns.device)))
    if not batches:
        raise DataError("no batch has a positive weight: there is nothing to take a spectrum of")
    return batches


def _eigenvalues(function: LossFunction, batches: Sequence[_BatchColumns]) -> np.ndarray:
    gram = _gram(function, batches)
    signs = torch.cat([batch_columns.signs for batch_columns in batches])
    if bool((signs > 0).all()):
        return np.asarray(torch.linalg.eigvalsh(gram).cpu().numpy())
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp(min=0).sqrt()
    return np.asarray(torch.linalg.eigvalsh(root.T @ (signs[:, None] * root)).cpu().numpy())


def _gram(function: LossFunction, batches: Sequence[_BatchColumns]) -> torch.Tensor:
    """``B'B``, ``(R, R)`` float64; rows are ordered by batch, column and sample."""
    total = sum(batch_columns.rows for batch_columns in batches)
    gram = torch.zeros(total, total, dtype=torch.float64, device=function.device)
    left_over = sorted({index for batch_columns in batches for index in batch_columns.linear.others})
    believed = [_believed(batch_columns.linear.uses, left_over) for batch_columns in batches]
    calls = {tuple((use.kind, use.weight, use.bias) for use in uses) for uses in believed}
    if len(calls) > 1:
        raise TaskError("the network makes other calls for one batch than for another: use one batch, or Lanczos")
    for group in _groups(batches, believed):
        pulled = [
            _pulled(batch_columns, [uses[place] for place in group]) for batch_columns, uses in zip(batches, believed)
        ]
        for index, place in enumerate(group):
            uses = [mine[place] for mine in believed]
            _add_use(gram, batches, uses, [pieces[index] for pieces in pulled])
    if left_over:
        _add_held(gram, function, batches, left_over)
    return gram


def _believed(uses: Sequence[Use], left_over: Sequence[int]) -> list[Use]:
    members = {index for use in uses for index in (use.weight, use.bias) if index is not None}
    kept = members - set(left_over)
    return [use for use in (use.restricted(kept) for use in uses) if use is not None]


def _groups(batches: Sequence[_BatchColumns], believed: Sequence[Sequence[Use]]) -> Iterator[list[int]]:
    """Groups of use indices whose cotangents together fit in an eighth of the free memory."""
    size = batches[0].columns.element_size()
    budget = available_bytes(batches[0].columns.device) // 8
    group: list[int] = []
    used = 0
    for place in range(len(believed[0])):
        bytes_per_use = size * sum(
            len(batch_columns.columns) * numbers_of(uses[place]) for batch_columns, uses in zip(batches, believed)
        )
        if group and used + bytes_per_use > budget:
            yield group
            group, used = [], 0
        group.append(place)
        used += bytes_per_use
    if group:
        yield group


def _pulled(batch_columns: _BatchColumns, uses: Sequence[Use]) -> list[torch.Tensor]:
    """The cotangents of the uses' outputs for all columns, ``(G, *shape)`` each."""
    linear = batch_columns.linear
    edges = [use.edge for use in uses]
    pieces = [
        torch.autograd.grad(linear.outputs, edges, linear.layout.unflatten(column), retain_graph=True)
        for column in batch_columns.columns
    ]
    return [torch.stack([piece[place] for piece in pieces]) for place in range(len(uses))]


def _add_use(
    gram: torch.Tensor, batches: Sequence[_BatchColumns], uses: Sequence[Use], ds: Sequence[torch.Tensor]
) -> None:
    every = list(zip(batches, uses, ds))
    first = uses[0]
    if first.bias is not None:
        _add(gram, [bias_rows(use, d, batch_columns.samples) for batch_columns, use, d in every])
    if first.weight is None:
        return
    if first.kind == "embedding":
        tokens: torch.Tensor = torch.unique(torch.cat([use.input.reshape(-1) for use in uses]).to(torch.int64))
        for blocks in zip(*(embedding_rows(use, d, batch_columns.samples, tokens) for batch_columns, use, d in every)):
            _add(gram, list(blocks))
    elif all(is_vector(use, batch_columns.samples) for batch_columns, use, _ in every):
        inputs = [
            use.input.reshape(batch_columns.samples, -1).expand(len(batch_columns.columns), -1, -1)
            for batch_columns, use, _ in every
        ]
        x, d = _matrix(inputs), _matrix([d.reshape(len(d), batch_columns.samples, -1) for batch_columns, _, d in every])
        gram += (x @ x.T) * (d @ d.T)
    else:
        units, entries = units_of(first)
        step = max(1, _BLOCK_BYTES // (8 * len(gram) * entries))
        for start in range(0, units, step):
            here = slice(start, start + step)
            _add(gram, [weight_rows(use, d, batch_columns.samples, here) for batch_columns, use, d in every])


def _add_held(
    gram: torch.Tensor, function: LossFunction, batches: Sequence[_BatchColumns], indices: Sequence[int]
) -> None:
    """Add the Gram matrix of parameters without a closed form, whose per-sample gradients are held in memory."""
    for index in indices:
        need = 8 * len(gram) * function.sizes[index]
        if need > available_bytes(function.device) // 2:
            raise ArgumentError(
                f"{function.names[index]} needs the gradients of single samples, {in_words(need)}: take fewer samples="
            )
        _add(gram, [_held(function, batch_columns, index) for batch_columns in batches])


def _held(function: LossFunction, batch_columns: _BatchColumns, index: int) -> torch.Tensor:
    flat = batch_columns.linear.layout.flatten([output.detach() for output in batch_columns.linear.outputs])
    single = SampleGradients(function, [index])
    chunks = [gradients[0] for _, gradients in single.chunks(batch_columns.linear.batch, flat, batch_columns.columns)]
    return torch.cat(chunks, 1).flatten(2)


def _add(gram: torch.Tensor, blocks: Sequence[torch.Tensor]) -> None:
    rows = _matrix(blocks)
    gram.addmm_(rows, rows.T)


def _matrix(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(G, B, q)`` of every batch as ``(R, q)`` float64."""
    return torch.cat([block.reshape(-1, block.shape[-1]).to(torch.float64) for block in blocks])
