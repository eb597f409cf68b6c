"""no_larger_than: a limit on the network that a configuration declares, kept while it is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module as hooks

from spectra.errors import TaskError
from spectra.runtime.exclusive import one_at_a_time

# Heads and tied or constant tensors may be missing in a file. A small network may have a long table of positions.
_TIMES, _ALWAYS = 4, 2**26


class TooLarge(TaskError):
    """A network of many more numbers than its weights have."""


@contextmanager
def no_larger_than(stored: int) -> Iterator[None]:
    """While active, building a network of many more numbers than ``stored`` raises TooLarge, as soon as it has them.

    Without allocating anything, if it is built on the meta device.
    """
    limit, count = _TIMES * stored + _ALWAYS, 0

    def counted(module: Any, name: str, tensor: Any) -> None:
        nonlocal count
        count += tensor.numel() if isinstance(tensor, torch.Tensor) else 0
        if count > limit:
            raise TooLarge(f"it declares a network of more than {limit:,} numbers, and the weights have {stored:,}")

    with one_at_a_time:
        handles = (
            hooks.register_module_parameter_registration_hook(counted),
            hooks.register_module_buffer_registration_hook(counted),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
