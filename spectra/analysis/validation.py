"""Checks of a spectrum by Lanczos against exact traces and eigenvalues, on the same data and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from spectra.errors import SpectraError
from spectra.exact.ggn_spectrum import exact_ggn_spectrum
from spectra.exact.trace import exact_trace
from spectra.krylov.slq import slq
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.ggn import GGNOperator
from spectra.results.exact_trace import ExactTrace
from spectra.results.spectrum_checks import check_spectrum
from spectra.results.trace_checks import FRESH_PROBES, Check, check_traces, confirmed
from spectra.runtime.allowance import PRODUCT, OverBudget, affordable, cost, in_words, spend
from spectra.runtime.faults import refusal_in
from spectra.spectrum.estimates import Estimate, mean_estimate
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.spectrum.spectrum import Spectrum
from spectra.task.task import Task

#: The seed of the fresh probes that confirm a disagreement: a number that no user is likely to choose.
_FRESH = 7_340_033_507
#: The seed of the random subset for an exact spectrum of large data.
_SUBSET = 0


@dataclass(frozen=True)
class Verification:
    """Exact traces, their comparisons with the run, and ``Tr H - Tr G`` where they are not the Hessian's."""

    exact: ExactTrace | None = None  # None: not defined for this operator
    checks: tuple[Check, ...] = ()
    remainder: Estimate | None = None
    failure: str | None = None  # why a comparison could not be made, where one should exist

    @property
    def warnings(self) -> list[str]:
        """A line for every check that failed, and one if the checks could not be made."""
        failed = [check for check in self.checks if check.failed]
        lines = [f"CHECK FAILED: {check}; do not use the numbers of this record" for check in failed]
        return lines if self.failure is None else [*lines, self.failure]


def verify_spectrum(
    operator: CurvatureOperator, spectrum: Spectrum, task: Task, samples: int
) -> tuple[GGNSpectrum | None, Verification]:
    """All eigenvalues of the Gauss-Newton matrix on at most ``samples`` samples, and a check of Lanczos against them.

    If the data have at most that many samples, the run itself is compared. Otherwise a run of as many steps and probes
    on a fixed random subset is compared. A disagreement is confirmed by fresh probes before it is reported.

    Args:
        operator: of a run of the Gauss-Newton matrix.
        spectrum: of the run.
        task: the operator's task at the operator's parameters.
        samples: the largest number of samples.

    Returns:
        The eigenvalues, None where there are none, and the checks with their warnings.

    Raises:
        Exception: an error that is not a SpectraError, such as one in the user's model.
    """
    if operator.kind != "ggn" or operator.bn_mode == "train":
        return None, Verification()
    few = task.survey().num_samples
    whole = few is not None and few <= samples
    try:
        chosen = task if whole else task.subset(samples, _SUBSET)
        exact = exact_ggn_spectrum(chosen, operator.bn_mode, params=operator.params)
        exact = replace(exact, settings={} if whole else {"samples": samples, "data_seed": _SUBSET})
        if spectrum.num_probes < 2 or spectrum.distribution != "sphere":
            return exact, Verification()
        if not whole:
            operator = GGNOperator(chosen, operator.bn_mode, dtype=operator.torch_dtype, params=operator.params)
            spectrum = slq(operator, spectrum.lanczos_steps, spectrum.num_probes, spectrum.seed or 0)
        checks = check_spectrum(spectrum, exact)
        if any(check.failed for check in checks):
            fresh = slq(operator, spectrum.lanczos_steps, max(FRESH_PROBES, spectrum.num_probes), _FRESH)
            checks = confirmed(checks, check_spectrum(fresh, exact))
        return exact, Verification(checks=tuple(checks))
    except SpectraError as error:
        return None, Verification(failure=f"the spectrum could not be computed exactly: {refusal_in(error)}")


