"""`spectra analyze` from end to end: checkpoints, tasks, results files and what is printed."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from analyze_command import QUICK, analysed, content_of, direct, network, refused, spectra
from rich.progress import Progress
from torch import nn
from wrong_products import multiplied

from spectra import load_trajectory, save_checkpoint

# -- one checkpoint


def test_a_plain_state_dict_and_a_task_file_give_a_results_file(here):
    before = content_of(here)
    result = analysed("net_1.pt", *QUICK)
    (record,) = load_trajectory("run.h5")
    (same,) = direct(1)
    assert (record.spectrum.nodes == same.spectrum.nodes).all()
    assert record.facts == same.facts
    assert (record.checkpoint, record.step, record.epoch) == ("net_1.pt", None, 1)
    assert "trace" in result.stdout
    assert "rank_degeneracy" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0] == "spectra: task tasks.py:task, by --task"
    assert lines[1].startswith("[1/1] net_1.pt: hessian, BN eval: trace ")
    assert lines[2] == "spectra: saved in run.h5; next: spectra show run.h5, spectra plot run.h5"
    assert len(lines) == 3
    assert content_of(here) == {**before, "run.h5": Path("run.h5").read_bytes()}
    assert spectra("show", "run.h5").exit_code == 0


def test_json_has_the_promised_fields_and_nothing_that_was_not_asked_for(here):
    result = analysed("net_0.pt", *QUICK, "--json", "--no-check", "--metrics", "none")
    (entry,) = json.loads(result.stdout)
    assert set(entry) == {
        *("checkpoint", "checkpoint_sha256", "epoch", "step", "operator", "bn_mode", "status", "reason"),
        *("loss", "n_parameters", "n_samples", "estimates", "headline", "tensor_traces"),
        *("facts", "settings", "provenance", "notes"),
    }
    for estimate in (*entry["estimates"].values(), *entry["tensor_traces"].values()):
        assert {"value", "stderr", "lower", "upper"} <= set(estimate)
    (same,) = direct()
    assert (entry["checkpoint"], entry["operator"], entry["bn_mode"]) == ("net_0.pt", "hessian", "eval")
    assert (entry["status"], entry["reason"]) == ("complete", None)
    assert (entry["loss"], entry["n_parameters"], entry["n_samples"]) == (same.facts["loss"], 43, 24)
    assert {name: e["value"] for name, e in entry["estimates"].items()} == {
        name: e.value for name, e in same.estimates.items()
    }
    assert set(entry["estimates"]) == {
        *("trace", "mean_eigenvalue", "second_moment", "frobenius_norm"),
        *("spectral_norm", "lambda_max", "lambda_min", "rank_degeneracy", "negative_mass"),
        *("stable_rank", "participation_rank", "entropy_rank"),
        *("closest_one_mass", "closest_one_value", "closest_two_mass", "closest_two_value"),
    }
    shown = json.loads(spectra("show", "run.h5", "--json").stdout)
    assert [{"file": "run.h5", **entry}] == shown


def test_the_traces_are_checked_unless_that_is_not_wanted(here):
    (entry,) = json.loads(analysed("net_0.pt", *QUICK, "--json").stdout)
    assert {"total", "by_layer", "applies", "reasons", "remainder"} <= set(entry["exact"])
    assert {"name", "z", "dof", "detectable", "verdict"} <= set(entry["check"][0])
    shown = spectra("show", "run.h5", "--all").stdout
    assert "cross-check: estimated against exact traces" in shown
    assert "exact trace of the " in shown
    printed = analysed("net_0.pt", *QUICK, "--all").stdout
    assert printed[printed.index("\n") :] == shown[shown.index("\n") :]  # the record is there: all of it but the title


def test_bounds_are_in_the_table_and_say_when_they_are_vacuous(here):
    printed = analysed("net_0.pt", *QUICK, "--metrics", "none", "--bounds", "--all").stdout
    for said in (printed, spectra("show", "run.h5", "--all").stdout):
        assert all(name in said for name in ("bound_units", "bound_parameters", "bound_error_units"))
    words = " ".join(printed.split())
    assert "bound_units, bound_matrices, bound_parameters, bound_ns1: vacuous: not below 1" in words
    assert "not a guarantee" in words


def test_measures_are_computed_by_name_and_shown(here):
    (entry,) = json.loads(analysed("net_0.pt", *QUICK, "--json", "--metrics", "gradient_norm").stdout)
    assert list(entry["sharpness"]) == ["gradient_norm"]
    assert {"value", "form", "certificate", "reason"} <= set(entry["sharpness"]["gradient_norm"])
    assert "sharpness measures" in spectra("show", "run.h5", "--all").stdout
    assert "minimum_sharpness" in spectra("metrics").stdout
    assert json.loads(spectra("metrics", "--json").stdout)["bn_sharpness"]["cheap"] is False


def test_a_failed_check_is_loud_and_ends_in_an_error(here, monkeypatch):
    from spectra.operators.hessian import HessianOperator

    right = HessianOperator.linearise

    monkeypatch.setattr(HessianOperator, "linearise", lambda self, batch: multiplied(3, right(self, batch)))
    result = spectra("analyze", "net_0.pt", "--task", "tasks.py:task", "-m", "2", "-k", "200")
    assert result.exit_code == 1
    assert "! CHECK FAILED: the trace of " in result.stdout
    assert result.stderr.splitlines()[-1].startswith("spectra: error: ")
    assert "cross-checks failed, the first: the trace of " in result.stderr.splitlines()[-1]
    assert any(check.failed for check in load_trajectory("run.h5")[0].checks)  # the record says so too


def test_two_operators_in_both_modes_are_four_records(here):
    arguments = ("norm.pt", "--task", "tasks.py:with_norm", "-m", "6", "-k", "2")
    analysed(*arguments, "--operator", "hessian", "--operator", "ggn", "--bn", "both")
    stored = load_trajectory("run.h5")
    pairs = [(record.operator, record.bn_mode) for record in stored]
    assert pairs == [("hessian", "eval"), ("hessian", "train"), ("ggn", "eval"), ("ggn", "train")]
    traces = {record.estimates["trace"].value for record in stored}
    assert len(traces) == 4
    assert stored["hessian", "eval"].records[0].facts["loss"] == stored["ggn", "eval"].records[0].facts["loss"]
    assert stored["hessian", "eval"].records[0].facts["loss"] != stored["hessian", "train"].records[0].facts["loss"]


def test_the_empirical_fisher_matrix_is_a_record_like_any_other(here):
    result = analysed("net_0.pt", *QUICK, "--operator", "hessian", "--operator", "empirical_fisher", "--json")
    (record,) = direct(operators="empirical_fisher")
    hessian, found = json.loads(result.stdout)
    assert (hessian["operator"], found["operator"], record.operator) == ("hessian", *["empirical_fisher"] * 2)
    assert found["estimates"]["trace"]["value"] == record.estimates["trace"].value
    assert found["estimates"]["trace"]["value"] != hessian["estimates"]["trace"]["value"]
    assert found["loss"] == hessian["loss"]
    assert any(note.startswith("a sample is one row of the target") for note in record.notes)
    assert load_trajectory("run.h5")["empirical_fisher", "eval"].trace.value[0] == record.estimates["trace"].value
    assert "empirical_fisher, BN eval" in spectra("show", "run.h5").stdout
    spectra("plot", "run.h5", "--operator", "empirical_fisher", "--what", "density")
    assert [path.name for path in here.rglob("density*")] == ["density-empirical_fisher-epoch0.png"]


def test_the_empirical_fisher_matrix_needs_samples_that_are_not_coupled(here):
    arguments = ["norm.pt", "--task", "tasks.py:with_norm", "-m", "6", "--operator", "empirical_fisher", "--bn", "both"]
    refused(here, arguments, "depend on the others of its batch: use bn_mode='eval' (--bn eval)")


@pytest.mark.parametrize(
    ("arguments", "settings", "options"),
    [
        (["--samples", "11", "--data-seed", "3"], {"samples": 11, "data_seed": 3}, None),
        (["--samples", "11"], {"samples": 11, "data_seed": 0, "batch_sizes": [[10, 1], [1, 1]]}, None),
        (["--batch-size", "8"], {"batch_sizes": [[8, 3]], "samples": None, "data_seed": None}, None),
        (["--l2", "0.25"], {"l2": 0.25}, {"l2": 0.25}),
        (["--params", "2.*"], {"params": ["2.*"]}, {"params": "2.*"}),
        (["--params", "0.bias", "--params", "2.*"], {"params": ["0.bias", "2.*"]}, {"params": ["0.bias", "2.*"]}),
        (["--dtype", "float64"], {"dtype": "float64"}, {"dtype": "float64"}),
        (["--seed", "5"], {"seed": 5}, {"seed": 5}),
        (["--device", "cpu"], {}, {}),
        (["--lanczos-steps", "9"], {"lanczos_steps": 9}, {"lanczos_steps": 9}),
        (["--probes", "3"], {"num_probes": 3}, {"num_probes": 3}),
        (["--lanczos-steps", "1000"], {"lanczos_steps": 1000}, {"lanczos_steps": 43}),
    ],
)
def test_options_do_what_they_say_and_are_in_the_record(here, arguments, settings, options):
    analysed("net_0.pt", *QUICK, *arguments, "--out", "b.h5")
    (record,) = load_trajectory("b.h5")
    for name, value in settings.items():
        assert record.settings[name] == value, name
    if options is not None:
        (same,) = direct(**options)
        assert (record.spectrum.nodes == same.spectrum.nodes).all()
    else:
        assert record.facts["n_samples"] == (settings["samples"] or 24)


def test_the_data_seed_chooses_other_rows_and_the_seed_does_not(here):
    for out, arguments in (("a", []), ("b", ["--data-seed", "1"]), ("c", ["--seed", "1"])):
        analysed("net_0.pt", *QUICK, "--samples", "12", *arguments, "--out", f"{out}.h5")
    a, b, c = (load_trajectory(f"{name}.h5")[0] for name in "abc")
    assert a.settings["data"] == c.settings["data"] != b.settings["data"]
    assert a.facts["loss"] == c.facts["loss"] != b.facts["loss"]


def test_the_command_is_recorded_so_that_it_can_be_typed_again(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/spectra", "analyze", "net 0.pt"])
    analysed("net_0.pt", *QUICK)
    assert load_trajectory("run.h5")[0].provenance["command"] == "spectra analyze 'net 0.pt'"


def test_quiet_prints_the_table_and_nothing_else(here):
    result = analysed("net_0.pt", *QUICK, "--quiet")
    assert result.stderr == ""
    assert "trace" in result.stdout


def test_weights_chooses_among_several(here):
    torch.save({"model": network(0).state_dict(), "ema": network(1).state_dict()}, "both.pt")
    result = analysed("both.pt", *QUICK, "--out", "ema.h5")
    assert "--weights" in result.stdout  # the note on the numbers
    analysed("both.pt", *QUICK, "--weights", "model", "--out", "model.h5")
    for out, epoch in (("ema.h5", 1), ("model.h5", 0)):
        assert load_trajectory(out)[0].facts["loss"] == direct(epoch)[0].facts["loss"]


def test_a_checkpoint_with_code_runs_only_when_told_to_and_warns(here):
    result = analysed("trap-zip.pt", *QUICK, "--unsafe-load")
    assert (here / "ran").is_dir()
    assert any(line.startswith("spectra: warning: ") for line in result.stderr.splitlines())


# -- which task


def test_arguments_of_the_task_reach_it_and_are_recorded(here):
    result = analysed("wide.pt", *QUICK, "--task-arg", "width=7")
    assert "spectra: task tasks.py:task(width=7), by --task" in result.stderr
    assert load_trajectory("run.h5").settings["task"] == "tasks.py:task(width=7)"
    assert "tasks.py:task(width=7)" in result.stdout


def test_a_task_with_a_parameter_checkpoint_is_made_for_each(here):
    for name, width in (("a_1", 5), ("a_2", 5), ("b", 7)):
        torch.save({"model": network(width, width).state_dict(), "config": {"width": width}}, f"{name}.pt")
    task = ("--task", "tasks.py:per_checkpoint", "-m", "4", "-k", "1")
    analysed("a_1.pt", "a_2.pt", *task)
    analysed("b.pt", *task, "--out", "b.h5")
    assert [r.facts["n_parameters"] for r in load_trajectory("run.h5")] == [43, 43]
    assert load_trajectory("b.h5")[0].facts["n_parameters"] == 59


def test_a_checkpoint_that_names_a_built_in_task_needs_no_task(here):
    pytest.importorskip("sklearn")
    save_checkpoint("own.pt", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task="digits-logistic", epoch=3)
    result = analysed("own.pt", "-m", "3", "-k", "2", "--samples", "40", "--quiet")
    (record,) = load_trajectory("run.h5")
    assert (record.epoch, record.facts["n_samples"], record.facts["n_parameters"]) == (3, 40, 650)
    assert record.settings["task"].startswith("digits-logistic(")
    assert "digits-logistic" in result.stdout


def test_spectra_toml_names_the_task(here):
    Path("spectra.toml").write_text('task = "tasks.py:task"\n[task-args]\nwidth = 7\n')
    result = analysed("wide.pt", "-m", "4", "-k", "1")
    assert "spectra.toml" in result.stderr.splitlines()[0]
    assert load_trajectory("run.h5").settings["task"] == "tasks.py:task(width=7)"


# -- the display


def test_a_bar_on_a_terminal_shows_file_names_as_they_are(here, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    # a run may end between two redraws of the bar: draw at every update
    monkeypatch.setattr(Progress, "update", partialmethod(Progress.update, refresh=True))
    shutil.copy("net_0.pt", "[bold]net[red].pt")
    result = analysed("[bold]net[red].pt", *QUICK)
    assert "[bold]net[red].pt: " in result.stderr
    assert "products/s" in result.stderr
    assert load_trajectory("run.h5")[0].checkpoint == "[bold]net[red].pt"
