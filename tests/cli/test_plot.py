"""`spectra plot`: paths on standard output, errors in one line, nothing left behind by a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from run_files import SETTINGS, failed_record, make_record

from spectra.results.storage.runfile import RunFile
from spectra_cli.main import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the file of a run of two checkpoints, and one of a run that failed."""
    monkeypatch.chdir(tmp_path)
    with RunFile.open("run.h5", SETTINGS) as run:
        for epoch in (0.0, 1.0):
            for mode in ("eval", "train"):
                run.append(make_record(epoch, bn_mode=mode))
    with RunFile.open("failed.h5", SETTINGS) as run:
        run.append(failed_record(0.0))
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(main, ["plot", *arguments])


def test_all_that_applies_goes_into_a_folder_named_after_the_file(here):
    result = run("run.h5")
    assert result.exit_code == 0, result.stderr
    paths = result.stdout.splitlines()
    assert sorted(paths) == sorted(str(path) for path in Path("run-figures").iterdir())
    kinds = ("density", "stems", "cumulative", "degeneracy", "negative", "layers", "modes")
    over = ("trajectory", *(f"{kind}-training" for kind in ("density", "degeneracy", "layers", "modes")))
    assert paths == [f"run-figures/{kind}-hessian-epoch{epoch}.png" for kind in kinds for epoch in (0, 1)] + [
        f"run-figures/{kind}-hessian.png" for kind in over
    ]
    assert all(Path(path).stat().st_size > 5000 for path in paths)


def test_options_choose_kind_epoch_mode_format_and_folder(here):
    arguments = "--what density --epoch 1 --operator hessian --bn train --format svg --format pdf --out pictures"
    result = run("run.h5", *arguments.split())
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [f"pictures/density-hessian-epoch1.{form}" for form in ("svg", "pdf")]
    drawn = Path("pictures/density-hessian-epoch1.svg").read_bytes()
    assert b"#d55e00" in drawn.lower()  # the colour of train mode
    assert b"#0072b2" not in drawn.lower()  # that of eval mode


def test_a_folder_that_is_there_is_used_and_what_is_in_it_stays(here):
    Path("pictures").mkdir()
    Path("pictures/mine.txt").write_text("mine")
    assert run("run.h5", "--what", "trajectory", "--out", "pictures").exit_code == 0
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["mine.txt", "trajectory-hessian.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.h5"], "missing.h5: no such file"),
        (["text.h5"], "text.h5: "),
        (["failed.h5"], "failed.h5: nothing to draw: all 1 records failed; the first: NaN weights"),
        (["run.h5", "--epoch", "9"], "epoch=9: no record has it; there are 0, 1"),
        (["run.h5", "--operator", "ggn"], "no such records; there are operators hessian"),
        (["run.h5", "--bn", "eval", "--what", "modes"], "modes needs batch norm in eval and in train mode"),
        (["run.h5", "--out", "a/b"], "a/b: the folder a does not exist; create it first"),
        (["run.h5", "--out", "text.h5"], "text.h5: is a file"),
        (["run.h5", "--out", "text.h5/b"], "text.h5/b: the folder cannot be made: not a directory"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(here, arguments, words):
    Path("text.h5").write_text("not a results file")
    before = sorted(here.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("spectra: error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("option", [("--what", "pie"), ("--format", "bmp"), ("--epoch", "last")])
def test_wrong_usage_is_exit_code_2(here, option):
    result = run("run.h5", *option)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
