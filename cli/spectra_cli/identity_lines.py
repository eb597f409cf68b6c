"""Lines on the traces of ``H = G + R``, where a file has records of the three matrices."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from spectra.results.record import Record
from spectra.results.trace_identity import TraceIdentity, trace_identities
from spectra_cli.layout import print_line
from spectra_cli.numbers import plain


def print_identities(records: Iterable[Record], console: Console) -> None:
    """Whether the traces of the Hessian, the Gauss-Newton matrix and the residual add up, for the same probes.

    One checkpoint has its numbers; several are counted. An identity that fails is always printed.

    Args:
        records: of a file; without the three matrices nothing is printed.
        console: where to.
    """
    found = trace_identities(records)
    if not found:
        return
    wrong = [one for one in found if not one.holds]
    shown = found if len(found) == 1 else wrong
    for one in shown:
        print_line(console, f"{'' if one.holds else '! '}{in_words(one)}")
    if len(found) > 1:
        worst = max(found, key=lambda one: one.discrepancy)
        right = len(found) - len(wrong)
        print_line(
            console,
            f"Tr H = Tr G + Tr R holds probe by probe in {right} of {len(found)} cases; the largest difference is "
            f"{plain(worst.discrepancy, 2)} ({worst.label})",
        )


def in_words(one: TraceIdentity) -> str:
    """The three traces, and the largest difference of a probe with what the arithmetic allows."""
    sign = "=" if one.holds else "is not"
    probes = f"{one.probes} shared probe{'' if one.probes == 1 else 's'}"
    where = f", {one.label}" if one.label else ""
    return (
        f"Tr H {sign} Tr G + Tr R by {probes}{where}: {plain(one.hessian, 6)} {sign} {plain(one.ggn, 6)} + "
        f"{plain(one.residual, 6)}, to {plain(one.discrepancy, 2)} (rounding allows {plain(one.allowed, 2)})"
    )
