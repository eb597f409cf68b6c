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
    """Note the states of Python's, NumPy's and torch's global generators; what is returned puts them back, each time.

    NumPy's legacy global generator is the one that other people's augmentations draw from.
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
    """Restore the states of Python's, NumPy's and torch's global generators on leaving, also after an exception.

    Reading a ``DataLoader`` draws from torch's generator even when it does not shuffle, so this belongs around every
    pass over the data, not only around random networks. No other thread of spectra draws meanwhile.
    """
    with one_at_a_time:
        put_back = random_state()
        try:
            yield
        finally:
            put_back()


@contextmanager
def own_generators_kept(data: Any) -> Iterator[list[torch.Generator]]:
    """Put back the states of the generators that a loader and its samplers have of their own; they are what is given.

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
    """The attributes that an object holds itself; nothing is called to find them."""
    return getattr(thing, "__dict__", {})
