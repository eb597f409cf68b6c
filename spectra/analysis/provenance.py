"""Provenance of a record: machine, versions, command, self-test and time of the computation."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy
import torch

from spectra.operators.curvature import CurvatureOperator
from spectra.spectrum.spectrum import Spectrum
from spectra.version import __version__


def provenance_of(operator: CurvatureOperator, spectrum: Spectrum, seconds: float, unused: int = 0) -> dict[str, Any]:
    """How a spectrum was computed: device, products, seconds, the results of the self-test, and :func:`origin`.

    Args:
        operator: of the spectrum.
        spectrum: the result.
        seconds: that it took.
        unused: products that are not in the spectrum.
    """
    test = operator.self_test
    device = operator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "products": int(sum(t.steps for t in spectrum.tridiagonals))
        + unused
        + (0 if spectrum.eigenpairs is None else spectrum.eigenpairs.products),
        "seconds": seconds,
        "strategy": "reverse over reverse, one graph per batch and block",
        "noise": test.noise,
        "asymmetry": test.asymmetry,
        "repeatability": test.repeatability,
        "roundoff": test.roundoff,
        "self_test": test.on,
        "orthogonality": float(max(t.orthogonality for t in spectrum.tridiagonals)),
        "data_order": operator.task.survey().order,
    } | origin()


def origin() -> dict[str, Any]:
    """The date, the command and the versions. A failed record has these too."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command_line(),
        "spectra": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "h5py": h5py.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _command_line() -> str:
    """The command line, with the name of the program without its path, so that it runs on other machines."""
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name, *arguments])
