"""Folders as trainers leave them: which files are one checkpoint, of which step it is, and what is never one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from saved_weights import network, same, save, sharded

from spectra import load_checkpoint
from spectra.checkpoints.dialects import name_key, position_in_name
from spectra.checkpoints.discovery import find_checkpoints, in_training_order
from spectra.errors import CheckpointError

TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt")
ACCELERATE = ("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "sampler.bin", "random_states_0.pkl", "scaler.pt")


def trainer(folder: Path, step: int, state: object = "usual", name: str = "pytorch_model.bin") -> Path:
    """A folder as the trainer of transformers writes it."""
    save(folder / name, step)
    for file in TRAINER:
        torch.save({"cpu": torch.ones(3), "state": {0: torch.ones(2)}}, folder / file)
    (folder / "config.json").write_text("{}")
    if state == "usual":
        state = {"epoch": step / 8, "global_step": step, "best_model_checkpoint": None, "log_history": [{"loss": 1.0}]}
    if state is not None:
        (folder / "trainer_state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    return folder


def names(paths: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


# -- which files are checkpoints


def test_the_folders_of_a_trainer_are_found_and_in_the_order_of_their_steps(tmp_path):
    for step in (100, 8, 16):
        trainer(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.out.tfevents.1").touch()
    words: list[str] = []
    found = find_checkpoints([tmp_path], taken=words.append, passed=words.append)
    assert names(found, tmp_path) == ["checkpoint-8", "checkpoint-16", "checkpoint-100"]
    assert words == []
    ordered = in_training_order(found)
    assert [(one.epoch, one.step) for one in ordered] == [(1, 8), (2, 16), (12.5, 100)]
    for one in ordered:
        checkpoint = load_checkpoint(one.path)
        assert same(checkpoint, one.step)
        assert (checkpoint.epoch, checkpoint.step) == (one.epoch, one.step)
        assert checkpoint.files == (one.path / "pytorch_model.bin",)
        assert checkpoint.notes == ()


def test_a_folder_is_a_checkpoint_by_itself_with_the_hash_of_its_file(tmp_path):
    folder = trainer(tmp_path / "checkpoint-8", 8)
    assert find_checkpoints([folder]) == [folder]
    (folder / "global_step8").mkdir()
    save(folder / "global_step8" / "mp_rank_00_model_states.pt")  # the same weights, as another library saves them
    assert find_checkpoints([folder]) == [folder]
    content = (folder / "pytorch_model.bin").read_bytes()
    assert load_checkpoint(folder).sha256 == hashlib.sha256(content).hexdigest()
    assert load_checkpoint(folder / "pytorch_model.bin").step == 8


def test_folders_of_accelerate_are_found_and_placed_by_their_names(tmp_path):
    for epoch in (0, 2, 10):
        save(tmp_path / f"epoch_{epoch}" / "pytorch_model.bin", epoch)
        for file in ACCELERATE:
            torch.save({"last_epoch": 3}, tmp_path / f"epoch_{epoch}" / file)
    found = in_training_order(find_checkpoints([tmp_path]))
    assert [(one.path.name, one.epoch) for one in found] == [("epoch_0", 0), ("epoch_2", 2), ("epoch_10", 10)]
    save(tmp_path / "epoch_2" / "pytorch_model_1.bin")  # the second model of the same state
    assert len(find_checkpoints([tmp_path])) == 3
    assert find_checkpoints([tmp_path / "epoch_2"]) == [tmp_path / "epoch_2"]
    assert load_checkpoint(tmp_path / "epoch_2").notes == (
        "weights taken from pytorch_model.bin; the folder also holds pytorch_model_1.bin",
    )


def test_a_folder_named_after_a_step_may_hold_its_weights_under_any_name(tmp_path):
    save(tmp_path / "step_30" / "net.pt", 3)
    save(tmp_path / "step_4" / "weights.pth", 4)
    save(tmp_path / "step_4" / "optimizer.pt")
    save(tmp_path / "best" / "net.pt")  # neither a usual name nor a step: as before, not looked into
    found = in_training_order(find_checkpoints([tmp_path]))
    assert [(one.path.name, one.step) for one in found] == [("step_4", 4), ("step_30", 30)]
    assert same(load_checkpoint(tmp_path / "step_30"), 3)


def test_a_folder_with_several_files_of_weights_is_passed_over_in_words(tmp_path):
    for name in ("ema.pt", "net.pt"):
        save(tmp_path / "step_30" / name)
    save(tmp_path / "step_4" / "net.pt", 4)
    words: list[str] = []
    assert names(find_checkpoints([tmp_path], passed=words.append), tmp_path) == ["step_4"]
    (line,) = words
    assert line.startswith(f"{tmp_path}: skipped step_30, with several files of weights: a pattern names those")
    assert line.endswith(f"as in '{tmp_path}/*/ema.pt'")
    assert len(find_checkpoints([f"{tmp_path}/*/net.pt"])) == 2
    with pytest.raises(
        CheckpointError, match=r"a folder with 2 checkpoints \(ema\.pt, net\.pt, \.\.\.\): name the file"
    ):
        load_checkpoint(tmp_path / "step_30")


def test_files_and_folders_are_both_taken_and_a_line_says_so(tmp_path):
    trainer(tmp_path, 16, state=None)
    for step in (8, 16):
        trainer(tmp_path / f"checkpoint-{step}", step)
    words: list[str] = []
    found = find_checkpoints([tmp_path], taken=words.append)
    assert names(found, tmp_path) == ["checkpoint-8", "checkpoint-16", "pytorch_model.bin"]
    assert words == [f"{tmp_path}: taken are pytorch_model.bin in it, and its folders checkpoint-8, checkpoint-16"]
    assert [one.path.name for one in in_training_order(found)][-1] == "pytorch_model.bin"  # of no known step


def test_plain_files_in_a_folder_are_what_they_were(tmp_path):
    for name in ("ckpt_10.pt", "ckpt_9.pt", *TRAINER):
        save(tmp_path / name)
    assert names(find_checkpoints([tmp_path]), tmp_path) == ["ckpt_9.pt", "ckpt_10.pt"]
    save(tmp_path / "model.safetensors")
    assert len(find_checkpoints([tmp_path])) == 3


@pytest.mark.parametrize(
    "name", [*TRAINER, *ACCELERATE, "lr_scheduler.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]
)
def test_what_trainers_save_beside_the_weights_is_never_a_checkpoint(tmp_path, name):
    save(tmp_path / "step_3" / name)
    for place in (tmp_path, tmp_path / "step_3", f"{tmp_path}/*/*"):
        with pytest.raises(CheckpointError, match=r"no checkpoints in this folder|no file matches"):
            find_checkpoints([place])
    with pytest.raises(CheckpointError, match="a folder without the weights of a model"):
        load_checkpoint(tmp_path / "step_3")


def test_of_one_checkpoint_in_two_formats_one_is_taken(tmp_path):
    folder = trainer(tmp_path / "checkpoint-8", 8)
    pytest.importorskip("safetensors.torch").save_file(network(8).state_dict(), folder / "model.safetensors")
    save(folder / "adapter_model.bin", 1)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.dialect == "safetensors"
    assert "the folder also holds pytorch_model.bin, adapter_model.bin" in checkpoint.notes[0]
    assert find_checkpoints([tmp_path]) == [folder]


def test_a_folder_that_holds_runs_says_where_they_are(tmp_path):
    save(tmp_path / "version_0" / "a.ckpt")
    save(tmp_path / "version_1" / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"no checkpoints in this folder .*; there are some in version_0, version_1$"
    ):
        find_checkpoints([tmp_path])


def test_a_pattern_may_stand_for_folders(tmp_path):
    for step in (8, 16):
        trainer(tmp_path / f"checkpoint-{step}", step)
    assert names(find_checkpoints([f"{tmp_path}/checkpoint-*"]), tmp_path) == ["checkpoint-8", "checkpoint-16"]
    found = find_checkpoints([f"{tmp_path}/checkpoint-8/*.*"])
    assert tmp_path / "checkpoint-8" / "pytorch_model.bin" in found
    assert not [path for path in found if path.name in TRAINER]


def test_hidden_and_unfinished_folders_are_left_alone(tmp_path):
    for name in (".checkpoint-8", "tmp-checkpoint-8", "checkpoint-4"):
        trainer(tmp_path / name, 8)
    (tmp_path / "checkpoint-99").mkdir()
    assert names(find_checkpoints([tmp_path]), tmp_path) == ["checkpoint-4"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    folder = trainer(tmp_path / "checkpoint-8", 8)
    (tmp_path / "a-link").symlink_to(folder, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("x", "y", "z"):
        (folder / name).symlink_to(tmp_path, target_is_directory=True)
    (folder / "dangling.bin").symlink_to(tmp_path / "nowhere")
    assert names(find_checkpoints([tmp_path]), tmp_path) == ["checkpoint-8"]
    assert names(find_checkpoints([f"{tmp_path}/**/*.bin"]), tmp_path) == ["checkpoint-8/pytorch_model.bin"]
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "checkpoint-3").symlink_to(folder, target_is_directory=True)
    assert names(find_checkpoints([elsewhere]), elsewhere) == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.pt", ["a.pt", "b/c.pt", "b/d/e.pt"]),
        ("b/**/*.pt", ["b/c.pt", "b/d/e.pt"]),
        ("**/d/*.pt", ["b/d/e.pt"]),
        ("**", ["a.pt", "b/c.pt", "b/d/e.pt"]),
    ],
)
def test_patterns_over_all_levels_meet_what_they_met(tmp_path, pattern, expected):
    for name in ("a.pt", "b/c.pt", "b/d/e.pt", ".h/f.pt"):
        save(tmp_path / name)
    assert names(find_checkpoints([f"{tmp_path}/{pattern}"]), tmp_path) == expected


def test_the_working_directory_may_be_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(trainer(tmp_path / "checkpoint-8", 8, state=None))
    assert find_checkpoints(["."]) == [Path()]
    assert load_checkpoint(".").step == 8
    monkeypatch.chdir(trainer(tmp_path / "checkpoint-9", 9, {"global_step": 9, "best_model_checkpoint": "x"}))
    assert load_checkpoint(".").step == 9


def test_files_that_are_links_into_a_store_of_contents_are_read(tmp_path):
    folder = sharded(tmp_path / "snapshot" / "checkpoint-8", 8)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(tmp_path / "blobs" / f"{number:064x}")
        file.symlink_to(Path("../../blobs") / f"{number:064x}")
    assert find_checkpoints([tmp_path / "snapshot"]) == [folder]
    assert same(load_checkpoint(folder), 8)


def test_a_data_set_beside_the_checkpoints_is_not_looked_through(tmp_path, monkeypatch):
    trainer(tmp_path / "checkpoint-8", 8)
    (tmp_path / "images").mkdir()
    listed = []
    before = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path.name) or before(path))
    find_checkpoints([tmp_path])
    assert "checkpoint-8" in listed
    assert "images" not in listed


def test_a_folder_that_cannot_be_read_is_an_error_if_it_could_be_a_checkpoint(tmp_path, monkeypatch):
    trainer(tmp_path / "checkpoint-8", 8)
    (tmp_path / "lost+found").mkdir()
    before = Path.iterdir

    def refused(path: Path):
        if path.name in ("lost+found", blocked):
            raise PermissionError(13, "Permission denied", str(path))
        return before(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    blocked = "lost+found"
    assert names(find_checkpoints([tmp_path]), tmp_path) == ["checkpoint-8"]
    blocked = "checkpoint-8"
    with pytest.raises(CheckpointError, match="checkpoint-8: Permission denied"):
        find_checkpoints([tmp_path])


# -- epoch and step


@pytest.mark.parametrize(
    ("state", "position", "words"),
    [
        ({"epoch": 1.5, "global_step": 12}, (1.5, 12), None),
        ({"epoch": 2.0, "global_step": 12}, (2, 12), None),
        ({"epoch": None, "global_step": 12}, (None, 12), None),
        ({}, (None, 8), None),
        (None, (None, 8), None),
        ({"epoch": "1", "global_step": 12}, (None, 8), "epoch is not a number from 0 on"),
        ({"epoch": True}, (None, 8), "epoch is not a number"),
        ({"global_step": -1}, (None, 8), "global_step is not a number from 0 on"),
        ({"global_step": 1.5}, (None, 8), "global_step is not a whole number"),
        ('{"epoch": NaN}', (None, 8), "epoch is not a number"),
        ('{"epoch": 1e999}', (None, 8), "epoch is not a number"),
        ("[1]", (None, 8), "holds a list"),
        ("{", (None, 8), "not JSON"),
        ("[" * 100_000, (None, 8), "nested too deeply"),
    ],
)
def test_epoch_and_step_are_those_of_the_trainers_state_else_of_the_name(tmp_path, state, position, words):
    folder = trainer(tmp_path / "checkpoint-8", 8, state)
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.epoch, checkpoint.step) == position
    (found,) = in_training_order([folder])
    assert (found.epoch, found.step) == position
    if words is None:
        assert checkpoint.notes == ()
    else:
        (note,) = checkpoint.notes
        assert words in note
        assert note.endswith("it is not used")
        assert len(note.splitlines()) == 1


def test_the_state_of_a_trainer_is_read_up_to_a_size_and_from_a_file_alone(tmp_path, monkeypatch):
    folder = trainer(tmp_path / "checkpoint-8", 8)
    monkeypatch.setattr("spectra.checkpoints.sidecars.MAX_BYTES", 20)
    assert "larger than" in load_checkpoint(folder).notes[0]
    (folder / "trainer_state.json").unlink()
    os.mkfifo(folder / "trainer_state.json")  # reading it would wait for ever
    assert load_checkpoint(folder).step == 8
    (folder / "pytorch_model.bin").unlink()
    os.mkfifo(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no checkpoints in this folder"):
        find_checkpoints([tmp_path])


def test_the_weights_at_the_end_of_training_are_of_no_known_step_where_the_best_may_have_been_loaded(tmp_path):
    state = {"epoch": 2.0, "global_step": 16, "best_model_checkpoint": "out/checkpoint-8"}
    end = load_checkpoint(trainer(tmp_path, 8, state))
    assert (end.epoch, end.step) == (None, None)
    assert "names a best checkpoint" in end.notes[0]
    inside = load_checkpoint(trainer(tmp_path / "checkpoint-16", 16, state))
    assert (inside.epoch, inside.step, inside.notes) == (2, 16, ())


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("checkpoint-500/model.safetensors", (None, 500)),
        ("checkpoint_7/model.safetensors", (7, None)),
        ("step_30/model.pt", (None, 30)),
        ("global_step100/x.pt", (None, 100)),
        ("epoch_3_step_120/model.pt", (3, 120)),
        ("epoch=3-step=120/model.pt", (3, 120)),
        ("epoch_3/ckpt_5.pt", (5, None)),  # the file's own name first
        ("lr1e-3/final.pt", (None, None)),
        ("seed3/final.pt", (None, None)),
        ("3/final.pt", (None, None)),
        ("2024-05-01/final.pt", (None, None)),
        ("resnet-18/final.pt", (None, None)),
        ("deep_step_3_lr_2/final.pt", (None, None)),
    ],
)
def test_a_folders_name_counts_where_it_says_nothing_else(name, position):
    assert position_in_name(Path(name)) == position


def test_a_copy_comes_after_what_it_is_a_copy_of():
    names = ["epoch=0-step=10-v1.ckpt", "epoch=0-step=10.ckpt", "epoch=0-step=9.ckpt", "last.ckpt", "a.pth.tar", "a.pt"]
    assert sorted(map(Path, names), key=name_key) == [
        *map(Path, ["a.pt", "a.pth.tar", "epoch=0-step=9.ckpt", "epoch=0-step=10.ckpt"]),
        *map(Path, ["epoch=0-step=10-v1.ckpt", "last.ckpt"]),
    ]


def test_those_of_no_known_moment_come_last(tmp_path):
    for name in ("best.pt", "epoch_10.pt", "epoch_9.pt", "a.pt"):
        save(tmp_path / name)
    assert [one.path.name for one in in_training_order(find_checkpoints([tmp_path]))] == [
        "epoch_9.pt", "epoch_10.pt", "a.pt", "best.pt"
    ]  # fmt: skip
