"""Spectrum: all estimates of one operator, as methods, from its tridiagonal matrices.

Nothing here needs the operator, the model or torch. Every number is computed from the tridiagonal matrices, so that a
stored spectrum can be evaluated again with other kernels, bandwidths and tolerances.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from spectra.errors import ArgumentError
from spectra.html_table import lines, table
from spectra.spectrum import cumulative as distribution
from spectra.spectrum import deflation, degeneracy, determinants, differences, extremes, outliers, ranks, traces
from spectra.spectrum.consistency import reconciled
from spectra.spectrum.cumulative import Cumulative
from spectra.spectrum.degeneracy import Closest
from spectra.spectrum.density import Density, smooth
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.estimators import estimate_all
from spectra.spectrum.fractions import CountCurve
from spectra.spectrum.lanczos_output import LanczosOutput
from spectra.spectrum.pairing import Difference

#: The edition of the formulas of :meth:`Spectrum.estimates`. Stored estimates of another edition are computed again.
ESTIMATES_EDITION = 2


class Spectrum(LanczosOutput):
    """The spectrum of a symmetric operator of ``n`` rows, estimated with ``k`` probes: every estimate is a method.

    Example:
        >>> from spectra.spectrum.tridiagonal import Tridiagonal
        >>> s = Spectrum([Tridiagonal([2.0, 2.0], [1.0, 0.0], exhausted=True)] * 2, n=2)
        >>> s.trace().value, s.frobenius_norm().value ** 2, s.lambda_max().value
        (4.0, 10.000000000000002, 3.0)
    """

    def __repr__(self) -> str:
        return f"Spectrum(n={self.n}, num_probes={self.num_probes}, lanczos_steps={self.lanczos_steps})"

    def _repr_html_(self) -> str:
        """The standard estimates in words, for notebooks."""
        rows = [(name, str(estimate), estimate.note or "") for name, estimate in self.estimates().items()]
        return lines(repr(self)) + table(("quantity", "value", ""), rows, left=(0, 2))

    # --- traces ---------------------------------------------------------------------------------------------------

    def trace(self) -> Estimate:
        """``Tr H`` over all ``n`` rows, without normalisation; see ``spectra.spectrum.traces.trace``."""
        return traces.trace(self.quadrature)

    def mean_eigenvalue(self) -> Estimate:
        """``(1/n) Tr H``."""
        return traces.mean_eigenvalue(self.quadrature)

    def frobenius_norm(self) -> Estimate:
        """``|H|_F = sqrt(sum lambda^2)``, without normalisation; see ``spectra.spectrum.traces.frobenius_norm``."""
        return traces.frobenius_norm(self.quadrature)

    def moment(self, p: int) -> Estimate:
        """``(1/n) sum lambda^p``; the steps determine it for ``p <= 2m``, and beyond only where exhausted."""
        return traces.moment(self.quadrature, p)

    def trace_function(self, f: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """``Tr f(H) = sum f(lambda)`` for a function of arrays; see ``spectra.spectrum.traces.trace_function``."""
        return traces.trace_function(self.quadrature, f)

    def tensor_traces(self) -> dict[str, Estimate]:
        """The trace of each parameter tensor's diagonal block; empty where the forms were not kept.

        Where eigenpairs are known, they are taken out of the variance.
        """
        if self.tensor_forms is None:
            return {}
        forms, known = self.deflated_tensor_forms or (self.tensor_forms, np.zeros(len(self.tensor_sizes)))
        return traces.tensor_traces(forms, self.tensor_sizes, self.quadrature, known)

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
        return traces.tensor_traces(sums, {"": size}, self.quadrature, taken_out)[""]

    def deflated_trace(self) -> Estimate:
        """``Tr H`` with the eigenpairs taken out of the probes' variance; see ``spectra.spectrum.deflation``."""
        return deflation.trace(self.quadrature)

    def deflated_frobenius_norm(self) -> Estimate:
        """``|H|_F`` with the eigenpairs taken out of the probes' variance; see ``spectra.spectrum.deflation``."""
        return deflation.frobenius_norm(self.quadrature)

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
        return degeneracy.rank_degeneracy(self.quadrature, tau)

    def degeneracy_curve(self, taus: np.ndarray | None = None) -> CountCurve:
        """The same for several tolerances, by default ``|H|_2 10^-1 .. 10^-7``, descending."""
        return degeneracy.degeneracy_curve(self.quadrature, taus)

    def closest(self, count: int = 1) -> Closest:
        """Mass and mean of the one or two Ritz values closest to 0, for comparison with Granziol (2020)."""
        return degeneracy.closest(self.quadrature, count)

    def negative_mass(self, tau: float | None = None) -> Estimate:
        """The fraction of eigenvalues below ``-tau``, with its bracket, or that it is not resolved.

        Args:
            tau: in units of the eigenvalues; by default the smallest tolerance that the steps resolve. At 0 nothing is.
        """
        return distribution.negative_mass(self.quadrature, tau)

    def negative_curve(self, taus: np.ndarray | None = None) -> CountCurve:
        """The same for several tolerances, by default ``|H|_2 10^-1 .. 10^-7``, descending."""
        return distribution.negative_curve(self.quadrature, taus)

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
        """``sum lambda / (lambda + g)`` of a positive semidefinite operator; see ``spectra.spectrum.determinants``."""
        return determinants.effective_dimension(self.quadrature, g, self._definite(semidefinite))

    def _definite(self, given: bool | None) -> bool:
        return self.semidefinite if given is None else given

    # --- determinants, and single eigenvalues ---------------------------------------------------------------------

    def log_determinant(self, g: float, *, semidefinite: bool | None = None) -> Estimate:
        """``log det(H + g I)``, from both sides; NaN with the reason where it does not exist.

        Args:
            g: above 0, in units of the eigenvalues.
            semidefinite: whether the operator is positive semidefinite by its construction (Gauss-Newton, Fisher); by
                default `semidefinite` of the spectrum.
        """
        return determinants.log_determinant(self.quadrature, g, self._definite(semidefinite))

    def evidence(self, g: float, *, semidefinite: bool | None = None) -> Estimate:
        """``sum log((lambda + g) / g)``, as ``log_determinant``; see ``spectra.spectrum.determinants``."""
        return determinants.evidence(self.quadrature, g, self._definite(semidefinite))

    def top_log_product(self, count: int) -> Estimate:
        """A lower bound of ``sum log lambda_j`` over the ``count`` largest eigenvalues; see ``spectrum.outliers``."""
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
        """The cumulative distribution with rigorous bounds and the error of the probes.

        See ``spectra.spectrum.cumulative``.
        """
        return distribution.cumulative(self.quadrature, x)

    # --- differences from another spectrum --------------------------------------------------------------------------

    def difference(self, other: Spectrum, name: str = "trace", **options: Any) -> Difference:
        """An estimate of this spectrum less that of another one, paired where they share their probes.

        See ``spectra.spectrum.differences``.
        """
        return differences.difference(self, other, name, **options)

    def tensor_differences(self, other: Spectrum) -> dict[str, Difference]:
        """The difference of the trace of each parameter tensor's diagonal block."""
        return differences.tensor_differences(self, other)

    # --- all of it ------------------------------------------------------------------------------------------------

    def estimates(self) -> dict[str, Estimate]:
        """Name -> estimate: the standard estimates, reconciled (see ``spectra.spectrum.consistency``)."""
        return reconciled(estimate_all(self.quadrature), self.n, self.semidefinite)
