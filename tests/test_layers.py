"""The architecture, from the real imports: no circle between files or folders, and results are read without torch."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL_FILE = ROOT / "tests" / "data" / "v1.h5"

# What a laptop without torch must be able to use: these folders whole, and the commands that read results.
TORCH_FREE = ("spectrum", "results", "results.storage", "figures", "report")
READERS = ("compare", "merge", "metrics", "plot", "report", "show")

# The most levels of folders, the command line included.
LEVELS = 9


def source_files() -> dict[str, Path]:
    """Module name -> file, of both packages."""
    found = {}
    for base, package in ((ROOT, "spectra"), (ROOT / "cli", "spectra_cli")):
        for file in (base / package).rglob("*.py"):
            parts = file.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = source_files()


def imports_of(file: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of our own, those within functions and for type checkers included."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} line {node.lineno}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in inner]
        else:
            continue
        found += [(node.lineno, name) for name in names if name.split(".")[0] in ("spectra", "spectra_cli", "torch")]
    return found


def folder_of(module: str) -> str:
    """``spectrum`` of ``spectra.spectrum.density``; a module at the top is its own folder; the commands are one."""
    package, *rest = module.split(".")
    return "command line" if package == "spectra_cli" else ".".join(rest[:-1] or rest)


def is_empty(file: Path) -> bool:
    """Whether a package's own file is a docstring and nothing else."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text(encoding="utf-8")).body)


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Name -> the length of the longest chain of imports below it. An import circle raises ``CycleError``."""
    found: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        found[name] = max((found[below] + 1 for below in graph[name]), default=0)
    return found


def files_graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    modules = {name: file for name, file in FILES.items() if file.name != "__init__.py"}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        for line, imported in imports_of(file):
            where = f"{file.relative_to(ROOT)} line {line} imports {imported}"
            if imported.split(".")[0] == "torch":
                assert folder_of(name) not in TORCH_FREE, f"{where}: this folder is read without torch"
                continue
            assert imported != "spectra", f"{where}: its names are for users; import the module that has them"
            assert imported in FILES, f"{where}: no such module"
            graph[name].add(imported)
    return graph


def test_there_is_no_import_circle_between_files():
    graph = files_graph()
    packages = FILES.keys() - graph.keys()
    levels(graph | {name: set() for name in packages})
    assert all(is_empty(FILES[name]) for name in packages - {"spectra"})


def test_there_is_no_import_circle_between_folders_and_they_are_few_levels():
    graph: dict[str, set[str]] = {}
    for name, imported in files_graph().items():
        graph.setdefault(folder_of(name), set()).update(map(folder_of, imported))
    for name, below in graph.items():
        below.discard(name)
    assert max(levels(graph).values()) < LEVELS


def test_an_import_circle_would_be_found():
    assert levels({"a": {"b"}, "b": {"c"}, "c": set()}) == {"c": 0, "b": 1, "a": 2}
    with pytest.raises(graphlib.CycleError):
        levels({"a": {"b"}, "b": {"a"}})


def test_imports_within_functions_and_for_types_count(tmp_path):
    file = tmp_path / "up.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from spectra.analysis.run import Outcome\n"
        "def f():\n    from spectra import jsonable, Task\n    import torch.nn\n"
    )
    assert imports_of(file) == [(3, "spectra.analysis.run"), (5, "spectra.jsonable"), (5, "spectra"), (6, "torch.nn")]


def fresh_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_what_reads_results_imports_no_torch():
    """With all that these import; the first after which torch is there is named."""
    names = [name for name in FILES if name.startswith("spectra.") and folder_of(name) in TORCH_FREE]
    names += [f"spectra_cli.{name}" for name in READERS]
    code = (
        "import importlib, json, sys\n"
        f"for name in {sorted(names)!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(f'{name} imports torch')\n"
        "import spectra\n"
        "spectra.load_trajectory, spectra.Spectrum, spectra.Estimate, spectra.Density, spectra.Trajectory\n"
        "sys.exit('torch came with the names of spectra' if 'torch' in sys.modules else 0)\n"
    )
    done = fresh_python(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_show_imports_no_torch(form):
    code = (
        "import sys\n"
        "from spectra_cli.main import main\n"
        f"try:\n    main(['show', {str(SMALL_FILE)!r}, *{form!r}])\n"
        "except SystemExit as stop:\n    print('END', stop.code or 0, 'torch' in sys.modules)\n"
    )
    done = fresh_python(code)
    assert done.stdout.endswith("END 0 False\n"), done.stderr
    if form == ["--json"]:
        assert json.loads(done.stdout.removesuffix("END 0 False\n"))[0]["estimates"]["trace"]["value"] is not None


def test_importing_spectra_loads_nothing_heavy():
    done = fresh_python("import sys, spectra; print(sorted({'torch', 'numpy', 'scipy', 'h5py'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr
