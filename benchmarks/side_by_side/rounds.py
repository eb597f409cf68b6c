"""Rounds of measurements: a process per contender and task, which take turns (A B C A B C ...)."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from side_by_side.contenders import CONTENDERS
from side_by_side.networks import NETWORKS
from side_by_side.truth import truth_of

# A fork has torch loaded already: hundreds of processes start in the time of a few.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
_SHORTEST = 0.1  # seconds; gradients and products that take less are repeated within a turn


@dataclass(frozen=True)
class Case:
    """One task on one network."""

    network: str
    batches: int
    task: str  # "product", "slq", "lambda_max", "trace" or "diagonal"
    kind: str = "hessian"


def vector_of(n: int) -> torch.Tensor:
    """The vector that every product is taken with."""
    return torch.randn(n, generator=torch.Generator().manual_seed(3))


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, CPU seconds and seconds by the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def gradient_call(model: nn.Module, data: list) -> Callable[[], Any]:
    """One gradient over the data, in plain torch: the unit."""
    criterion, parameters = nn.CrossEntropyLoss(), list(model.parameters())
    return lambda: [torch.autograd.grad(criterion(model(x), y), parameters) for x, y in data]


def calls_for(seconds: float) -> int:
    """How often to repeat what takes so long, to measure it within a turn."""
    return max(1, round(_SHORTEST / max(seconds, 1e-6)))


def peak_bytes() -> int:
    """The greatest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def worker(pipe: Connection, name: str, case: Case, weights: Path) -> None:
    """Measure one turn for each message, until the pipe says None; a failure is a turn too."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    network = NETWORKS[case.network]
    model, data = network.model(weights), network.data(case.batches)
    base = psutil.Process().memory_info().rss
    gradient = gradient_call(model, data)
    gradients = calls_for(timed(gradient)[1])
    call: Callable[[], Any] | None = None
    calls, set_up = 1, 0.0
    while pipe.recv() is not None:
        unit = timed(lambda: [gradient() for _ in range(gradients)])[1] / gradients
        try:
            if call is None:
                contender = CONTENDERS[name](model, nn.CrossEntropyLoss(), data)
                if case.task == "product":
                    product, set_up, _ = timed(lambda: contender.product(case.kind))  # noqa: B023
                    vector = vector_of(sum(p.numel() for p in model.parameters()))
                    calls = calls_for(timed(lambda: product(vector))[1])  # noqa: B023
                    call = lambda: product(vector)  # noqa: B023, E731
                else:
                    arguments = {"slq": (network.steps,), "diagonal": (case.kind,)}.get(case.task, ())
                    call = lambda: getattr(contender, case.task)(*arguments)  # noqa: B023, E731
            turns = [timed(call) for _ in range(calls)]
        except Exception as error:
            pipe.send({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
            return
        result = turns[-1][0]
        pipe.send(
            {
                "result": np.asarray(result.detach() if isinstance(result, torch.Tensor) else result),
                "cpu": sum(turn[1] for turn in turns) / calls,
                "wall": sum(turn[2] for turn in turns) / calls,
                "gradient": unit,
                "set_up": set_up,
                "peak": peak_bytes() - base,
            }
        )


@contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A process with a pipe to it, ended at the end of the block."""
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(there, *arguments))
    process.start()
    there.close()
    try:
        yield here
    finally:
        if process.is_alive():
            here.send(None)
        process.join()


class Turns:
    """The processes of one case, and what they measured."""

    def __init__(self, case: Case, names: list[str], weights: Path) -> None:
        self.case, self.weights = case, weights
        self.measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.failed: dict[str, str] = {}

    def take(self, repeats: int, seconds: float) -> None:
        """Take turns ``repeats`` times, or fewer if the next round would end after ``seconds``."""
        begun = time.perf_counter()
        with ExitStack() as stack:
            pipes = {
                name: stack.enter_context(started(worker, name, self.case, self.weights)) for name in self.measured
            }
            for taken in range(repeats):
                round_begun = time.perf_counter()
                for name in [name for name in pipes if name not in self.failed]:
                    pipes[name].send("turn")
                    try:
                        answer = pipes[name].recv()
                    except EOFError:
                        answer = {"failed": "the process ended"}
                    if "failed" in answer:
                        self.failed[name] = answer["failed"]
                    else:
                        self.measured[name].append(answer)
                now = time.perf_counter()
                if taken + 1 < repeats and now - begun + (now - round_begun) > seconds:
                    break

    def summary(self) -> dict[str, Any]:
        """All numbers of the case, as JSON has them."""
        results = {name: turns[0]["result"] for name, turns in self.measured.items() if turns}
        errors = truth_of(self.case, results, self.weights)
        contenders: dict[str, Any] = {name: {"failed": reason} for name, reason in self.failed.items()}
        for name in results:
            turns = self.measured[name]
            series = {key: [turn[key] for turn in turns] for key in ("cpu", "wall", "gradient")}
            unit = median(series["gradient"])
            contenders[name] = {
                **series,
                "gradients": median(series["cpu"]) / unit,
                "set_up_gradients": turns[0]["set_up"] / unit,
                "peak_mib": max(turn["peak"] for turn in turns) / 2**20,
                "error": errors.get(name),
            }
        return {**asdict(self.case), "contenders": contenders}


def in_own_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own, so that this one never holds a graph when it forks."""
    with started(_answer, call, arguments) as pipe:
        return pipe.recv()


def _answer(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipe.send(call(*arguments))
