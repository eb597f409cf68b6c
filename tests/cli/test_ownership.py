"""A ``spectra.toml`` of somebody else is not run; one's own is announced before it is, with the code that it names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from spectra import save_checkpoint
from spectra.errors import TaskError
from spectra_cli import ownership
from spectra_cli.main import main
from spectra_cli.ownership import check_ownership
from spectra_cli.task_source import resolve

with_users = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no user numbers")
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")

TASK = """
import pathlib, sys, torch, spectra
from torch import nn

print("the task file runs", file=sys.stderr)
pathlib.Path(__file__).with_name("ran").touch()

def task():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    return spectra.Task(nn.Sequential(nn.Linear(4, 3)), nn.CrossEntropyLoss(), [(x, y)])
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository with a task and a ``spectra.toml`` in its root, and a folder below, which is the working one."""
    root = tmp_path / "tree"
    (root / ".git").mkdir(parents=True)
    (root / "owned_tasks.py").write_text(TASK)
    (root / "spectra.toml").write_text('task = "owned_tasks.py:task"\n')
    (root / "below").mkdir()
    torch.manual_seed(0)
    save_checkpoint(root / "below" / "net.pt", nn.Sequential(nn.Linear(4, 3)))
    monkeypatch.chdir(root / "below")
    monkeypatch.delenv("SPECTRA_TOML", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    for folder in (tmp_path, root):
        folder.chmod(0o755)
    return root


def another(monkeypatch) -> int:
    """From here on another user runs, who owns none of the files."""
    user = os.geteuid()
    monkeypatch.setattr(ownership.os, "geteuid", lambda: user + 4321)
    return user


def owned(monkeypatch, foreign: Path, user: int) -> None:
    """From here on one path belongs to another user; to ask for a link does not ask for its target."""
    real = Path.lstat

    def lstat(path: Path):
        found = list(real(path))
        return os.stat_result([*found[:4], user, *found[5:]]) if path == foreign else real(path)

    monkeypatch.setattr(Path, "lstat", lstat)


def refusal(folder: Path | None = None) -> str:
    with pytest.raises(TaskError) as caught:
        resolve(None, [], None, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def run(*arguments: str):
    return CliRunner().invoke(main, ["analyze", "net.pt", "-m", "3", "-k", "1", *arguments], prog_name="spectra")


# -- whose it is


@with_users
def test_a_file_of_another_user_is_refused_before_anything_of_it_runs(tree, monkeypatch):
    user = another(monkeypatch)
    result = run()
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert str(tree / "spectra.toml") in line
    assert f"user {user})" in line
    assert f"runs as user {user + 4321}" in line
    assert "--task" in line
    assert "change the owner" in line
    assert not (tree / "ran").exists()
    assert not (tree / "below" / "run.h5").exists()
    assert run("--task", str(tree / "owned_tasks.py:task")).exit_code == 0  # named, it is the user's own choice


@with_users
@pytest.mark.parametrize("foreign", ["spectra.toml", "."])
def test_the_file_and_its_folder_must_both_belong_to_the_user(tree, monkeypatch, foreign):
    place = (tree / foreign).resolve()
    owned(monkeypatch, place, os.geteuid() + 1)
    what = "the file" if place.is_file() else "the folder"
    assert f"{what} {place} belongs to " in refusal()


@with_users
def test_the_nearest_file_decides_and_is_not_passed_over(tree, monkeypatch):
    """A foreign one in the way is refused, rather than another one found above it."""
    near = tree / "below" / "spectra.toml"
    near.write_text('task = "owned_tasks.py:task"\n')
    owned(monkeypatch, near, os.geteuid() + 1)
    assert f"the file {near} belongs to " in refusal()


@with_users
def test_a_folder_called_git_of_another_user_does_not_make_their_file_trusted(tmp_path, monkeypatch):
    """An empty folder ``.git`` high above ends the search; what the search finds there is still somebody else's."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "spectra.toml").write_text('task = "os:getcwd"\n')
    (tmp_path / "mine").mkdir()
    owned(monkeypatch, (tmp_path / "spectra.toml").resolve(), os.geteuid() + 1)
    assert "belongs to " in refusal(tmp_path / "mine")


@with_users
@pytest.mark.parametrize("foreign", ["the link", "its target", "the folder of the target", "a link on the way"])
def test_a_link_and_its_target_must_both_belong_to_the_user(tree, tmp_path, monkeypatch, foreign):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    target, middle = elsewhere / "real.toml", tree / "middle.toml"
    (tree / "spectra.toml").rename(target)
    middle.symlink_to("../elsewhere/real.toml")
    (tree / "spectra.toml").symlink_to("middle.toml")
    check_ownership(tree / "spectra.toml")
    place = {
        "the link": tree / "spectra.toml",
        "its target": target,
        "the folder of the target": elsewhere,
        "a link on the way": middle,
    }[foreign].absolute()
    owned(monkeypatch, place, os.geteuid() + 1)
    assert str(place) in refusal()


@with_users
def test_a_loop_of_links_is_no_file(tree):
    (tree / "spectra.toml").unlink()
    (tree / "spectra.toml").symlink_to("spectra.toml")
    with pytest.raises(TaskError, match="no task to analyse"):
        resolve(None, [])
    with pytest.raises(TaskError, match="loop of symbolic links"):
        check_ownership(tree / "spectra.toml")


