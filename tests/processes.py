"""Runs a function in several processes of torch.distributed (gloo), and returns what each returned or raised."""

from __future__ import annotations

import datetime
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from spectra.runtime.ranks import across_ranks


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results of ``function(*arguments)`` in each process, within `across_ranks`; an exception is a result.

    A process that ended without a result has None.
    """
    with tempfile.TemporaryDirectory() as home:
        context = multiprocessing.get_context("spawn")
        begun = [context.Process(target=_work, args=(rank, count, home, function, arguments)) for rank in range(count)]
        for process in begun:
            process.start()
        for process in begun:
            process.join(240)
        assert not [process.kill() for process in begun if process.is_alive()], "a process waits for ever"
        files = [Path(home, f"{rank}.pickle") for rank in range(count)]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _work(rank: int, count: int, home: str, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{home}/meeting", rank=rank, world_size=count,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    try:
        with across_ranks():
            result = function(*arguments)
    except Exception as error:
        result = error
    Path(home, f"{rank}.pickle").write_bytes(pickle.dumps(result))
    os._exit(0)  # without waiting for processes that have ended
