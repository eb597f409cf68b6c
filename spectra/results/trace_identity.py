"""TraceIdentity: whether the traces of ``H = G + R`` add up, probe by probe, in records of one checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spectra.results.record import Record

_PARTS = ("hessian", "ggn", "residual")
#: The allowance relative to the stated noise of the products, which was measured on a few vectors.
_MARGIN = 10


@dataclass(frozen=True)
class TraceIdentity:
    """``Tr H = Tr G + Tr R`` by the first products of the same probes, so that the scatter of the probes cancels."""

    label: str  # the checkpoint in a few words, and the batch-norm mode
    hessian: float  # the mean over the probes that the records share
    ggn: float
    residual: float
    discrepancy: float  # the largest |n q'(H - G - R)q| over the probes
    allowed: float  # by the noise of the three products
    probes: int

    @property
    def holds(self) -> bool:
        """Whether no probe is off by more than the arithmetic allows."""
        return self.discrepancy <= self.allowed


def trace_identities(records: Iterable[Record]) -> list[TraceIdentity]:
    """The identity for each checkpoint and batch-norm mode that has records of all three matrices by the same probes.

    Args:
        records: of one file or run; those of other operators, and failed ones, are not used.
    """
    groups: dict[tuple[object, ...], dict[str, Record]] = {}
    for record in records:
        if record.operator in _PARTS and (spectrum := record.spectrum) is not None and spectrum.seed is not None:
            alike = replace(record.identity, operator="")
            key = (alike, spectrum.n, spectrum.distribution, spectrum.seed, record.settings.get("data"))
            groups.setdefault(key, {})[record.operator] = record
    return [_identity_of(group) for group in groups.values() if len(group) == len(_PARTS)]


def _identity_of(group: Mapping[str, Record]) -> TraceIdentity:
    spectra = {name: spectrum for name, record in group.items() if (spectrum := record.spectrum) is not None}
    probes = min(spectrum.num_probes for spectrum in spectra.values())
    forms = {
        name: spectrum.n * np.array([t.alphas[0] for t in spectrum.tridiagonals[:probes]])
        for name, spectrum in spectra.items()
    }
    off = np.abs(forms["hessian"] - forms["ggn"] - forms["residual"])
    # As in the checks of traces: the error of a product has no preferred direction relative to its probe.
    noise = sum(sqrt(spectrum.n) * spectrum.noise * spectrum.quadrature.scale for spectrum in spectra.values())
    record = group["hessian"]
    means = {name: float(values.mean()) for name, values in forms.items()}
    label = f"{record.where} BN {record.bn_mode}".strip()
    return TraceIdentity(label, **means, discrepancy=float(off.max()), allowed=_MARGIN * noise, probes=probes)
