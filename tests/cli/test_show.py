"""``spectra show`` prints every number with its error: to people, and to programs without losing a digit."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from run_files import SETTINGS, failed_record, make_record

from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal
from spectra_cli import numbers
from spectra_cli.main import main
from spectra_cli.record_table import origin_of

TESTS = Path(__file__).parent.parent


def show(*arguments: object):
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


def write(path, *records):
    with RunFile.open(path, SETTINGS) as run:
        for record in records:
            run.append(record)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    records = [make_record(epoch, operator) for epoch in (0, 1, 2) for operator in ("hessian", "ggn")]
    return write(tmp_path_factory.mktemp("runs") / "run.h5", *records, failed_record(3))


def row(text: str, start: str) -> list[str]:
    """The cells of the line that begins with a word: they stand at least two blanks apart."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [start]]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


# --- tables -------------------------------------------------------------------------------------------------------


def test_what_was_analysed_comes_first(path):
    text = show(path).stdout
    for words in (
        "run.h5: 7 records",
        "digits-convnet",
        "cross-entropy, mean over the data (samples)",
        "mean, l2 = 0",
        "N = 138 in batches of 2 x 64, 1 x 10",
        "n = 200",
        "m = 12 steps, k = 4 probes (sphere, seed 0), float32",
    ):
        assert words in text


def test_a_run_has_a_table_per_operator_and_a_row_per_checkpoint(path):
    result = show(path)
    assert result.exit_code == 0
    first, second = result.stdout.split("ggn, BN eval: 3 checkpoints")
    assert "hessian, BN eval: 4 checkpoints" in first
    for part in (first, second):
        for epoch in (0, 1, 2):
            cells = row(part, str(epoch))
            estimates = make_record(epoch).estimates
            assert cells[1] == f"{2.5 / (1 + epoch):.5g}"
            assert cells[2] == "0.75"
            assert cells[3].removesuffix(" *") == numbers.with_error(
                estimates["trace"].value, estimates["trace"].stderr
            )
            top, low = estimates["lambda_max"], estimates["lambda_min"]
            assert cells[5] == f"{top.lower:.4g} to {top.upper:.4g}"
            assert cells[6] == numbers.as_range(low)
            assert f"(tau {estimates['rank_degeneracy'].tau:.2g})" in cells[7]
    assert row(first, "3")[1] == "failed"
    assert "ckpt_3.pt epoch 3 hessian, BN eval: failed: NaN weights" in first


def test_a_number_with_a_warning_is_starred_and_the_warning_printed(tmp_path):
    warned = {
        "trace": Estimate(1.0, 0.1, 0.8, 1.2, 4, note="too narrow"),
        "frobenius_norm": Estimate(2.0, 0.1, 1, 3, 4),
    }
    records = [make_record(epoch, cached_estimates=warned) for epoch in (0, 1)]
    text = show(write(tmp_path / "run.h5", *records)).stdout
    assert row(text, "1")[3:5] == ["1.00 +- 0.10 *", "2.00 +- 0.10"]
    assert "* trace: too narrow (2 records)" in text
    assert "TF32 was off (2 records)" in text


def test_a_count_that_is_not_resolved_is_its_bracket_and_never_a_value(tmp_path):
    vague = {"rank_degeneracy": Estimate(0.0, None, 0.0, 0.72, 4, tau=1e-6, resolved=False, note="not resolved with m")}
    path = write(tmp_path / "run.h5", *(make_record(epoch, cached_estimates=vague) for epoch in (0, 1)))
    assert row(show(path).stdout, "0")[-1] == "not resolved: 0 to 0.72 (tau 1e-06)"
    cells = row(show(path, "--epoch", 0).stdout, "rank_degeneracy")
    assert cells == ["rank_degeneracy", "-", "[0, 0.72]", "steps", "tau = 1e-06; not resolved"]
    cells = row(show(path, "--epoch", 0, "--all").stdout, "rank_degeneracy")
    assert cells == ["rank_degeneracy", "-", "[0, 0.72]", "steps", "tau = 1e-06; not resolved with m"]


