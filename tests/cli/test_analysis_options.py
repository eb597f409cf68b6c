"""The options of an analysis are the fields of its settings: the same defaults, each declared once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click
import pytest

from spectra.analysis.settings import DataChoice, RunSettings, Settings
from spectra.errors import ArgumentError
from spectra_cli import analyze, inspect, plan, watch
from spectra_cli.analysis_options import BN_CHOICES, SETTINGS, settings_in

FIELDS = {one.name: one for settings in SETTINGS for one in fields(settings)}
#: Settings that only Python has: the distribution of the probes, how many share a pass; and the parts of RunSettings.
NOT_OFFERED = {"distribution", "width", "analysis", "data"}
COMMANDS = {"analyze": analyze.command, "watch": watch.command, "plan": plan.command}


def context_of(command, *arguments):
    return COMMANDS[command].make_context(command, ["net.pt", *arguments])


def asked(*arguments, command="analyze"):
    with context_of(command, *arguments) as context:
        return settings_in(context.params)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", sorted(FIELDS.keys() - NOT_OFFERED))
def test_the_default_of_an_option_is_that_of_its_field(command, name):
    assert context_of(command).params[name] == FIELDS[name].default


@pytest.mark.parametrize("command", COMMANDS)
def test_without_options_the_settings_are_the_defaults_of_python(command):
    assert asked(command=command) == RunSettings()


def test_names_of_fields_are_unique_over_the_settings():
    assert len(FIELDS) == sum(len(fields(settings)) for settings in SETTINGS)


def test_inspect_offers_the_size_of_a_checkpoint_as_analyze_does():
    with inspect.command.make_context("inspect", ["net.pt"]) as context:
        assert context.params["max_size"] == RunSettings.max_size


GIVEN = {
    "--operator ggn --operator hessian": Settings(operators=("ggn", "hessian")),
    "--bn both": Settings(bn_modes=("eval", "train")),
    "-m 7 -k 3 --seed 5": Settings(lanczos_steps=7, num_probes=3, seed=5),
    "--params 0.* --params 1.*": Settings(params=["0.*", "1.*"]),
    "--dtype float64 --metrics none --bounds": Settings(dtype="float64", metrics="none", bounds=True),
    "--check": Settings(check=True),
    "--no-check": Settings(check=False),
    "--eigenpairs 2 --warm-start --save-eigenvectors": Settings(eigenpairs=2, warm_start=True, save_eigenvectors=True),
    "--exact-spectrum 9 --test-data": Settings(exact_spectrum=9, test_data=True),
    "--preset granziol": Settings(("hessian", "ggn"), ("recalibrated", "train"), 100, 1, preset="granziol"),
    "--preset granziol -m 100 --bn eval": Settings(("hessian", "ggn"), ("eval",), 100, 1, preset="granziol"),
    "--samples 4 --batch-size 2 --data-seed 3": DataChoice(samples=4, batch_size=2, data_seed=3),
    "--l2 0.5 --reduction sum --snapshot-data": DataChoice(l2=0.5, reduction="sum", snapshot=True),
    "--out a.h5 --force --strict": RunSettings(out=Path("a.h5"), force=True, strict=True),
    "--weights ema --partial --unsafe-load": RunSettings(weights="ema", partial=True, unsafe=True),
    "--memory 4G": Settings(memory="4G"),
    "--rtol trace=0.05 --rtol lambda_max=1e-3 -k 9": Settings(rtol={"trace": 0.05, "lambda_max": 1e-3}, num_probes=9),
    "--rtol trace=0.05": Settings(rtol={"trace": 0.05}, num_probes=64),
    "--max-size 8G --device cpu": RunSettings(max_size="8G", device="cpu"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("given", GIVEN)
def test_options_set_the_fields_of_their_names_and_no_others(command, given):
    wanted = GIVEN[given]
    if isinstance(wanted, Settings):
        wanted = RunSettings(analysis=wanted)
    if isinstance(wanted, DataChoice):
        wanted = RunSettings(data=wanted)
    assert asked(*given.split(), command=command) == wanted


@pytest.mark.parametrize("choice", BN_CHOICES)
def test_every_choice_of_batch_norm_is_possible(choice):
    assert asked("--bn", choice).analysis.bn_modes == BN_CHOICES[choice]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-m 0", "lanczos_steps=0: at least 1 is needed; 100 is the default"),
        ("-k 0", "num_probes=0: at least 1 is needed; 8 is the default"),
        ("--seed -1", "seed=-1: at least 0 is needed"),
        ("--rtol trace", "--rtol trace: NAME=VALUE is needed, such as trace=0.05"),
        ("--rtol trace=", "--rtol trace=: NAME=VALUE is needed, such as trace=0.05"),
        ("--rtol trace=x", "--rtol trace=x: NAME=VALUE is needed, such as trace=0.05"),
        ("--rtol trace=0.1 --rtol trace=0.2", "--rtol trace=0.2: trace is given twice"),
        ("--rtol trace=0", "rtol: trace=0.0: a number above 0 and below 1 is needed, such as trace=0.05"),
        ("--exact-spectrum -1", "exact_spectrum=-1: at least 0 samples are needed; 0 is none"),
        ("--eigenpairs -1", "eigenpairs=-1: at least 0 is needed; 0, the default, is none"),
        ("--eigenpairs 1000001", "eigenpairs=1000001: at most 1000000 is possible"),
        ("--exact-spectrum 1000000001", "exact_spectrum=1000000001: at most 1000000000 is possible"),
        (f"--seed {2**63}", f"seed={2**63}: at most {2**63 - 1} is possible"),
        (f"--samples {10**30}", f"samples=a number of more than 20 digits: at most {2**63 - 1} is possible"),
    ],
)
def test_a_number_out_of_the_bounds_of_its_field_is_refused(arguments, words):
    with pytest.raises(ArgumentError) as caught:
        asked(*arguments.split())
    assert str(caught.value) == words


def test_the_defaults_that_messages_name_are_the_defaults():
    for one in FIELDS.values():
        if "is the default" in one.metadata.get("remark", ""):
            assert one.metadata["remark"].split()[0] == str(one.default)


def test_the_help_shows_the_defaults_of_the_fields():
    for parameter in analyze.command.params:
        if isinstance(parameter, click.Option) and parameter.show_default and parameter.name in FIELDS:
            with click.Context(analyze.command) as context:
                _, text = parameter.get_help_record(context)
            default = FIELDS[parameter.name].default
            shown = ", ".join(default) if isinstance(default, tuple) else str(default)
            assert text.endswith(f"[default: {shown}]")
