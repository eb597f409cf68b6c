"""What is installed: both packages, typed, with the command; and nothing called cli, tests or analyses."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import spectra
from spectra.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILD_TOOLS = ("setuptools", "build")
needs_build_tools = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in BUILD_TOOLS),
    reason=f"needs {', '.join(BUILD_TOOLS)}, since nothing is downloaded here",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of the sources: a build writes into its own folder."""
    folder = tmp_path_factory.mktemp("sources")
    for entry in ("spectra", "cli", "tests", "analyses", "benchmarks", "docs"):
        if (ROOT / entry).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.h5")
            shutil.copytree(ROOT / entry, folder / entry, ignore=left_out)
    for entry in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / entry, folder / entry)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", "dist", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@needs_build_tools
def test_the_wheel_holds_both_packages_whole_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"hessian_spectra-{__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if ".dist-info/" in name}
    expected = {
        file.relative_to(base).as_posix()
        for base, package in ((ROOT, "spectra"), (ROOT / "cli", "spectra_cli"))
        for file in (base / package).rglob("*")
        if file.suffix == ".py" or file.name == "py.typed" or file.parent.name in ("static", "templates")
    }
    assert names - metadata == expected
    assert {"spectra/py.typed", "spectra_cli/py.typed"} <= names
    assert {"spectra/report/templates/page.html", "spectra/report/static/uPlot.LICENSE"} <= names
    assert {name.split("/")[0] for name in names - metadata} == {"spectra", "spectra_cli"}


@needs_build_tools
def test_the_wheel_declares_the_command_the_version_and_what_it_needs(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        info = f"hessian_spectra-{__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
        top_level = archive.read(f"{info}/top_level.txt").decode().split()
        assert any(name.startswith(f"{info}/licenses/") for name in archive.namelist())
    assert "[console_scripts]\nspectra = spectra_cli.main:main" in entry_points
    assert top_level == ["spectra", "spectra_cli"]
    for line in ("Name: hessian-spectra", f"Version: {__version__}", "Requires-Python: >=3.11"):
        assert f"{line}\n" in metadata
    assert "Requires-Dist: torchvision" not in metadata


@needs_build_tools
def test_the_sdist_can_be_built_from_again(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "spectra/task/task.py", "cli/spectra_cli/main.py"} <= inside
    assert {"spectra/py.typed", "cli/spectra_cli/py.typed"} <= inside


@pytest.mark.parametrize("name", spectra.__all__)
def test_every_public_name_is_there(name):
    value = getattr(spectra, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_public_names_are_all_and_only_those_listed():
    assert set(spectra.__all__) == {*spectra._HOME, "__version__"}
    assert set(spectra.__all__) <= set(dir(spectra))
    assert list(spectra.__all__) == sorted(spectra.__all__)
    with pytest.raises(AttributeError, match="'spectra' has no attribute 'nonsense'"):
        _ = spectra.nonsense


def test_the_names_of_type_checkers_are_those_that_are_loaded():
    """The block under TYPE_CHECKING and the table of homes say the same."""
    tree = ast.parse(Path(spectra.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == set(spectra._HOME)


def test_the_version_is_one():
    assert spectra.__version__ == __version__
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "spectra.version.__version__"}
    assert importlib.metadata.version("hessian-spectra") == __version__


def test_the_command_is_installed_and_points_at_something():
    (command,) = importlib.metadata.distribution("hessian-spectra").entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("spectra", PROJECT["project"]["scripts"]["spectra"])
    assert callable(command.load())


def test_nothing_called_cli_or_tests_comes_with_the_installation(tmp_path):
    code = "import importlib.util as u; print([n for n in ('cli', 'analyses', 'benchmarks') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "[]\n", done.stderr