def test_a_number_that_could_not_be_computed_is_a_dash_with_its_reason(tmp_path):
    none = {"stable_rank": Estimate(math.nan, None, None, None, 4, note="0/0 is no number")}
    one = show(write(tmp_path / "one.h5", make_record(0, cached_estimates=none)))
    assert row(one.stdout, "stable_rank") == ["stable_rank", "-", "*"]
    pair = [make_record(0, operator, cached_estimates=none) for operator in ("hessian", "ggn")]
    path = write(tmp_path / "two.h5", *pair)
    two = show(path)
    assert row(two.stdout, "stable_rank") == ["stable_rank", "- *", "- *"]
    for text in (one.stdout, two.stdout):
        assert "* stable_rank: 0/0 is no number" in text
        assert "nan" not in text
    entry = json.loads(show(path, "--json").stdout)[0]["estimates"]["stable_rank"]
    assert (entry["value"], entry["reason"]) == (None, "0/0 is no number")


def test_all_of_a_single_record_is_shown_in_full(path):
    result = show(path, "--epoch", 1, "--operator", "ggn", "--all")
    assert result.exit_code == 0
    text = result.stdout
    record = make_record(1, "ggn")
    for name, estimate in record.estimates.items():
        cells = row(text, name)
        value, error = numbers.number(estimate)
        assert cells[1 : 2 + bool(error)] == ([value, error] if error else [value])
        assert cells[2 + bool(error)] == numbers.interval(estimate.lower, estimate.upper)
        if estimate.note:
            assert estimate.note.split(":")[0] in text
    for name, estimate in record.spectrum.tensor_traces().items():
        size = record.spectrum.tensor_sizes[name]
        assert row(text, name) == [name, str(size), *numbers.rounded(estimate.value, estimate.stderr)]
    curve = record.spectrum.degeneracy_curve()
    assert sum(line.rstrip().endswith("not resolved") for line in text.splitlines()) == int((~curve.resolved).sum())
    for words in ("loss of the data  1.25", "46 products, 1.5 s, on cpu, 2 threads", "noise 1.0e-07", "! TF32 was off"):
        assert words in text


def test_nothing_is_cut_off_where_there_is_no_terminal(tmp_path):
    name = "stage3.block12.convolution.with.a.very.long.name." + "x" * 150
    spectrum = Spectrum([Tridiagonal([1.0, 2.0], [0.5, 0.0])], 3, tensor_sizes={name: 3}, tensor_forms=np.ones((1, 1)))
    path = write(tmp_path / "run.h5", make_record(spectrum=spectrum, notes=("n" * 300,)))
    text = show(path, "--all").stdout
    assert name in text
    assert "n" * 300 in text
    assert "…" not in text


def test_a_narrow_terminal_folds_and_does_not_cut(path):
    from rich.console import Console

    from spectra_cli.tables import print_trajectory

    stream = io.StringIO()
    print_trajectory(load_trajectory(path), Console(file=stream, width=60))
    text = stream.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines()[8:12])) <= 60


