"""LanczosOutput: the stored result of Lanczos for the probes of one operator, without estimates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isfinite
from typing import Self

import numpy as np

from spectra.errors import ArgumentError, NumericsError
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal


class LanczosOutput:
    """Tridiagonal matrices of ``k`` probes of a symmetric operator of ``n`` rows, with forms and overlaps."""

    def __init__(
        self,
        tridiagonals: Sequence[Tridiagonal],
        n: int,
        *,
        noise: float = 2.220446e-16,
        seed: int | None = None,
        distribution: str = "sphere",
        tensor_sizes: Mapping[str, int] | None = None,
        tensor_forms: np.ndarray | None = None,
        deflated_tensor_forms: tuple[np.ndarray, np.ndarray] | None = None,
        eigenpairs: Eigenpairs | None = None,
        overlaps: np.ndarray | None = None,
        batch_forms: np.ndarray | None = None,
        batch_weights: np.ndarray | None = None,
        semidefinite: bool = False,
        start_overlaps: np.ndarray | None = None,
        exact_trace: float | None = None,
    ) -> None:
        """Store what Lanczos returned, and check that the shapes fit.

        Args:
            tridiagonals: one per probe; they may differ in length.
            n: the number of rows (parameters).
            noise: ``eta``, the error of a product relative to ``|H|_2 |q|``; eigenvalues are known to ``eta |H|_2``.
            seed: of the probes.
            distribution: ``"sphere"`` or ``"rademacher"``; the probes are unit vectors of it.
            tensor_sizes: the parameter tensors' names and sizes, in order.
            tensor_forms: (k, t), ``q_i[t]' (H q_i)[t]`` of the first product; a row sums to ``alphas[0]`` of its probe.
            deflated_tensor_forms: (k, t), the same forms of the deflated matrix, and (t,), the trace of the part that
                deflation removes from each tensor's block.
            eigenpairs: of a search whose starts are independent of the probes, with or without their vectors.
            overlaps: (k, r), ``y_j'q_i`` of every probe with the vectors of the eigenpairs; given with them.
            batch_forms: (k, B), the per-batch quadratic forms (or those of groups of consecutive batches), which sum to
                ``q_i'H q_i`` without the l2 term.
            batch_weights: (B,), their weights in the mean over the data; given with them.
            semidefinite: whether the operator is positive semidefinite by its construction.
            start_overlaps: (k, m), the scalar products of every probe with the Krylov basis of the first one, by which
                simple eigenvalues are distinguished from multiple ones; see ``spectra.spectrum.converged``.
            exact_trace: ``Tr H`` if it is known exactly; a control variate for other sums over eigenvalues.

        Raises:
            ArgumentError: no probe, more steps than rows, or shapes that do not belong together.
            NumericsError: NaN or infinity among ``tensor_forms`` or ``overlaps``.
        """
        self.tridiagonals = tuple(tridiagonals)
        self.n = int(n)
        self.noise = float(noise)
        self.seed = seed
        self.distribution = distribution
        self.tensor_sizes = dict(tensor_sizes or {})
        self.tensor_forms = None if tensor_forms is None else np.array(tensor_forms, dtype=np.float64)
        self.deflated_tensor_forms = deflated_tensor_forms
        self.eigenpairs = eigenpairs
        self.overlaps = None if overlaps is None else np.array(overlaps, dtype=np.float64)
        self.batch_forms = None if batch_forms is None else np.array(batch_forms, dtype=np.float64)
        self.batch_weights = None if batch_weights is None else np.array(batch_weights, dtype=np.float64)
        self.semidefinite = bool(semidefinite)
        self.start_overlaps = None if start_overlaps is None else np.array(start_overlaps, dtype=np.float64)
        self.exact_trace = exact_trace
        self._check()

    def _check(self) -> None:
        if not self.tridiagonals:
            raise ArgumentError("num_probes=0: at least 1 is needed; 8 is the default")
        if self.n < self.lanczos_steps:
            raise ArgumentError(f"n={self.n}: {self.lanczos_steps} Lanczos steps need at least as many rows")
        if not (isfinite(self.noise) and self.noise >= 0):
            raise ArgumentError(f"noise={self.noise}: a finite number of at least 0 is needed")
        if self.distribution not in ("sphere", "rademacher"):
            raise ArgumentError(f"distribution={self.distribution!r}: 'sphere' (the default) or 'rademacher' is needed")
        if self.tensor_forms is not None:
            expected = (self.num_probes, len(self.tensor_sizes))
            if self.tensor_forms.shape != expected:
                raise ArgumentError(
                    f"tensor_forms has shape {self.tensor_forms.shape}: {expected} is needed (k, tensors)"
                )
            if not np.isfinite(self.tensor_forms).all():
                raise NumericsError("tensor_forms has NaN or infinite entries")
        if (self.eigenpairs is None) != (self.overlaps is None):
            raise ArgumentError("eigenpairs and overlaps belong together: give both, or none")
        if self.eigenpairs is not None and self.overlaps is not None:
            expected = (self.num_probes, self.eigenpairs.count)
            if self.overlaps.shape != expected:
                raise ArgumentError(f"overlaps has shape {self.overlaps.shape}: {expected} is needed (k, eigenpairs)")
            if not np.isfinite(self.overlaps).all():
                raise NumericsError("overlaps has NaN or infinite entries")
        if self.batch_forms is not None or self.batch_weights is not None:
            shapes = [None if a is None else a.shape for a in (self.batch_forms, self.batch_weights)]
            if shapes[0] is None or shapes[1] is None or shapes[0] != (self.num_probes, *shapes[1]):
                raise ArgumentError(
                    f"batch_forms and batch_weights have shapes {shapes[0]} and {shapes[1]}: (k, B) and (B,) are needed"
                )
        if self.start_overlaps is not None:
            expected = (self.num_probes, self.tridiagonals[0].steps)
            if self.start_overlaps.shape != expected:
                raise ArgumentError(
                    f"start_overlaps has shape {self.start_overlaps.shape}: {expected} is needed (k, m)"
                )
            if not np.isfinite(self.start_overlaps).all():
                raise NumericsError("start_overlaps has NaN or infinite entries")

    @cached_property
    def quadrature(self) -> Quadrature:
        """The quadrature rules of the probes, the input of every estimator."""
        return Quadrature(
            self.tridiagonals,
            self.n,
            self.noise,
            self.distribution,
            start_overlaps=self.start_overlaps,
            exact_trace=self.exact_trace,
            eigenpairs=self.eigenpairs,
            overlaps=self.overlaps,
        )

    def without_noise(self) -> Self:
        """A copy with ``noise=0``; without tensor forms, batch forms and eigenpairs.

        The difference between the widths of two intervals, with noise and without, is due to the noise of the products.
        """
        return type(self)(
            self.tridiagonals,
            self.n,
            noise=0.0,
            seed=self.seed,
            distribution=self.distribution,
            semidefinite=self.semidefinite,
            start_overlaps=self.start_overlaps,
            exact_trace=self.exact_trace,
        )

    def with_exact_trace(self, exact_trace: float) -> Self:
        """A copy with ``exact_trace``, the exact ``Tr H``, as a control variate for the other estimates."""
        other = copy.copy(self)
        other.__dict__ = {k: v for k, v in self.__dict__.items() if k != "quadrature"}
        other.exact_trace = float(exact_trace)
        return other

    @property
    def num_probes(self) -> int:
        """The number ``k`` of probes."""
        return len(self.tridiagonals)

    @property
    def lanczos_steps(self) -> int:
        """The number ``m`` of Lanczos steps: the largest of any probe."""
        return max(t.steps for t in self.tridiagonals)

    @cached_property
    def nodes(self) -> np.ndarray:
        """The Ritz values ``theta_ik``, ascending in each row; (k, m) float64, NaN beyond a probe's own steps."""
        return self._padded([t.nodes for t in self.tridiagonals])

    @cached_property
    def weights(self) -> np.ndarray:
        """``tau_ik``, the squared component of probe ``i`` along its Ritz vector ``k``; (k, m), a row sums to 1.

        Entries beyond a probe's own steps are NaN.
        """
        return self._padded([t.weights for t in self.tridiagonals])

    @cached_property
    def residuals(self) -> np.ndarray:
        """``|H y_k - theta_k y_k|``; (k, m), NaN beyond a probe's own steps.

        Some eigenvalue lies within this distance of ``theta_k``.
        """
        return self._padded([t.residuals for t in self.tridiagonals])

    def _padded(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        padded = np.full((self.num_probes, self.lanczos_steps), np.nan)
        for row, values in zip(padded, rows):
            row[: values.size] = values
        padded.flags.writeable = False
        return padded
