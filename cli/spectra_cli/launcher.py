"""The processes that a launcher such as torchrun has started, as its environment variables describe them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from spectra.errors import ArgumentError, RanksError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether a launcher has started several processes of this command."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def is_first_process() -> bool:
    """Whether this process prints: it is alone, or the first of those that a launcher has started."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def shared_by_processes(device: str | None) -> Iterator[None]:
    """Within the block, the processes of the launcher share the analysis; without a launcher nothing changes.

    Args:
        device: of the computation, as of ``--device``; its type chooses the backend: NCCL for CUDA, else gloo.

    Raises:
        ArgumentError: a variable of the launcher is missing.
        RanksError: the other processes cannot be reached.
    """
    if not launched():
        yield
        return
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ArgumentError(
            f"{missing[0]} is not set, although WORLD_SIZE={os.environ['WORLD_SIZE']}: torchrun sets both; for one "
            "process unset WORLD_SIZE"
        )
    import torch

    from spectra.runtime.ranks import across_ranks

    on_gpus = (device or "").startswith("cuda") and torch.cuda.is_available()
    if on_gpus and device == "cuda":  # each process has a GPU of its own
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        torch.distributed.init_process_group("nccl" if on_gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RanksError(f"the processes of the launcher cannot be set up: {str(error).splitlines()[0]}") from error
    with across_ranks():
        yield
    torch.distributed.destroy_process_group()
