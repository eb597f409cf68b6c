"""Reads the autograd graph of a tensor: its nodes, its leaves, and the lowest precision used in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def nodes_of(tensors: Iterable[torch.Tensor], before: Iterable[torch.Tensor] = ()) -> Iterator[Any]:
    """Every node of the graphs of these tensors, once, without nodes reachable only through the tensors ``before``."""
    visited = {tensor.grad_fn for tensor in before}
    todo = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None and tensor.grad_fn not in visited]
    visited |= set(todo)
    while todo:
        node = todo.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                todo.append(following)


def carried_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The least precise dtype between the leaves and a tensor: the precision of the tensor's values.

    A float64 tensor that was cast to float32 and back has float32 precision only.

    Example:
        >>> x = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> carried_dtype(x.square().sum()), carried_dtype(x.float().double().sum())
        (torch.float64, torch.float32)
    """
    dtypes = {tensor.dtype}
    for node in nodes_of([tensor]):
        for following, output in node.next_functions:
            # The metadata that autograd keeps of each output of a forward call; unused outputs have no dtype.
            about = getattr(following, "_input_metadata", ())
            if output < len(about) and about[output] is not None:
                dtypes.add(about[output].dtype)
    return max((dtype for dtype in dtypes if dtype.is_floating_point), key=lambda dtype: torch.finfo(dtype).eps)


def leaves_of(tensor: torch.Tensor, before: Iterable[torch.Tensor] = ()) -> list[torch.Tensor]:
    """The leaves that a tensor depends on, without those reached only through the tensors ``before``."""
    return [node.variable for node in nodes_of([tensor], before) if hasattr(node, "variable")]


def custom_functions(tensor: torch.Tensor) -> list[type[torch.autograd.Function]]:
    """The user's own autograd functions (in Python) in the graph of a tensor."""
    found = (getattr(type(node), "_forward_cls", None) for node in nodes_of([tensor]))
    own = {cls for cls in found if cls is not None and cls.__module__.split(".")[0] not in ("torch", "spectra")}
    return sorted(own, key=lambda cls: cls.__name__)


def least_precise(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """The least precise of the dtypes of :func:`carried_dtype`."""
    return max(map(carried_dtype, tensors), key=lambda dtype: torch.finfo(dtype).eps)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
