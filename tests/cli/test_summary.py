"""One record is one screen, `--all` has the rest; what tables say of exact, Monte-Carlo and inconclusive numbers."""

from __future__ import annotations

import dataclasses
import json
from math import ceil

import numpy as np
import pytest
from click.testing import CliRunner
from run_files import SETTINGS, checks_of_probes, failed_record, make_record, make_spectrum

import spectra
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure, not_measured
from spectra.results.storage.runfile import RunFile
from spectra.results.trace_checks import AGREES, INCONCLUSIVE, check_traces, compare
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.traces import dominance_note
from spectra_cli.layout import grouped, notes_of, worst_of
from spectra_cli.main import main
from spectra_cli.numbers import in_short, number

LAYERS = {"conv.weight": 20.0, "conv.bias": 1.5, "fc.weight": 10.0}
EXACT = ExactTrace(total=31.5, by_layer=LAYERS, kind="hessian", certified=dict.fromkeys(LAYERS, True))
OF_GGN = dataclasses.replace(
    EXACT, kind="ggn", certified={"fc.weight": True}, reasons=("a GELU bends the outputs.",), method="exact: 9 columns"
)
DRAWN = dataclasses.replace(
    EXACT, stderr=0.25, stderr_by_layer=dict.fromkeys(LAYERS, 0.1), method="Monte-Carlo: 32 draws for 99 columns"
)


