"""eigsh: single eigenpairs by Lanczos, with restarts orthogonal to the eigenvectors already found.

A Krylov space contains one eigenvector per distinct eigenvalue, whatever its multiplicity. So once the wanted Ritz
pairs have converged, Lanczos restarts from a random vector orthogonal to them and stays orthogonal to them. The search
ends when the best Ritz value of a restart is not among the wanted ones. For a single eigenvalue to few digits one start
is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal

from spectra.errors import ArgumentError, OutOfMemory
from spectra.krylov.lanczos import Recurrence, tridiagonalize
from spectra.krylov.probes import draw_start
from spectra.krylov.wanted import Wanted
from spectra.operators.base import SymmetricOperator
from spectra.operators.foreign import as_operator
from spectra.operators.krylov_basis import Basis, slice_sizes
from spectra.runtime.exclusive import exclusively
from spectra.runtime.memory import available_bytes, in_words, larger_limit
from spectra.runtime.ranks import everywhere, ranks
from spectra.spectrum.eigenpairs import WHICH, Eigenpairs
from spectra.spectrum.tridiagonal import Tridiagonal

_BLOCK = 8  # vectors multiplied at a time when residuals are measured
_MIN_STEPS = 10  # steps of a start before its Ritz values are used, unless the noise ends it sooner
_LOOSE = 1e-4  # from this tolerance on, a single eigenvalue is not checked for completeness unless asked
_REST_TOLERANCE = (
    0.1  # residual of the best remaining Ritz value, relative to its distance to the wanted ones and to it
)


def eigsh(
    operator: Any,
    k: int = 6,
    which: str = "LA",
    *,
    tol: float = 1e-6,
    seed: int = 0,
    max_steps: int | None = None,
    nearby: np.ndarray | None = None,
    complete: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Eigenpairs:
    """``k`` eigenpairs at an end of the spectrum, each with a measured residual.

    Lanczos with full re-orthogonalisation goes on until the wanted Ritz pairs have a residual of at most
    ``tol |H|_2``, then starts again orthogonal to them to find multiple eigenvalues and missed ones. A last
    Rayleigh-Ritz step on the ``k`` vectors, with ``k`` products of its own, measures ``|H y - theta y|``.

    For ``k=1`` and ``tol`` of at least 1e-4 the first start alone decides, in about a third of the products: the
    largest eigenvalue of a network to 1e-3 takes some 20.

    A wanted eigenvalue can be missed only if a random start is almost orthogonal to its eigenvector, which has
    negligible probability. ``completeness`` of the result states in words what the last start showed.

    Args:
        operator: a symmetric operator of ``n`` rows, or a matrix or operator of another library that
            :func:`~spectra.operators.foreign.as_operator` makes one of.
        k: from 1 to ``n``.
        which: as in SciPy: ``"LA"`` the largest, ``"SA"`` the smallest, ``"LM"`` the largest in magnitude, ``"BE"``
            half from either end (one more from the upper end for odd ``k``).
        tol: bound on the residuals, relative to ``|H|_2``; at least ten times the noise of the products.
        seed: of the start vectors. Their random stream differs from that of the probes of
            :func:`~spectra.krylov.slq.slq`.
        max_steps: Lanczos steps of all starts together, at least ``k``; by default ``300 + 20 k``.
        nearby: (n, any number) vectors close to the wanted ones, for example those of the previous checkpoint. The
            first start is their sum plus a tenth of a random vector. Later starts, which look for missing eigenvalues,
            stay random. This changes the cost of the search and the last digits of the result.
        complete: whether to look for equal and missed eigenvalues by further starts; by default unless ``k=1`` and
            ``tol >= 1e-4``. It buys the multiplicities, and the statement in ``completeness``.
        progress: called with the steps done and the steps at most.

    Returns:
        The pairs, the most wanted first, with vectors of the operator's dtype. Pairs that did not converge within
        ``max_steps``, or within the free memory, have ``converged`` False; then ``complete`` is False as well.

    Raises:
        ArgumentError: an argument out of its range, or no symmetric operator.
        OutOfMemory: a Krylov space of ``k + 2`` vectors does not fit in memory along with the eigenvectors.

    References:
        B. Parlett, The Symmetric Eigenvalue Problem (1998), chapters 11 and 13; J. Kuczynski, H. Wozniakowski,
        Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start, SIMAX 13 (1992).

    Example:
        >>> from spectra.operators.dense import DenseOperator
        >>> pairs = eigsh(DenseOperator(np.diag([1.0, 5.0, 5.0, -9.0])), k=3)
        >>> pairs.values.round(12), pairs.complete
        (array([5., 5., 1.]), True)
    """
    operator = as_operator(operator)
    n = operator.n
    if not 1 <= k <= n:
        raise ArgumentError(f"k={k}: from 1 to n={n} eigenpairs can be asked for")
    if which not in WHICH:
        raise ArgumentError(f"which={which!r}: one of {', '.join(map(repr, WHICH))} is needed")
    if not 0 <= tol < 1:
        raise ArgumentError(f"tol={tol}: a number from 0 (as exact as the products are) to below 1 is needed")
    if seed < 0:
        raise ArgumentError(f"seed={seed}: at least 0 is needed")
    if max_steps is not None and max_steps < k:
        raise ArgumentError(f"max_steps={max_steps}: at least k={k} is needed; 300 + 20 k is the default")
    if nearby is not None and (nearby.ndim != 2 or len(nearby) != n):
        raise ArgumentError(f"nearby has shape {nearby.shape}: columns of {n} numbers are needed")
    budget = 300 + 20 * k if max_steps is None else max_steps
    search = _Search(operator, k, which, tol, seed, budget, nearby, progress)
    with operator.prepared():
        search.run(k > 1 or tol < _LOOSE if complete is None else complete)
        return search.measured()


class _Search:
    """The state of the search: the pairs found so far, and the budget of steps that remains."""

    def __init__(
        self,
        operator: SymmetricOperator,
        k: int,
        which: str,
        tol: float,
        seed: int,
        budget: int,
        nearby: np.ndarray | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.nearby = nearby
        self.operator, self.k, self.seed, self.budget = operator, k, seed, budget
        self.wanted = Wanted(which, k)
        self.n, self.progress = operator.n, progress
        self.floor = 10 * operator.noise
        self.tol = max(tol, self.floor)
        self.steps = 0
        self.scale = 0.0
        self.values = np.zeros(0)  # of the vectors in `found`
        self.found = Basis(k, self.n, operator.torch_dtype, operator.device)
        self.complete, self.completeness = False, ""
        self.rest: np.ndarray | None = None  # Ritz values of the last start, orthogonal to all vectors found

    # --- the search -----------------------------------------------------------------------------------------------

    def run(self, complete: bool) -> None:
        """Run one start after another, until the best Ritz value of a start is not among the wanted.

        Not `complete`: only until there are as many as wanted.
        """
        starts = 0
        while self.found.size < self.n:
            wished = min(self.budget - self.steps, self.n - self.found.size)
            length = min(wished, self._fitting())
            device, needed = self.operator.device, 2 * self._bytes(wished)
            advice = everywhere(lambda: larger_limit(device, needed)) if length < wished else []  # noqa: B023
            more = next(filter(None, advice), "")
            if length < 1:
                self.completeness = f"max_steps={self.budget} were used up before the rest was looked through"
                return
            recurrence = self._start(starts, length)
            starts += 1
            t = recurrence.tridiagonal
            spans_space = t.steps == self.n - self.found.size
            done, wanted = self._judge(t, spans_space)
            if wanted.size:
                self._lock(recurrence, wanted)
            if not done and more:  # a limit on memory must not change the result
                raise OutOfMemory(
                    f"the search for eigenpairs needs more than {length} vectors of {self.n} numbers{more}"
                )
            if not done:
                bound = f"max_steps={self.budget}" if self.steps >= self.budget else f"a memory for {length} vectors"
                self.completeness = f"{bound} did not suffice to find what is wanted or to look through the rest"
                return
            if not complete and self.found.size >= self.k:
                self.completeness = "equal and missed eigenvalues were not looked for: complete=True does that"
                return
            if not wanted.size:
                best = t.nodes[self.wanted.ends(t.nodes)]
                self.rest = t.nodes
                self.complete = True
                self.completeness = (
                    "a start from a random vector orthogonal to those found met nothing better than "
                    + " and ".join(f"{value:.6g}" for value in best)
                )
                return
        self.complete, self.completeness, self.rest = True, "the vectors found span the whole space", np.zeros(0)

    def _start(self, index: int, length: int) -> Recurrence:
        drawn = draw_start(self.n, seed=self.seed, index=index)
        if index == 0 and self.nearby is not None:
            start_sum = self.nearby.sum(axis=1, dtype=np.float64)
            size = float(np.linalg.norm(start_sum))
            drawn = drawn if size == 0 else start_sum / size + 0.1 * drawn / np.linalg.norm(drawn)
            drawn /= np.linalg.norm(drawn)
        start = torch.from_numpy(drawn).to(self.operator.device)
        if self.found.size:
            self.found.remove_from(start)
            start /= start.norm()
        remaining = self.n - self.found.size

        def enough(t: Tridiagonal) -> bool:
            # Ritz values of long recurrences change slowly and are costly to compute, so they are checked less often.
            return t.steps % max(1, t.steps // 20) == 0 and self._judge(t, t.steps == remaining)[0]

        recurrence = tridiagonalize(
            self.operator,
            [start.cpu().numpy()],
            length,
            tolerance=max(1e-10, self.floor),
            keep_basis=True,
            tick=self._tick,
            stop=enough,
            away_from=self.found if self.found.size else None,
        )[0]
        self.scale = max(self.scale, recurrence.tridiagonal.scale)
        return recurrence

    def _tick(self, products: int) -> None:
        self.steps += products
        if self.progress is not None:
            self.progress(self.steps, self.budget)

    def _judge(self, t: Tridiagonal, spans_space: bool) -> tuple[bool, np.ndarray]:
        """Whether a recurrence can end, and the indices of its Ritz values that are among the wanted."""
        scale = max(self.scale, t.scale)
        # The measured residual also contains the noise of a product.
        limit = max(0.5 * self.tol, self.tol - self.floor) * scale
        closed = spans_space or t.exhausted or t.last_beta <= 0.5 * self.floor * scale
        # Values already found win ties, so that two equal values do not replace each other.
        bonus = np.concatenate([np.full(self.values.size, limit), np.zeros(t.steps)])
        chosen = self.wanted.choose(np.concatenate([self.values, t.nodes]), bonus)
        wanted = np.sort(chosen[chosen >= self.values.size]) - self.values.size
        if closed:
            return True, wanted
        if t.steps < min(_MIN_STEPS, self.n) or self.values.size + t.steps < self.k:
            return False, wanted
        if wanted.size:
            return bool((t.residuals[wanted] <= limit).all()), wanted
        ends, gaps = self.wanted.ends(t.nodes), self.wanted.gaps(t.nodes, self.values)
        near = np.maximum(limit, _REST_TOLERANCE * np.minimum(gaps, np.abs(t.nodes[ends])))
        return bool((t.residuals[ends] <= near).all()), wanted

    @exclusively
    def _lock(self, recurrence: Recurrence, wanted: np.ndarray) -> None:
        """Keep the Ritz vectors of these Ritz values."""
        t, basis = recurrence.tridiagonal, recurrence.basis
        assert basis is not None
        _, inner = eigh_tridiagonal(t.alphas, t.betas[:-1])
        rows = basis.combine(torch.from_numpy(np.ascontiguousarray(inner[:, wanted].T)).to(basis.rows.device))
        if self.found.size + len(rows) > self.found.capacity:
            wider = Basis(min(self.n, 2 * self.found.capacity), self.n, basis.rows.dtype, basis.rows.device)
            for row in self.found.rows:
                wider.append(row.to(torch.float64))
            self.found = wider
        for row in rows:
            self.found.remove_from(row)
            self.found.append(row / row.norm())
        self.values = np.append(self.values, t.nodes[wanted])

    def _bytes(self, vectors: int) -> int:
        """The memory of so many Krylov vectors, with a few work vectors."""
        return vectors * self._stored + 6 * 8 * self.n

    @property
    def _stored(self) -> int:
        """The bytes that this process stores of each Krylov vector."""
        return max(slice_sizes(self.n, ranks())) * self.operator.dtype.itemsize

    def _fitting(self) -> int:
        """The number of Krylov vectors that fit in half of the free memory, with a few work vectors."""
        return min(everywhere(self._fitting_here))

    def _fitting_here(self) -> int:
        free = available_bytes(self.operator.device)
        fits = int((free // 2 - 6 * 8 * self.n) // self._stored)
        if fits < min(self.n, self.k + 2):
            raise OutOfMemory(
                f"{self.k} eigenpairs of {self.n} numbers each, and the Lanczos basis they are found in, do not fit in "
                f"half of the {in_words(free)} that are free: ask for fewer, or choose fewer parameters with params="
                f"{larger_limit(self.operator.device, 2 * self._bytes(self.k + 2))}"
            )
        return fits

    # --- the result -----------------------------------------------------------------------------------------------

    @exclusively
    def measured(self) -> Eigenpairs:
        """The result: a Rayleigh-Ritz step on the wanted vectors with one product each, which gives the residuals."""
        chosen = self.wanted.choose(self.values)
        left_out = np.delete(self.values, chosen)
        vectors = self.found.rows[torch.from_numpy(chosen).to(self.operator.device)]
        products = torch.cat([self.operator.apply(block) for block in torch.split(vectors, _BLOCK)])
        pieces = list(zip(*(torch.split(rows, 2**18, dim=1) for rows in (vectors, products))))
        small = sum(v.to(torch.float64) @ p.to(torch.float64).T for v, p in pieces)
        assert isinstance(small, torch.Tensor)
        theta, rotation = torch.linalg.eigh((small + small.T) / 2)
        squares = torch.zeros_like(theta)
        for v, p in pieces:  # the pieces are views, so the vectors are rotated in place
            rotated = rotation.T @ v.to(torch.float64)
            squares += (rotation.T @ p.to(torch.float64) - theta[:, None] * rotated).square().sum(1)
            v.copy_(rotated)
        values, residuals = theta.cpu().numpy(), squares.sqrt().cpu().numpy()
        order = self.wanted.choose(values)
        if self.wanted.which == "BE":
            order = np.argsort(-values)
        scale = max(self.scale, float(np.abs(values).max()))
        return Eigenpairs(
            values[order],
            residuals[order],
            residuals[order] <= self.tol * scale,
            vectors[torch.from_numpy(order).to(vectors.device)].cpu().numpy().T,
            which=self.wanted.which,
            noise=self.operator.noise,
            scale=scale,
            tolerance=self.tol,
            products=self.steps + len(values),
            seed=self.seed,
            complete=self.complete,
            completeness=self.completeness,
            rest=None if self.rest is None else np.sort(np.append(self.rest, left_out)),
        )
