"""The class structure of a record of the Gauss-Newton matrix, where it is asked for."""

from __future__ import annotations

from spectra.errors import SpectraError
from spectra.exact.class_structure import class_structure
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.ggn import GGNOperator
from spectra.results.exact_trace import ExactTrace
from spectra.runtime.faults import refusal_in
from spectra.runtime.phases import phase
from spectra.spectrum.class_structure import ClassStructure
from spectra.spectrum.spectrum import Spectrum


def measure_class_structure(
    operator: CurvatureOperator, spectrum: Spectrum, exact: ExactTrace | None
) -> tuple[ClassStructure | None, list[str]]:
    """The class structure of the Gauss-Newton matrix, and a note where it is refused; nothing for other operators.

    Args:
        operator: on the training data.
        spectrum: of the operator; its trace is the total where the exact one is not known.
        exact: the exact trace, if it was computed.
    """
    if operator.kind != GGNOperator.kind or not isinstance(operator, GGNOperator):
        return None, []
    phase("class structure")
    trace = spectrum.trace()
    total, error = trace.value, trace.stderr
    if exact is not None and exact.total is not None and not exact.drawn:
        total, error = exact.total, 0.0
    try:
        with operator.prepared():
            found = class_structure(operator, total - operator.task.l2 * operator.n, error)
    except SpectraError as refusal:
        return None, [f"class structure: not computed: {refusal_in(refusal)}"]
    return found, []
