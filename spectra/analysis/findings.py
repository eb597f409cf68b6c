"""Findings of a record in addition to its spectrum: checks against exact numbers, and sharpness measures."""

from __future__ import annotations

from dataclasses import dataclass

from spectra.analysis.settings import Settings
from spectra.analysis.validation import Verification, verify, verify_spectrum
from spectra.errors import RanksError, SpectraError
from spectra.exact.trace import exact_trace
from spectra.operators.curvature import CurvatureOperator
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure
from spectra.runtime.allowance import Allowance, limited
from spectra.runtime.faults import Faults
from spectra.runtime.memo import shared_results
from spectra.runtime.phases import part, phase
from spectra.runtime.ranks import first_alone
from spectra.sharpness.suite import bounds_of, measure_all, task_of
from spectra.spectrum.estimators import FROM_TRACE
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.spectrum.spectrum import Spectrum


@dataclass(frozen=True)
class Findings:
    """Checks, exact eigenvalues and sharpness measures of a record."""

    traces: Verification  # the traces compared with exact ones
    spectrum: Verification  # the spectrum compared with all eigenvalues
    eigenvalues: GGNSpectrum | None  # all eigenvalues; None where they are not requested or not defined
    sharpness: dict[str, Measure]

    @property
    def warnings(self) -> list[str]:
        """A line for every check that failed or could not be made."""
        return [*self.traces.warnings, *self.spectrum.warnings]


def find(
    operator: CurvatureOperator,
    spectrum: Spectrum,
    asked: Settings,
    faults: Faults,
    exact: ExactTrace | None = None,
    allowance: Allowance | None = None,
) -> Findings:
    """Check a spectrum against exact numbers, and measure the sharpness of its network.

    Args:
        operator: of the spectrum, on the training data.
        spectrum: of the operator.
        asked: the settings, with the checks and measures.
        faults: collects the unexpected errors; the check or measure that raised one is left out.
        exact: the exact trace, if it is computed already.
        allowance: the limit of cost; by default :func:`allowance_of` the record.
    """
    allowance = allowance or allowance_of(operator, asked, spectrum)
    traces, eigenvalues, compared = Verification(), None, Verification()
    with operator.prepared(), shared_results():
        task = task_of(operator)
        if asked.check is not False and asked.precondition is None:
            with faults.kept("the check of the traces"), limited(None if asked.check else allowance):
                traces = verify(operator, spectrum, task, exact)
        if asked.exact_spectrum:
            phase("exact spectrum")
            with faults.kept("the exact spectrum"):
                eigenvalues, compared = first_alone(
                    lambda: verify_spectrum(operator, spectrum, task, asked.exact_spectrum)
                )
        with limited(allowance):
            measures = first_alone(lambda: measure_all(task, asked.metrics or "none", operator.bn_mode, faults))
        if asked.bounds:
            with faults.kept("the bounds"), part("bounds", 0, 1):
                measures |= first_alone(lambda: bounds_of(task, operator.bn_mode))
        return Findings(traces, compared, eigenvalues, measures)


def exact_answer(operator: CurvatureOperator, asked: Settings) -> ExactTrace | None:
    """The exact trace of the operator, where `rtol` asks for a number that it determines; None where it does not exist.

    It may cost as much as the estimate by all probes that are allowed, unless the check is requested by name.

    Args:
        operator: on the training data.
        asked: the settings.
    """
    if asked.check is False or asked.precondition is not None or not any(name in FROM_TRACE for name, _ in asked.aims):
        return None
    if operator.kind not in ("hessian", "ggn"):
        return None
    try:
        with operator.prepared(), shared_results(), limited(None if asked.check else allowance_of(operator, asked)):
            exact = exact_trace(task_of(operator), operator.bn_mode, params=operator.params, dtype=operator.torch_dtype)
    except RanksError:
        raise
    except SpectraError:  # the check of the traces meets it again, and says so
        return None
    own = exact.total is not None and (operator.kind == "ggn" or exact.applies)
    return exact if own and not exact.drawn else None


def allowance_of(operator: CurvatureOperator, asked: Settings, spectrum: Spectrum | None = None) -> Allowance:
    """Limit the cost of checks and measures that are not requested by name to that of the spectrum.

    Args:
        operator: of the spectrum.
        asked: the settings.
        spectrum: the spectrum; None: it may have all probes and steps of the settings, and no eigenpairs.
    """
    products = asked.num_probes * min(asked.lanczos_steps, operator.n)
    if spectrum is not None and asked.rtol:
        products = sum(t.steps for t in spectrum.tridiagonals)
    if spectrum is not None and spectrum.eigenpairs is not None:  # after a restart a warm start may need more of them
        products += asked.eigenpairs if asked.warm_start else spectrum.eigenpairs.products
    return Allowance.of_products(
        products,
        parameters=operator.n,
        targets=operator.task.survey().total_weight,
        dtype=operator.dtype.name,
    )
