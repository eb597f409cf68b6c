"""slq: stochastic Lanczos quadrature, the estimate of a spectrum by Lanczos from random probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, NumericsError, OutOfMemory
from spectra.krylov.lanczos import Halfway, Recurrence, tridiagonalize
from spectra.krylov.probes import draw_probe
from spectra.operators.base import SymmetricOperator
from spectra.operators.foreign import as_operator
from spectra.operators.krylov_basis import Basis, slice_sizes
from spectra.runtime.exclusive import exclusively
from spectra.runtime.memory import available_bytes, in_words, larger_limit
from spectra.runtime.ranks import everywhere, ranks
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.probe_planning import Planner
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

# A loss of orthogonality may change the tridiagonal matrix by this share of the noise of the products, and by 1e-10.
_SHARE_OF_NOISE, _LARGEST_CHANGE = 1e-3, 1e-10
_LARGEST = 1e153  # a tenth of the number whose square is the largest float64: intervals reach beyond the values


def slq(
    operator: Any,
    lanczos_steps: int = 100,
    num_probes: int = 8,
    seed: int = 0,
    *,
    distribution: str = "sphere",
    width: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    eigenpairs: Eigenpairs | None = None,
    done: Sequence[Recurrence] = (),
    group_done: Callable[[Sequence[Recurrence]], None] | None = None,
    under_way: Sequence[Halfway] = (),
    step_done: Callable[[Callable[[], list[Halfway]]], None] | None = None,
    planner: Planner | None = None,
) -> Spectrum:
    """The spectrum of an operator by stochastic Lanczos quadrature.

    Each probe ``q_i`` gives a tridiagonal matrix whose eigenvalues ``theta_ik`` and squared first components
    ``tau_ik`` are a quadrature rule for ``q_i' f(H) q_i``, exact for polynomials up to degree ``2m - 1``; the mean over
    probes times ``n`` estimates ``Tr f(H)`` without bias.

    Args:
        operator: a symmetric operator of ``n`` rows, or a matrix or operator of another library that
            :func:`~spectra.operators.foreign.as_operator` makes one of.
        lanczos_steps: ``m``, at least 1; clipped to ``n``.
        num_probes: ``k``, at least 1. One probe gives numbers without errors.
        seed: of the probes.
        distribution: ``"sphere"`` or ``"rademacher"``.
        width: the number of probes that share each pass over the data (probes per pass); by default as many as have
            their bases fit in half of the free memory. It does not change the numbers.
        progress: called with the products done and the products at most.
        eigenpairs: from ``eigsh`` on the same operator, with vectors. The spectrum keeps them and the scalar products
            of the probes with them, for ``deflated_trace`` and ``deflated_frobenius_norm``. They must not be computed
            from these probes.
        done: finished recurrences of the same probes and operator, the first ones in order.
        group_done: called after each lockstep group with all finished recurrences; pass them as `done` to resume.
        under_way: the states of the group after `done`; ignored for a group of another width.
        step_done: called after each step of a group with a function that returns the states; pass them as `under_way`
            to resume.
        planner: ends the steps of a pilot of these probes where it has settled. The scalar products with the first
            Krylov basis are kept for as many probes as it plans, so that a later call can have the pilot as `done`.

    Returns:
        The spectrum, from which all estimates are derived.

    Raises:
        ArgumentError: an argument out of its range, or no symmetric operator.
        OutOfMemory: the basis of a single probe does not fit; the message says how many steps would.
        NumericsError: NaN or infinity in a product, or a norm whose square overflows float64.

    References:
        G. Golub, J. Welsch, Calculation of Gauss quadrature rules, Math. Comp. 23 (1969); S. Ubaru, J. Chen, Y. Saad,
        Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 38 (2017).

    Example:
        >>> import numpy as np
        >>> from spectra.operators.dense import DenseOperator
        >>> spectrum = slq(DenseOperator(np.diag([1.0, 2.0, 3.0])), num_probes=2)
        >>> round(spectrum.spectral_norm().value, 12)
        3.0
    """
    if lanczos_steps < 1:
        raise ArgumentError(f"lanczos_steps={lanczos_steps}: at least 1 is needed; 100 is the default")
    if num_probes < 1:
        raise ArgumentError(f"num_probes={num_probes}: at least 1 is needed; 8 is the default")
    if width is not None and width < 1:
        raise ArgumentError(f"width={width}: at least 1 is needed")
    if len(done) > num_probes:
        raise ArgumentError(f"done has {len(done)} probes: at most num_probes={num_probes} can be finished")
    operator = as_operator(operator)
    n, steps = operator.n, min(lanczos_steps, operator.n)
    if eigenpairs is not None and (eigenpairs.vectors is None or len(eigenpairs.vectors) != n):
        raise ArgumentError(f"eigenpairs without vectors of {n} numbers: eigsh on this operator gives them")
    noise = operator.noise
    tolerance, semiorthogonal = tolerances(noise)
    sharing = lockstep_width(operator, steps, num_probes) if width is None else min(width, num_probes)
    recurrences = list(done)
    overlaps = []
    if len(under_way) != min(sharing, num_probes - len(done)):
        under_way = ()
    products_done = sum(recurrence.tridiagonal.steps for recurrence in done)
    products_done += sum(len(halfway.alphas) for halfway in under_way)

    def tick(products: int) -> None:
        nonlocal products_done
        products_done += products
        if progress is not None:
            progress(products_done, num_probes * steps)

    drawn: dict[int, np.ndarray] = {}  # the probes of the present group

    def start_of(index: int) -> np.ndarray:
        if index in drawn:
            return drawn[index]
        return draw_probe(n, seed=seed, index=index, distribution=distribution)

    def overlaps_with(basis: Basis, steps: int, count: int) -> np.ndarray:
        return start_overlaps(basis, steps, operator, start_of, count)

    def settled(so_far: Sequence[Tridiagonal], basis: Basis) -> bool:
        assert planner is not None
        return planner.settled(so_far, lambda: overlaps_with(basis, so_far[0].steps, num_probes))

    with operator.prepared():
        for first in range(len(done), num_probes, sharing):
            drawn = {index: start_of(index) for index in range(first, min(first + sharing, num_probes))}
            starts = list(drawn.values())
            group = tridiagonalize(
                operator,
                starts,
                steps,
                tolerance=tolerance,
                tick=tick,
                keep_basis=first == 0,
                semiorthogonal=semiorthogonal,
                under_way=under_way if first == len(done) else (),
                step_done=step_done,
                stop_all=None if planner is None or len(starts) < num_probes else settled,
            )
            if first == 0:
                assert group[0].basis is not None
                so_far, count = [one.tridiagonal for one in group], num_probes
                if planner is not None:
                    count = planner.most_probes
                    if len(group) == num_probes:
                        known = overlaps_with(group[0].basis, so_far[0].steps, num_probes)
                        count = planner.plan(so_far, known).probes
                known = overlaps_with(group[0].basis, so_far[0].steps, count)
                group[0] = replace(group[0], start_overlaps=known)
            recurrences += [replace(recurrence, basis=None) for recurrence in group]
            if group_done is not None:
                group_done(recurrences)
        if eigenpairs is not None:
            overlaps = [_overlaps(operator, start_of(index), eigenpairs) for index in range(num_probes)]
    check_size([r.tridiagonal for r in recurrences], n)
    forms, deflated = np.stack([r.forms for r in recurrences]), None
    if eigenpairs is not None:
        deflated = _deflated_forms(operator, eigenpairs, forms, np.stack(overlaps))
    batch_forms = [r.batch_forms for r in recurrences if r.batch_forms is not None]
    return Spectrum(
        [r.tridiagonal for r in recurrences],
        n,
        noise=noise,
        seed=seed,
        distribution=distribution,
        tensor_sizes=operator.tensor_sizes,
        tensor_forms=forms,
        deflated_tensor_forms=deflated,
        eigenpairs=eigenpairs,
        overlaps=np.stack(overlaps).sum(axis=2) if overlaps else None,
        batch_forms=np.stack([b.forms for b in batch_forms]) if batch_forms else None,
        batch_weights=batch_forms[0].weights if batch_forms else None,
        semidefinite=operator.semidefinite,
        start_overlaps=None if (given := recurrences[0].start_overlaps) is None else given[:num_probes],
    )


def tolerances(noise: float) -> tuple[float, float]:
    """``tolerance`` and ``semiorthogonal`` of :func:`tridiagonalize` for products of this noise."""
    # A beta below the noise of the products is itself noise; continuing from it would add spurious Ritz values.
    return max(1e-10, 10 * noise), sqrt(min(_SHARE_OF_NOISE * noise, _LARGEST_CHANGE))


def check_size(tridiagonals: Sequence[Tridiagonal], n: int) -> None:
    """Refuse norms so large that the sum of squared eigenvalues, with its intervals, overflows float64."""
    norm = max(max(t.scale, float(t.betas.max())) for t in tridiagonals)
    if norm > _LARGEST / sqrt(n):
        raise NumericsError(
            f"the operator has a norm of {norm:.3g} or more, and float64 does not hold the squares of its eigenvalues: "
            "analyse it times a small number (spectra.scaled), or divide the loss by one"
        )


@exclusively
def start_overlaps(
    basis: Basis, steps: int, operator: SymmetricOperator, start_of: Callable[[int], np.ndarray], num_probes: int
) -> np.ndarray:
    """The scalar products of every probe (rounded to the operator's dtype) with the first Krylov basis, (k, m)."""
    rows = []
    for index in range(num_probes):
        start = torch.from_numpy(start_of(index)).to(operator.device, operator.torch_dtype).to(torch.float64)
        rows.append(basis.coefficients(start).cpu().numpy()[:steps])
    return np.stack(rows)


def _overlaps(operator: SymmetricOperator, start: np.ndarray, pairs: Eigenpairs) -> np.ndarray:
    """``y_j[t]'q[t]`` for every eigenvector and tensor, (r, t), with the probe in the operator's dtype."""
    probe = start.astype(operator.dtype).astype(np.float64)
    return np.stack([_by_tensor(operator, vector * probe) for vector in _unit_vectors(pairs)])


def _deflated_forms(
    operator: SymmetricOperator, pairs: Eigenpairs, forms: np.ndarray, overlaps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The forms ``q[t]'(B q)[t]`` of ``B = H - sum_j theta_j y_j y_j'``, (k, t), and the traces of ``H - B``, (t,).

    Args:
        operator: with the tensors.
        pairs: the eigenpairs.
        forms: (k, t), those of ``H``.
        overlaps: (k, r, t), by tensor.
    """
    subtracted = np.einsum("j,ij,ijt->it", pairs.values, overlaps.sum(axis=2), overlaps)
    squares = [_by_tensor(operator, vector**2) for vector in _unit_vectors(pairs)]
    return forms - subtracted, np.einsum("j,jt->t", pairs.values, np.stack(squares))


def _unit_vectors(pairs: Eigenpairs) -> Iterator[np.ndarray]:
    """The eigenvectors one by one, normalised in float64."""
    assert pairs.vectors is not None
    for column in pairs.vectors.T:
        vector = column.astype(np.float64)
        yield vector / np.linalg.norm(vector)


def _by_tensor(operator: SymmetricOperator, terms: np.ndarray) -> np.ndarray:
    """The sums over the entries of each parameter tensor, (t,)."""
    ends = np.cumsum(list(operator.tensor_sizes.values()))
    return np.array([float(piece.sum()) for piece in np.split(terms, ends[:-1])])


def lockstep_width(operator: SymmetricOperator, lanczos_steps: int, num_probes: int) -> int:
    """The number of probes that can share each pass (probes per pass) within half of the free memory.

    Raises:
        OutOfMemory: the basis of one probe does not fit in the free memory.
    """
    return min(everywhere(partial(_lockstep_width, operator, lanczos_steps, num_probes)))


def _lockstep_width(operator: SymmetricOperator, lanczos_steps: int, num_probes: int) -> int:
    """:func:`lockstep_width` for the memory of this process."""
    n = operator.n
    entry = operator.dtype.itemsize
    stored = max(slice_sizes(n, ranks())) * entry  # of each basis vector
    work = n * (3 * entry + 3 * 8)  # the probe's part of a product, its float64 sum, and the recurrence vector
    needed = lanczos_steps * stored + work
    free = available_bytes(operator.device)
    if needed > free:
        fits = max(0, int((free - work) // stored))
        advice = f"lanczos_steps={fits} would fit" if fits >= 2 else "not even 2 steps fit"
        raise OutOfMemory(
            f"the Lanczos basis of one probe needs {in_words(needed)} ({lanczos_steps} vectors of {n} numbers) and "
            f"{in_words(free)} are free: {advice}, or choose fewer parameters with params="
            f"{larger_limit(operator.device, 2 * needed)}"
        )
    return int(max(1, min(num_probes, (free // 2) // needed)))
