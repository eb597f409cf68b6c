"""Loads weights into a model: all of them, or those that the checkpoint has, while the model keeps the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from spectra.checkpoints.fitting import Fit, fit
from spectra.checkpoints.shards import index_of
from spectra.checkpoints.sidecars import compare_adapter
from spectra.errors import CheckpointError, NumericsError


class Weights(Protocol):
    """The members of a :class:`spectra.Checkpoint` that fitting uses."""

    @property
    def path(self) -> Path: ...

    @property
    def state_dict(self) -> dict[str, torch.Tensor]: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def others(self) -> tuple[str, ...]: ...

    @property
    def adapter_config(self) -> dict[str, Any] | None: ...


class Recipient:
    """Loads checkpoints one after another into a model, each as if it were the first.

    For weights that a checkpoint lacks, the model has its original values, not those of the previous checkpoint.

    Args:
        partial: checkpoints may lack any keys.
    """

    def __init__(self, partial: bool = False) -> None:
        self.partial = partial
        self._model: nn.Module | None = None
        self._own: dict[str, Any] = {}  # original values of the model that a checkpoint has replaced
        self._lost: set[str] = set()  # keys replaced without a copy of the original

    def load(self, checkpoint: Weights, model: nn.Module) -> Fit:
        """Copy the weights of a checkpoint into the model, or raise and leave the model as it was.

        Raises:
            CheckpointError, NumericsError: as :meth:`Checkpoint.load_into`; or the checkpoint lacks what one before it
                replaced, of which no copy was kept.
        """
        if model is not self._model:
            self._model, self._own, self._lost = model, {}, set()
        fit = fitted(checkpoint, model, self.partial)
        if gone := [key for key in fit.own if key in self._lost]:
            raise CheckpointError(
                f"{checkpoint.path}: lacks {gone[0]}, and a checkpoint before it has replaced what the task had there "
                f"({len(gone)} such keys): analyse it apart, or with --partial"
            )
        fit.state_dict.update({key: self._own[key] for key in fit.own if key in self._own})
        check_finite(fit.state_dict, checkpoint.path)
        self._keep(fit, model)
        put(fit, checkpoint.path, model)
        return fit

    def _keep(self, fit: Fit, model: nn.Module) -> None:
        """Copy the values about to be replaced, if a later checkpoint may lack them."""
        replaced = fit.state_dict.keys() - set(fit.own) - self._own.keys() - self._lost
        if self.partial or fit.own:
            own = model.state_dict()
            self._own |= {
                key: own[key].detach().cpu().clone() for key in replaced if isinstance(own[key], torch.Tensor)
            }
        else:
            self._lost |= replaced


def fitted(checkpoint: Weights, model: nn.Module, partial: bool) -> Fit:
    """How a checkpoint fits a model.

    Raises:
        CheckpointError: it does not.
    """
    config = checkpoint.adapter_config
    try:
        match = fit(checkpoint.state_dict, model, partial=partial, of_peft=config is not None)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    mismatch = match.mismatch
    index = index_of(checkpoint.files[0]) if len(checkpoint.files) == 1 else None
    if index is not None and (mismatch or match.own):
        mismatch = f"it is one shard of several, and {index.name}, which lists them, is not there"
    if not mismatch and config is not None:
        mismatch = compare_adapter(config, model.modules(), match.adapter)
    if not mismatch:
        return match
    hint = ""
    if checkpoint.others:
        hint = f"; the file also holds weights under {', '.join(map(repr, checkpoint.others))}"
    elif config is not None and match.adapter is None:
        hint = "; it is an adapter of peft: the task makes the model with that adapter in it"
    in_one_line = " ".join(f"{mismatch}{hint}".split())  # keys may hold anything
    raise CheckpointError(f"{checkpoint.path}: does not fit the model: {in_one_line}")


def put(fit: Fit, path: Path, model: nn.Module) -> None:
    """Copy matched weights into a model.

    Raises:
        CheckpointError: the model's own ``load_state_dict`` refuses them.
    """
    if fit.convert_to is not None:
        model.to(fit.convert_to)
    try:
        model.load_state_dict(fit.state_dict, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not fit the model: {first}") from error


def check_finite(state_dict: Mapping[str, torch.Tensor], path: Path | str | None = None) -> None:
    """Raise if any weight is NaN or infinite.

    Raises:
        NumericsError: with the names of the first such tensors, and how many there are.
    """
    bad = [name for name, tensor in state_dict.items() if not all_finite(tensor)]
    if bad:
        where = f"{path}: " if path is not None else ""
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise NumericsError(f"{where}NaN or infinite weights in {len(bad)} of {len(state_dict)} tensors: {names}")


def all_finite(tensor: Any) -> bool:
    """Whether every number is finite; True for tensors without floating-point numbers."""
    if not isinstance(tensor, torch.Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # torch.isfinite knows no 8-bit floats
    return bool(torch.isfinite(wide).all())