def test_a_stream_that_knows_only_ascii_gets_a_report(path):
    done = subprocess.run(
        [sys.executable, "-m", "spectra_cli.main", "show", str(path)],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert b"lambda_max" in done.stdout


# --- JSON and CSV -------------------------------------------------------------------------------------------------


def test_json_is_a_list_of_the_records_with_every_digit(path):
    result = show(path, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""

    def refuse(word):
        raise AssertionError(f"{word} in JSON")

    entries = json.loads(result.stdout, parse_constant=refuse)
    records = list(load_trajectory(path))
    assert [{"file": str(path), **record.to_json()} for record in records] == entries
    assert entries[0]["estimates"]["trace"]["value"] == make_record(0).spectrum.trace().value
    failed = [entry for entry in entries if entry["status"] == "failed"]
    assert [(entry["loss"], entry["estimates"], entry["reason"]) for entry in failed] == [(None, {}, "NaN weights")]


def test_csv_has_a_row_per_record_and_estimate(path):
    rows = list(csv.DictReader(io.StringIO(show(path, "--csv").stdout)))
    records = list(load_trajectory(path))
    assert len(rows) == sum(max(1, len(record.estimates)) for record in records)
    for record in records:
        for name, estimate in record.estimates.items():
            (found,) = [
                row
                for row in rows
                if (row["epoch"], row["operator"], row["estimate"]) == (str(record.epoch), record.operator, name)
            ]
            assert float(found["value"]) == estimate.value
            for part in ("stderr", "lower", "upper", "tau"):
                wanted = getattr(estimate, part)
                assert found[part] == ("" if wanted is None else repr(wanted))
            assert found["resolved"] == ("" if estimate.resolved is None else str(estimate.resolved))
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert (failed["estimate"], failed["value"], failed["loss"], failed["reason"]) == ("", "", "", "NaN weights")


def test_several_files_are_told_apart(path, tmp_path):
    other = write(tmp_path / "other.h5", make_record(7))
    entries = json.loads(show(path, other, "--json").stdout)
    assert {entry["file"] for entry in entries} == {str(path), str(other)}
    text = show(path, other).stdout
    assert f"{path}: 7 records" in text
    assert f"{other}: 1 record" in text


# --- choosing, and what cannot be shown ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--operator", "ggn"], 3),
        (["--operator", "ggn", "--operator", "hessian"], 7),
        (["--bn", "eval"], 7),
        (["--epoch", "1"], 2),
        (["--epoch", "1", "--epoch", "2", "--operator", "hessian"], 2),
    ],
)
def test_records_are_chosen_by_operator_mode_and_epoch(path, options, count):
    assert len(json.loads(show(path, *options, "--json").stdout)) == count


def test_a_choice_that_leaves_nothing_is_an_error_that_lists_what_there_is(path):
    result = show(path, "--epoch", 1.5)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "operators hessian, ggn; BN modes eval; epochs 0, 1, 2, 3" in result.stderr


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_file_that_is_not_ours_is_one_line_and_no_output(tmp_path, form):
    foreign = tmp_path / "thesis.h5"
    foreign.write_text("my thesis")
    for file in (foreign, tmp_path / "missing.h5", tmp_path):
        result = show(file, *form)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"spectra: error: {file}: ")
        assert result.stderr.count("\n") == 1


def test_what_the_reader_left_out_is_said_on_standard_error(tmp_path):
    import h5py

    path = write(tmp_path / "run.h5", make_record(0), make_record(1))
    with h5py.File(path, "r+") as file:
        del file["records/000001"].attrs["complete"]
    result = show(path, "--json")
    assert len(json.loads(result.stdout)) == 1
    assert "record 000001 was not finished" in result.stderr


