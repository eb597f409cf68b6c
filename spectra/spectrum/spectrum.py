"""The spectrum of one operator: what Lanczos left, and every number that follows from it.

Nothing here needs the operator, the model or torch: all is recomputed from the tridiagonals, so that a stored spectrum
outlives every opinion about kernels, bandwidths and tolerances.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, NumericsError
from spectra.spectrum import cumulative as distribution
from spectra.spectrum import deflation, degeneracy, determinants, differences, estimates, extremes, outliers, ranks
from spectra.spectrum.consistency import reconciled
from spectra.spectrum.cumulative import Cumulative
from spectra.spectrum.degeneracy import Closest
from spectra.spectrum.density import Density, smooth
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.fractions import CountCurve
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal

#: Of the formulas behind :meth:`Spectrum.estimates`. Estimates that were stored by another edition are computed again.
ESTIMATES_EDITION = 2


class Spectrum:
    """What ``k`` probes saw of a symmetric operator of ``n`` rows.

    Args:
        tridiagonals: one per probe; they may differ in length.
        n: the number of rows (parameters).
        noise: ``eta``, the error of a product relative to ``|H|_2 |q|``; eigenvalues are known to ``eta |H|_2``.
        seed: of the probes.
        distribution: ``"sphere"`` or ``"rademacher"``; the probes are unit vectors of it.
        tensor_sizes: the parameter tensors' names and sizes, in order.
        tensor_forms: (k, t), ``q_i[t]' (H q_i)[t]`` of the first product; a row sums to ``alphas[0]`` of its probe.
        deflated_tensor_forms: (k, t), the same of the matrix without its eigenpairs, and (t,), the traces of what was
            taken out of each tensor's block.
        eigenpairs: of a search whose starts are independent of the probes, with or without their vectors.
        overlaps: (k, r), ``y_j'q_i`` of every probe with the vectors of the eigenpairs; given with them.
        batch_forms: (k, B), the parts of the batches (or of groups of consecutive ones) in ``q_i'H q_i``.
        batch_weights: (B,), their weights in the mean over the data; given with them.
        semidefinite: that the operator is positive semidefinite by its construction.
        start_overlaps: (k, m), the scalar products of every probe with the Krylov basis of the first one, by which
            simple eigenvalues are told from multiple ones; see ``spectra.spectrum.converged``.
        exact_trace: ``Tr H``, where it is known exactly; a control variate for the other sums over eigenvalues.

    Raises:
        ArgumentError: no probe, more steps than rows, or shapes that do not belong together.
        NumericsError: NaN or infinity among ``tensor_forms`` or ``overlaps``.

    Example:
        >>> s = Spectrum([Tridiagonal([2.0, 2.0], [1.0, 0.0], exhausted=True)] * 2, n=2)
        >>> s.trace().value, s.frobenius_norm().value ** 2, s.lambda_max().value
        (4.0, 10.000000000000002, 3.0)
    """

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
        """The rules of the probes, with what is known of single eigenvalues: what every estimate is made of."""
        return Quadrature(
            self.tridiagonals, self.n, self.noise, self.distribution, self.start_overlaps, self.exact_trace
        )

    def without_noise(self) -> Spectrum:
        """A spectrum from the same tridiagonal matrices with ``noise=0``.

        It drops the tensor forms, the batch forms and the eigenpairs, so only estimates from the Ritz values remain. An
        interval of the original that is wider owes the difference to the noise of the products.
        """
        return Spectrum(
            self.tridiagonals,
            self.n,
            noise=0.0,
            seed=self.seed,
            distribution=self.distribution,
            semidefinite=self.semidefinite,
            start_overlaps=self.start_overlaps,
            exact_trace=self.exact_trace,
        )

    def with_exact_trace(self, exact_trace: float) -> Spectrum:
        """The same spectrum with a trace that is known exactly, as a control variate for its other estimates."""
        other = copy.copy(self)
        other.__dict__ = {k: v for k, v in self.__dict__.items() if k not in ("quadrature", "_curve", "_negative")}
        other.exact_trace = float(exact_trace)
        return other

    def __repr__(self) -> str:
        return f"Spectrum(n={self.n}, num_probes={self.num_probes}, lanczos_steps={self.lanczos_steps})"

    # --- what Lanczos left ----------------------------------------------------------------------------------------

    @property
    def num_probes(self) -> int:
        """``k``."""
        return len(self.tridiagonals)

    @property
    def lanczos_steps(self) -> int:
        """``m``: the most steps that any probe took."""
        return max(t.steps for t in self.tridiagonals)

    @cached_property
    def nodes(self) -> np.ndarray:
        """The Ritz values ``theta_ik``, ascending in each row; (k, m) float64, NaN beyond a probe's own steps."""
        return self._padded([t.nodes for t in self.tridiagonals])

    @cached_property
    def weights(self) -> np.ndarray:
        """``tau_ik``, the part of probe ``i`` along its Ritz vector ``k``; (k, m), each row sums to 1, NaN as above."""
        return self._padded([t.weights for t in self.tridiagonals])

    @cached_property
    def residuals(self) -> np.ndarray:
        """``|H y_k - theta_k y_k|``; (k, m), NaN as above. Some eigenvalue lies within it of ``theta_k``."""
        return self._padded([t.residuals for t in self.tridiagonals])

    def _padded(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        padded = np.full((self.num_probes, self.lanczos_steps), np.nan)
        for row, values in zip(padded, rows):
            row[: values.size] = values
        padded.flags.writeable = False
        return padded

    # --- traces ---------------------------------------------------------------------------------------------------

    def trace(self) -> Estimate:
        """``Tr H`` over all ``n`` rows, without normalisation; see ``spectra.spectrum.estimates.trace``."""
        return estimates.trace(self.quadrature)

    def mean_eigenvalue(self) -> Estimate:
        """``(1/n) Tr H``."""
        return estimates.mean_eigenvalue(self.quadrature)

    def frobenius_norm(self) -> Estimate:
        """``|H|_F = sqrt(sum lambda^2)``, without normalisation; see ``spectra.spectrum.estimates.frobenius_norm``."""
        return estimates.frobenius_norm(self.quadrature)

    def moment(self, p: int) -> Estimate:
        """``(1/n) sum lambda^p``; the steps determine it for ``p <= 2m``, and beyond only where exhausted."""
        return estimates.moment(self.quadrature, p)

    def trace_function(self, f: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """``Tr f(H) = sum f(lambda)`` for a function of arrays; see ``spectra.spectrum.estimates.trace_function``."""
        return estimates.trace_function(self.quadrature, f)

    def tensor_traces(self) -> dict[str, Estimate]:
        """The trace of each parameter tensor's diagonal block; empty where the forms were not kept.

        Where eigenpairs are known, they are taken out of the variance.
        """
        if self.tensor_forms is None:
            return {}
        forms, known = self.deflated_tensor_forms or (self.tensor_forms, np.zeros(len(self.tensor_sizes)))
        return estimates.tensor_traces(forms, self.tensor_sizes, self.quadrature, known)

    def trace_of_tensors(self, names: Collection[str]) -> Estimate:
        """The trace of the diagonal blocks of these parameter tensors together.

        Raises:
            ArgumentError: the forms of the tensors were not kept.
        """
        if self.tensor_forms is None:
            raise ArgumentError("this spectrum has no forms of the tensors")
        forms, known = self.deflated_tensor_forms or (self.tensor_forms, np.zeros(len(self.tensor_sizes)))
        chosen = np.array([name in names for name in self.tensor_sizes])
        size = sum(size for name, size in self.tensor_sizes.items() if name in names)
        sums, taken_out = forms[:, chosen].sum(axis=1, keepdims=True), known[chosen].sum(keepdims=True)
        return estimates.tensor_traces(sums, {"": size}, self.quadrature, taken_out)[""]

    def deflated_trace(self) -> Estimate:
        """``Tr H`` with the eigenpairs taken out of the probes' variance; see ``spectra.spectrum.deflation``."""
        return deflation.trace(self.quadrature, *self._deflation())

    def deflated_frobenius_norm(self) -> Estimate:
        """``|H|_F`` with the eigenpairs taken out of the probes' variance; see ``spectra.spectrum.deflation``."""
        return deflation.frobenius_norm(self.quadrature, *self._deflation())

    def _deflation(self) -> tuple[Eigenpairs, np.ndarray]:
        if self.eigenpairs is None or self.overlaps is None:
            raise ArgumentError(
                "this spectrum has no eigenpairs: give those of spectra.eigsh to slq(..., eigenpairs=), "
                "or --eigenpairs K to spectra analyze"
            )
        return self.eigenpairs, self.overlaps

    # --- ends -----------------------------------------------------------------------------------------------------

    def lambda_max(self) -> Estimate:
        """The largest eigenvalue, with an interval and no standard error; see ``spectra.spectrum.extremes``."""
        return extremes.lambda_max(self.quadrature)

    def lambda_min(self) -> Estimate:
        """The smallest eigenvalue, with an interval and no standard error; see ``spectra.spectrum.extremes``."""
        return extremes.lambda_min(self.quadrature)

    def spectral_norm(self) -> Estimate:
        """``|H|_2 = max |lambda|``, with an interval and no standard error; see ``spectra.spectrum.extremes``."""
        return extremes.spectral_norm(self.quadrature)

    # --- degeneracy -----------------------------------------------------------------------------------------------

    def rank_degeneracy(self, tau: float | None = None) -> Estimate:
        """The fraction of eigenvalues in ``[-tau, tau]``, with its bracket, or that it is not resolved.

        Args:
            tau: in units of the eigenvalues; by default the smallest tolerance that the steps resolve.
        """
        curve = self._curve if tau is None else None
        return degeneracy.rank_degeneracy(self.quadrature, tau, curve)

    def degeneracy_curve(self, taus: np.ndarray | None = None) -> CountCurve:
        """The same for several tolerances, by default ``|H|_2 10^-1 .. 10^-7``, descending."""
        if taus is None:
            return self._curve
        return degeneracy.degeneracy_curve(self.quadrature, taus)

    @cached_property
    def _curve(self) -> CountCurve:
        return degeneracy.degeneracy_curve(self.quadrature)

    def closest(self, count: int = 1) -> Closest:
        """What the one or two Ritz values closest to 0 carry, for comparison with Granziol (2020)."""
        return degeneracy.closest(self.quadrature, count)

    def negative_mass(self, tau: float | None = None) -> Estimate:
        """The fraction of eigenvalues below ``-tau``, with its bracket, or that it is not resolved.

        Args:
            tau: in units of the eigenvalues; by default the smallest tolerance that the steps resolve. At 0 nothing is.
        """
        curve = self._negative if tau is None else None
        return distribution.negative_mass(self.quadrature, tau, curve)

    def negative_curve(self, taus: np.ndarray | None = None) -> CountCurve:
        """The same for several tolerances, by default ``|H|_2 10^-1 .. 10^-7``, descending."""
        if taus is None:
            return self._negative
        return distribution.negative_curve(self.quadrature, taus)

    @cached_property
    def _negative(self) -> CountCurve:
        return distribution.negative_curve(self.quadrature)

    # --- ranks ----------------------------------------------------------------------------------------------------

    def stable_rank(self) -> Estimate:
        """``|H|_F^2 / |H|_2^2``; see ``spectra.spectrum.ranks``."""
        return ranks.stable_rank(self.quadrature)

    def participation_rank(self) -> Estimate:
        """``(sum |lambda|)^2 / sum lambda^2``; see ``spectra.spectrum.ranks``."""
        return ranks.participation_rank(self.quadrature)

    def entropy_rank(self) -> Estimate:
        """``exp(-sum p log p)`` with ``p = |lambda| / sum |lambda|``; see ``spectra.spectrum.ranks``."""
        return ranks.entropy_rank(self.quadrature)

    def effective_dimension(self, g: float, *, semidefinite: bool | None = None) -> Estimate:
        """``sum lambda / (lambda + g)``, of positive semidefinite operators; see ``spectra.spectrum.determinants``."""
        return determinants.effective_dimension(self.quadrature, g, self._definite(semidefinite))

    def _definite(self, told: bool | None) -> bool:
        return self.semidefinite if told is None else told

    # --- determinants, and single eigenvalues ---------------------------------------------------------------------

    def log_determinant(self, g: float, *, semidefinite: bool | None = None) -> Estimate:
        """``log det(H + g I)``, from both sides; NaN with the reason where it does not exist.

        Args:
            g: above 0, in units of the eigenvalues.
            semidefinite: that the operator is positive semidefinite by its construction (Gauss-Newton, Fisher); by
                default what the spectrum knows of its operator.
        """
        return determinants.log_determinant(self.quadrature, g, self._definite(semidefinite))

    def evidence(self, g: float, *, semidefinite: bool | None = None) -> Estimate:
        """``sum log((lambda + g) / g)``, as ``log_determinant``; see ``spectra.spectrum.determinants``."""
        return determinants.evidence(self.quadrature, g, self._definite(semidefinite))

    def top_log_product(self, count: int) -> Estimate:
        """``sum log lambda_j`` over the ``count`` largest eigenvalues, from below; see ``spectrum.outliers``."""
        return outliers.top_log_product(self.quadrature, count)

    def outliers(self, edge: float, *, side: str = "above") -> Estimate:
        """A lower bound on the number of eigenvalues beyond ``edge``, ``"above"`` or ``"below"`` it."""
        return outliers.outliers(self.quadrature, edge, side)

    # --- distribution ---------------------------------------------------------------------------------------------

    def density(
        self,
        *,
        view: str = "linear",
        sigma: float | None = None,
        grid: np.ndarray | None = None,
        points: int | None = None,
        linear_threshold: float | None = None,
    ) -> Density:
        """The smoothed spectral density with a pointwise band over probes; see ``spectra.spectrum.density.smooth``.

        Args:
            view: ``"linear"``, or ``"asinh"`` for a logarithmic scale on both sides of 0.
            sigma: the width of the Gaussian, in units of the plotted coordinate.
            grid: (G,) eigenvalues at which to evaluate.
            points: of the default grid.
            linear_threshold: ``s`` of ``asinh(lambda / s)``; by default the tolerance that the steps resolve.
        """
        if view == "asinh" and linear_threshold is None:
            linear_threshold = self.linear_threshold()
        return smooth(
            self.quadrature, view=view, sigma=sigma, grid=grid, points=points, linear_threshold=linear_threshold
        )

    def linear_threshold(self, degeneracy: Estimate | None = None) -> float:
        """``s`` of an axis of ``asinh(lambda / s)``: the smallest tolerance that the steps resolve, if there is one.

        Args:
            degeneracy: ``rank_degeneracy()``, if it is known already.
        """
        scale = self.quadrature.scale
        if scale == 0:
            return 1.0
        found = self.rank_degeneracy() if degeneracy is None else degeneracy
        if found.resolved and found.tau:
            return found.tau
        return scale * max(1e-4, min(10 * self.noise, 0.1))

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """The fraction of eigenvalues at or below each ``x``: the Ritz mass, averaged over probes; same shape."""
        return distribution.cdf(self.quadrature, x)

    def cumulative(self, x: np.ndarray | float) -> Cumulative:
        """The same with rigorous bounds and the error of the probes; see ``spectra.spectrum.cumulative``."""
        return distribution.cumulative(self.quadrature, x)

    # --- beside another one ---------------------------------------------------------------------------------------

    def difference(self, other: Spectrum, name: str = "trace", **options: Any) -> differences.Difference:
        """An estimate of this spectrum less that of another one, paired where they share their probes.

        See ``spectra.spectrum.differences``.
        """
        return differences.difference(self, other, name, **options)

    def tensor_differences(self, other: Spectrum) -> dict[str, differences.Difference]:
        """The same of the trace of each parameter tensor's diagonal block."""
        return differences.tensor_differences(self, other)

    # --- all of it ------------------------------------------------------------------------------------------------

    def estimates(self) -> dict[str, Estimate]:
        """The standard list, by the names under which records keep them, none in contradiction to another."""
        one, two = self.closest(1), self.closest(2)
        found = {
            "trace": self.trace(),
            "mean_eigenvalue": self.mean_eigenvalue(),
            "second_moment": self.moment(2),
            "frobenius_norm": self.frobenius_norm(),
            "spectral_norm": self.spectral_norm(),
            "lambda_max": self.lambda_max(),
            "lambda_min": self.lambda_min(),
            "rank_degeneracy": self.rank_degeneracy(),
            "negative_mass": self.negative_mass(),
            "stable_rank": self.stable_rank(),
            "participation_rank": self.participation_rank(),
            "entropy_rank": self.entropy_rank(),
            "closest_one_mass": one.mass,
            "closest_one_value": one.value,
            "closest_two_mass": two.mass,
            "closest_two_value": two.value,
        }
        if self.eigenpairs is not None:
            found |= {
                "trace_deflated": self.deflated_trace(),
                "frobenius_norm_deflated": self.deflated_frobenius_norm(),
            }
        return reconciled(found, self.n, self.semidefinite)
