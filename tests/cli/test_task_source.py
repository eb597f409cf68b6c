"""Which task is analysed: the order of the three ways, and that a checkpoint can never choose code to run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spectra.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spectra.errors import ArgumentError, SpectraError, TaskError
from spectra_cli.task_source import find_toml, resolve
from spectra_cli.user_code import Typed

FILE = """\
import torch, spectra
from helper_of_task import SIZE

CALLS = []

def task(width: int = 2, name: str = "x"):
    CALLS.append((width, name))
    model = torch.nn.Linear(SIZE, width)
    return spectra.Task(model, torch.nn.CrossEntropyLoss(), [(torch.ones(3, SIZE), torch.zeros(3).long())])

def per_checkpoint(checkpoint, width=2):
    return spectra.Task(torch.nn.Linear(checkpoint["config"]["inputs"], width), torch.nn.MSELoss(), [1])

def nothing():
    pass

def number():
    return 3

def raises():
    raise ValueError("no such\\nthing")

def exits():
    raise SystemExit(2)

def needs(a, b=1):
    return a

def lazy():
    import late_helper_of_task
    return task()
"""


pytestmark = pytest.mark.usefixtures("user_code_forgotten")


@pytest.fixture
def folder(tmp_path):
    """A working directory with a task file, its helpers, and no repository around it."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.py").write_text(FILE)
    (folder / "helper_of_task.py").write_text("SIZE = 5\n")
    (folder / "late_helper_of_task.py").write_text("")
    return folder


def checkpoint(path: Path, **options: object) -> Checkpoint:
    save_checkpoint(path, nn.Linear(2, 2), **options)
    return load_checkpoint(path)


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(SpectraError) as caught:
        resolve(*arguments, **options).task()
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- the order of the three ways


def test_the_option_goes_before_the_checkpoint_and_that_before_the_toml(folder, tmp_path):
    pytest.importorskip("sklearn")
    (folder / "spectra.toml").write_text('task = "mine.py:task"\n')
    own = checkpoint(tmp_path / "a.pt", task="digits-mlp", task_args={"hidden": 7})
    assert resolve("mine.py:task", [], own, folder).name == "mine.py:task"
    assert resolve("digits-logistic", [], own, folder).name == "digits-logistic"
    found = resolve(None, [], own, folder)
    assert found.name == "digits-mlp"
    assert found.args["hidden"] == 7
    assert str(own.path) in found.words
    assert found.task().model[1].out_features == 7
    found = resolve(None, [], checkpoint(tmp_path / "b.pt"), folder)
    assert found.name == "mine.py:task"
    assert "spectra.toml" in found.words


def test_arguments_of_the_command_line_go_before_those_of_checkpoint_and_toml(folder, tmp_path):
    own = checkpoint(tmp_path / "a.pt", task="digits-mlp", task_args={"hidden": 7, "seed": 3})
    assert resolve(None, ["hidden=9"], own, folder).args["hidden"] == 9
    assert resolve(None, ["hidden=9"], own, folder).args["seed"] == 3
    (folder / "spectra.toml").write_text('task = "mine.py:task"\n[task-args]\nwidth = 4\nname = "toml"\n')
    assert resolve(None, ["width=6"], None, folder).args == {"width": 6, "name": "toml"}


def test_without_a_task_the_error_shows_the_three_ways_with_an_example(folder):
    with pytest.raises(TaskError) as caught:
        resolve(None, [], None, folder)
    message = str(caught.value)
    for words in ("--task", "save_checkpoint", "spectra.toml", "def task():", "return spectra.Task(", "digits-convnet"):
        assert words in message


# -- a checkpoint cannot choose code to run


def trap(folder: Path) -> Path:
    """A task file whose import leaves a trace; the path of the trace."""
    trace = folder / "ran"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).mkdir()\ndef task(): pass\n")
    return trace


