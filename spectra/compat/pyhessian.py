"""``hessian``: the class of PyHessian with its calls and the form of its results; all numbers are computed by spectra.

For scripts with ``from pyhessian import hessian``. docs/migration.md says what differs, and which calls of spectra
state an error with each number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from spectra.errors import ArgumentError
from spectra.krylov.eigsh import eigsh
from spectra.krylov.slq import slq
from spectra.operators.hessian import HessianOperator
from spectra.task.task import Task

_FEWEST = 5  # samples of the trace, below which their spread says little


class hessian:  # noqa: N801
    """The Hessian of the mean loss over one batch or over all data, with batch norm in eval mode.

    The model is not changed: no mode, gradient or buffer. Batches are moved to the device of the model.

    Args:
        model: the network; its parameters with ``requires_grad=True`` are those of the Hessian.
        criterion: ``criterion(output, target) -> scalar``.
        data: one batch ``(inputs, targets)``.
        dataloader: batches ``(inputs, targets)``, the same on every pass, in place of ``data``.
        cuda: True demands that the model is on a CUDA device.
        seed: of the random vectors; calls with equal arguments have equal results.

    Raises:
        ArgumentError: both or none of ``data`` and ``dataloader``; ``cuda=True`` and a model on another device.
        SpectraError: what :class:`spectra.HessianOperator` refuses.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> h = hessian(model, nn.CrossEntropyLoss(), data=(torch.eye(2), torch.tensor([0, 1])))
        >>> [round(value, 4) for value in h.eigenvalues(top_n=2)[0]]
        [0.25, 0.25]
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Any], torch.Tensor],
        data: Any = None,
        dataloader: Iterable[Any] | None = None,
        cuda: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        if (data is None) == (dataloader is None):
            raise ArgumentError("one of data=(inputs, targets) and dataloader= is needed")
        batches = [tuple(data)] if dataloader is None else dataloader
        self._operator = HessianOperator(Task(model, criterion, batches))
        self._seed = seed
        if cuda and self._operator.device.type != "cuda":
            raise ArgumentError(f"cuda=True: the model is on {self._operator.device}; move it with model.cuda()")

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1
    ) -> tuple[list[float], list[list[torch.Tensor]]]:
        """The ``top_n`` eigenvalues of the largest magnitude, largest first, and their eigenvectors.

        Args:
            maxIter: Lanczos steps, and products, per eigenvalue at most; a warning says if they did not suffice.
            tol: bound on ``|H v - lambda v|``, relative to the spectral norm.
            top_n: how many.

        Returns:
            The eigenvalues, and for each a list of tensors shaped like the parameters, of norm 1 together.
        """
        pairs = eigsh(self._operator, top_n, "LM", tol=tol, seed=self._seed, max_steps=max(1, maxIter) * top_n)
        assert pairs.vectors is not None
        if not pairs.converged.all():
            words = f"after maxIter={maxIter} steps per eigenvalue the residuals are {pairs.residuals.tolist()}"
            warnings.warn(f"{words}: raise maxIter or tol", RuntimeWarning, stacklevel=2)
        vectors = torch.as_tensor(pairs.vectors).to(self._operator.device, self._operator.torch_dtype).T
        return [float(value) for value in pairs.values], [self._operator.function.unflatten(v) for v in vectors]

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:
        """Samples ``v' H v`` with random signs ``v``, whose mean estimates the trace.

        Args:
            maxIter: samples at most.
            tol: enough samples are drawn when the standard error of their mean is below ``tol`` times the mean.
        """
        samples: list[float] = []
        generator = torch.Generator().manual_seed(self._seed)
        n, dtype = self._operator.n, self._operator.torch_dtype
        with self._operator.prepared():
            while len(samples) < maxIter:
                signs = torch.randint(2, (min(_FEWEST, maxIter - len(samples)), n), generator=generator).T * 2 - 1
                signs = signs.to(self._operator.device, dtype)
                samples += (signs.double() * (self._operator @ signs).double()).sum(0).tolist()
                error = np.std(samples, ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else np.inf
                if error <= tol * abs(np.mean(samples)):
                    break
        return samples

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of stochastic Lanczos quadrature, a list for each of ``n_v`` random vectors.

        A run has ``iter`` nodes, or as many as the Krylov space has dimensions; shorter ones are filled up with copies
        of their last node of weight 0.
        """
        spectrum = slq(self._operator, iter, n_v, self._seed, distribution="rademacher")
        rules = [(np.asarray(t.nodes), np.asarray(t.weights)) for t in spectrum.tridiagonals]
        longest = max(len(nodes) for nodes, _ in rules)
        nodes = [np.pad(values, (0, longest - len(values)), mode="edge").tolist() for values, _ in rules]
        weights = [np.pad(values, (0, longest - len(values))).tolist() for _, values in rules]
        return nodes, weights
