"""Matrix balancing: the convex problem behind normalized sharpness and node-wise minimum sharpness.

Each node (a row or column of a matrix, a unit of a layer) has a potential. Nodes are grouped in classes, and
non-negative matrices link the classes. The smallest total over all potentials is::

    F* = inf_p  sum over links (a, b, M)  sum_ij M_ij exp(p_a,i - p_b,j)

At the minimum the inflow of every node equals its outflow (Osborne's balance). For one class, with all others fixed,
the minimum has a closed form, ``p_i += log(in_i / out_i) / 2``. Sweeps over the classes converge linearly; Newton steps
follow if they are slow. Entries that link different strongly connected components contribute nothing to the infimum and
are deleted first; the infimum is then not attained.

References:
    Osborne, "On pre-conditioning of matrices", 1960.
    Tsuzuku, Sato and Sugiyama, "Normalized flat minima", arXiv:1901.04653, equation (17); the paper minimises by
    stochastic gradient descent, which this replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spectra.errors import ArgumentError, NumericsError
from spectra.sharpness.conjugate_gradients import conjugate_gradients

Array = npt.NDArray[np.float64]

CERTIFIED = 1e-10  # the largest violation of the balance, relative to the value
_WIDE = 600.0  # exponents further apart than this underflow in one exponential: logarithms are summed instead
_LARGEST_STEP = 5.0
_SWEEPS_PER_ROUND = 40
_ROUNDS = 200


@dataclass(frozen=True)
class Link:
    """``sum_ij matrix_ij exp(p_to,i - p_of,j)``, of two classes or of one with itself."""

    to: int
    of: int
    matrix: Array  # (size of `to`, size of `of`), none negative


@dataclass(frozen=True)
class Balanced:
    """The infimum over potentials, with its certificate."""

    value: float
    attained: bool
    potentials: tuple[Array, ...]  # one per class
    certificate: float  # the largest |in - out| of a node, relative to the value
    sweeps: int
    newton_steps: int


def balance(links: Sequence[Link], sizes: Sequence[int], fixed: int | None = None) -> Balanced:
    """The infimum over the potentials of all classes except the class ``fixed``, whose potentials are 0.

    Args:
        links: the matrices.
        sizes: nodes of each class.
        fixed: a class whose potentials are all 0.

    Raises:
        ArgumentError: an entry that is negative or not finite, or a matrix of another shape.
        NumericsError: the balance was not reached.
    """
    for link in links:
        if link.matrix.shape != (sizes[link.to], sizes[link.of]):
            raise ArgumentError(f"a link has shape {link.matrix.shape}: {(sizes[link.to], sizes[link.of])} is needed")
        if not np.isfinite(link.matrix).all() or (link.matrix < 0).any():
            raise ArgumentError("a matrix to balance has an entry that is negative or not finite")
    kept, attained = _connected(links, sizes, fixed)
    problem = _Problem(kept, sizes, fixed)
    sweeps = newton_steps = 0
    for _ in range(_ROUNDS):
        for _ in range(_SWEEPS_PER_ROUND):
            problem.sweep()
            sweeps += 1
            if sweeps % 4 == 0 and problem.violation() <= 0.1 * CERTIFIED:
                break
        problem.refresh()
        decrement = problem.newton_step()
        newton_steps += 1
        problem.refresh()
        if decrement <= 1e-14 and problem.violation() <= CERTIFIED:
            break
    certificate = problem.violation()
    if not certificate <= CERTIFIED:
        raise NumericsError(f"the balance is not reached: relative violation {certificate:.1e}, {CERTIFIED:g} needed")
    return Balanced(problem.value(), attained, tuple(problem.p), certificate, sweeps, newton_steps)


def imbalance(links: Sequence[Link], potentials: Sequence[Array], fixed: int | None = None) -> float:
    """The certificate of given potentials: the largest ``|in - out|`` of a node, relative to the value.

    Deleted entries (see ``attained``) are part of the links here, so the value is 0 only for an attained minimum.
    """
    problem = _Problem(list(links), [len(p) for p in potentials], fixed)
    problem.p = [np.array(p, float) for p in potentials]
    problem.refresh()
    return problem.violation()


def _connected(links: Sequence[Link], sizes: Sequence[int], fixed: int | None) -> tuple[list[Link], bool]:
    """The links without entries between different strongly connected components; whether no entry was removed."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = sum(sizes)
    nodes = np.split(np.arange(n), np.cumsum(sizes)[:-1])  # of each class
    heads, tails = [], []
    for link in links:
        i, j = np.nonzero(link.matrix)
        heads.append(nodes[link.to][i])
        tails.append(nodes[link.of][j])
    if fixed is not None and sizes[fixed] > 1:  # nodes whose potentials do not move are one node
        ground = nodes[fixed]
        heads += [ground, np.roll(ground, 1)]
        tails += [np.roll(ground, 1), ground]
    if not heads:
        return [], True
    row, column = np.concatenate(heads), np.concatenate(tails)
    graph = coo_array((np.ones(len(row), np.int8), (row, column)), shape=(n, n))
    _, component = connected_components(graph.tocsr(), directed=True, connection="strong")
    kept, attained = [], True
    for link in links:
        same = component[nodes[link.to]][:, None] == component[nodes[link.of]][None, :]
        attained &= not bool((link.matrix[~same] > 0).any())
        kept.append(Link(link.to, link.of, np.where(same, link.matrix, 0.0)))
    return kept, attained


