"""Records with every kind of finding, of numbers that are the same on every computer. No torch.

As a program, writes `data/findings.h5`. It was run once, when each finding was written by a function of its own. The
file is kept as it is: it shows that the layout has stayed the same.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from run_files import SETTINGS, make_record

from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure
from spectra.results.record import Record
from spectra.results.storage.runfile import RunFile
from spectra.results.trace_checks import Check
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.spectrum.overlap import Overlap
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

HERE = Path(__file__).parent / "data"

FULL_ESTIMATES = {
    "trace": Estimate(12.5, 0.25, 12.0, 13.0, num_probes=2),
    "rank": Estimate(3, 1, 2, 4, 2, 0.9, tau=1e-3, resolved=True, note="zwei: ü\nand a line"),
    "degeneracy": Estimate(1.0, None, 0.0, math.inf, 1, tau=0.5, resolved=False),
    "nothing": Estimate(math.nan, math.nan, None, None, 0, note="not computed"),
}
FULL_EXACT = ExactTrace(
    total=6.0,
    by_layer={"conv.weight": 4, "fc.ü": 2.5},
    kind="ggn",
    reasons=("a tanh", "zwei: ü"),
    certified={"conv.weight": True},
    stderr=0.125,
    stderr_by_layer={"fc.ü": 0.25, "conv.weight": 0.5},
    draws=7,
    method="7 draws",
    bn_mode="train",
    l2=0.5,
)
FULL_GGN = GGNSpectrum(
    eigenvalues=np.array([4.0, 1.0, 0.5]),
    n=6,
    num_samples=3,
    rank_bound=5,
    l2=0,
    noise=1e-15,
    data="sha256:0123",
    settings={"b": {"a": None, "c": 0.1}, "samples": [1, 2]},
)
FULL_CHECKS = (
    Check("trace", 1.5, 2, 0.25, -2.0, 7, 1.0, "agrees"),
    Check("trace of fc.ü", math.nan, math.inf, 0.0, math.nan, 0, math.nan, "inconclusive", "ggn"),
)
FULL_SHARPNESS = {
    "plain": Measure(value=6, form="bias-free"),
    "drawn": Measure(
        value=1.5,
        form="infimum",
        stderr=0.5,
        loss="normalized",
        bn_mode="train",
        curvature="ggn",
        attained=True,
        certificate=1e-9,
        clipped=0.125,
        reason="a warning: ü",
        details={"layers": {"a": [0.5, None], "b": 1}},
    ),
    "not attained": Measure(value=math.inf, form="infimum", attained=False, clipped=0.0),
    "none": Measure(value=math.nan, form="", reason="costs too much"),
}
FULL_PAIRS = Eigenpairs(
    np.array([3.0, -1.0]),
    np.array([0.125, 0.25]),
    np.array([True, False]),
    np.eye(6, 2),
    noise=1e-7,
    scale=3.0,
    tolerance=1e-3,
    products=9,
    seed=2**63 + 1,
    complete=True,
    completeness="by a start of its own",
    rest=np.array([0.5, 0.25, 0.0]),
)


def _spectrum(**parts: object) -> Spectrum:
    probes = [Tridiagonal([1.0, 2.0, 3.0], [0.5, 0.25, 0.125]), Tridiagonal([2.0, 1.0], [0.5, 0.0], exhausted=True)]
    sizes = {"conv.weight": 4, "fc.ü": 2}
    return Spectrum(probes, 6, noise=1e-7, tensor_sizes=sizes, **parts)


def records() -> list[Record]:
    """One with everything, one with what may be missing left out, and one without any finding."""
    overlaps = np.array([[0.5, 0.25], [0.125, 0.75]])
    half, rows = np.full((2, 2), 0.5), np.ones((2, 2))
    full = _spectrum(
        seed=3,
        tensor_forms=half,
        deflated_tensor_forms=(half, np.array([2.0, 1.0])),
        batch_forms=rows,
        batch_weights=np.array([0.75, 0.25]),
        semidefinite=True,
        eigenpairs=FULL_PAIRS,
        overlaps=overlaps,
        start_overlaps=np.full((2, 3), 0.25),
    )
    bare_pairs = Eigenpairs(np.array([3.0, 1.0]), np.zeros(2), np.array([True, True]))
    return [
        make_record(
            0,
            spectrum=full,
            test_spectrum=_spectrum(semidefinite=True),
            exact=FULL_EXACT,
            remainder=FULL_ESTIMATES["rank"],
            exact_spectrum=FULL_GGN,
            checks=FULL_CHECKS,
            overlap=Overlap("epoch ü", np.array([[0.5, 0.25, 1.0]])),
            sharpness=FULL_SHARPNESS,
            cached_estimates=FULL_ESTIMATES,
            cached_test_estimates={"trace": FULL_ESTIMATES["trace"]},
        ),
        make_record(
            1,
            spectrum=_spectrum(eigenpairs=bare_pairs, overlaps=overlaps),
            exact=ExactTrace(total=None),
            exact_spectrum=dataclasses.replace(FULL_GGN, data=None, settings={}, eigenvalues=np.zeros(0)),
            overlap=Overlap("epoch 0", reason="no vectors were kept: ü"),
            cached_estimates={},
        ),
        make_record(2, spectrum=_spectrum(), cached_estimates={"nothing": FULL_ESTIMATES["nothing"]}),
    ]


def write(path: Path) -> None:
    with RunFile.open(path, SETTINGS) as run:
        for record in records():
            run.append(record)


if __name__ == "__main__":
    write(HERE / "findings.h5")
