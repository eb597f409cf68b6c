"""The global random states, left as they were found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
    pass over the data, not only around random networks.
    """
    put_back = random_state()
    try:
        yield
    finally:
        put_back()
