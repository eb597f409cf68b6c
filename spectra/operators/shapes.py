"""Checks the shapes of output and target, which torch may broadcast, and rejects calls that a loss must not make."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spectra.errors import TaskError
from spectra.task.averaging import describe, is_elementwise

_ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
NO_BACKWARD = (
    "the loss calls backward() itself, which adds to the gradients of the parameters: return the loss and do no more; "
    "a derivative within the loss is taken with torch.autograd.grad(..., create_graph=True)"
)


def check_shapes(criterion: Any, output: Any, target: Any) -> None:
    """Refuse an elementwise loss of ``torch.nn`` whose output and target broadcast to more elements than the target.

    Raises:
        TaskError: they broadcast, or the shapes do not fit; the message names both shapes.
    """
    if not (is_elementwise(criterion) and isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)):
        return
    joint = _joint_shape(output, target)
    if joint is None or joint.numel() != target.numel():
        raise TaskError(f"{describe(criterion)} is given {shapes_in_words(output, target)}")


def make_pairs(output: Any, target: Any) -> bool:
    """Whether two tensors broadcast to a shape that neither has, as ``(N, 1)`` and ``(N,)`` do to all pairs."""
    if not (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)):
        return False
    return _joint_shape(output, target) not in (None, output.shape, target.shape)


def _joint_shape(output: torch.Tensor, target: torch.Tensor) -> torch.Size | None:
    try:
        # NumPy's: that of torch imports a symbolic algebra system, which takes longer than all other checks.
        return torch.Size(np.broadcast_shapes(output.shape, target.shape))
    except ValueError:
        return None


def shapes_in_words(output: torch.Tensor, target: torch.Tensor) -> str:
    """The differing shapes of an output and a target in words, with the change that makes them equal."""
    words = f"an output of shape {tuple(output.shape)} and a target of shape {tuple(target.shape)}"
    if output.shape == (*target.shape, 1):
        return f"{words}: give both one shape, by target.unsqueeze(-1) in target= or output.squeeze(-1) in forward="
    if target.shape == (*output.shape, 1):
        return f"{words}: give both one shape, by target.squeeze(-1) in target= or output.unsqueeze(-1) in forward="
    return f"{words}: give both one shape, in forward= or target="


class WatchedCalls(TorchFunctionMode):
    """While active, ``backward()`` raises, and so does an elementwise loss whose arguments broadcast to all pairs.

    Afterwards ``differentiates`` says whether a derivative was taken, in reverse or forward mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.differentiates = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.backward:
            raise RuntimeError(NO_BACKWARD)
        if func is torch.autograd.grad or getattr(func, "__name__", "") == "_make_dual":
            self.differentiates = True
        if func in _ELEMENTWISE:
            output, target = [*args, *(kwargs[name] for name in ("input", "target") if name in kwargs)][:2]
            if make_pairs(output, target):
                raise ValueError(f"{func.__name__} is given {shapes_in_words(output, target)}")
        return func(*args, **kwargs)
