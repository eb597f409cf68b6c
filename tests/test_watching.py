"""Which files are given out, and when, on a clock that the test moves."""

from __future__ import annotations

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
    assert notes == [f"{path} has changed since it was taken up: passed over; a name for each epoch avoids this"]


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
