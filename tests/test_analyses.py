"""Every script in `analyses/` on small files: its figure, what it prints against the records, and bad input."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spectra import load_trajectory
from spectra.errors import SpectraError
from spectra.results.headline_difference import headline_difference

SCRIPTS = Path(__file__).parents[1] / "analyses"
DATA = Path(__file__).parent / "data"
RUN = DATA / "training.h5"
ARMS = ["A=" + ",".join(str(DATA / f"training-A-{i}.h5") for i in (0, 1))]
ARMS += ["B=" + ",".join(str(DATA / f"training-B-{i}.h5") for i in (0, 1))]
OF_ONE_RUN = (
    *("spectrum_at_epochs", "sharpness_over_training", "degeneracy_over_training"),
    *("eval_vs_train", "exact_check", "exact_spectrum"),
)

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the scripts are not beside the tests")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a script in this process; what it printed, and the file it made."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name: str, *arguments: object) -> str:
        importlib.import_module(name).main([*map(str, arguments), "--out", str(tmp_path / "figures")])
        (figure,) = (tmp_path / "figures").iterdir()
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert figure.stem == name
        return capsys.readouterr().out

    yield run
    for name in ("figure_script", "two_runs", "metric_vs_gap", *OF_ONE_RUN):
        sys.modules.pop(name, None)


def test_the_spectra_are_those_of_the_chosen_epochs(call):
    printed = call("spectrum_at_epochs", RUN, "--epochs", "0,2", "--operator", "hessian", "--bn", "train")
    series = load_trajectory(RUN)["hessian", "train"]
    lines = printed.splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == ["0", "2"]
    for line, epoch in zip(lines, (0, 2)):
        assert str(series.at(epoch).headline("trace")) in line
        assert f"{series.spectrum(epoch).lambda_max().upper:.5g}" in line


def test_every_measure_is_printed_with_the_reason_where_there_is_none(call):
    printed = call("sharpness_over_training", RUN)
    series = load_trajectory(RUN)["hessian", "eval"]
    for record in series:
        assert str(record.sharpness["minimum_sharpness"]) in printed
    missing = [m for record in load_trajectory(RUN) for m in record.sharpness.values() if m.value != m.value]
    for measure in missing:
        assert str(measure.reason) in printed


def test_the_degeneracy_stands_beside_the_mass_of_the_paper(call):
    printed = call("degeneracy_over_training", RUN, "--operator", "ggn", "--bn", "eval")
    for record in load_trajectory(RUN)["ggn", "eval"]:
        near = record.spectrum.rank_degeneracy()
        assert f"{near.lower:.4f} to {near.upper:.4f}" in printed
        assert str(record.estimates["closest_one_mass"]) in printed


def test_the_modes_are_compared_probe_by_probe(call):
    printed = call("eval_vs_train", RUN)
    trajectory = load_trajectory(RUN)
    for epoch in range(3):
        ours, other = (trajectory["hessian", mode].at(epoch) for mode in ("train", "eval"))
        assert str(headline_difference(ours, other, "trace")) in printed


def test_every_comparison_with_the_exact_traces_is_printed(call):
    printed = call("exact_check", RUN)
    checks = [check for record in load_trajectory(RUN)["hessian", "eval"] for check in record.checks]
    assert len(checks) > 6
    assert all(str(check) in printed for check in checks)


def test_the_exact_spectrum_stands_beside_that_of_lanczos(call):
    printed = call("exact_spectrum", RUN, "--epoch", "2")
    exact = load_trajectory(RUN)["ggn", "eval"].at(2).exact_spectrum
    assert f"trace {exact.trace:.6g} exactly on 16 samples" in printed
    assert "wasserstein_distance" in printed


def test_arms_of_several_runs_are_tested_against_their_spread(call):
    printed = call("two_runs", *ARMS)
    assert "trace: B less A: " in printed
    assert "(runs)" in printed
    assert "Wasserstein distance of B from A: " in printed


def test_single_runs_are_compared_by_their_probes(call):
    printed = call("two_runs", DATA / "training-A-0.h5", DATA / "training-B-0.h5", "--epoch", "2")
    series = [load_trajectory(DATA / f"training-{arm}-0.h5")["hessian", "eval"] for arm in "AB"]
    assert "(probes)" in printed
    value = series[1].at(2).headline("trace").value - series[0].at(2).headline("trace").value
    assert f"trace: training-B-0 less training-A-0: {value:.4g} +- 0 (exact)" in printed
    spectra = [one.at(2).informed_spectrum for one in series]
    value = spectra[1].difference(spectra[0], "frobenius_norm").value
    assert f"frobenius_norm: training-B-0 less training-A-0: {value:.4g}" in printed


def test_measures_and_the_gap_are_correlated_also_within_levels(call):
    printed = call("metric_vs_gap", *ARMS, "--metric", "trace", "--metric", "squared_norm")
    for arm in "AB":
        for seed in range(2):
            record = load_trajectory(DATA / f"training-{arm}-{seed}.h5")[-1]
            assert f"generalization_gap {record.facts['generalization_gap']:.4g}" in printed
    assert "squared_norm and generalization_gap: pearson: " in printed
    assert "kendall within 2 levels: " in printed


def test_the_share_that_a_measure_sets_to_zero_is_printed_with_every_coefficient(call, monkeypatch):
    shares = iter((0.25, 0.5, 0.125, 0.75))

    def load(path):
        loaded, share = load_trajectory(path), next(shares)
        for record in loaded.records:
            for name, measure in record.sharpness.items():
                if name == "minimum_sharpness":
                    record.sharpness[name] = replace(measure, clipped=share)
        return loaded

    monkeypatch.setattr("spectra.load_trajectory", load)
    printed = call("metric_vs_gap", *ARMS, "--metric", "minimum_sharpness", "--metric", "trace")
    lines = [line for line in printed.splitlines() if " and generalization_gap: " in line]
    assert len(lines) == 8
    for line in lines:
        assert line.endswith(", clipped 0.12 to 0.75") is line.startswith("minimum_sharpness")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("spectrum_at_epochs", [RUN, "--epochs", "0,x"], "--epochs '0,x': numbers are needed"),
        ("spectrum_at_epochs", [RUN, "--epochs", "7"], "epoch=7"),
        ("spectrum_at_epochs", [RUN, "--operator", "empirical_fisher"], "no records of empirical_fisher: there are"),
        ("sharpness_over_training", [DATA / "v1.h5"], "no sharpness measure at two checkpoints or more"),
        ("degeneracy_over_training", [DATA / "missing.h5"], "no such file"),
        ("eval_vs_train", [DATA / "training-A-0.h5"], "both modes at two checkpoints are needed"),
        ("exact_check", [RUN, "--bn", "train"], "no comparison with exact traces"),
        ("exact_spectrum", [DATA / "training-A-0.h5", "--operator", "hessian"], "no exact spectrum in it"),
        ("two_runs", [RUN], "two arms are needed"),
        ("metric_vs_gap", [DATA / "v1.h5"], "no generalization_gap in it: analyze with --test-data"),
        ("metric_vs_gap", [*ARMS, "--metric", "beauty"], "--metric beauty: no record has it; there are "),
        ("metric_vs_gap", [DATA / "training-A-0.h5", DATA / "training-B-0.h5"], "2 runs can be compared: at least 4"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(tmp_path, monkeypatch, name, arguments, words):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with pytest.raises(SpectraError, match=words.replace("(", r"\(")):
        importlib.import_module(name).main([*map(str, arguments), "--out", str(tmp_path / "figures")])
    assert not (tmp_path / "figures").exists()


def test_from_the_shell_an_error_is_one_line_and_an_exit_code(tmp_path):
    shutil.copy(RUN, tmp_path / "run.h5")
    done = subprocess.run(
        [sys.executable, SCRIPTS / "eval_vs_train.py", "nothing.h5"], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "eval_vs_train.py: error: nothing.h5: no such file\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_no_script_that_reads_files_imports_torch():
    for name in (*OF_ONE_RUN, "two_runs", "metric_vs_gap", "figure_script"):
        assert "torch" not in (SCRIPTS / f"{name}.py").read_text(), name
