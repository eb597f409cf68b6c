"""Saves and restores the states of the global random generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from spectra.runtime.exclusive import one_at_a_time


def random_state() -> Callable[[], None]:
    """Save the states of Python's, NumPy's and torch's global generators.

    NumPy's legacy global generator is included because data augmentations often use it.

    Returns:
        A function that restores the states; it can be called repeatedly.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda_states = torch.cuda.get_rng_state_all() if on_cuda else []

    def put_back() -> None:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)

    return put_back


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the states of Python's, NumPy's and torch's global generators on exit, also after an exception.

    Reading a ``DataLoader`` draws from torch's generator even without shuffling, so every pass over the data needs
    this, not only random networks. The global lock is held, so no other thread of spectra draws at the same time.
    """
    with one_at_a_time:
        put_back = random_state()
        try:
            yield
        finally:
            put_back()


@contextmanager
def own_generators_kept(data: Any) -> Iterator[list[torch.Generator]]:
    """Restore the states of the generators owned by a loader and its samplers; yields these generators.

    A ``DataLoader`` with a generator draws from it at the start of every pass, whether it shuffles or not.
    """
    generators: dict[int, torch.Generator] = {}
    waiting, met = [data], {id(data)}
    while waiting:
        held = _held_by(waiting.pop())
        inner = [held[name] for name in ("data", "sampler", "batch_sampler") if name in held]
        waiting += [thing for thing in inner if id(thing) not in met]
        met |= set(map(id, inner))
        generator = held.get("generator")
        if isinstance(generator, torch.Generator):
            generators[id(generator)] = generator
    states = [(generator, generator.get_state()) for generator in generators.values()]
    try:
        yield list(generators.values())
    finally:
        for generator, state in states:
            generator.set_state(state)


def _held_by(thing: Any) -> dict[str, Any]:
    """The instance attributes of an object, read without calling any property."""
    return getattr(thing, "__dict__", {})
