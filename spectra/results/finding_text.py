"""Exact traces, their comparisons with the estimates, and sharpness measures in a few words."""

from __future__ import annotations

import math
from collections import Counter

from spectra.results.exact_trace import ExactTrace
from spectra.results.headline import is_exact
from spectra.results.measure import Measure
from spectra.results.number_text import with_error
from spectra.results.record import Record
from spectra.results.trace_checks import INCONCLUSIVE, VERDICTS, can_tell, why_inconclusive


def kind_of(exact: ExactTrace | None) -> str:
    """How the traces that estimates are compared with were computed, in words."""
    return "Monte Carlo" if exact is not None and exact.drawn else "exact"


def checks_in_words(record: Record) -> str:
    """The number of comparisons with each result; where most detect little, the reason and what to do."""
    words = checks_in_short(record)
    if not can_tell(record.checks) and (why := why_inconclusive(record.checks)):
        words += f"; {why}: more probes (--probes) can tell"
    return words


def second_trace(record: Record) -> tuple[str, str] | None:
    """A trace computed without probes that is not the headline: its name, and its value with its error; or None.

    It is that of the Gauss-Newton matrix in a record of a Hessian with another trace, or a Monte-Carlo mean.
    """
    exact = record.exact
    if exact is None or exact.total is None or is_exact(record.headlines.get("trace")):
        return None
    own = record.operator == "ggn" or (record.operator == "hessian" and exact.applies)
    return f"{kind_of(exact)} trace{'' if own else ' of the ggn'}", with_error(exact.total, exact.stderr)


def checks_in_short(record: Record) -> str:
    """The number of comparisons with each result."""
    counts = Counter(check.verdict for check in record.checks)
    many = {verdict: verdict if verdict == INCONCLUSIVE else verdict.removesuffix("s") for verdict in VERDICTS}
    return ", ".join(f"{counts[verdict]} {many[verdict]}" for verdict in VERDICTS if counts[verdict]) or "-"


def measure_in_short(measure: Measure | None) -> str:
    """A measure with its error; `-` where there is none."""
    if measure is None or math.isnan(measure.value):
        return "-"
    return with_error(measure.value, measure.stderr)


def conditions(measure: Measure, bn_mode: str) -> list[str]:
    """Unusual circumstances: the batch-norm mode, the loss, an infimum not attained, entries clipped at 0."""
    return [
        words
        for words, holds in (
            (f"BN {measure.bn_mode}", measure.bn_mode != bn_mode),
            (f"{measure.loss} loss", measure.loss != "task"),
            ("not attained", measure.attained is False),
            (f"clipped {measure.clipped or 0:.2g}", bool(measure.clipped)),
        )
        if holds
    ]
