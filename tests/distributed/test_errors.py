"""A process that fails or ends while several share an analysis: all raise a clear error, and none waits for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import in_processes
from shared_cases import task

from spectra import HessianOperator, save_checkpoint, slq
from spectra.analysis.run import analyze_checkpoints
from spectra.analysis.settings import RunSettings, Settings
from spectra.analysis.store import Listener
from spectra.errors import ArgumentError, NumericsError, RanksError
from spectra.runtime.ranks import across_ranks, everywhere, first_alone, jointly, ranks, same_everywhere


class Unsendable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def shared_products(failing: int, how: str) -> str:
    operator = HessianOperator(task("mlp"))
    operator.agree()
    calls = 0
    real = operator.linearise

    def linearise(batch):
        nonlocal calls
        calls += 1
        if dist.get_rank() == failing and calls == 2:
            if how == "killed":
                os._exit(3)
            raise {"numerics": NumericsError("a product is NaN"), "other": Unsendable("this", "that")}[how]
        return real(batch)

    operator.linearise = linearise
    begun = time.perf_counter()
    try:
        slq(operator, 4, 2)
    except Exception as error:
        error.add_note(f"after {time.perf_counter() - begun:.0f} s")
        raise
    return "finished"


def test_an_error_in_one_process_is_raised_by_all():
    found = in_processes(2, shared_products, 1, "numerics")
    assert [type(one) for one in found] == [NumericsError, NumericsError]
    assert all("a product is NaN" in str(one) and "in process 1 of 2" in one.__notes__ for one in found)


@pytest.mark.slow
def test_an_error_that_cannot_be_sent_is_raised_with_its_words():
    found = in_processes(2, shared_products, 0, "other")
    assert [str(one) for one in found] == ["Unsendable: this and that"] * 2


def test_the_end_of_a_process_ends_the_others():
    alive, dead = in_processes(2, shared_products, 1, "killed")
    assert dead is None
    assert isinstance(alive, RanksError)
    assert str(alive).startswith("another process of this run has ended or cannot be reached: ")
    assert "\n" not in str(alive)


def outcomes() -> list[str]:
    rank = dist.get_rank()

    def only_one(which):
        if rank == which:
            raise ValueError(f"from {rank}")
        return rank

    words = []
    for call in (
        lambda: first_alone(lambda: only_one(1)),
        lambda: first_alone(lambda: only_one(0)),
        lambda: first_alone(lambda: ranks()),
        lambda: everywhere(lambda: only_one(2)),
        lambda: everywhere(lambda: only_one(1)),
        lambda: jointly(lambda: only_one(2)),
        lambda: jointly(lambda: only_one(1)),
        lambda: same_everywhere("numbers", 3),
        lambda: same_everywhere("numbers", rank),
    ):
        try:
            words.append(str(call()))
        except Exception as error:
            words.append(f"{type(error).__name__}: {error}")
    return words


def test_what_is_agreed():
    differs = "ArgumentError: the processes of this run have different numbers: "
    for rank, words in enumerate(in_processes(2, outcomes)):
        assert words[:-1] == [
            "0", "ValueError: from 0", "None", "[0, 1]", "ValueError: from 1", str(rank), "ValueError: from 1", "None",
        ]  # fmt: skip
        assert words[-1].startswith(differs)


def test_without_processes_nothing_is_shared():
    with pytest.raises(ArgumentError, match="init_process_group"), across_ranks():
        pass
    assert everywhere(lambda: 3) == [3]
    assert jointly(lambda: 3) == first_alone(lambda: 3) == 3
    same_everywhere("numbers", object())


def analysed(path: str, out: str) -> str:
    made = task("mlp", (5, 4) if dist.get_rank() else (5, 5))
    settings = Settings(lanczos_steps=3, num_probes=2, metrics="none")
    analyze_checkpoints([Path(path)], lambda _: made, RunSettings(settings, out=Path(out)), Listener())
    return "finished"


@pytest.mark.slow
def test_processes_with_different_data_are_refused(tmp_path):
    save_checkpoint(tmp_path / "net.pt", task("mlp").model)
    for error in in_processes(2, analysed, str(tmp_path / "net.pt"), str(tmp_path / "run.h5")):
        assert isinstance(error, ArgumentError)
        assert str(error).startswith("the processes of this run have different settings or data: ")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["net.pt"]
