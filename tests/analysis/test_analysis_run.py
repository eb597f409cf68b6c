"""One value holds what a run shares, so that functions of the analysis take few parameters."""

from __future__ import annotations

import ast
from contextlib import ExitStack
from pathlib import Path

import pytest

import spectra
from spectra.analysis.analysis_run import AnalysisRun
from spectra.analysis.settings import DataChoice, RunSettings, Settings
from spectra.analysis.store import Listener
from spectra.errors import ArgumentError, StorageError
from spectra.results.storage.lock import only_writer

SOURCES = sorted((Path(spectra.__file__).parent / "analysis").glob("*.py"))
MOST = 6
PUBLIC = {"iter_analyze", "Tracker.__init__"}  # their parameters are names that users type


def functions(tree, within=""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{within}{node.name}", node.args
        named = f"{within}{node.name}." if isinstance(node, ast.ClassDef) else within
        yield from functions(node, named)


def parameters(arguments):
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    others = [one.arg for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [name for name in names if name not in ("self", "cls")] + others


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_functions_of_the_analysis_have_at_most_six_parameters(source):
    found = {name: len(parameters(arguments)) for name, arguments in functions(ast.parse(source.read_text()))}
    assert {name: count for name, count in found.items() if count > MOST and name not in PUBLIC} == {}


def test_a_run_without_a_file_says_so():
    run = AnalysisRun(RunSettings())
    with pytest.raises(StorageError, match="has no results file"):
        _ = run.store
    assert (run.settings, run.asked.data, run.unfinished) == (Settings(), DataChoice(), None)


def test_the_file_of_a_run_is_locked_until_its_stack_is_closed(tmp_path):
    asked = RunSettings(out=tmp_path / "run.h5", data=DataChoice(samples=3))
    with ExitStack() as stack:
        run = AnalysisRun.open(asked, Listener(), stack)
        assert run.extra == {"samples": 3, "data_seed": 0}
        assert (run.store.unfinished, run.store.eigenspaces) == (run.unfinished, run.eigenspaces)
        with pytest.raises(StorageError, match="writing it already"), only_writer(asked.out):
            pass
    with only_writer(asked.out):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", [{"device": "gpu"}, {"device": "cuda:99"}, {"device": "meta"}])
def test_a_device_that_is_not_there_is_refused_before_the_file_is_locked(asked, tmp_path):
    with ExitStack() as stack:
        with pytest.raises(ArgumentError, match="device="):
            AnalysisRun.open(RunSettings(out=tmp_path / "run.h5", **asked), Listener(), stack)
        with only_writer(tmp_path / "run.h5"):
            pass


def test_a_size_that_is_none_is_refused_when_it_is_asked_for():
    with pytest.raises(ArgumentError, match="max_size="):
        RunSettings(max_size="much")