@with_users
@pytest.mark.parametrize(
    ("place", "mode", "refused"),
    [
        ("spectra.toml", 0o666, True),
        (".", 0o777, True),
        (".", 0o1777, False),  # nobody may replace another's file there
        ("spectra.toml", 0o664, False),
        (".", 0o775, False),
    ],
)
def test_what_everybody_may_write_is_refused_and_what_a_group_may_write_is_not(tree, place, mode, refused):
    (tree / place).chmod(mode)
    if refused:
        assert f"chmod o-w {(tree / place).resolve()}" in refusal()
    else:
        assert resolve(None, []).name == "owned_tasks.py:task"


@with_users
def test_under_sudo_the_files_of_the_caller_are_trusted_as_git_trusts_them(tree, monkeypatch):
    monkeypatch.setattr(ownership.os, "geteuid", lambda: 0)
    toml = (tree / "spectra.toml").resolve()
    for place in (toml, toml.parent):
        owned(monkeypatch, place, 1234)
    assert "belongs to " in refusal()
    monkeypatch.setenv("SUDO_UID", "1234")
    check_ownership(toml)
    monkeypatch.setattr(ownership.os, "geteuid", lambda: 77)  # the variable counts for root alone
    with pytest.raises(TaskError, match="belongs to "):
        check_ownership(toml)


@with_users
def test_a_file_of_root_is_that_of_another_user(tree, monkeypatch):
    monkeypatch.setattr(ownership.os, "geteuid", lambda: 1234)
    toml = (tree / "spectra.toml").resolve()
    for place in (toml, toml.parent):
        owned(monkeypatch, place, 0)
    assert "(user 0)" in refusal()


def test_a_system_without_user_numbers_has_no_check(tree, monkeypatch):
    monkeypatch.delattr(ownership.os, "geteuid", raising=False)
    (tree / "spectra.toml").chmod(0o666)
    assert resolve(None, []).name == "owned_tasks.py:task"


@as_root
@pytest.mark.parametrize("foreign", ["spectra.toml", "."])
def test_files_that_are_given_away_are_refused(tree, foreign):
    os.chown(tree / foreign, 4321, 4321)
    assert "belongs to user 4321, and spectra runs as " in refusal()
    assert not (tree / "ran").exists()


@as_root
def test_a_link_that_is_given_away_is_refused(tree):
    (tree / "spectra.toml").rename(tree / "real.toml")
    (tree / "spectra.toml").symlink_to("real.toml")
    os.chown(tree / "spectra.toml", 4321, 4321, follow_symlinks=False)
    assert "the link" in refusal()


# -- what is said before it runs


@pytest.mark.parametrize("options", [(), ("--quiet",), ("--progress", "none"), ("--progress", "bar")])
def test_what_is_run_is_said_before_it_runs(tree, options):
    result = run(*options)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    (said,) = [index for index, line in enumerate(lines) if f"{tree / 'spectra.toml'} chooses the task" in line]
    assert f"running task in {tree / 'owned_tasks.py'}" in lines[said]
    assert said < lines.index("the task file runs")


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_for_programs_it_is_an_event(tree, options):
    result = run("--progress", "json", *options)
    lines = result.stderr.splitlines()
    before = lines[: lines.index("the task file runs")]
    (event,) = [found for found in map(json.loads, before) if found["event"] == "task"]
    expected = {"toml": tree / "spectra.toml", "file": tree / "owned_tasks.py", "function": "task"}
    assert event == {"event": "task", **{name: str(value) for name, value in expected.items()}}


def test_a_module_and_a_built_in_task_are_named_as_they_are(tree, monkeypatch):
    said = []
    (tree / "spectra.toml").write_text('task = "owned_tasks:task"\n')
    resolve(None, [], announce=lambda *words: said.append(words))
    (tree / "spectra.toml").write_text('task = "synthetic-gaussians"\n')
    with pytest.raises(TaskError, match="no built-in task"):
        resolve(None, [], announce=lambda *words: said.append(words))
    toml = str(tree / "spectra.toml")
    assert said == [(toml, "owned_tasks", "task"), (toml, None, "synthetic-gaussians")]


def test_with_a_task_nothing_is_announced_and_no_file_is_looked_at(tree, monkeypatch):
    (tree / "spectra.toml").write_text("this is no toml")
    said = []
    resolve(str(tree / "owned_tasks.py:task"), [], announce=lambda *words: said.append(words))
    assert said == []


# -- the environment variable


def test_the_search_can_be_turned_off(tree, monkeypatch):
    monkeypatch.setenv("SPECTRA_TOML", "off")
    with pytest.raises(TaskError, match="no task to analyse: SPECTRA_TOML=off, so that no"):
        resolve(None, [])
    monkeypatch.setenv("SPECTRA_TOML", "")
    assert resolve(None, []).name == "owned_tasks.py:task"


def test_a_path_names_the_file_whoever_owns_it(tree, tmp_path, monkeypatch):
    (tree / ".git").rmdir()  # so that it is not found
    with pytest.raises(TaskError, match="no task to analyse"):
        resolve(None, [])
    monkeypatch.setenv("SPECTRA_TOML", "../spectra.toml")
    if hasattr(os, "geteuid"):
        another(monkeypatch)
    found = resolve(None, [])
    assert (found.name, found.task().model[0].in_features) == ("owned_tasks.py:task", 4)
    assert str(tree / "spectra.toml") in found.words


@pytest.mark.parametrize("value", ["on", "no/such/file.toml", "."])
def test_what_is_no_file_is_refused_with_what_is_allowed(tree, monkeypatch, value):
    monkeypatch.setenv("SPECTRA_TOML", value)
    assert refusal() == f"SPECTRA_TOML={value!r}: there is no such file; 'off', or the path of a file, is allowed"