class _Problem:
    """The state of the iteration: the potentials, and the scaled links divided by ``exp(shift)``."""

    def __init__(self, links: list[Link], sizes: Sequence[int], fixed: int | None) -> None:
        with np.errstate(divide="ignore"):
            self.logs = [np.log(link.matrix) for link in links]
        self.ends = [(link.to, link.of) for link in links]
        self.p = [np.zeros(size) for size in sizes]
        self.moving = [a for a in range(len(sizes)) if a != fixed]
        self.refresh()

    def refresh(self) -> None:
        """Recompute the scaled links from the potentials, because repeated multiplication accumulates rounding."""
        exponents = [logs + self.p[to][:, None] - self.p[of][None, :] for logs, (to, of) in zip(self.logs, self.ends)]
        finite = [e[np.isfinite(e)] for e in exponents]
        tops = [float(f.max()) for f in finite if f.size]
        self.shift = max(tops, default=0.0)
        self.wide = bool(tops) and min(float(f.min()) for f in finite if f.size) < self.shift - _WIDE
        self.scaled = [np.exp(e - self.shift) for e in exponents]

    def total(self) -> float:
        """The value, divided by ``exp(shift)``."""
        return sum(float(e.sum()) for e in self.scaled)

    def value(self) -> float:
        total = self.total()
        return float(np.exp(self.shift + np.log(total))) if total > 0 else 0.0

    def flows(self, a: int) -> tuple[Array, Array]:
        """(out, in) of the nodes of a class: the sums over links to it, and over links of it."""
        out, into = np.zeros(len(self.p[a])), np.zeros(len(self.p[a]))
        for e, (to, of) in zip(self.scaled, self.ends):
            if to == a:
                out += e.sum(axis=1)
            if of == a:
                into += e.sum(axis=0)
        return out, into

    def violation(self) -> float:
        total, flows = self.total(), (self.flows(a) for a in self.moving)
        worst = max((float(np.max(np.abs(out - into), initial=0.0)) for out, into in flows), default=0.0)
        return worst / total if total else 0.0

    def sweep(self) -> None:
        """Minimise over each class in turn, with the others fixed; node by node for a class linked to itself."""
        for a in self.moving:
            if (a, a) in self.ends:
                self._node_by_node(a)
                continue
            if self.wide:
                out, into = self._log_flows(a)
            else:
                with np.errstate(divide="ignore"):
                    out, into = (np.log(flow) for flow in self.flows(a))
            moves = np.isfinite(out) & np.isfinite(into)
            self._move(a, np.where(moves, (np.where(moves, into, 0) - np.where(moves, out, 0)) / 2, 0.0))
        if self.wide:
            self.refresh()

    def _move(self, a: int, by: Array) -> None:
        self.p[a] = self.p[a] + by
        if self.wide:
            return
        if float(np.max(np.abs(by), initial=0.0)) > _WIDE / 4:
            self.refresh()
            return
        for e, (to, of) in zip(self.scaled, self.ends):
            if to == a:
                e *= np.exp(by)[:, None]
            if of == a:
                e *= np.exp(-by)[None, :]

    def _log_flows(self, a: int) -> tuple[Array, Array]:
        from scipy.special import logsumexp

        out = np.full(len(self.p[a]), -np.inf)
        into = out.copy()
        for logs, (to, of) in zip(self.logs, self.ends):
            if a not in (to, of) or not logs.size:
                continue
            exponents = logs + self.p[to][:, None] - self.p[of][None, :]
            if to == a:
                out = np.logaddexp(out, logsumexp(exponents, axis=1))
            if of == a:
                into = np.logaddexp(into, logsumexp(exponents, axis=0))
        return out, into

    def _node_by_node(self, a: int) -> None:
        """Osborne's own order, for a class linked to itself alone; the diagonal does not move."""
        (index,) = [i for i, ends in enumerate(self.ends) if ends == (a, a)]
        e = self.scaled[index]
        for i in range(len(self.p[a])):
            out, into = e[i].sum() - e[i, i], e[:, i].sum() - e[i, i]
            if out > 0 and into > 0:
                by = float(np.log(into / out) / 2)
                self.p[a][i] += by
                e[i] *= np.exp(by)
                e[:, i] *= np.exp(-by)

    def newton_step(self) -> float:
        """One damped Newton step of all potentials together; returns the squared decrement over the value before.

        Half of it is the relative excess of the value over its minimum, to second order. The Hessian is a weighted
        graph Laplacian; the system is solved by conjugate gradients with a unit diagonal scaling.
        """
        sizes = [len(self.p[a]) for a in self.moving]
        ends = np.cumsum(sizes)
        span = {a: slice(end - size, end) for a, end, size in zip(self.moving, ends, sizes)}
        n, total = sum(sizes), self.total()
        if n == 0 or total == 0:
            return 0.0
        flows = [self.flows(a) for a in self.moving]
        gradient = np.concatenate([out - into for out, into in flows])
        diagonal = np.concatenate([out + into for out, into in flows])
        inner = np.zeros(n)  # the diagonal of a class linked to itself has no part in it
        for e, (to, of) in zip(self.scaled, self.ends):
            if to == of and to in span:
                inner[span[to]] += 2 * np.diag(e)
        size = np.sqrt(np.maximum(diagonal - inner, 1e-300))

        def piece(v: Array, a: int) -> Array | None:
            return v[span[a]] if a in span else None

        def product(v: Array) -> Array:
            v = v / size
            result = diagonal * v
            for e, (to, of) in zip(self.scaled, self.ends):
                v_to, v_of = piece(v, to), piece(v, of)
                r_to, r_of = piece(result, to), piece(result, of)
                if v_of is not None and r_to is not None:
                    r_to -= e @ v_of
                if v_to is not None and r_of is not None:
                    r_of -= v_to @ e
            return np.asarray(result / size)

        step = -conjugate_gradients(product, gradient / size, 4 * n + 50) / size
        decrement = -float(gradient @ step)
        if not decrement > 0:
            return 0.0
        step *= min(1.0, _LARGEST_STEP / float(np.max(np.abs(step))))
        slope, length, before = float(gradient @ step), 1.0, (self.p, self.shift + np.log(total))
        while length > 1e-8:
            self.p = [p.copy() for p in before[0]]
            for a in self.moving:
                self.p[a] += length * step[span[a]]
            self.refresh()
            now = self.total() * np.exp(self.shift - before[1])
            if now <= 1 + 1e-4 * length * slope / total + 1e-15:
                return decrement / total
            length /= 2
        self.p = before[0]
        self.refresh()
        return decrement / total
