"""Restores the state of a training: random states, generators of the data, attributes and tensors of modules."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from spectra.errors import DataError
from spectra.runtime.rng_state import random_state_kept

#: Attributes of these types are internal to modules; `torch.func.functional_call` restores them.
_REGISTRIES = frozenset(nn.Module().__dict__) - {"training"}
_MOST = 1000  # the largest number of entries of a container that is searched for generators
_MOST_IN_ALL = 100_000
_LEAVES = (str, bytes, int, float, torch.Tensor, np.ndarray, nn.Module, ModuleType, type)


@contextmanager
def training_kept(modules: Iterable[Any], data: Iterable[Any], seed: int) -> Iterator[None]:
    """Restore the state of a training at the end of the block, also after an exception.

    Restored are the global random states of Python, NumPy and torch (CUDA included); the states of generators that
    the data, their samplers and their data sets hold; the plain attributes of modules that a forward pass may change,
    such as modes, counters and stored activations; the buffers; which parameters require a gradient, and which tensor
    is their gradient; and whether gradients are enabled. The operators do not change values of parameters or gradients.

    Within the block the generators start from ``seed``, so that the results do not depend on the progress of training.

    Args:
        modules: the model that is trained, and its criterion; other objects are ignored.
        data: the data sets, loaders or lists of batches that are read in the block.
        seed: at least 0.

    Raises:
        DataError: a loader has persistent workers: these hold random states of their own.
    """
    with ExitStack() as stack:
        stack.enter_context(random_state_kept())
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        for module in modules:
            if isinstance(module, nn.Module):
                stack.callback(_attributes(module))
                stack.callback(_tensors(module))
        for generator in _generators(data):
            stack.callback(_state(generator))
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the generator that other people's augmentations draw from)
        torch.manual_seed(seed)
        yield


def _state(generator: Any) -> Callable[[], object]:
    """A function that restores the present state of a generator."""
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return lambda: generator.set_state(state)
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        before = bits.state
        return lambda: setattr(bits, "state", before)
    if isinstance(generator, np.random.RandomState):
        legacy = generator.get_state()
        return lambda: generator.set_state(legacy)
    own = generator.getstate()
    return lambda: generator.setstate(own)


def _generators(data: Iterable[Any]) -> list[Any]:
    """The random generators in these objects and, recursively, in their attributes and entries; nothing is called.

    Raises:
        DataError: a loader has persistent workers.
    """
    found: list[Any] = []
    waiting, met = list(data), set[int]()
    while waiting and len(met) < _MOST_IN_ALL:
        thing = waiting.pop()
        if id(thing) in met or isinstance(thing, _LEAVES):
            continue
        met.add(id(thing))
        if isinstance(thing, torch.utils.data.DataLoader) and thing.num_workers and thing.persistent_workers:
            raise DataError(
                "the data are a DataLoader with persistent_workers=True, whose workers keep random states that cannot "
                "be put back: give the task a loader of its own without them"
            )
        if isinstance(thing, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            found.append(thing)
        elif isinstance(thing, dict):
            waiting += list(thing.values())[:_MOST]
        elif isinstance(thing, list | tuple):
            waiting += thing[:_MOST]
        else:
            waiting += getattr(thing, "__dict__", {}).values()
    return found


def _attributes(model: nn.Module) -> Callable[[], None]:
    """A function that restores the plain attributes of all modules: the same objects with their present contents."""
    modules = [(module, _plain(module)) for module in model.modules()]
    held = [(value, _copy(value)) for _, plain in modules for value in plain.values()]

    def put_back() -> None:
        for value, copied in held:
            if isinstance(value, torch.Tensor):
                if not _same_bits(value, copied):
                    with torch.no_grad():
                        value.detach().copy_(copied)
            elif isinstance(value, list):
                value[:] = copied
            elif isinstance(value, dict):
                value.clear()
                value.update(copied)
        for module, plain in modules:
            for name in _plain(module).keys() - plain.keys():
                del module.__dict__[name]
            module.__dict__.update(plain)

    return put_back


def _tensors(model: nn.Module) -> Callable[[], None]:
    """A function that restores buffers, and flags and gradients of parameters: the same tensors and contents."""
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def put_back() -> None:
        for parameter, required, gradient in parameters:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)
            if parameter.grad is not gradient:
                parameter.grad = gradient
        for module, name, buffer, copied in buffers:
            module._buffers[name] = buffer
            if not _same_bits(buffer, copied):
                with torch.no_grad():
                    buffer.detach().copy_(copied)

    return put_back


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _REGISTRIES}


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in (list, dict) else value


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_floating_point():
        return torch.allclose(a.detach(), b, rtol=0, atol=0, equal_nan=True)
    return torch.equal(a.detach(), b)