def verify(
    operator: CurvatureOperator, spectrum: Spectrum, task: Task | None = None, exact: ExactTrace | None = None
) -> Verification:
    """Compare the traces of a run with the exact ones.

    The exact traces are those of the Gauss-Newton matrix. A run of that matrix is compared in all its tensors. A run of
    the Hessian is compared in the tensors whose block passed the certificate; where some did not, the first products
    of the Gauss-Newton matrix with the same probes are made, compared in all tensors, and give the remainder
    ``Tr H - Tr G = n mean_i q_i'(H - G) q_i`` with the standard error of the paired samples. A run of the residual
    ``H - G`` is compared with zero in the tensors whose block passed the certificate. A disagreement is
    confirmed by fresh probes, ``results.trace_checks.FRESH_PROBES`` or as many as the run's, before it is reported.
    Where a part of this does not exist or is refused, the numbers of the run are kept, and ``failure`` says why; any
    other error is raised. Within a block that limits the cost (``runtime.allowance``) a part that exceeds the limit is
    left out, with the reason.

    Args:
        operator: the run's.
        spectrum: of the run.
        task: the operator's task at the operator's parameters, where training has gone on since; by default its own.
        exact: the exact trace, if it is computed already.
    """
    if operator.kind not in ("hessian", "ggn", "residual"):
        return Verification()
    try:
        return _verify(operator, spectrum, task or operator.task, exact)
    except OverBudget as error:
        why = f"left out: {error}; --check (check=True in Python) computes it"
        return Verification(
            ExactTrace(total=None, reasons=(why,), bn_mode=operator.bn_mode, l2=operator.task.l2, method="none")
        )
    except SpectraError as error:
        return Verification(failure=f"the traces of this record could not be checked: {refusal_in(error)}")


def _verify(
    operator: CurvatureOperator, spectrum: Spectrum, task: Task, exact: ExactTrace | None = None
) -> Verification:
    # A product with each probe is needed where the exact trace is not the Hessian's.
    paired_cost = cost(PRODUCT * spectrum.num_probes, operator.torch_dtype) if operator.kind == "hessian" else 0.0
    kept_for_pairs = affordable(1.0) >= paired_cost
    if kept_for_pairs:
        spend(paired_cost)
    exact = exact or exact_trace(task, operator.bn_mode, params=operator.params, dtype=operator.torch_dtype)
    if exact.total is None:
        return Verification(exact)
    scale = spectrum.quadrature.scale
    if operator.kind == "ggn":
        return Verification(exact, _compared(operator, spectrum, exact, exact.by_layer, scale))
    mine = {name: value for name, value in exact.by_layer.items() if exact.certified.get(name)}
    if operator.kind == "residual":  # its trace is zero where that of the Gauss-Newton matrix is the Hessian's
        zero = replace(exact, stderr_by_layer=None, draws=None)
        return Verification(exact, _compared(operator, spectrum, zero, dict.fromkeys(mine, 0.0), scale))
    checks = _compared(operator, spectrum, exact, mine, scale)
    if exact.applies:
        if kept_for_pairs:
            spend(-paired_cost)
        return Verification(exact, checks)
    if not kept_for_pairs:
        why = f"a product with each probe costs about {in_words(paired_cost)} gradients, more than the budget"
        return Verification(exact, checks, failure=f"the Gauss-Newton matrix was not compared: {why}")
    ggn = GGNOperator(operator.task, operator.bn_mode, dtype=operator.torch_dtype, params=operator.params)
    ggn.function.adopt(operator.function)
    paired = _first_products(ggn, spectrum.num_probes, spectrum, spectrum.seed)
    samples = spectrum.n * np.array(
        [h.alphas[0] - g.alphas[0] for h, g in zip(spectrum.tridiagonals, paired.tridiagonals)]
    )
    noise = sqrt(spectrum.n) * (spectrum.noise + paired.noise) * scale
    return Verification(
        exact,
        (*checks, *_compared(ggn, paired, exact, exact.by_layer, scale)),
        mean_estimate(samples, arithmetic=noise),
    )


def _compared(
    operator: CurvatureOperator, spectrum: Spectrum, exact: ExactTrace, traces: Mapping[str, float], scale: float
) -> tuple[Check, ...]:
    def compare(by_these: Spectrum) -> list[Check]:
        errors, draws = exact.stderr_by_layer, exact.draws
        return check_traces(by_these, traces, exact_errors=errors, exact_draws=draws, of=operator.kind, scale=scale)

    checks = compare(spectrum)
    if any(check.failed for check in checks):
        more = max(FRESH_PROBES, spectrum.num_probes)
        # A disagreement is confirmed whatever the cost, which is subtracted from the allowance of later computations.
        spend(min(affordable(1.0), cost(PRODUCT * more, operator.torch_dtype)))
        checks = confirmed(checks, compare(_first_products(operator, more, spectrum, _FRESH)))
    return tuple(checks)


def _first_products(operator: CurvatureOperator, num_probes: int, like: Spectrum, seed: int | None) -> Spectrum:
    """Lanczos of one step: one product with each probe of this seed."""
    return slq(operator, 1, num_probes, seed or 0, distribution=like.distribution)
