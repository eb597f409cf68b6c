"""The shape of the house: imports go strictly downward, and what a laptop reads results with never imports torch."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL_FILE = ROOT / "tests" / "data" / "v1.h5"

# From the ground up. A module may import from the floors below its own, and from nowhere else: not even from its own.
# `cli.main` is the frame of the command line: it knows the commands by name, and imports one when it is called.
FLOORS = """
    checkpoints.dialects errors exact.capture jsonable krylov.basis memory phases plots.style population randomness \
        sharing sharpness.blocks sharpness.draws version
    allowance association batches checkpoints.fitting checkpoints.rawfile columns eigenpairs exact.layers \
        exact.normalized exact.result krylov.probes operators.base operators.modes \
        overlap presets sharpness.ascent sharpness.balancing sharpness.bn_neurons sharpness.catalogue \
        sharpness.interval sharpness.measure sharpness.rescaling storage.cells storage.locking \
        storage.replacing storage.sealing training_state tridiagonal zoo.data zoo.networks.building
    checkpoints.discovery estimates exact.gradients krylov.lanczos operators.algebra operators.dense \
        operators.selftest reduction sharpness.layouts sharpness.normalized sharpness.training snapshot \
        storage.vectors trajectory zoo.networks.residual zoo.networks.small zoo.networks.vgg
    budget checkpoints.checkpoint checkpoints.selection checkpoints.watching counts deflation density \
        extremes krylov.eigsh krylov.hutchpp outliers storage.partial survey
    degeneracy determinants distribution exact.ggn_result ranks records resuming task
    differences operators.function plots.moments sharpness.per_layer zoo.tasks
    operators.checks operators.jacobian operators.passes operators.recalibration spectrum zoo.training
    crosscheck distance exact.factors krylov.slq operators.curvature plots.curves plots.draw \
        sharpness.float64_copy zoo.__main__
    comparison exact.certificate exact.samples heldout operators.displaced operators.fisher operators.ggn \
        operators.hessian operators.point plots.sheets provenance remarks sharpness.degrees \
        sharpness.folding spectrum_check storage.findings
    exact.linearised plots.compared plots.curve_sheets plots.findings plots.over_training settings \
        sharpness.adaptive sharpness.delta_sharpness sharpness.drawn_diagonals sharpness.norms \
        sharpness.scale_groups sharpness.search sharpness.train_part storage.hdf5
    exact.ggn_spectrum exact.trace plots.figures sharpness.bn_sharpness sharpness.minimum storage.stored
    sharpness.bounds sharpness.direct sharpness.fisher_rao sharpness.node_wise sharpness.penalised \
        storage.loading verification
    sharpness.measures sharpness.suite storage.runfile
    eigenspaces storage.merging
    analysis filling
    run
    tracker
    cli.grouped_help cli.main cli.merge cli.numbers cli.on_request cli.phase_clock cli.user_code
    cli.inspect cli.layout cli.progress cli.task_source
    cli.analysis_options cli.budget_table cli.comparison_table cli.findings_table cli.metrics \
        cli.preset_table
    cli.compare cli.record_table
    cli.tables
    cli.demo cli.outcome cli.show
    cli.analyze cli.plot cli.watch
""".strip().splitlines()

NUMPY_WING = """
    errors jsonable phases plots.style population sharing version allowance association columns eigenpairs exact.result
        krylov.probes overlap presets sharpness.balancing sharpness.catalogue sharpness.measure
        sharpness.rescaling storage.cells storage.locking storage.replacing storage.sealing tridiagonal
        estimates sharpness.normalized storage.vectors storage.partial trajectory budget counts deflation density
        extremes outliers degeneracy determinants distribution exact.ggn_result ranks records differences
        plots.moments spectrum crosscheck distance plots.curves plots.draw comparison plots.sheets
        spectrum_check storage.findings plots.compared plots.curve_sheets plots.findings plots.over_training
        storage.hdf5 plots.figures storage.stored storage.loading storage.runfile eigenspaces
        storage.merging cli.grouped_help cli.main cli.merge cli.numbers cli.on_request cli.user_code
        cli.layout cli.budget_table cli.comparison_table cli.findings_table cli.metrics cli.preset_table
        cli.compare cli.record_table cli.tables cli.show cli.plot
"""


def full_name(short: str) -> str:
    return f"spectra_cli.{short.removeprefix('cli.')}" if short.startswith("cli.") else f"spectra.{short}"


def source_files() -> dict[str, Path]:
    """Module name -> file, of both packages."""
    found = {}
    for base, package in ((ROOT, "spectra"), (ROOT / "cli", "spectra_cli")):
        for file in (base / package).rglob("*.py"):
            parts = file.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = source_files()
FLOOR = {full_name(name): number for number, names in enumerate(FLOORS) for name in names.split()}


def imports_of(file: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of our own, within functions too; those for type checkers alone do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} line {node.lineno}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in inner]
        else:
            continue
        found += [(node.lineno, name) for name in names if name.split(".")[0] in ("spectra", "spectra_cli")]
    return found


def is_empty(file: Path) -> bool:
    """Whether a package's own file is a docstring and nothing else."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text(encoding="utf-8")).body)


def test_every_module_stands_on_one_floor():
    names = [full_name(name) for names in FLOORS for name in names.split()]
    assert len(names) == len(set(names))
    packages = {name for name, file in FILES.items() if file.name == "__init__.py"}
    assert set(FILES) - packages == set(names), "place the new module in FLOORS, or take the old one out"
    assert all(is_empty(FILES[name]) for name in packages - {"spectra"})


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_imports_go_strictly_downward(name):
    file = FILES[name]
    for line, imported in imports_of(file):
        where = f"{file.relative_to(ROOT)} line {line} imports {imported}"
        assert imported != "spectra", f"{where}: its names are for users; import the module that has them"
        assert imported in FLOOR, f"{where}: no such module"
        assert FLOOR[imported] < FLOOR[name], (
            f"{where}, which is on floor {FLOOR[imported]}; {name} is on floor {FLOOR[name]} and may look down only"
        )


def test_an_import_that_goes_up_would_be_found(tmp_path):
    file = tmp_path / "up.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from spectra.run import Outcome\n"
        "def f():\n    from spectra import analysis, Task\n    import spectra.task\n"
    )
    assert imports_of(file) == [(5, "spectra.analysis"), (5, "spectra"), (6, "spectra.task")]


def fresh_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_the_numpy_wing_imports_no_torch():
    """In one process, in the order of the floors; the first module after which torch is there is named."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {[full_name(name) for name in NUMPY_WING.split()]!r}:\n"
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
