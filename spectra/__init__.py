"""spectra: Hessian spectra of neural networks, every number with its error.

Every public name is lazy (PEP 562): ``import spectra`` loads nothing, and reading a results file never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spectra.version import __version__

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from spectra.analysis.analyze import analyze, iter_analyze
    from spectra.analysis.tracker import Tracker
    from spectra.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from spectra.errors import SpectraError
    from spectra.exact.ggn_spectrum import exact_ggn_spectrum
    from spectra.exact.trace import exact_diagonal, exact_trace
    from spectra.frameworks.huggingface_callback import HuggingFaceCallback
    from spectra.frameworks.lightning_callback import LightningCallback
    from spectra.krylov.eigsh import eigsh
    from spectra.krylov.hutchpp import hutchpp
    from spectra.krylov.slq import slq
    from spectra.landscape.critical import critical_sharpness
    from spectra.landscape.directions import OtherWeights
    from spectra.landscape.slices import loss_slices
    from spectra.operators.algebra import deflated, scaled, shifted, summed
    from spectra.operators.dense import DenseOperator
    from spectra.operators.differences import DifferenceHessianOperator
    from spectra.operators.fisher import EmpiricalFisherOperator
    from spectra.operators.foreign import as_operator
    from spectra.operators.ggn import GGNOperator
    from spectra.operators.hessian import HessianOperator
    from spectra.operators.residual import ResidualOperator
    from spectra.results.record import Record
    from spectra.results.storage.runfile import load_trajectory
    from spectra.results.trajectory import Trajectory
    from spectra.runtime.ranks import across_ranks
    from spectra.sharpness.adaptive import adaptive_sharpness
    from spectra.sharpness.bn_sharpness import bn_sharpness
    from spectra.sharpness.bounds import pac_bayes_bounds
    from spectra.sharpness.delta_sharpness import delta_sharpness
    from spectra.sharpness.direct import normalized_sharpness_direct
    from spectra.sharpness.fisher_rao import fisher_rao_norm
    from spectra.sharpness.measures import (
        matrix_normalized_sharpness,
        minimum_sharpness,
        node_minimum_sharpness,
        normalized_sharpness,
    )
    from spectra.sharpness.noisy_error import noisy_error_bounds
    from spectra.sharpness.norms import gradient_norm, squared_norm
    from spectra.sharpness.penalised import penalised_sharpness
    from spectra.sharpness.training import BNSharpnessOptimizer
    from spectra.spectrum.density import Density
    from spectra.spectrum.eigenpairs import Eigenpairs
    from spectra.spectrum.estimates import Estimate
    from spectra.spectrum.exact_spectrum import GGNSpectrum
    from spectra.spectrum.pairing import Difference
    from spectra.spectrum.spectrum import Spectrum
    from spectra.spectrum.tridiagonal import Tridiagonal
    from spectra.spectrum.wasserstein import Distance, spectral_distance
    from spectra.task.task import Task

_HOME = {
    # what is analysed
    "Task": "spectra.task.task",
    "Checkpoint": "spectra.checkpoints.checkpoint",
    "load_checkpoint": "spectra.checkpoints.checkpoint",
    "save_checkpoint": "spectra.checkpoints.checkpoint",
    # operators
    "HessianOperator": "spectra.operators.hessian",
    "DifferenceHessianOperator": "spectra.operators.differences",
    "GGNOperator": "spectra.operators.ggn",
    "ResidualOperator": "spectra.operators.residual",
    "EmpiricalFisherOperator": "spectra.operators.fisher",
    "DenseOperator": "spectra.operators.dense",
    "as_operator": "spectra.operators.foreign",
    "shifted": "spectra.operators.algebra",
    "scaled": "spectra.operators.algebra",
    "summed": "spectra.operators.algebra",
    "deflated": "spectra.operators.algebra",
    # spectra and estimates
    "slq": "spectra.krylov.slq",
    "eigsh": "spectra.krylov.eigsh",
    "hutchpp": "spectra.krylov.hutchpp",
    "Tridiagonal": "spectra.spectrum.tridiagonal",
    "Spectrum": "spectra.spectrum.spectrum",
    "Estimate": "spectra.spectrum.estimates",
    "Eigenpairs": "spectra.spectrum.eigenpairs",
    "Density": "spectra.spectrum.density",
    "Difference": "spectra.spectrum.pairing",
    "Distance": "spectra.spectrum.wasserstein",
    "spectral_distance": "spectra.spectrum.wasserstein",
    # sharpness measures
    "bn_sharpness": "spectra.sharpness.bn_sharpness",
    "BNSharpnessOptimizer": "spectra.sharpness.training",
    "delta_sharpness": "spectra.sharpness.delta_sharpness",
    "adaptive_sharpness": "spectra.sharpness.adaptive",
    "fisher_rao_norm": "spectra.sharpness.fisher_rao",
    "squared_norm": "spectra.sharpness.norms",
    "gradient_norm": "spectra.sharpness.norms",
    # the loss along directions
    "loss_slices": "spectra.landscape.slices",
    "critical_sharpness": "spectra.landscape.critical",
    "OtherWeights": "spectra.landscape.directions",
    # whole analyses, and what they leave
    "analyze": "spectra.analysis.analyze",
    "iter_analyze": "spectra.analysis.analyze",
    "Tracker": "spectra.analysis.tracker",
    "across_ranks": "spectra.runtime.ranks",
    "LightningCallback": "spectra.frameworks.lightning_callback",
    "HuggingFaceCallback": "spectra.frameworks.huggingface_callback",
    "Record": "spectra.results.record",
    "Trajectory": "spectra.results.trajectory",
    "load_trajectory": "spectra.results.storage.runfile",
    # exact quantities
    "exact_trace": "spectra.exact.trace",
    "exact_diagonal": "spectra.exact.trace",
    "exact_ggn_spectrum": "spectra.exact.ggn_spectrum",
    "GGNSpectrum": "spectra.spectrum.exact_spectrum",
    # sharpness
    "minimum_sharpness": "spectra.sharpness.measures",
    "node_minimum_sharpness": "spectra.sharpness.measures",
    "normalized_sharpness": "spectra.sharpness.measures",
    "normalized_sharpness_direct": "spectra.sharpness.direct",
    "noisy_error_bounds": "spectra.sharpness.noisy_error",
    "pac_bayes_bounds": "spectra.sharpness.bounds",
    "penalised_sharpness": "spectra.sharpness.penalised",
    "matrix_normalized_sharpness": "spectra.sharpness.measures",
    # errors
    "SpectraError": "spectra.errors",
}

__all__ = [
    "BNSharpnessOptimizer",
    "Checkpoint",
    "DenseOperator",
    "Density",
    "Difference",
    "DifferenceHessianOperator",
    "Distance",
    "Eigenpairs",
    "EmpiricalFisherOperator",
    "Estimate",
    "GGNOperator",
    "GGNSpectrum",
    "HessianOperator",
    "HuggingFaceCallback",
    "LightningCallback",
    "OtherWeights",
    "Record",
    "ResidualOperator",
    "SpectraError",
    "Spectrum",
    "Task",
    "Tracker",
    "Trajectory",
    "Tridiagonal",
    "__version__",
    "across_ranks",
    "adaptive_sharpness",
    "analyze",
    "as_operator",
    "bn_sharpness",
    "critical_sharpness",
    "deflated",
    "delta_sharpness",
    "eigsh",
    "exact_diagonal",
    "exact_ggn_spectrum",
    "exact_trace",
    "fisher_rao_norm",
    "gradient_norm",
    "hutchpp",
    "iter_analyze",
    "load_checkpoint",
    "load_trajectory",
    "loss_slices",
    "matrix_normalized_sharpness",
    "minimum_sharpness",
    "node_minimum_sharpness",
    "noisy_error_bounds",
    "normalized_sharpness",
    "normalized_sharpness_direct",
    "pac_bayes_bounds",
    "penalised_sharpness",
    "save_checkpoint",
    "scaled",
    "shifted",
    "slq",
    "spectral_distance",
    "squared_norm",
    "summed",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'spectra' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__") and name.endswith("__"))})
