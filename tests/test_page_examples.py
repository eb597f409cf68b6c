"""The examples in the pages run: every block of Python, page by page, in one namespace; and the notebooks.

A block that cannot be run has the line ``<!-- not run: REASON -->`` before it.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from pages import PAGES, ROOT, blocks, text_of
from torch import nn

import spectra
from spectra_cli.main import main

# Pages whose examples other tests run, since they also test the numbers.
RUN_BY = {
    "docs/migration.md": "tests/test_migration.py",
    "docs/format.md": "tests/results/storage/test_runfile.py",
    "docs/howto/training-loop.md": "tests/analysis/test_tracker.py",
}
WITH_EXAMPLES = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

TRAINING_SCRIPT = """
import torch

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))

test_set = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.randint(3, (20,)))
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(30, 4, generator=generator), torch.randint(3, (30,), generator=generator))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, from which examples can import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("train", "task"):
        sys.modules.pop(name, None)


@pytest.fixture
def names(folder):
    """What the pages take for given: a task, a vector, a matrix, and a results file of seven epochs."""
    model = network()
    task = spectra.Task(model, nn.CrossEntropyLoss(), data())
    quick = {"lanczos_steps": 6, "num_probes": 3, "check": False, "metrics": "none"}
    with spectra.Tracker(task, out="run.h5", **quick) as tracker:
        for epoch in range(7):
            tracker(epoch=epoch)
            with torch.no_grad():
                model[0].weight += 0.1
    n = sum(parameter.numel() for parameter in model.parameters())
    return {"task": task, "v": torch.ones(n), "matrix": torch.diag(torch.arange(1.0, 6.0))}


def run_page(page: str, names: dict[str, object]) -> None:
    for at, block in enumerate(blocks(page)):
        if block.language == "python" and block.run:
            exec(compile(block.text, f"{page}, block {at}", "exec"), names)


@pytest.mark.parametrize("page", sorted({*WITH_EXAMPLES} - {*RUN_BY, "README.md", "docs/start/checkpoint.md"}))
def test_the_examples_of_a_page_run(page, names):
    run_page(page, names)


def test_the_task_of_your_own_checkpoint_is_analysed(folder):
    (code,) = [block.text for block in blocks("docs/start/checkpoint.md") if block.language == "python"]
    assert code.startswith("# task.py\n")
    (folder / "task.py").write_text(code)
    (folder / "train.py").write_text(TRAINING_SCRIPT)
    torch.save(network().state_dict(), "ckpt.pt")
    quick = ["-m", "4", "-k", "2", "--no-check", "--metrics", "none"]
    done = CliRunner().invoke(main, ["analyze", "ckpt.pt", "--task", "task.py:task", *quick])
    assert done.exit_code == 0, done.output
    assert spectra.load_trajectory("run.h5")[0].facts["n_parameters"] == 4 * 5 + 5 + 5 * 3 + 3


def test_other_tests_run_the_other_pages():
    for page, test in RUN_BY.items():
        assert page in WITH_EXAMPLES
        assert page.rpartition("/")[2] in text_of(test)


def test_the_readme_prints_what_it_shows(capsys):
    """To three digits: the last ones depend on the machine."""
    shown = blocks("README.md")
    (at,) = [at for at, block in enumerate(shown) if block.language == "python"]
    run_page("README.md", {})
    printed, stated = capsys.readouterr().out.splitlines(), shown[at + 1].text.splitlines()
    assert len(printed) == len(stated)
    for ours, theirs in zip(printed, stated):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-2)


def numbers(line: str) -> list[float]:
    words = [word.strip("[],") for word in line.split()]
    return [float(word) for word in words if word.replace(".", "", 1).lstrip("-").isdigit()]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_has_the_outputs_that_are_stored_in_it(notebook, folder, monkeypatch):
    """As many lines and figures in each cell. The numbers depend on the machine, since a training is among them."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    from notebooks import executed

    assert notebook.stat().st_size < 100_000
    stored = json.loads(notebook.read_text(encoding="utf-8"))
    assert shape_of(executed(notebook)) == shape_of(stored)


def shape_of(notebook) -> list[list[object]]:
    """For each cell the number of its lines, or "figure", for each of its outputs."""
    return [
        [len(output["text"]) if "text" in output else "figure" for output in cell.get("outputs", ())]
        for cell in notebook["cells"]
    ]