@pytest.mark.parametrize("name", ["evil.py:task", "evil:task", "os:getcwd", "{folder}/evil.py:task", "not-built-in"])
def test_names_of_code_in_a_checkpoint_are_refused_with_the_reason(folder, name):
    trace = trap(folder)
    name = name.format(folder=folder)
    own = checkpoint(folder / "a.pt", task=name)
    with pytest.raises(TaskError) as caught:
        resolve(None, [], own, folder)
    assert f"names the task {name!r}, which is not built in and so is not used" in str(caught.value)
    assert not trace.exists()
    (folder / "spectra.toml").write_text('task = "mine.py:task"\n')
    found = resolve(None, [], own, folder)
    assert found.name == "mine.py:task"
    assert "not built in" in found.words
    assert not trace.exists()


def test_a_toml_in_the_folder_of_the_checkpoint_is_never_read(folder, tmp_path):
    elsewhere = tmp_path / "downloaded"
    elsewhere.mkdir()
    trace = trap(elsewhere)
    (elsewhere / "spectra.toml").write_text('task = "evil.py:task"\n')
    own = checkpoint(elsewhere / "a.pt")
    with pytest.raises(TaskError, match="no task to analyse"):
        resolve(None, [], own, folder)
    assert not trace.exists()


def test_without_a_task_the_built_in_ones_are_listed_by_data_set(tmp_path):
    with pytest.raises(TaskError) as caught:
        resolve(None, [], cwd=tmp_path)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "digits-convnet, digits-mlp, digits-logistic" in lines
    assert sum(line.startswith("cifar100-lenet, cifar100-lenet-bn, cifar100-vgg11-bn") for line in lines) == 1
    assert max(map(len, lines)) <= 125


def test_a_toml_is_looked_for_up_to_the_root_of_the_repository_and_not_above(tmp_path):
    inner = tmp_path / "repository" / "a" / "b"
    inner.mkdir(parents=True)
    above, root = tmp_path / "spectra.toml", tmp_path / "repository" / "spectra.toml"
    above.write_text("")
    root.write_text("")
    assert find_toml(inner) is None  # outside of a repository, only the working directory itself
    assert find_toml(tmp_path / "repository") == root
    (tmp_path / "repository" / ".git").mkdir()
    assert find_toml(inner) == root
    own = inner / "spectra.toml"
    own.write_text("")
    assert find_toml(inner) == own
    own.unlink()
    root.unlink()
    assert find_toml(inner) is None


def test_files_named_in_a_toml_are_relative_to_it(folder):
    (folder / ".git").mkdir()
    (folder / "spectra.toml").write_text('task = "mine.py:task"\n')
    below = folder / "below"
    below.mkdir()
    assert resolve(None, [], None, below).task().model.in_features == 5


# -- functions of files and modules


def test_a_file_may_import_modules_of_its_folder_also_later(folder):
    before = list(sys.path)
    task = resolve("mine.py:task", ["width=3"], None, folder).task()
    assert task.model.weight.shape == (3, 5)
    assert sys.path == [*before, str(folder)]  # last, so that it hides nothing
    assert resolve(str(folder / "mine.py") + ":lazy").task().model.in_features == 5
    assert sys.path == [*before, str(folder)]


def test_a_module_is_imported_from_the_working_directory(folder):
    package = folder / "package_of_task"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(FILE)
    found = resolve("package_of_task.inner:task", [], None, folder)
    assert found.task().model.in_features == 5


def test_the_function_is_called_once_after_seeding(folder):
    found = resolve("mine.py:task", [], None, folder)
    first = found.task(seed=3)
    assert found.task(seed=4) is first
    torch.manual_seed(3)
    assert torch.equal(first.model.weight, nn.Linear(5, 2).weight)


def test_a_function_with_a_parameter_checkpoint_gets_its_metadata_each_time(folder, tmp_path):
    found = resolve("mine.py:per_checkpoint", ["width=4"], None, folder)
    assert found.per_checkpoint
    for inputs in (2, 6):
        own = checkpoint(tmp_path / f"{inputs}.pt", config={"inputs": inputs})
        assert found.task(own).model.weight.shape == (4, inputs)


def test_values_are_literals_unless_the_argument_is_a_text(folder):
    found = resolve("mine.py:task", ["width=3", "name=1e3"], None, folder)
    assert found.args == {"width": 3, "name": "1e3"}
    found = resolve("mnist-mlp", ["data=2024", "hidden=8"], None, folder)
    assert (found.args["data"], found.args["hidden"]) == ("2024", 8)
    assert repr(Typed("a")) == "Typed('a')"


