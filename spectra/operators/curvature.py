"""CurvatureOperator: products summed over the batches of the data, each weighted as the loss weights it.

Subclasses implement one method, :meth:`CurvatureOperator.linearise`: it prepares a batch and returns its product. A
pass weights and adds these products. :meth:`CurvatureOperator.prepared` keeps the batches on the device between passes,
and the graphs of their gradients, within a memory budget.
"""

from __future__ import annotations

import copy
import glob
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Any, Self

import numpy as np
import torch

from spectra.errors import ArgumentError, CheckpointError, NumericsError
from spectra.operators.base import BatchForms, SymmetricOperator
from spectra.operators.checks import check_loss_once, check_partition
from spectra.operators.function import LossFunction
from spectra.operators.kept import KeptProducts, Product
from spectra.operators.modes import batch_norm_layers
from spectra.operators.passes import Passes
from spectra.operators.recalibration import recalibrate
from spectra.operators.selftest import SelfTest, self_test
from spectra.runtime.exclusive import exclusively
from spectra.runtime.memory import available_bytes
from spectra.runtime.ranks import adding_up, agreed, gathered, jointly
from spectra.task.task import Task

# Enough groups to estimate the scatter over the data, and few enough to store with every record.
_MOST_GROUPS = 64


class CurvatureOperator(SymmetricOperator):
    """A curvature matrix of a task's loss over all its data. Abstract.

    Subclasses are the Hessian, the GGN, their difference and the empirical Fisher matrix. The operator copies the
    parameters when it is created; later training does not change it.

    Args:
        task: the task.
        bn_mode: ``"eval"``; ``"train"``: batch norm by the statistics of each batch, all else in eval mode; or
            ``"recalibrated"``: eval mode with running statistics estimated anew over the data.
        dtype: ``"float32"`` or ``"float64"``; by default the parameters' own. The data are cast with them.
        params: which trainable parameters: a glob, else a regular expression, or a list of these; all by default.

    Raises:
        ArgumentError: an unknown mode or dtype, or a pattern that matches no parameter.
        TaskError: no trainable parameters, or a loss for which this curvature matrix does not exist.
    """

    kind: str
    per_sample = False  # whether the products use per-sample gradients only, without a second derivative
    with_l2 = True  # whether the l2 term of the loss is in the matrix
    split = False  # whether the products treat the network and the criterion separately

    def __init__(
        self,
        task: Task,
        bn_mode: str = "eval",
        *,
        dtype: str | torch.dtype | None = None,
        params: str | Sequence[str] | None = None,
    ) -> None:
        self.function = LossFunction(task, bn_mode, torch_dtype_of(dtype), params)
        super().__init__(self.function.n, self.function.dtype, self.function.device)
        self.task = task
        self.bn_mode = bn_mode
        self.params = params
        self.within: Sequence[int] | None = None  # of a diagonal block: the numbers of its parameters in the whole
        self.scale: torch.Tensor | None = None  # (n,) of the diagonal S, where the matrix is S A S; see `precondition`
        self._test: SelfTest | None = None
        self.passes = Passes(self.function)
        self.kept = KeptProducts()

    @abstractmethod
    def linearise(self, batch: Any) -> Product:
        """Prepare a batch (placed on the device) and return its product with a vector.

        The product is with the curvature of the criterion's value for the batch, without the weight of the batch. Given
        the numbers of some parameters as a second argument, it is the product with their diagonal block.
        Called within the function's evaluation.
        """

    @property
    def tensor_sizes(self) -> dict[str, int]:
        return dict(zip(self.function.names, self.function.sizes))

    @property
    def self_test(self) -> SelfTest:
        """The checks before the first product, and the measured noise. Computed once.

        Raises:
            DataError: the data differ from pass to pass, or labels are out of range.
            TaskError: the averaging of the criterion is not known, a product is random or not symmetric, or the loss
                has no second derivative.
            NumericsError: parameters or loss are NaN or infinite.
        """
        if self._test is None:
            self._test = self._tested()
        return self._test

    @exclusively
    def _tested(self) -> SelfTest:
        """Run the checks under the global lock: they change parameters and statistics of the function temporarily."""
        if self._test is None:
            # For a block, the loss of the whole has been checked.
            notes = [check() for check in self.checks().values()] if self.within is None else []
            return self_test(self, next(filter(None, notes), None))
        return self._test

    def agree(self) -> None:
        """Run the self-test, in all processes that share the analysis; all take the noise that the first has measured.

        Raises:
            Exception: as for ``self_test``, of any process.
        """
        self._test = agreed(jointly(lambda: self.self_test))

    def checks(self) -> dict[str, Callable[[], str | None]]:
        """What is checked before the self-test, by name and in order. A check returns a note, or raises the reason."""
        return {
            "weights": self.function.check_finite,
            "batches": lambda: check_partition(self.task, self.bn_mode, self.task.survey()),
            "batch norm": self._recalibrate,
            "loss": lambda: check_loss_once(
                self.function, self.task.survey(), per_sample=self.per_sample, split=self.split
            ),
        }

    def _recalibrate(self) -> None:
        if self.bn_mode == "recalibrated":
            if (source := self.task.calibration) is not None:
                check_partition(source, self.bn_mode, source.survey())
            recalibrate(self.function)

    @property
    def noise(self) -> float:
        return self.self_test.noise

    def at(self, dtype: torch.dtype) -> Self:
        """The same operator, at the same parameters, computed in another dtype."""
        other = type(self)(self.task, self.bn_mode, dtype=dtype, params=self.params)
        other.function.adopt(self.function)
        other.scale = None if self.scale is None else self.scale.to(dtype)
        return other

    def precondition(self, denominators: Mapping[str, torch.Tensor]) -> None:
        """Make this the operator of ``P^-1/2 A P^-1/2`` with a diagonal ``P``, before the first product.

        Args:
            denominators: name of a parameter tensor -> the positive entries of ``P``, in the shape of the tensor.

        Raises:
            CheckpointError: a parameter without entries, or entries of another shape.
        """
        parts = []
        for name, parameter in zip(self.function.names, self.function.theta):
            if name not in denominators:
                raise CheckpointError(f"the optimizer has no state for the parameter {name}: it has taken no step")
            if denominators[name].shape != parameter.shape:
                raise CheckpointError(f"the state of the optimizer for {name} has another shape than the parameter")
            parts.append(denominators[name].to(torch.float64).rsqrt().reshape(-1))
        self.scale = torch.cat(parts).to(self.device, self.torch_dtype)
        self._test = None

    def scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows times ``P^-1/2``; themselves without a preconditioner."""
        return rows if self.scale is None else rows * self.scale

    def block(self, names: Collection[str]) -> Self:
        """The diagonal block of these parameters: the same operator with ``params=`` these names, on shared tensors.

        Its noise is measured for the block, with products of its own. :meth:`apply_to_blocks` multiplies several blocks
        in one pass over the data.

        Raises:
            ArgumentError: a name that is not among the parameters of this operator, or none.
        """
        wanted, known = set(names), self.function.names
        if not wanted or not wanted <= set(known):
            raise ArgumentError(f"block {sorted(wanted - set(known))}: names of parameters of the operator are needed")
        _ = self.self_test  # the checks, and recalibrated statistics, are for all blocks
        part = copy.copy(self)
        part.within = [index for index, name in enumerate(known) if name in wanted]
        part.function = self.function.restricted(part.within)
        part.n, part.params = part.function.n, [glob.escape(name) for name in part.function.names]
        if self.scale is not None:
            pieces = torch.split(self.scale, self.function.sizes)
            part.scale = torch.cat([pieces[index] for index in part.within])
        part.passes, part.kept, part._test = Passes(part.function), KeptProducts(), None
        return part

    def batches(self) -> Iterator[tuple[Any, float]]:
        """The batches of positive weight, on the device, with their weights; checked against the survey at the end."""
        return self.passes.batches()

    @contextmanager
    def prepared(self, memory_budget: int | None = None) -> Iterator[None]:
        """Keep the batches on the device, and the graphs of their gradients, as far as they fit the budget.

        Args:
            memory_budget: in bytes, for the batches and again for the graphs; by default a quarter of the free memory.
        """
        with self.passes.holding(memory_budget):
            if self.kept.open:  # by an outer caller
                yield
                return
            self.kept.start(available_bytes(self.device) // 4 if memory_budget is None else memory_budget)
            try:
                yield
            finally:
                self.kept.stop()

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        return self.apply_to_blocks([(self, block)])[0]

    def apply_in_parts(self, block: torch.Tensor) -> tuple[torch.Tensor, BatchForms | None]:
        if self.bn_mode == "recalibrated" and batch_norm_layers(self.task.model):
            return self.apply(block), None  # the statistics depend on all data, so the batches are not independent
        batch_forms: list[tuple[np.ndarray, float]] = []
        product = self.apply_to_blocks([(self, block)], batch_forms)[0]
        divisor = self.task.divisor(self.task.survey().total_weight)
        forms = np.stack([forms for forms, _ in batch_forms], axis=1) / divisor
        return product, _grouped(BatchForms(forms, np.array([weight for _, weight in batch_forms])))

    def apply_to_blocks(
        self, jobs: Sequence[tuple[Self, torch.Tensor]], batch_forms: list[tuple[np.ndarray, float]] | None = None
    ) -> list[torch.Tensor]:
        """The products of diagonal blocks with vectors, in one pass over the data.

        A product with a block differentiates in its own parameters only. All blocks share the graph of a batch.

        Args:
            jobs: blocks of this operator (or itself), each with its vectors as rows, ``(k, n)`` of the block.
            batch_forms: if given, the quadratic forms ``(k,)`` of each batch, for the first job, and its weight are
                appended to it.
        """
        _ = self.self_test  # runs the checks before the first product
        survey = self.task.survey()
        divisor = self.task.divisor(survey.total_weight)
        l2 = self.task.l2 if self.with_l2 else 0.0
        # Sums over many batches are in float64, so that the summation adds no error.
        alone = sum(weight > 0 for weight in survey.weights) == 1 and not l2
        dtype = self.torch_dtype if alone else torch.float64
        jobs = [(operator, operator.scaled(block)) for operator, block in jobs]
        with self.function.evaluation():
            running = [
                _Running(operator.function, None if operator is self else operator.within, block, dtype)
                for operator, block in jobs
            ]
            totals, own_forms = [job.total for job in running], []
            with adding_up(totals):
                for index, batch, weight in self.passes.own_batches():
                    product = self.kept.product(index, batch, self.linearise)
                    factor = self.task.total_factor(weight)
                    for job in running:
                        with_forms = batch_forms is not None and job is running[0]
                        forms = job.add(product, factor, divisor, with_forms=with_forms)
                        if with_forms:
                            own_forms.append((index, forms, weight))
            if batch_forms is not None:
                of_all = sorted(chain.from_iterable(gathered(own_forms)), key=itemgetter(0))
                batch_forms.extend((forms, weight) for _, forms, weight in of_all)
            if l2:
                for total, (_, block) in zip(totals, jobs):
                    total.add_(block, alpha=l2)
        totals = [operator.scaled(total) for (operator, _), total in zip(jobs, totals)]
        for total in totals:
            if not bool(torch.isfinite(total.sum(dtype=torch.float64))) and not bool(torch.isfinite(total).all()):
                raise NumericsError(f"a product with the {self.kind} holds NaN or infinity")
        return [total.to(self.torch_dtype) for total in totals]


class _Running:
    """The sums over batches of the products of one operator, or of a diagonal block, with the rows of a block."""

    def __init__(
        self, function: LossFunction, within: Sequence[int] | None, block: torch.Tensor, dtype: torch.dtype
    ) -> None:
        self.within = () if within is None else (within,)
        self.total = torch.zeros(block.shape, dtype=dtype, device=function.device)
        self.vectors = [function.unflatten(row) for row in block]
        self.sums = [
            [piece.view_as(p) for piece, p in zip(torch.split(row, function.sizes), function.theta)]
            for row in self.total
        ]

    def add(self, product: Product, factor: float, divisor: float, *, with_forms: bool) -> np.ndarray:
        """Add the products of one batch; returns its quadratic forms, ``(k,)``, if asked for."""
        forms = []
        for vector, sums in zip(self.vectors, self.sums):
            pieces = [(v, s, p) for v, s, p in zip(vector, sums, product(vector, *self.within)) if p is not None]
            for _, s, p in pieces:
                s.add_(p, alpha=factor / divisor)
            if with_forms:
                forms.append(factor * sum(float((v.double() * p.double()).sum()) for v, _, p in pieces))
        return np.array(forms)


def _grouped(batch_forms: BatchForms) -> BatchForms:
    """The quadratic forms summed over at most 64 groups of consecutive batches, of sizes as equal as possible."""
    batches = batch_forms.weights.size
    starts = np.unique(np.linspace(0, batches, min(batches, _MOST_GROUPS), endpoint=False).astype(int))
    return BatchForms(np.add.reduceat(batch_forms.forms, starts, axis=1), np.add.reduceat(batch_forms.weights, starts))


def torch_dtype_of(dtype: str | torch.dtype | Any | None) -> torch.dtype | None:
    """The torch dtype for a name, a NumPy dtype or a torch dtype.

    Raises:
        ArgumentError: it is neither float32 nor float64.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "float64"):
        raise ArgumentError(f"dtype={dtype!r}: 'float32' or 'float64' is needed")
    return torch.float32 if name == "float32" else torch.float64
