"""Which files are given out, and when, on a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spectra.checkpoints.watching import arriving, ends_well
from spectra.errors import ArgumentError


class Clock:
    """Time passes while somebody sleeps, and things happen then."""

    def __init__(self, events: dict[int, object] | None = None) -> None:
        self.now = 0.0
        self.events = events or {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        event = self.events.pop(round(self.now), None)
        if event is not None:
            event()


def save(path: Path, epoch: int = 0) -> Path:
    torch.save({"model": {"weight": torch.full((100,), float(epoch))}, "epoch": epoch}, path)
    return path


def watched(folder: Path, clock: Clock, notes: list[str] | None = None, **options: float) -> list[tuple[str, float]]:
    found = arriving(
        [folder], clock=clock, sleep=clock.sleep, note=(notes if notes is not None else []).append, **options
    )
    return [(path.name, clock.now) for path in found]


def test_those_of_one_look_come_in_training_order_once_they_have_settled(tmp_path):
    save(tmp_path / "b.pt", 1)
    save(tmp_path / "a.pt", 2)
    assert watched(tmp_path, Clock(), settle=2, idle=5) == [("b.pt", 2.0), ("a.pt", 2.0)]


def test_a_file_that_grows_is_waited_for(tmp_path):
    path = tmp_path / "ckpt_1.pt"
    whole = save(tmp_path / "whole").read_bytes()
    path.write_bytes(whole[:200])
    clock = Clock({10: lambda: path.write_bytes(whole[:400]), 20: lambda: path.write_bytes(whole)})
    assert watched(tmp_path, clock, settle=2, idle=3) == [("ckpt_1.pt", 22.0)]


def test_a_file_that_stays_cut_off_is_given_out_when_patience_ends(tmp_path):
    (tmp_path / "ckpt_1.pt").write_bytes(save(tmp_path / "whole").read_bytes()[:400])
    assert watched(tmp_path, Clock(), settle=2, patience=30, idle=3) == [("ckpt_1.pt", 30.0)]


def test_a_file_that_changes_afterwards_is_not_given_out_again_and_told(tmp_path):
    path = save(tmp_path / "last.pt", 1)
    notes: list[str] = []
    clock = Clock({8: lambda: save(path, 2), 12: lambda: save(tmp_path / "ckpt_3.pt", 3)})
    assert watched(tmp_path, clock, notes, settle=2, idle=15) == [("last.pt", 2.0), ("ckpt_3.pt", 14.0)]
    assert notes == [f"{path} has changed since it was found: skipped; a name for each epoch avoids this"]


def test_a_folder_that_is_not_there_yet_may_come(tmp_path):
    def begin():
        (tmp_path / "run").mkdir()
        save(tmp_path / "run" / "ckpt_0.pt")

    assert watched(tmp_path / "run", Clock({5: begin}), settle=2, idle=20) == [("ckpt_0.pt", 7.0)]


def test_an_interrupt_while_it_waits_ends_it(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    save(tmp_path / "ckpt_0.pt")
    assert watched(tmp_path, Clock({10: interrupt}), settle=2) == [("ckpt_0.pt", 2.0)]


def test_a_negative_time_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="settle=-1: seconds, at least 0"):
        next(arriving([tmp_path], settle=-1))


def test_safetensors_that_are_cut_off_are_noticed(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "w.safetensors"
    safetensors.save_file({"weight": torch.ones(50), "bias": torch.ones(5)}, path)
    assert ends_well(path)
    path.write_bytes(path.read_bytes()[:-8])
    assert not ends_well(path)
    path.write_bytes(path.read_bytes()[:20])
    assert not ends_well(path)


# -- folders that are checkpoints


def folder(path: Path, step: int = 8, *, without: str = "", cut: int | None = None) -> Path:
    """A folder in two shards as transformers writes it; without one of its files, or with its last shard cut off."""
    path.mkdir(parents=True, exist_ok=True)
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for number, name in enumerate(names):
        save(path / name, number)
        torch.save({f"weight{number}": torch.full((100,), float(step))}, path / name)
    if cut is not None:
        (path / names[1]).write_bytes((path / names[1]).read_bytes()[:cut])
    torch.save({"state": torch.ones(3)}, path / "optimizer.pt")
    index = {"weight_map": {f"weight{number}": name for number, name in enumerate(names)}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 8}))
    if without:
        (path / without).unlink()
    return path


def later(*steps: Callable[[], object]) -> Callable[[], None]:
    def happen() -> None:
        for step in steps:
            step()

    return happen


def test_a_new_folder_is_found_and_those_of_one_look_come_in_the_order_of_steps(tmp_path):
    clock = Clock({10: later(*(lambda step=step: folder(tmp_path / f"checkpoint-{step}", step) for step in (100, 16)))})
    folder(tmp_path / "checkpoint-8")
    assert watched(tmp_path, clock, settle=2, idle=9) == [
        ("checkpoint-8", 2.0), ("checkpoint-16", 12.0), ("checkpoint-100", 12.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "unfinished",
    [
        {"without": "pytorch_model-00002-of-00002.bin"},
        {"without": "pytorch_model.bin.index.json"},
        {"cut": 300},
    ],
)
def test_a_folder_is_waited_for_until_its_index_and_all_shards_are_whole(tmp_path, unfinished):
    clock = Clock({20: lambda: folder(tmp_path / "checkpoint-8")})
    folder(tmp_path / "checkpoint-8", **unfinished)
    assert watched(tmp_path, clock, settle=2, idle=3) == [("checkpoint-8", 22.0)]
    left = folder(tmp_path / "checkpoint-9", **unfinished)
    assert watched(left, Clock(), settle=2, patience=30, idle=3) == [("checkpoint-9", 30.0)]


def test_an_index_that_is_half_written_is_waited_for(tmp_path):
    path = folder(tmp_path / "checkpoint-8")
    index = path / "pytorch_model.bin.index.json"
    whole = index.read_text()
    index.write_text(whole[:20])
    clock = Clock({20: lambda: index.write_text(whole)})
    assert watched(tmp_path, clock, settle=2, idle=3) == [("checkpoint-8", 22.0)]


def test_a_folder_has_settled_when_every_file_in_it_has(tmp_path):
    """The state of the trainer, which says the epoch, is written after the weights and the optimizer."""
    path = folder(tmp_path / "checkpoint-8", without="trainer_state.json")
    grown = {at: lambda: (path / "optimizer.pt").open("ab").write(b"x") for at in range(1, 12)}
    clock = Clock({**grown, 13: lambda: (path / "trainer_state.json").write_text('{"epoch": 1, "global_step": 8}')})
    assert watched(tmp_path, clock, settle=2, idle=3) == [("checkpoint-8", 15.0)]


def test_a_folder_whose_weights_change_afterwards_is_told_and_one_that_gains_other_files_is_not(tmp_path):
    path = folder(tmp_path / "checkpoint-8")
    notes: list[str] = []
    clock = Clock({6: lambda: (path / "README.md").write_text("x"), 12: lambda: (path / "optimizer.pt").unlink()})
    assert watched(tmp_path, clock, notes, settle=2, idle=20) == [("checkpoint-8", 2.0)]
    assert notes == []
    clock = Clock({6: lambda: folder(path, 9)})
    assert watched(tmp_path, clock, notes, settle=2, idle=20) == [("checkpoint-8", 2.0)]
    assert [note.partition(":")[0] for note in notes] == [f"{path} has changed since it was found"]


def test_a_folder_that_is_renamed_when_it_is_whole_is_found_by_its_name(tmp_path):
    clock = Clock({10: lambda: (tmp_path / "tmp-checkpoint-8").rename(tmp_path / "checkpoint-8")})
    folder(tmp_path / "tmp-checkpoint-8")
    (tmp_path / "checkpoint-4").mkdir()  # as yet empty
    assert watched(tmp_path, clock, settle=2, idle=20) == [("checkpoint-8", 12.0)]


def test_what_goes_before_it_has_settled_is_not_waited_for(tmp_path):
    clock = Clock({1: lambda: (tmp_path / "a.pt").unlink()})
    save(tmp_path / "a.pt")
    save(tmp_path / "b.pt")
    assert watched(tmp_path, clock, settle=2, idle=5) == [("b.pt", 2.0)]


def test_a_folder_that_is_passed_over_is_told_once(tmp_path):
    for name in ("a.pt", "b.pt"):
        save(folder_of(tmp_path / "step_3") / name)
    save(folder_of(tmp_path / "step_4") / "a.pt")
    notes: list[str] = []
    assert watched(tmp_path, Clock(), notes, settle=2, idle=9) == [("step_4", 2.0)]
    assert [note.partition(",")[0] for note in notes] == [f"{tmp_path}: skipped step_3"]


def folder_of(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path
