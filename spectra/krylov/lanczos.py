"""Lanczos recurrences in lockstep: several probes share each pass over the data.

The three-term recurrence is float64, whatever the precision of the products. Each new vector is measured against the
whole basis and corrected where it is not orthogonal to it, so that no eigenvalue appears twice. An invariant subspace
ends a recurrence early, which is a normal outcome: the quadrature is then exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spectra.errors import NumericsError
from spectra.operators.base import BatchForms, SymmetricOperator
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.krylov_basis import Basis
from spectra.runtime.exclusive import exclusively, one_at_a_time
from spectra.runtime.ranks import agreed, jointly
from spectra.spectrum.tridiagonal import Tridiagonal


@dataclass(frozen=True)
class Recurrence:
    """The result of Lanczos for one probe."""

    tridiagonal: Tridiagonal
    forms: np.ndarray  # (t,) float64: per tensor of the operator, q_t' (H q)_t of the first product
    batch_forms: BatchForms | None = None  # of the first product, (B,): the per-batch quadratic forms q'H q
    start_overlaps: np.ndarray | None = (
        None  # (k, m), first probe only: scalar products of every probe with its Krylov basis
    )
    basis: Basis | None = None  # the Krylov basis, if requested; one vector more if the recurrence was stopped


@dataclass(frozen=True)
class Halfway:
    """The state of a recurrence after some steps; a continuation is bit-identical to an uninterrupted recurrence."""

    alphas: np.ndarray  # (j,) float64
    betas: np.ndarray  # (j,) float64
    exhausted: bool
    forms: np.ndarray  # as in Recurrence; empty before the first step
    batch_forms: BatchForms | None
    orthogonality: float  # max |Q Q' - I| so far
    vectors: torch.Tensor  # (j + 1, n), or (j, n) for a finished recurrence, in the dtype of the basis


def tridiagonalize(
    operator: SymmetricOperator,
    starts: Sequence[np.ndarray],
    lanczos_steps: int,
    *,
    tolerance: float,
    keep_basis: bool = False,
    semiorthogonal: float = 0.0,
    tick: Callable[[int], None] | None = None,
    stop: Callable[[Tridiagonal], bool] | None = None,
    stop_all: Callable[[Sequence[Tridiagonal], Basis], bool] | None = None,
    away_from: Basis | None = None,
    under_way: Sequence[Halfway] = (),
    step_done: Callable[[Callable[[], list[Halfway]]], None] | None = None,
) -> list[Recurrence]:
    """``lanczos_steps`` steps of Lanczos from each start, in lockstep.

    Args:
        operator: a symmetric operator of ``n`` rows.
        starts: unit vectors, ``(n,)`` float64 each.
        lanczos_steps: at most ``n`` are taken.
        tolerance: a recurrence ends when ``beta_j <= tolerance * max_i (|alpha_i| + beta_i)``; relative to the scale of
            the operator.
        keep_basis: return the Krylov bases too, for Ritz vectors.
        semiorthogonal: the largest scalar product of two basis vectors that need not be corrected. A loss of
            orthogonality ``w`` changes the tridiagonal matrix by ``w^2`` relative to the norm of the operator, and Ritz
            vectors by ``w``.
        tick: called with the number of products after each shared step.
        stop: called after each step of a recurrence with its tridiagonal matrix so far; True ends the recurrence.
        stop_all: called after each shared step with the tridiagonal matrices of all recurrences and the Krylov basis of
            the first; True ends them all.
        away_from: orthonormal vectors; the starts are orthogonal to them and the recurrences are kept so. The result
            belongs to ``P A P``, with ``P`` the projection onto their orthogonal complement.
        under_way: states of the same recurrences to continue from, one for each start.
        step_done: called after each shared step with a function that returns the states of all recurrences. Their
            vectors are views that later steps do not write to.

    Returns:
        A recurrence per start, with ``A Q = Q T + beta_m q_{m+1} e_m'`` up to the noise of the products.

    References:
        G. Golub, G. Meurant, Matrices, Moments and Quadrature with Applications (2010), chapter 4; B. Parlett, The
        Symmetric Eigenvalue Problem (1998), chapter 13; H. Simon, The Lanczos algorithm with partial
        reorthogonalization, Math. Comp. 42 (1984).
    """
    steps = min(lanczos_steps, operator.n)
    runs = jointly(lambda: [_Run(operator, start, steps, away_from, semiorthogonal) for start in starts])
    for run, halfway in zip(runs, under_way, strict=bool(under_way)):
        run.take_up(halfway)
    for step in range(max(len(run.alphas) for run in runs), steps):
        live = [run for run in runs if not run.done]
        if not live:
            break
        with one_at_a_time:  # the number of threads and the precision of products are process-wide settings
            block = torch.stack([run.basis.last for run in live])
            if step == 0:
                products, batch_forms = operator.apply_in_parts(block)
                for row, run in enumerate(live):
                    run.batch_forms = (
                        None if batch_forms is None else BatchForms(batch_forms.forms[row], batch_forms.weights)
                    )
            else:
                products = operator.apply(block)
            for run, product in zip(live, products):
                # A separate copy: scalar products round differently at other memory alignments, and the numbers of a
                # probe must not depend on its position in a block.
                run.advance(product.to(torch.float64, copy=True), tolerance)
        for run in live:
            if stop is not None and not run.done:
                run.stopped = stop(run.tridiagonal)
        if stop_all is not None and stop_all([run.tridiagonal for run in runs], runs[0].basis):
            for run in runs:
                run.stopped = True
        if tick is not None:
            tick(len(live))
        if step_done is not None:
            step_done(lambda: [run.halfway() for run in runs])
    return [run.result(keep_basis) for run in runs]


@dataclass(frozen=True)
class BlockStarts:
    """A diagonal block, the starts of its recurrences, and their tolerances, as of :func:`tridiagonalize`."""

    operator: CurvatureOperator  # of `CurvatureOperator.block`
    starts: Sequence[np.ndarray]
    tolerance: float
    semiorthogonal: float


def tridiagonalize_blocks(
    whole: CurvatureOperator,
    blocks: Sequence[BlockStarts],
    lanczos_steps: int,
    *,
    keep_basis: bool = False,
    tick: Callable[[int], None] | None = None,
) -> list[list[Recurrence]]:
    """Lanczos for several diagonal blocks of one operator, all recurrences in lockstep: one pass per step serves all.

    Args:
        whole: the operator.
        blocks: its blocks, with their starts.
        lanczos_steps: at most the rows of a block are taken.
        keep_basis: return the Krylov basis of the first recurrence of each block.
        tick: called with the number of products after each shared step.

    Returns:
        For each block, a recurrence per start, without forms of the batches.
    """
    runs = jointly(
        lambda: [
            [_Run(b.operator, start, min(lanczos_steps, b.operator.n), None, b.semiorthogonal) for start in b.starts]
            for b in blocks
        ]
    )
    while True:
        live = [(b, on) for b, group in zip(blocks, runs) if (on := [run for run in group if not run.done])]
        if not live:
            break
        with one_at_a_time:
            jobs = [(b.operator, torch.stack([run.basis.last for run in group])) for b, group in live]
            for (b, group), products in zip(live, whole.apply_to_blocks(jobs)):
                for run, product in zip(group, products):
                    run.advance(product.to(torch.float64, copy=True), b.tolerance)
        if tick is not None:
            tick(sum(len(group) for _, group in live))
    return [[run.result(keep_basis and run is group[0]) for run in group] for group in runs]


class _Run:
    """One recurrence in progress."""

    def __init__(
        self, operator: SymmetricOperator, start: np.ndarray, steps: int, away_from: Basis | None, semiorthogonal: float
    ) -> None:
        self.n, self.steps, self.away_from, self.limit = operator.n, steps, away_from, semiorthogonal
        self.sizes = list(operator.tensor_sizes.values())
        self.basis = Basis(steps, operator.n, operator.torch_dtype, operator.device, shared=True)
        self.basis.append(torch.from_numpy(start).to(operator.device))
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.forms = np.zeros(0)
        self.batch_forms: BatchForms | None = None
        self.exhausted = False
        self.orthogonality = 0.0  # the largest scalar product of two different basis vectors
        self.stopped = False  # ended by the caller's `stop`

    @property
    def done(self) -> bool:
        return self.exhausted or self.stopped or len(self.alphas) == self.steps

    @property
    def tridiagonal(self) -> Tridiagonal:
        return Tridiagonal(np.array(self.alphas), np.array(self.betas), self.exhausted, self.orthogonality)

    def take_up(self, halfway: Halfway) -> None:
        """Continue from a stored state."""
        self.alphas, self.betas = halfway.alphas.tolist(), halfway.betas.tolist()
        self.exhausted, self.forms, self.batch_forms = halfway.exhausted, halfway.forms, halfway.batch_forms
        self.orthogonality = halfway.orthogonality
        self.basis.restore(halfway.vectors)

    def halfway(self) -> Halfway:
        alphas, betas = np.array(self.alphas), np.array(self.betas)
        vectors = self.basis.whole_rows()
        return Halfway(alphas, betas, self.exhausted, self.forms, self.batch_forms, self.orthogonality, vectors)

    def advance(self, residual: torch.Tensor, tolerance: float) -> None:
        """One step, from the product with the newest vector; ``residual`` is overwritten."""
        newest = self.basis.last.to(torch.float64)
        if not self.alphas:
            terms = newest * residual
            self.forms = np.array([float(piece.sum()) for piece in torch.split(terms, self.sizes)])
        alpha = float(torch.dot(newest, residual))
        residual.sub_(newest, alpha=alpha)
        if self.betas:
            residual.sub_(self.basis.before_last, alpha=self.betas[-1])
        if self.away_from is not None:  # before the division by beta, which amplifies remaining components along them
            self.away_from.remove_from(residual)
        beta, left = self.basis.make_orthogonal(residual, self.limit)
        alpha, beta, left = agreed((alpha, beta, left))  # processors may round differently
        if not (np.isfinite(alpha) and np.isfinite(beta)):
            raise NumericsError(f"Lanczos step {len(self.alphas) + 1} met NaN or infinity")
        self.alphas.append(alpha)
        self.betas.append(beta)
        scale = max(abs(a) + b for a, b in zip(self.alphas, self.betas))
        if beta <= tolerance * scale or len(self.alphas) == self.n:
            self.exhausted = True
        elif len(self.alphas) < self.steps:
            self.orthogonality = max(self.orthogonality, left)
            self.basis.append(residual.div_(beta))

    @exclusively
    def result(self, keep_basis: bool) -> Recurrence:
        return Recurrence(self.tridiagonal, self.forms, self.batch_forms, basis=self.basis if keep_basis else None)