@pytest.mark.parametrize(
    ("spec", "arguments", "words"),
    [
        ("digits-convne", [], "no built-in task is called 'digits-convne': there are digits-convnet"),
        ("mine.py", [], "write mine.py:FUNCTION"),
        ("no.py:task", [], "there is no file"),
        ("mine.py:tusk", [], "there is no 'tusk' in"),
        ("mine.py:CALLS", [], "not a function"),
        (":task", [], "is needed"),
        ("mine.py:", [], "is needed"),
        ("no_such_module:task", [], "there is no module 'no_such_module'"),
        ("os.nothing:task", [], "there is no module 'os.nothing'"),
        ("mine.py:nothing", [], "it returned None (is a return missing?), not a spectra.Task"),
        ("mine.py:number", [], "it returned a int, not a spectra.Task"),
        ("mine.py:raises", [], "mine.py line 21: ValueError: no such thing"),
        ("mine.py:exits", [], "sys.exit(2)"),
        ("mine.py:task", ["depth=3"], "it has no argument 'depth'; its arguments: width, name"),
        ("mine.py:needs", [], "its argument 'a' is not given"),
        ("mine.py:per_checkpoint", ["checkpoint=3"], "given by spectra"),
        ("mine.py:task", ["width"], "key=value is needed"),
        ("mine.py:task", ["=3"], "key=value is needed"),
        ("mine.py:task", ["width=3", "width=4"], "given twice"),
        ("digits-mlp", ["block=3"], "no option 'block'"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_in_one_line(folder, spec, arguments, words):
    assert words in refusal(spec, arguments, None, folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import nonexistent_thing\n", "ModuleNotFoundError: No module named 'nonexistent_thing'"),
        ("x = 1\nraise RuntimeError('bad day')\n", "bad.py line 2: RuntimeError: bad day"),
        ("def task(:\n", "bad.py line 1: SyntaxError"),
        ("import sys\nsys.exit('usage: train')\n", "if __name__ == '__main__'"),
    ],
)
@pytest.mark.parametrize("spec", ["bad.py:task", "bad:task"])
def test_a_file_that_raises_gives_its_own_last_line(folder, content, words, spec):
    (folder / "bad.py").write_text(content)
    assert words in refusal(spec, [], None, folder)
    sys.modules.pop("bad", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("task = ", "cannot be read"),
        ("task = 3\n", 'task = "file.py:function" is needed'),
        ("[task-args]\na = 1\n", 'task = "file.py:function" is needed'),
        ('task = "mine.py:task"\ntask-args = 3\n', "must be a table"),
        ('tsak = "mine.py:task"\n', "unknown key 'tsak'"),
        ('task = "mine.py:task"\n[task-args]\ndepth = 1\n', "no argument 'depth'"),
    ],
)
def test_a_malformed_toml_is_one_line(folder, content, words):
    (folder / "spectra.toml").write_text(content)
    assert words in refusal(None, [], None, folder)


def test_options_in_a_checkpoint_that_do_not_fit_are_told_with_its_path(folder, tmp_path):
    own = checkpoint(tmp_path / "a.pt", task="digits-mlp", task_args={"hidden": "many"})
    with pytest.raises(ArgumentError, match="hidden='many'") as caught:
        resolve(None, [], own, folder)
    assert str(own.path) in caught.value.__notes__[0]


def test_options_that_a_task_has_only_where_they_differ_are_taken_as_their_types():
    pytest.importorskip("sklearn")
    arguments = ["depth=2", "dropout=0.5", "widths=3-4", "label_noise=1", "validation=100"]
    source = resolve("digits-mlp", arguments)
    assert source.args["widths"] == "3-4"
    assert source.args["label_noise"] == 1.0
    assert [tuple(p.shape) for p in source.task().model.parameters()][::2] == [(3, 64), (4, 3), (10, 4)]
    plain = resolve("digits-mlp", ["depth=1", "dropout=0", "label_noise_kind=shuffled"])
    assert plain.args == resolve("digits-mlp").args
    assert plain.task().name == "digits-mlp(split='train', batch_size=256, seed=0, hidden=32)"  # as it always was