def show(*arguments: object):
    result = CliRunner().invoke(main, ["show", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def write(path, *records):
    with RunFile.open(path, SETTINGS) as run:
        for record in records:
            run.append(record)
    return path


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{start} ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def lines_on_a_screen(text: str, width: int = 100) -> int:
    return sum(max(1, ceil(len(line.rstrip()) / width)) for line in text.splitlines())


# --- one screen ---------------------------------------------------------------------------------------------------


def full_record(**changes):
    checks = check_traces(make_spectrum(), {"conv.weight": 31.5, "conv.bias": 0.0, "fc.weight": 0.0})
    assert not any(check.failed for check in checks)
    sharpness = {f"measure_{i}": Measure(value=1.0 + i, form="f") for i in range(10)}
    return make_record(0.0, exact=EXACT, checks=tuple(checks), sharpness=sharpness, **changes)


def test_a_single_record_is_one_screen_with_the_headline_numbers_the_checks_and_where_the_rest_is(tmp_path):
    path = write(tmp_path / "run.h5", full_record())
    text = show(path).replace(str(tmp_path), "/data/runs")
    assert lines_on_a_screen(text) <= 24
    for name in ("trace", "frobenius_norm", "spectral_norm", "lambda_max", "lambda_min", "rank_degeneracy"):
        assert row(text, name)
    assert "hessian, BN eval: ckpt_0.pt epoch 0" in text
    assert "loss 2.5, accuracy 0.75" in text
    assert f"trace {in_short(make_record().estimates['trace'])} by probes: " in text
    assert "4 checks: " in text
    assert "measure_0 1, measure_1 2, measure_2 3 and 7 more" in text
    assert text.rstrip().endswith("spectra show /data/runs/run.h5 --all")


@pytest.mark.parametrize("absent", ["entropy_rank", "conv.weight", "tau/|H|_2", "cross-check: estimated", "products"])
def test_all_has_what_the_summary_leaves_out(tmp_path, absent):
    path = write(tmp_path / "run.h5", full_record())
    assert absent not in show(path)
    assert absent in show(path, "--all")


def test_the_command_for_the_rest_is_the_one_that_was_given(tmp_path):
    path = write(tmp_path / "a run.h5", make_record(1.0), make_record(2.5), make_record(1.0, "ggn"))
    last = show(path, "--operator", "hessian", "--epoch", 2.5).splitlines()[-1]
    command = last.partition("): ")[2]
    assert command == f"spectra show '{path}' --operator hessian --epoch 2.5 --all"
    assert "entropy_rank" in show(path, "--operator", "hessian", "--epoch", 2.5, "--all")


def test_a_summary_has_three_notes_and_counts_the_rest(tmp_path):
    notes = ("TF32 was off", "weights taken from 'ema'", "CHECK FAILED: the trace is wrong", "float32 is off by 2%")
    starred = {"trace": Estimate(1.0, 0.1, 0.8, 1.2, 4, note="too narrow")}
    path = write(tmp_path / "run.h5", make_record(0.0, notes=notes, cached_estimates=starred))
    text = show(path)
    shown = [line for line in text.splitlines() if line[:2] in ("! ", "* ")]
    assert shown == ["! CHECK FAILED: the trace is wrong", "! TF32 was off", "! weights taken from 'ema'"]
    assert "(2 more notes, " in text
    every = show(path, "--all")
    assert all(note in every for note in (*notes, "* trace: too narrow"))
    path = write(tmp_path / "stars.h5", make_record(0.0, notes=notes[:2] + notes[3:], cached_estimates=starred))
    shown = [line for line in show(path).splitlines() if line[:2] in ("! ", "* ")]
    assert shown == ["! TF32 was off", "! weights taken from 'ema'", "* trace: too narrow"]  # a star is explained


def test_tables_of_several_records_have_three_notes_and_say_where_the_others_are(tmp_path):
    notes = ("a", "b", "c", "d")
    series = write(tmp_path / "series.h5", *(make_record(epoch, notes=notes) for epoch in (0.0, 1.0)))
    pair = write(tmp_path / "pair.h5", *(make_record(0.0, name, notes=notes) for name in ("hessian", "ggn")))
    for path in (series, pair):
        text = show(path)
        noted = [line for line in text.splitlines() if line[:2] in ("! ", "* ")]
        assert len(noted) == 3
        last = text.splitlines()[-1]
        hidden = len([line for line in show(path, "--all").splitlines() if line[:2] in ("! ", "* ")]) - 3
        assert hidden >= 1
        assert f"{hidden} more note" in last
        assert last.endswith(f"spectra show {path} --all")


def test_the_line_below_several_records_names_the_options_that_are_not_chosen_yet(tmp_path):
    records = [make_record(epoch, name) for epoch in (1.0, 2.0) for name in ("hessian", "ggn")]
    path = write(tmp_path / "run.h5", *records)
    for options, missing in (
        ([], "--operator NAME --bn MODE --epoch E"),
        (["--operator", "ggn"], "--bn MODE --epoch E"),
        (["--epoch", "1"], "--operator NAME --bn MODE"),
    ):
        given = " ".join(["", *options])
        last = show(path, *options).splitlines()[-1]
        assert last == f"for all of one record: spectra show {path}{given} {missing} --all"


def test_every_checkpoint_that_failed_is_named_whatever_the_notes(tmp_path):
    failed = [failed_record(float(epoch), reason=f"reason {epoch}", notes=()) for epoch in range(1, 7)]
    text = show(write(tmp_path / "run.h5", make_record(0.0), make_record(9.0), *failed))
    assert sum(": failed: reason" in line for line in text.splitlines()) == 6


def test_a_summary_of_a_record_that_failed_is_its_reason(tmp_path):
    text = show(write(tmp_path / "run.h5", failed_record(3.0)))
    assert "! failed: NaN weights" in text
    assert "for the rest" not in text


def test_a_summary_has_a_column_for_the_numbers_on_test_data(tmp_path):
    facts = {"loss": 0.5, "test_loss": 0.75, "accuracy": 0.9, "test_accuracy": 0.8, "n_samples": 7}
    tested = {name: dataclasses.replace(e, note=None) for name, e in make_spectrum(1).estimates().items()}
    tested["trace"] = dataclasses.replace(tested["trace"], note="too narrow")
    tested["negative_mass"] = dataclasses.replace(tested["negative_mass"], resolved=False, note="not resolved with m")
    record = make_record(
        0.0, test_spectrum=make_spectrum(1), cached_test_estimates=tested, facts=facts, exact=EXACT, notes=()
    )
    text = show(write(tmp_path / "run.h5", record))
    assert row(text, "trace")[1:4] == ["31.5", "exact", f"{in_short(tested['trace'])} *"]
    assert row(text, "frobenius_norm")[4].startswith(in_short(tested["frobenius_norm"]))
    assert "not resolved" in row(text, "negative_mass")
    assert "* trace (test data): too narrow" in text
    assert "loss 0.5 (test 0.75), accuracy 0.9 (test 0.8)" in text


def test_a_measure_with_a_caveat_is_starred_in_the_summary(tmp_path):
    sharpness = {
        "absent": not_measured("there is none", form="f"),
        "bound_units": Measure(value=3.0, form="f", reason="vacuous: not below 1"),
    }
    text = show(write(tmp_path / "run.h5", make_record(0.0, sharpness=sharpness)))
    assert "bound_units 3 * and 1 more" in text
    assert "* bound_units: vacuous: not below 1" in text


# --- exact numbers ------------------------------------------------------------------------------------------------


def test_an_exact_trace_stands_in_the_tables_in_place_of_its_estimate(tmp_path):
    one = write(tmp_path / "one.h5", make_record(0.0, exact=EXACT))
    for options in ([], ["--all"]):
        assert row(show(one, *options), "trace")[1:3] == ["31.5", "exact"]
    every = show(one, "--all")
    assert row(every, "mean_eigenvalue") == ["mean_eigenvalue", "0.1575", "exact"]
    assert row(every, "fc.weight") == ["fc.weight", "72", "10", "exact"]
    series = show(write(tmp_path / "series.h5", *(make_record(epoch, exact=EXACT) for epoch in (0.0, 1.0))))
    assert row(series, "    1")[3] == "31.5 exact"
    assert "exact trace" not in series  # no second column
    pair = [make_record(0.0, "hessian", exact=EXACT), make_record(0.0, "ggn", "train")]
    cells = row(show(write(tmp_path / "pair.h5", *pair)), "trace")
    assert cells[:2] == ["trace", "31.5 exact"]
    assert cells[2].removesuffix(" *") == in_short(pair[1].estimates["trace"])


def test_an_exact_number_has_no_warning_and_is_not_limited_by_probes(tmp_path):
    noted = {
        name: dataclasses.replace(estimate, note="too narrow") for name, estimate in make_spectrum().estimates().items()
    }
    path = write(tmp_path / "run.h5", make_record(0.0, exact=EXACT, cached_estimates=noted))
    text, _, budget = show(path, "--all", "--budget").partition("error budget")
    assert row(text, "trace")[-1] == "exact"
    (line,) = [line for line in text.splitlines() if line.startswith("* ")]
    assert line.startswith("* second_moment, ")
    assert "limited by probes: second_moment" in text
    assert row(budget, "trace")[1:4] == ["0", "0", "-"]


def test_where_the_hessian_is_not_the_gauss_newton_matrix_the_estimate_stays_and_the_other_trace_is_named(tmp_path):
    record = make_record(0.0, exact=OF_GGN)
    estimate = record.estimates["trace"]
    one = show(write(tmp_path / "one.h5", record))
    assert row(one, "trace")[1] == number(estimate)[0]
    assert row(one, "  exact trace of the ggn") == ["exact trace of the ggn", "31.5"]
    every = show(tmp_path / "one.h5", "--all")
    assert row(every, "fc.weight")[2:] == ["10", "exact"]  # this block is the Hessian's
    assert row(every, "conv.bias")[-1] != "exact"
    series = show(write(tmp_path / "series.h5", *(make_record(epoch, exact=OF_GGN) for epoch in (0.0, 1.0))))
    assert "exact trace of the ggn" in series
    assert row(series, "    1")[4] == "31.5"
    pair = show(write(tmp_path / "pair.h5", record, make_record(0.0, "ggn", exact=OF_GGN)))
    assert row(pair, "trace")[2] == "31.5 exact"  # of the Gauss-Newton matrix it is the exact one
    assert row(pair, "exact trace of the ggn")[1:] == ["31.5", "-"]


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_a_monte_carlo_trace_is_called_one_and_is_no_headline(tmp_path, operator):
    spectrum = make_spectrum()
    checks = tuple(check_traces(spectrum, LAYERS, exact_errors=DRAWN.stderr_by_layer, of=operator))
    record = make_record(0.0, operator, exact=DRAWN, checks=checks)
    texts = [
        show(write(tmp_path / "one.h5", record)),
        show(tmp_path / "one.h5", "--all"),
        show(write(tmp_path / "series.h5", record, make_record(1.0, operator, exact=DRAWN))),
        show(write(tmp_path / "pair.h5", record, make_record(0.0, operator, "train"))),
    ]
    for text in texts:
        assert "exact" not in text.replace("exact for the data", "")
    assert row(texts[0], "  Monte Carlo trace") == ["Monte Carlo trace", "31.50 +- 0.25"]
    assert "cross-check: estimated against Monte Carlo traces" in texts[1]
    assert "+- 0.25 (Monte-Carlo: 32 draws for 99 columns)" in texts[1]
    assert row(texts[1], "comparison")[3] == "Monte Carlo"
    assert row(texts[2], "    1")[4] == "31.50 +- 0.25"
    assert row(texts[3], "Monte Carlo trace") == ["Monte Carlo trace", "31.50 +- 0.25", "-"]
    entry = json.loads(show(tmp_path / "one.h5", "--json"))[0]
    assert entry["exact"]["method"].startswith("Monte-Carlo")
    assert entry["headline"]["trace"]["source"] == "probes"


# --- what notes say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.16, 1.0, 0.3), (1.0, 0.16), (0.09, 0.1, 0.5)])
def test_of_notes_of_a_kind_the_worst_is_quoted_whichever_comes_first(tmp_path, shares):
    notes = [dominance_note(share, 1.0, "|H|_F^2", 0.0) for share in shares]
    records = [
        make_record(float(i), notes=(), cached_estimates={"trace": Estimate(1.0, 0.1, 0.8, 1.2, 4, note=note)})
        for i, note in enumerate(notes)
    ]
    text = show(write(tmp_path / "run.h5", *records))
    (line,) = [line for line in text.splitlines() if line.startswith("* ")]
    assert line.startswith(f"* trace: one eigenvalue carries {max(shares):.0%} of |H|_F^2")
    assert line.endswith(f"(worst of {len(shares)} records)")


def test_notes_of_different_kinds_are_not_merged():
    remarks = {"trace": ["one carries 5%", "no bound", "one carries 7%", "one carries 6%"], "norm": ["one carries 7%"]}
    assert grouped(remarks) == {"one carries 7% (worst of 3 records)": ["trace", "norm"], "no bound": ["trace"]}


def test_digits_in_names_are_no_numbers():
    notes = ["layer1.0.weight: residual 1e-3", "layer2.0.weight: residual 2e-3", "3.bias: residual 5e-1"]
    assert list(worst_of(notes)) == notes
    alike = ["3.bias: 9 of 1,200 rows", "3.bias: 12 of 900 rows", "3.bias: 1.2e+03 of 7 rows"]
    assert list(worst_of(alike)) == [alike[2]]


def test_failed_checks_are_listed_one_by_one_and_first():
    failed = [f"CHECK FAILED: the trace of fc is {value} by probes and 5 without them" for value in (1.0, 9.0)]
    records = [make_record(0.0, notes=("TF32 was off", failed[0])), make_record(1.0, notes=("TF32 was off", failed[1]))]
    assert notes_of(records) == [*failed, "TF32 was off (2 records)"]


# --- what the checks could have found -----------------------------------------------------------------------------


def test_checks_that_can_only_be_inconclusive_are_a_line_and_no_table(tmp_path):
    record = make_record(0.0, exact=EXACT, checks=checks_of_probes(2))
    path = write(tmp_path / "run.h5", record)
    for text in (show(path), show(path, "--all")):
        assert "5 inconclusive; with 2 probes Student's t has 1 degree of freedom" in text
        assert "trace of layer3" not in text
    vague = [dataclasses.replace(check, verdict=INCONCLUSIVE) for check in checks_of_probes(8, z=1.0)]
    path = write(tmp_path / "more.h5", make_record(0.0, exact=EXACT, checks=tuple(vague)))
    assert "trace of layer3" in show(path, "--all")  # with more probes z and its limit say something
    assert "with 8 probes" in show(path)


def test_a_table_of_checks_says_why_some_are_inconclusive(tmp_path):
    clear = compare("trace", 10.0 + 0.01 * np.arange(8), 10.03)
    assert clear.verdict == AGREES
    record = make_record(0.0, exact=EXACT, checks=(clear, *checks_of_probes(8, z=1.0, count=2)[:1]))
    vague = dataclasses.replace(record.checks[1], detectable=50.0, verdict=INCONCLUSIVE)
    text = show(write(tmp_path / "run.h5", dataclasses.replace(record, checks=(clear, vague))), "--all")
    assert "trace of layer0" in text
    assert "inconclusive: a discrepancy as large as the value would go unnoticed; with 8 probes" in text


def test_dir_lists_the_public_names_only():
    listed = {name for name in dir(spectra) if not (name.startswith("__") and name.endswith("__"))}
    assert listed == set(spectra.__all__) - {"__version__"}
    assert "__version__" in dir(spectra)
    assert "__all__" in dir(spectra)
