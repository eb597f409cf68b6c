"""`--blocks`: analyze, show and plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from analyze_command import QUICK, analysed, direct, refused, spectra

from spectra import load_trajectory


def test_blocks_are_computed_stored_and_printed(here):
    result = analysed("net_1.pt", *QUICK, "--blocks", "layer")
    (record,) = load_trajectory("run.h5")
    (same,) = direct(1, blocks="layer")
    assert list(record.blocks) == ["0", "2"]
    for name, spectrum in same.blocks.items():
        assert (record.blocks[name].nodes == spectrum.nodes).all()
    (line,) = [line for line in result.stdout.splitlines() if "blocks by layer" in line]
    assert line.split() == [
        *("spectra", "of", "2", "blocks", "by", "layer,", "mean", "Jensen-Shannon", "distance"),
        *line.split()[-5:],
    ]
    for option in ("--all", "--blocks"):
        shown = spectra("show", "run.h5", option)
        assert shown.exit_code == 0, shown.output
        assert "spectra of the 2 blocks by layer" in shown.stdout
        rows = [line.split()[:2] for line in shown.stdout.splitlines() if line.split()[1:2] in (["25"], ["18"])]
        assert rows[:2] == [["0", "25"], ["2", "18"]]
        assert "mean distance of all pairs" in shown.stdout
        assert shown.stdout.count("spectra of the 2 blocks") == 1


def test_the_json_has_every_block_with_its_errors(here):
    analysed("net_0.pt", *QUICK, "--blocks", r"(weight|bias)$")
    (entry,) = json.loads(spectra("show", "run.h5", "--json").stdout)
    blocks = entry["blocks"]
    assert entry["settings"]["blocks"] == blocks["how"] == "(weight|bias)$"
    assert blocks["spectra"]["weight"]["parameters"] == ["0.weight", "2.weight"]
    assert blocks["spectra"]["bias"]["n"] == 8
    for block in blocks["spectra"].values():
        assert set(block["estimates"]) == {"trace", "frobenius_norm", "lambda_max", "lambda_min", "rank_degeneracy"}
        for estimate in block["estimates"].values():
            assert {"value", "stderr", "lower", "upper"} <= set(estimate)
    value = blocks["distances"]["value"]
    assert value[0][1] == value[1][0] == blocks["heterogeneity"]["value"]
    assert blocks["heterogeneity"]["lower"] <= value[0][1] <= blocks["heterogeneity"]["upper"]


def test_blocks_of_chosen_parameters_and_what_is_in_none_is_named(here):
    result = analysed("net_0.pt", *QUICK, "--params", "*.weight", "--params", "0.bias", "--blocks", r"^(\d)\.weight")
    (record,) = load_trajectory("run.h5")
    assert record.blocks.left_out == ("0.bias",)
    assert "parameter tensors in no block: 1 (0.bias)" in result.output


def test_a_file_of_several_records_prints_those_that_have_blocks(here):
    analysed("net_0.pt", "net_1.pt", *QUICK, "--blocks", "module", "--operator", "hessian", "--operator", "ggn")
    shown = spectra("show", "run.h5", "--blocks").stdout
    assert shown.count("spectra of the 2 blocks by module, of") == 4


def test_the_figures(here):
    analysed("net_0.pt", *QUICK, "--blocks", "layer")
    drawn = spectra("plot", "run.h5", "--what", "blocks", "--what", "block-distances")
    assert drawn.exit_code == 0, drawn.output
    assert [Path(line).name for line in drawn.stdout.split()] == [
        "blocks-hessian-epoch0.png",
        "block-distances-hessian-epoch0.png",
    ]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("conv", "blocks='conv': matches no name of an analysed parameter; there are 0.weight, 0.bias"),
        ("(", "blocks='(': neither 'layer' nor 'module', and no valid regular expression"),
        ("", "blocks='': matches no name"),
    ],
)
def test_bad_expressions_are_refused(here, how, words):
    refused(here, ["net_0.pt", *QUICK, "--blocks", how], words)


def test_blocks_that_are_not_there_are_refused(here):
    analysed("net_0.pt", *QUICK)
    refused(here, ["run.h5", "--blocks"], "no record has spectra of blocks", command="show")
    refused(here, ["run.h5", "--what", "blocks"], "analyze it with --blocks layer", command="plot")


def test_a_file_without_blocks_is_not_continued_with_them(here):
    analysed("net_0.pt", *QUICK)
    refused(here, ["net_1.pt", *QUICK, "--blocks", "layer"], "blocks is not set in the file")


def test_a_plan_says_that_blocks_are_not_in_it(here):
    planned = spectra("plan", "net_0.pt", *QUICK, "--blocks", "layer", "--json")
    assert any("--blocks" in note for note in json.loads(planned.stdout)["notes"])
