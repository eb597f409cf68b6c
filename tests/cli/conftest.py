"""What the tests of commands start from: silent phases, and a folder of checkpoints with a task file."""

from __future__ import annotations

import os
import pickle
import shutil
import sys

import pytest
import torch
from analyze_command import QUICK, TASKS, analysed, network

from spectra_cli import phase_clock


@pytest.fixture(autouse=True)
def _phases_are_silent(monkeypatch):
    """A phase has a line when it lasts a second: the tests of progress set that time themselves."""
    monkeypatch.setattr(phase_clock, "FIRST", float("inf"))


@pytest.fixture
def user_code_forgotten():
    """What user code adds to Python's state is taken away again."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "task" in name or name == "helper_of_analyze":
            del sys.modules[name]


class Trap:
    """Code in a pickle: what it would do leaves a folder behind."""

    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Every file that a test may need, made once."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "tasks.py").write_text(TASKS)
    (folder / "helper_of_analyze.py").write_text("CLASSES = 3\n")
    for epoch in range(3):
        torch.save(network(epoch).state_dict(), folder / f"net_{epoch}.pt")
    torch.save(network(0, norm=True).state_dict(), folder / "norm.pt")
    torch.save(network(0, width=7).state_dict(), folder / "wide.pt")
    whole = (folder / "net_0.pt").read_bytes()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("weights will follow")
    torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, folder / "optimizer-state.pt")
    torch.save([1, 2, 3], folder / "list.pt")
    (folder / "trap.pt").write_bytes(pickle.dumps({"model": Trap()}))
    torch.save({"model": network().state_dict(), "extra": Trap()}, folder / "trap-zip.pt")
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        model = network()
        with torch.no_grad():
            model[2].weight[1, 2] = value
        torch.save(model.state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture
def here(shelf, tmp_path, monkeypatch, user_code_forgotten):
    """A working directory with a copy of the shelf, outside of any repository."""
    folder = tmp_path / "work"
    shutil.copytree(shelf, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def existing(shelf, tmp_path_factory):
    """The bytes of a good results file of the quick task."""
    folder = tmp_path_factory.mktemp("existing")
    for name in ("net_2.pt", "tasks.py", "helper_of_analyze.py"):
        shutil.copy(shelf / name, folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        analysed("net_2.pt", *QUICK, "--quiet")
    finally:
        os.chdir(before)
    return (folder / "run.h5").read_bytes()
