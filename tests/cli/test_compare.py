"""`spectra compare`: the numbers of a comparison, the one line on what may be concluded, errors in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from reference import bulk_with_outliers, probes_of
from run_files import SETTINGS, failed_record, make_record

from spectra.errors import ArgumentError
from spectra.results.exact_trace import ExactTrace
from spectra.results.storage.runfile import RunFile
from spectra.spectrum.spectrum import Spectrum
from spectra_cli.compare import group
from spectra_cli.main import main

VALUES = bulk_with_outliers(150, 0)


def write(name: str, scale: float, *, modes=("eval",), epochs=(0.0, 1.0), operator="hessian", **settings) -> None:
    with RunFile.open(name, SETTINGS | settings) as run:
        for epoch in epochs:
            for mode in modes:
                factor = scale * (1 + epoch) * (0.5 if mode == "train" else 1)
                spectrum = Spectrum(probes_of(factor * VALUES, 16, 4, 0), 150, seed=0)
                run.append(make_record(epoch, operator, mode, spectrum=spectrum, settings=SETTINGS | settings))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, scale in (("a", 1.0), ("b", 1.1), ("c", 2.0), ("d", 2.1)):
        write(f"{name}.h5", scale)
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(main, ["compare", *arguments])


def test_two_runs_stand_side_by_side_and_it_is_said_what_that_means(here):
    result = run("a.h5", "c.h5")
    assert result.exit_code == 0, result.stderr
    assert "one run each: the difference of these two runs, not of the optimizers" in result.stdout
    assert "c less a" in result.stdout
    assert "shared probes, paired" in result.stdout
    assert "noise floor of the probes" in result.stdout
    assert result.stderr == ""


def test_several_runs_under_labels_are_judged_by_their_spread(here):
    result = run("--label", "sgd=a.h5,b.h5", "--label", "adam=c.h5,d.h5")
    assert result.exit_code == 0, result.stderr
    assert "adam less sgd" in result.stdout
    assert "runs (Welch) and probes" in result.stdout
    assert "one run each" not in result.stdout
    mixed = run("--label", "sgd=a.h5,b.h5", "c.h5")
    assert "an arm of one run has no spread" in mixed.stdout


def test_the_last_checkpoint_is_compared_unless_an_epoch_is_named(here):
    def trace(*more):
        entries = json.loads(run("a.h5", "c.h5", "--json", *more).stdout)
        return next(q["value"] for q in entries["quantities"] if q["quantity"] == "trace")

    assert trace() == trace("--last") == pytest.approx(2 * trace("--epoch", "0"))


def test_a_failed_last_checkpoint_is_passed_over_and_the_epochs_are_said_to_differ(here):
    with RunFile.open("a.h5", SETTINGS) as file:
        file.append(failed_record(2.0))
    write("e.h5", 1.0, epochs=(0.0,))
    assert run("a.h5", "c.h5").exit_code == 0
    result = run("a.h5", "e.h5")
    assert "spectra: warning: the epochs are not the same: 1, 0" in result.stderr


def test_modes_of_one_file_are_compared(here):
    write("both.h5", 1.0, modes=("eval", "train"))
    result = run("both.h5", "--bn", "eval", "--bn", "train", "--json")
    assert result.exit_code == 0, result.stderr
    entries = json.loads(result.stdout)
    assert [arm["label"] for arm in entries["arms"]] == ["eval", "train"]
    found = next(d for d in entries["differences"] if d["quantity"] == "lambda_max")
    assert found["value"] == pytest.approx(-VALUES.max(), rel=1e-3)
    result = run("both.h5", "both2.h5", "--bn", "eval", "--bn", "train")
    assert result.exit_code == 1  # there is no such file


def test_csv_has_a_row_per_number_with_all_digits(here):
    result = run("a.h5", "c.h5", "--csv")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    kinds = {(row["quantity"], row["arm"], row["against"]) for row in rows}
    assert {("trace", "a", ""), ("trace", "c", ""), ("trace", "c", "a"), ("wasserstein", "c", "a")} <= kinds
    assert ("wasserstein_floor", "c", "a") in kinds
    difference = next(row for row in rows if (row["quantity"], row["against"]) == ("trace", "a"))
    values = [float(row["value"]) for row in rows if row["quantity"] == "trace" and not row["against"]]
    assert float(difference["value"]) == pytest.approx(values[1] - values[0], rel=1e-12)
    assert 0 < float(difference["p_value"]) < 1


@pytest.mark.parametrize("name", ["out.png", "out.svg"])
def test_the_figure_is_written(here, name):
    result = run("a.h5", "c.h5", "--plot", name)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"{name}\n"
    assert Path(name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.h5"], "1 run or label to compare: at least 2 are needed"),
        ([], "no file to compare"),
        (["a.h5", "a.h5"], "a.h5: is given twice; a run counts once"),
        (["a.h5", "missing.h5"], "missing.h5: no such file"),
        (["--label", "x", "a.h5"], "--label 'x': NAME=FILE,FILE is needed"),
        (["--label", "x=a.h5,a.h5", "c.h5"], "a.h5: is given twice"),
        (["a.h5", "c.h5", "--epoch", "9"], "a.h5: epoch=9.0: no record of hessian eval has it; there are 0, 1"),
        (["a.h5", "c.h5", "--bn", "train"], "train: not in every file: a.h5 has hessian eval"),
        (["a.h5", "g.h5"], "not in every file: a.h5 has hessian eval; g.h5 has ggn eval"),
        (["a.h5", "sum.h5"], "losses that are a mean and sum cannot be compared"),
        (["a.h5", "failed.h5"], "failed.h5: no complete record of hessian eval"),
    ],
)
def test_refusals_are_one_line(here, arguments, words):
    write("g.h5", 1.0, operator="ggn")
    write("sum.h5", 1.0, reduction="sum")
    with RunFile.open("failed.h5", SETTINGS) as file:
        file.append(failed_record(0.0))
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("spectra: error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--epoch", "x"], ["--last", "--epoch", "1"], ["--plot", "x.bmp"]])
def test_wrong_usage_is_exit_code_2(here, options):
    assert run("a.h5", "c.h5", *options).exit_code == 2


def test_files_of_one_name_are_told_apart_by_their_folders():
    assert group(["x/run.h5", "y/run.h5"], []) == {"x/run.h5": ["x/run.h5"], "y/run.h5": ["y/run.h5"]}
    assert group(["a.h5"], ["a=b.h5"]) == {"a": ["b.h5"], "a.h5": ["a.h5"]}
    assert group(["a.h5"], ["x=a.h5", "x=b.h5"]) == {"x": ["a.h5", "b.h5"]}
    with pytest.raises(ArgumentError, match="is given twice"):
        group([], ["x=a.h5", "y=a.h5"])


def test_exact_traces_are_marked_and_have_no_error(here):
    for name, total in (("x", 30.0), ("y", 41.5)):
        with RunFile.open(f"{name}.h5", SETTINGS) as file:
            spectrum = Spectrum(probes_of(VALUES, 16, 4, 0), 150, seed=0)
            exact = ExactTrace(total=total, by_layer={"w": total}, kind="hessian", certified={"w": True})
            file.append(make_record(0.0, spectrum=spectrum, exact=exact))
    text = run("x.h5", "y.h5").stdout
    lines = [line.split() for line in text.splitlines() if line.startswith("trace ")]
    assert lines == [["trace", "30", "exact", "41.5", "exact"], ["trace", "11.5", "exact", "exact", "numbers"]]
    mixed = run("x.h5", "a.h5").stdout
    (values, difference) = [line.split() for line in mixed.splitlines() if line.startswith("trace ")]
    assert values[1:3] == ["30", "exact"]
    assert difference[-1] == "probes"
