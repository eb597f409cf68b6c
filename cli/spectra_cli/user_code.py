"""Importing and calling the user's task function; its exceptions become errors of one line.

While the user's file is imported and its function called, its folder is first on ``sys.path``, as when Python runs the
file. Afterwards it is last: imports inside of the model's ``forward`` still find the files in its folder, and none of
these can take the place of a module that spectra or torch imports later.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra.errors import SpectraError, TaskError
from spectra.task.user_errors import place_of, words_of

if TYPE_CHECKING:
    from spectra.task.task import Task


@dataclass(frozen=True)
class Typed:
    """A value as it was typed on the command line, before its type is known."""

    text: str

    def __repr__(self) -> str:
        return f"Typed({self.text!r})"


def settle(value: Any, *, as_text: bool) -> Any:
    """The value of a typed text: a Python literal if it is one, ``true`` / ``false``, else a text; others stay.

    Example:
        >>> [settle(Typed(text), as_text=False) for text in ("8", "1e-3", "[1, 2]", "true", "a/b")]
        [8, 0.001, [1, 2], True, 'a/b']
        >>> settle(Typed("1e-3"), as_text=True), settle(0.5, as_text=False)
        ('1e-3', 0.5)
    """
    if not isinstance(value, Typed):
        return value
    if as_text:
        return value.text
    if value.text.lower() in ("true", "false"):
        return value.text.lower() == "true"
    try:
        return ast.literal_eval(value.text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value.text


def import_file(file: Path, name: str, spec: str) -> Callable[..., Any]:
    """A function of a Python file.

    Raises:
        TaskError: no such file or function, or the file raises while it is imported.
    """
    file = file.resolve()
    if not file.is_file():
        raise TaskError(f"task {spec}: there is no file {file}")
    # A name of its own: a file called test.py or token.py must not take the place of Python's module.
    module_name = f"spectra_task_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(module_name, file)
    if found is None or found.loader is None:
        raise TaskError(f"task {spec}: {file} cannot be imported")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up there
    try:
        with _first_on_path(file.parent), _one_line(spec, file):
            found.loader.exec_module(module)
    except TaskError:
        del sys.modules[module_name]
        raise
    return _function(module, name, spec, str(file))


def import_module(module_name: str, name: str, spec: str, folder: Path) -> Callable[..., Any]:
    """A function of a module that can be imported from ``folder`` or is installed.

    Raises:
        TaskError: no such module or function, or the module raises while it is imported.
    """
    with _first_on_path(folder.resolve()):
        try:
            with _one_line(spec, None):
                module = importlib.import_module(module_name)
        except TaskError as error:
            cause = error.__cause__
            missing = isinstance(cause, ModuleNotFoundError) and cause.name is not None
            if missing and (module_name == cause.name or module_name.startswith(f"{cause.name}.")):  # type: ignore[union-attr]
                raise TaskError(
                    f"task {spec}: there is no module {module_name!r}, neither in {folder} nor installed"
                ) from cause
            raise
    return _function(module, name, spec, module_name)


def bind(function: Callable[..., Any], args: Mapping[str, Any], spec: str) -> tuple[dict[str, Any], bool]:
    """Check arguments against the signature of a task function; whether it has a parameter ``checkpoint``.

    Raises:
        TaskError: an argument that the function does not take, or one that it needs and is not given.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # some callables written in C have none; the call shows what they accept
        return {name: settle(value, as_text=False) for name, value in args.items()}, False
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    per_checkpoint = "checkpoint" in named
    takes = ", ".join(name for name in named if name != "checkpoint") or "none"
    for name in args:
        if name == "checkpoint" and per_checkpoint:
            raise TaskError(f"task {spec}: its argument 'checkpoint' is given by spectra, not by --task-arg")
        if name not in named and not takes_any:
            raise TaskError(f"task {spec}: it has no argument {name!r}; its arguments: {takes}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in args and name != "checkpoint":
            raise TaskError(f"task {spec}: its argument {name!r} is not given: --task-arg {name}=VALUE; it has {takes}")
    if needed := [p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]:
        raise TaskError(f"task {spec}: its argument {needed[0]!r} cannot be given by name")
    settled = {name: settle(value, as_text=_wants_text(named.get(name))) for name, value in args.items()}
    return settled, per_checkpoint


def call(function: Callable[..., Any], args: Mapping[str, Any], spec: str, home: Path) -> Task:
    """Call a task function, with its folder first on ``sys.path``.

    Raises:
        TaskError: it raises, or returns something else than a Task.
    """
    from spectra.task.task import Task

    with _first_on_path(home), _one_line(spec, None):
        made = function(**args)
    if not isinstance(made, Task):
        what = "None (is a return missing?)" if made is None else f"a {type(made).__name__}"
        raise TaskError(f"task {spec}: it returned {what}, not a spectra.Task")
    return made


def _function(module: Any, name: str, spec: str, where: str) -> Callable[..., Any]:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            there = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
            own = [n for n in there if getattr(module, n).__module__ == module.__name__]
            has = f"; it has {', '.join(own)}" if own else ""
            raise TaskError(f"task {spec}: there is no {name!r} in {where}{has}")
        found = getattr(found, part)
    if not callable(found):
        raise TaskError(
            f"task {spec}: {name!r} is a {type(found).__name__}, not a function that returns a spectra.Task"
        )
    function: Callable[..., Any] = found
    return function


def _wants_text(parameter: inspect.Parameter | None) -> bool:
    """Whether an argument is annotated as a text, so that ``run=007`` is one although it looks like a number."""
    return parameter is not None and parameter.annotation in (str, "str")


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    was_there = entry in sys.path
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have changed the path
            sys.path.remove(entry)
        if not was_there and entry not in sys.path:
            sys.path.append(entry)


@contextlib.contextmanager
def _one_line(spec: str, file: Path | None) -> Iterator[None]:
    """Turn an exception of the user's code into a TaskError with its message and its place."""
    try:
        yield
    except SpectraError as error:
        error.add_note(f"in task {spec}")
        raise
    except SystemExit as error:
        where = str(file) if file is not None else spec
        raise TaskError(
            f"task {spec}: {where} called sys.exit({error.code!r}): put what must only run as a script under "
            "if __name__ == '__main__'"
        ) from error
    except Exception as error:
        place = place_of(error)
        where = f"{place}: " if place else ""
        raise TaskError(f"task {spec}: {where}{words_of(error)} (--debug shows the traceback)") from error
