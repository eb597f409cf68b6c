"""The preconditioner of an analysis: that of the optimizer in the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spectra.checkpoints.checkpoint import Checkpoint
from spectra.checkpoints.preconditioners import preconditioner_of
from spectra.errors import ArgumentError, CheckpointError
from spectra.operators.curvature import CurvatureOperator

CHOICES = ("optimizer",)
NOTE = (
    "preconditioned: the spectrum is that of P^-1/2 H P^-1/2, with the denominators P of the optimizer; "
    "exact traces are not compared with them, and the facts and measures are those of the plain network"
)
_CONFLICTS = {
    "check": "the exact traces are those of the plain matrix",
    "exact_spectrum": "the exact eigenvalues are those of the plain matrix",
    "eigenpairs": "its eigenvectors are not directions in the parameters",
    "class_structure": "the class means are those of the plain matrix",
}


def check_precondition(settings: Any) -> None:
    """Check the setting `precondition`, and that no other one contradicts it.

    Raises:
        ArgumentError: it is unknown, or another setting needs the plain matrix.
    """
    if settings.precondition is None:
        return
    if settings.precondition not in CHOICES:
        raise ArgumentError(f"precondition={settings.precondition!r}: {CHOICES[0]!r} is needed")
    for name, why in _CONFLICTS.items():
        if getattr(settings, name):
            raise ArgumentError(f"precondition with {name}={getattr(settings, name)}: {why}; leave one of them out")


def preconditioner_for(how: str | None, checkpoint: Any, model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Name of a parameter -> diagonal of the preconditioner; None where none is asked for.

    Args:
        how: the setting `precondition`.
        checkpoint: a :class:`Checkpoint` that was loaded with its optimizer's state.
        model: with the weights of the checkpoint.

    Raises:
        ArgumentError: the weights are not from a checkpoint.
        CheckpointError: the checkpoint has no state of Adam or AdamW, or it does not fit the model.
    """
    if how is None:
        return None
    if not isinstance(checkpoint, Checkpoint):
        raise ArgumentError("precondition='optimizer': a checkpoint with the state of its optimizer is needed")
    try:
        return preconditioner_of(checkpoint.optimizer_state, model)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def identified(operator: CurvatureOperator) -> Mapping[str, str]:
    """The preconditioner of an operator in the key of an unfinished record; empty without one."""
    if operator.scale is None:
        return {}
    return {"preconditioner": hashlib.sha256(operator.scale.cpu().numpy().tobytes()).hexdigest()}
