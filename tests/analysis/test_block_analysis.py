"""Blocks of a record: their settings, notes, refusals and faults, and what happens to an interrupted run."""

from __future__ import annotations

import numpy as np
import pytest
from cases import conv_batch_norm
from small_nets import make

from spectra import analyze, iter_analyze
from spectra.analysis import block_analysis
from spectra.errors import ArgumentError, NumericsError

pytestmark = pytest.mark.usefixtures("float64")

QUICK = {"lanczos_steps": 6, "num_probes": 3, "metrics": "none", "check": False}


def same_numbers(one, other):
    for mine, theirs in zip(one.tridiagonals, other.tridiagonals, strict=True):
        np.testing.assert_allclose(mine.alphas, theirs.alphas, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mine.betas, theirs.betas, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical_fisher"])
def test_a_record_has_its_blocks_and_all_other_numbers_as_without(operator):
    task = make("mine", l2=0.25)
    (record,) = analyze(task, operators=operator, blocks="layer", seed=4, **QUICK)
    (without,) = analyze(task, operators=operator, seed=4, **QUICK)
    assert list(record.blocks) == ["0", "2"]
    assert record.settings == without.settings | {"blocks": "layer"}
    np.testing.assert_array_equal(record.spectrum.nodes, without.spectrum.nodes)
    assert without.blocks is None
    assert record.provenance["block_products"] == 36
    for name, spectrum in record.blocks.items():
        (alone,) = analyze(task, operators=operator, params=f"{name}.*", seed=4, **QUICK)
        same_numbers(spectrum, alone.spectrum)


def test_blocks_of_chosen_parameters():
    (record,) = analyze(make("mine"), blocks="layer", params="*.bias", **QUICK)
    assert {name: list(s.tensor_sizes) for name, s in record.blocks.items()} == {"0": ["0.bias"], "2": ["2.bias"]}
    with pytest.raises(ArgumentError, match=r"matches no name of an analysed parameter; there are 0\.bias, 2\.bias"):
        analyze(make("mine"), blocks="weight", params="*.bias", **QUICK)


def test_each_operator_and_mode_has_its_blocks():
    task = conv_batch_norm()[0]
    records = analyze(task, operators=("hessian", "ggn"), bn_modes=("eval", "train"), blocks="layer", **QUICK)
    assert [len(record.blocks) for record in records] == [len(records[0].blocks)] * 4
    values = [record.blocks.estimates[next(iter(record.blocks))]["trace"].value for record in records]
    assert len(set(values)) == 4


def test_parameters_in_no_block_and_a_single_block_are_noted():
    (record,) = analyze(make("mine"), blocks=r"^(\d)\.weight", **QUICK)
    assert record.blocks.left_out == ("0.bias", "2.bias")
    assert r"blocks '^(\\d)\\.weight': parameter tensors in no block: 2 (0.bias, 2.bias)" in record.notes
    (record,) = analyze(make("mine"), blocks="weight", **QUICK)
    assert "blocks 'weight': all parameters are in one block, so there are no distances" in record.notes
    assert record.blocks.heterogeneity is None


@pytest.mark.parametrize(("how", "words"), [("(", "no valid regular expression"), ("conv", "matches no name")])
def test_bad_expressions_are_refused_before_anything_is_computed(how, words):
    with pytest.raises(ArgumentError, match=words):
        iter_analyze(make("mine"), blocks=how, **QUICK)


def test_a_refusal_is_a_note_and_a_fault_makes_the_record_unverified(monkeypatch):
    for error, status in ((NumericsError("too large"), "complete"), (RuntimeError("broken"), "unverified")):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(block_analysis, "block_slq", fails)
        (record,) = analyze(make("mine"), blocks="layer", **QUICK)
        assert record.blocks is None
        assert record.status == status
        assert record.spectrum is not None
        assert any(str(error) in note for note in record.notes), record.notes


def test_with_rtol_the_blocks_have_the_probes_and_steps_of_the_record():
    (record,) = analyze(make("mine"), blocks="layer", rtol={"trace": 0.5}, metrics="none", check=False)
    spectrum = record.spectrum
    for block in record.blocks.values():
        assert block.num_probes == spectrum.num_probes
        assert block.lanczos_steps <= spectrum.lanczos_steps
