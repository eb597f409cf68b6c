"""Reads what users pass to a task: the model, the data, the parts of a batch, and the tensor of an output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from spectra.errors import DataError, TaskError


def input_of(batch: Any) -> Any:
    """``x`` of a pair ``(x, y)``; a batch of one tensor, or a list with one, is the input itself.

    Raises:
        DataError: any other batch.
    """
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, (list, tuple)) and len(batch) in (1, 2):
        return batch[0]
    raise DataError(_not_a_pair(batch))


def target_in(batch: Any) -> Any:
    """``y`` of a pair ``(x, y)``.

    Raises:
        DataError: the batch is no pair.
    """
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return batch[1]
    raise DataError(_not_a_pair(batch))


def _not_a_pair(batch: Any) -> str:
    sized = isinstance(batch, (list, tuple, Mapping))
    kind = f"a {type(batch).__name__}" + (f" of {len(batch)}" if sized else "")
    both = "forward=lambda model, batch: ... and target=lambda batch: ..."
    if isinstance(batch, torch.Tensor) or (isinstance(batch, (list, tuple)) and len(batch) == 1):
        same = "batch" if isinstance(batch, torch.Tensor) else "batch[0]"
        return (
            f"a batch is {kind}, not a pair (x, y), so it has no target: for a model that reconstructs its input pass "
            f"target=lambda batch: {same}; for another one {both}"
        )
    return f"a batch is {kind}, not a pair (x, y): pass {both}"


def tensor_of(output: Any) -> torch.Tensor:
    """The tensor of a model's output that a criterion of ``torch.nn`` receives.

    It is the output itself; its ``logits``; the only tensor of a mapping or dataclass; or the first entry of a tuple or
    list.

    Raises:
        TaskError: there is no such tensor, or more than one; the message names them.
    """
    if isinstance(output, torch.Tensor):
        return output
    fields = fields_of(output)
    logits = fields.get("logits", getattr(output, "logits", None))
    if isinstance(logits, torch.Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    tensors = [value for value in fields.values() if isinstance(value, torch.Tensor)]
    if len(tensors) == 1 and not isinstance(output, (tuple, list)):
        return tensors[0]
    raise TaskError(
        f"the model returns {described(output)}, and the criterion takes one tensor: choose it with "
        "forward=lambda model, batch: ..., a function that returns it"
    )


def fields_of(output: Any) -> dict[str, Any]:
    """The named entries of an output: those of a mapping, a dataclass or a named tuple."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name, None) for field in dataclasses.fields(output)}
    return dict(output._asdict()) if hasattr(output, "_asdict") else {}


def described(output: Any) -> str:
    """An output in words: its class and the names or the number of its entries."""
    kind = f"a {type(output).__name__}"
    if fields := fields_of(output):
        return f"{kind} with the entries {', '.join(fields)}"
    if isinstance(output, (tuple, list)):
        return f"{kind} of {len(output)} ({', '.join(type(entry).__name__ for entry in output)})"
    return kind


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers such as ``torch.compile`` and ``DataParallel``, which have no second derivative."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_data(name: str, data: Any) -> None:
    """Refuse data that are not a re-iterable of batches.

    Raises:
        DataError: ``data`` can be read only once, cannot be iterated over, or is a single batch.
    """
    if isinstance(data, Iterator):
        raise DataError(f"{name} is a {type(data).__name__}, which can be read only once: pass a list or a DataLoader")
    if not isinstance(data, Iterable):
        raise DataError(f"{name} is a {type(data).__name__}: an iterable of batches is needed")
    if isinstance(data, tuple) and data and isinstance(data[0], torch.Tensor):
        raise DataError(f"{name} is one batch: an iterable of batches is needed, so wrap it in a list: [(x, y)]")


def scalar(loss: Any) -> torch.Tensor:
    """A loss as a tensor of no dimensions; refused if it is not one number."""
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shape = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        raise TaskError(f"the loss of a batch is {shape}: a tensor of one number is needed")
    return loss.reshape(())