def test_show_needs_no_torch(path):
    program = f"""
import sys
from spectra_cli.main import main
try:
    main(["show", {str(path)!r}])
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lambda_max" in done.stdout


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (12.3456, 0.5621, "12.35 +- 0.56"),
        (12.3456, 5.621, "12.3 +- 5.6"),
        (1234.56, 56.21, "1235 +- 56"),
        (0.95012, 0.00018, "0.95012 +- 0.00018"),
        (1.0, 0.0996, "1.00 +- 0.10"),
        (-3.2e-7, 1.23e-8, "-3.20e-07 +- 1.2e-08"),
        (1234567.0, 5621.0, "1.2346e+06 +- 5.6e+03"),
        (1e-9, 12.0, "0 +- 12"),
        (3.25, 0.0, "3.25 +- 0"),
        (3.25, None, "3.25"),
        (512, None, "512"),
        (math.nan, 0.1, "nan +- 0.1"),
    ],
)
def test_a_number_is_rounded_to_two_digits_of_its_error(value, error, words):
    assert numbers.with_error(value, error) == words


@pytest.mark.parametrize(
    ("lower", "upper", "words"),
    [
        (11.0, 13.7, "[11, 13.7]"),
        (100.0001, 100.0002, "[100.0001, 100.0002]"),
        (None, 3.0, "[-inf, 3]"),
        (-1.0, 1.0, "[-1, 1]"),
        (2.0, 2.0, "[2, 2]"),
    ],
)
def test_the_ends_of_an_interval_are_told_apart(lower, upper, words):
    assert numbers.interval(lower, upper) == words


def test_a_value_never_looks_as_if_it_were_outside_its_interval():
    top = Estimate(1.25549, None, 1.25549, 1.2721, 4)
    assert numbers.as_range(top) == "1.255 to 1.272"
    assert numbers.number(top) == ("1.255", "")


def test_a_count_without_scatter_is_shown_as_its_bracket():
    count = Estimate(0.0, 0.0, 0.0, 0.0146, 5, tau=2.6e-4, resolved=True)
    assert numbers.in_short(count) == "0 to 0.0146 (tau 0.00026)"
    exact = Estimate(1.0, 0.0, 1.0, 1.0, 5, tau=2.6e-4, resolved=True)
    assert numbers.in_short(exact) == "1 +- 0 (tau 0.00026)"


# --- what limits a number, and what depends on a number of the reader's --------------------------------------------


def test_each_number_says_what_limits_it_and_what_to_do(path):
    text = show(path, "--operator", "hessian", "--epoch", 0, "--all").stdout
    assert row(text, "trace")[4] == "probes"
    assert row(text, "lambda_max")[3] == "steps"
    assert "limited by probes: " in text
    assert "More probes (--probes): four times as many halve it" in text


def test_the_parts_of_every_error_stand_side_by_side(path):
    text = show(path, "--operator", "hessian", "--epoch", 0, "--budget").stdout
    part = text[text.index("error budget") :]
    cells = row(part, "trace")
    budget = load_trajectory(path)["hessian", "eval"].records[0].budgets["trace"]
    assert float(cells[1]) == pytest.approx(budget.probes, rel=0.05)
    assert cells[2:] == ["0", cells[3], "-", "probes"]
    assert "data not known: the parts of the batches were not kept (trace, mean_eigenvalue)" in part
    assert show(path, "--budget").stdout.count("error budget") == 6  # one for each whole record of several


def test_quantities_at_a_number_of_the_readers(path):
    options = ("--operator", "hessian", "--epoch", 0, "--at", "tau=0.5", "--at", "x=1", "--at", "edge=4", "--at", "p=3")
    (record,) = [r for r in load_trajectory(path)["hessian", "eval"] if r.epoch == 0]
    text = show(path, *options).stdout
    assert row(text, "rank_degeneracy(tau=0.5)")[1] == numbers.number(record.spectrum.rank_degeneracy(0.5))[0]
    assert "outliers(edge=4)" in text
    (entry,) = json.loads(show(path, *options, "--json").stdout)
    assert entry["on_request"]["moment(p=3)"]["value"] == record.spectrum.moment(3).value
    assert entry["on_request"]["cumulative(x=1)"]["lower"] == float(record.spectrum.cumulative(1.0).lower)
    cells = {r["estimate"]: r for r in csv.DictReader(io.StringIO(show(path, *options, "--csv").stdout))}
    assert float(cells["negative_mass(tau=0.5)"]["value"]) == record.spectrum.negative_mass(0.5).value


def test_what_does_not_exist_at_a_number_has_its_reason(path):
    (entry,) = json.loads(show(path, "--operator", "hessian", "--epoch", 0, "--at", "g=0.1", "--json").stdout)
    refused = entry["on_request"]["evidence(g=0.1)"]
    assert refused["value"] is None
    assert "Ritz value" in refused["note"]


@pytest.mark.parametrize("ask", ["g", "g=", "g=x", "q=1", "tau=nan", "top=1.5"])
def test_an_ask_that_makes_no_sense_is_one_line(path, ask):
    result = show(path, "--operator", "hessian", "--epoch", 0, "--at", ask)
    assert result.exit_code != 0
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("graphs", "words"),
    [
        ({"batches": 4, "kept": 3, "kept_bytes": 3 * 2**20}, "3 of 4 batches, 3.0 MiB"),
        ({"batches": 4, "kept": 0, "kept_bytes": 0}, "0 of 4 batches"),
        (None, None),  # a record from before
        ({"batches": 4}, None),
        ("all", None),
    ],
)
def test_how_many_graphs_were_kept_is_part_of_the_origin(graphs, words):
    provenance = {} if graphs is None else {"graphs": graphs}
    record = make_record(provenance=provenance)
    assert dict(origin_of(record)).get("graphs kept") == words
