"""KeptProducts: the linearised batches of an operator, kept between products as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.task.batches import tensors_of

# One vector to its product, both as tensors shaped like the parameters; None stands for zeros. With the numbers of some
# parameters as a second argument, both are of these alone: the product with a diagonal block.
Product = Callable[..., Sequence[torch.Tensor | None]]

MARGIN = 1.2  # work memory of a product, relative to what its graph keeps


class KeptProducts:
    """Products with single batches, each with the autograd graph of its gradient.

    A product from a kept graph needs no forward pass and no gradient: it takes about half of the time. It runs the same
    kernels on the same numbers, so that its result is bit for bit that of a new graph. Whether a batch is kept depends
    on memory alone.

    A graph is measured once, on the first batch: the bytes of the tensors that it keeps alive, which grow with the
    number of entries of the batch.
    """

    def __init__(self) -> None:
        self._products: dict[int, Product] = {}
        self._bytes_per_entry: float | None = None
        self._left: float | None = None  # bytes; None while nothing is to be kept
        self._seen: set[int] = set()  # the batches of products since `start`
        self._bytes = 0.0  # of the graphs that are kept

    @property
    def open(self) -> bool:
        """Whether products are being kept."""
        return self._left is not None

    @property
    def summary(self) -> dict[str, int]:
        """Since `start`: the number of batches that products were computed for, how many are kept, and their bytes."""
        return {"batches": len(self._seen), "kept": len(self._products), "kept_bytes": round(self._bytes)}

    def start(self, budget: int) -> None:
        """Keep products from now on, in at most ``budget`` bytes."""
        self._left, self._seen, self._bytes = float(budget), set(), 0.0

    def stop(self) -> None:
        """Free all that is kept."""
        self._products, self._left = {}, None

    def product(self, index: int, batch: Any, linearise: Callable[[Any], Product]) -> Product:
        """The product with batch number ``index``: the kept one, or a new one, which is kept if it fits."""
        if self._left is None:
            return linearise(batch)
        self._seen.add(index)
        if (kept := self._products.get(index)) is not None:
            return kept
        entries = sum(tensor.numel() for tensor in tensors_of(batch))
        if self._bytes_per_entry is None:
            self._bytes_per_entry = _graph_bytes(lambda: linearise(batch)) / max(1, entries)
        size = self._bytes_per_entry * entries
        product = linearise(batch)
        if self._left is not None and MARGIN * size <= self._left:  # another thread may have ended the keeping
            self._left -= MARGIN * size
            self._bytes += size
            self._products[index] = product
        return product


def _graph_bytes(make: Callable[[], Product]) -> int:
    """The bytes of the tensors that are alive because of a product, without those from before it was made.

    The product is discarded: a few layers are computed by other kernels while calls are watched.
    """
    with _Watched() as watched:
        made = make()
    held: int = watched.bytes_alive()
    del made
    return held


class _Watched(TorchDispatchMode):
    """While active, the memory of every tensor that an operation returns is remembered, weakly."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: dict[int, tuple[Any, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to exclude the calls from compilation, torch would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in returned if isinstance(returned, (list, tuple)) else (returned,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference: Any = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._seen[reference.cdata] = (reference, storage.nbytes())
        return returned

    def bytes_alive(self) -> int:
        return sum(size for reference, size in self._seen.values() if not reference.expired())
