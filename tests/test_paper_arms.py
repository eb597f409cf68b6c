"""The experiments on papers in `analyses/papers`: their statistics on made-up data, and a tiny form of each script."""

from __future__ import annotations

import csv
import importlib
import sys
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "analyses" / "papers"
NAMES = ("finite_differences", "random_labels", "hyperparameters", "bn_training")

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the scripts are not beside the tests")


@pytest.fixture
def script(monkeypatch):
    """A script or their shared module, imported from its folder."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for name in ("arms", *NAMES):
        sys.modules.pop(name, None)


def table_of(folder: Path, name: str) -> list[dict[str, str]]:
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (folder / f"{name}.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["claim", "paper", "ours", "error", "verdict", "remark"]
    return rows


def test_a_confounder_makes_the_correlation_over_all_arms_the_opposite_of_that_within_levels(script, monkeypatch):
    monkeypatch.setattr(script("arms"), "RESAMPLES", 200)
    levels = np.repeat([0.0, 1.0, 2.0], 4)
    step = np.tile([-0.3, -0.1, 0.1, 0.3], 3)
    overall, rank, within, rank_within = script("arms").correlations(levels + step, levels - step, levels)
    assert overall.value == pytest.approx((8 - 0.6) / (8 + 0.6))  # of sums of squares 8 between and 0.6 within levels
    assert overall.lower > 0.5
    assert within.value == pytest.approx(-1)
    assert rank_within.value == pytest.approx(-1)
    assert rank.value == pytest.approx((3 * 16 - 3 * 6) / 66)


def test_without_two_arms_of_a_level_there_is_no_correlation_within(script):
    assert script("arms").correlations([1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3])[2:] == (None, None)


def test_the_difference_of_two_correlations_is_resampled_in_pairs(script):
    random = np.random.default_rng(0)
    y = random.standard_normal(60)
    noise = random.standard_normal(60)
    arms = script("arms")
    value, low, high = arms.difference_of_pearson(y, noise, y)
    assert value == pytest.approx(1 - np.corrcoef(noise, y)[0, 1])
    assert 0 < low < value < high
    assert arms.difference_of_pearson(noise, noise, y) == (0, 0, 0)


def test_arms_without_a_value_are_left_out_of_the_difference(script):
    x, y = [1.0, 2.0, 3.0, 5.0, nan], [2.0, 1.0, 3.0, 4.0, 9.0]
    got = script("arms").difference_of_pearson(x, [*x[::-1][1:], 1.0], y)[0]
    first, other = np.corrcoef(x[:4], y[:4])[0, 1], np.corrcoef([5.0, 3.0, 2.0, 1.0], y[:4])[0, 1]
    assert got == pytest.approx(first - other)


@pytest.mark.parametrize(
    ("value", "low", "high", "wanted", "verdict"),
    [
        (0.5, 0.1, 0.9, 1, "holds"),
        (0.5, -0.1, 0.9, 1, "not testable here"),
        (-0.5, -0.9, 0.1, 1, "not testable here"),
        (-0.5, -0.9, -0.1, -1, "holds"),
        (-0.5, -0.9, -0.1, 1, "does not hold"),
        (nan, nan, nan, 1, "not testable here"),
    ],
)
def test_the_verdict_on_a_sign_looks_at_the_whole_interval(script, value, low, high, wanted, verdict):
    assert script("arms").verdict_of_sign(value, low, high, wanted) == verdict


def test_the_mean_of_one_arm_has_no_spread(script):
    arms = script("arms")
    assert arms.mean_spread([1.0, 3.0, nan]) == pytest.approx((2, 2**0.5))
    assert isnan(arms.mean_spread([1.0])[1])


def test_a_verdict_is_one_of_four_words(script):
    with pytest.raises(ValueError, match="verdict='maybe'"):
        script("arms").Claim("a", "b", "c", "d", "maybe")


def test_data_that_are_not_there_are_named(script, tmp_path):
    with pytest.raises(script("arms").spectra.SpectraError, match=r"neither mnist\.npz nor MNIST/raw is in it"):
        script("arms").data_folder(tmp_path, "mnist")


def test_a_failed_training_says_why(script, tmp_path):
    arms = script("arms")
    with pytest.raises(arms.spectra.SpectraError, match=r"spectra train failed: .*no option.*nonsense"):
        arms.trained("digits-mlp", tmp_path / "run", data=None, epochs=1, nonsense=3)


def test_the_printed_estimator_is_that_of_equation_30(script):
    """On a quadratic loss without off-diagonal entries it is ``H_ii |w_i| / (|w_i| + eps)`` with any signs."""
    spectra = script("arms").spectra
    model = torch.nn.Linear(2, 1, bias=False).double()
    weights = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    model.weight.data = weights.clone()
    x, y = torch.eye(2, dtype=torch.float64) * 2, torch.zeros(2, 1, dtype=torch.float64)
    task = spectra.Task(model, torch.nn.MSELoss(), [(x, y)])
    got = script("finite_differences").printed_ni(task, 64, eps=1.0, seed=0)
    signs = torch.tensor([1 / 2, 3 / 4], dtype=torch.float64)
    mean_sign = (got / 4 - signs) / torch.tensor([1 / 2, 1 / 4], dtype=torch.float64)  # of the draws: eps has no sign
    assert mean_sign.abs().max() < 0.4
    assert (64 * mean_sign).tolist() == pytest.approx([round(v) for v in (64 * mean_sign).tolist()], abs=1e-5)


def test_random_labels_in_a_tiny_form(script, tmp_path, monkeypatch):
    module = script("random_labels")
    (family,) = module.DIGITS
    tiny = replace(family, ratios=(0.0, 1.0), seeds=2, epochs=1, samples=60, settings={**family.settings, "hidden": 4})
    monkeypatch.setattr(module, "DIGITS", (tiny,))
    monkeypatch.setattr(script("arms"), "RESAMPLES", 30)
    monkeypatch.setattr(module, "MEASURES", ("trace", "minimum_sharpness", "normalized_sharpness", "squared_norm"))
    module.main(["--quick", "--out", str(tmp_path / "out")])
    rows = table_of(tmp_path / "out", "random_labels")
    assert len(rows) == 1 + len(module.MEASURES)
    assert rows[0]["claim"].startswith("normalized sharpness goes better")
    for row in rows[1:]:
        assert "Pearson" in row["ours"]
        assert "within" in row["error"]
        assert "by ratio: 0: " in row["remark"]
        assert "quick" in row["remark"]


def test_seeds_are_compared_in_pairs(script):
    """Three differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), and 4.303 of them with two degrees of freedom."""
    more, half = script("bn_training").paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert more == 2
    assert half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert isnan(script("bn_training").paired([1.0], [0.5])[1])


@pytest.mark.parametrize(
    ("printed", "value", "low", "high", "verdict"),
    [
        ("+0.73", 0.6, 0.4, 0.8, "holds"),
        ("+0.73", 0.4, 0.2, 0.6, "holds in part"),
        ("+0.73", 0.4, -0.2, 0.8, "not testable here"),
        ("+0.73", -0.4, -0.6, -0.2, "does not hold"),
        ("-0.42 to -0.79", -0.9, -0.95, -0.7, "holds"),
        ("-0.42 to -0.79", -0.2, -0.3, -0.1, "holds in part"),
        ("-0.42 to -0.79", 0.4, 0.2, 0.6, "does not hold"),
        (None, 0.6, 0.4, 0.8, "not testable here"),
    ],
)
def test_a_printed_correlation_holds_where_sign_and_interval_agree(script, printed, value, low, high, verdict):
    assert script("hyperparameters")._verdict(printed, value, low, high) == verdict


@pytest.mark.slow
def test_sgds_in_a_tiny_form(script, tmp_path, monkeypatch):
    module = script("bn_training")
    small = {"width": 2, "weight_decay": 5e-4}
    monkeypatch.setattr(module, "DIGITS", replace(module.DIGITS, epochs=1, batches=(256,), seeds=2, settings=small))
    module.main(["--out", str(tmp_path)])
    rows = table_of(tmp_path, "bn_training")
    assert [row["verdict"] for row in rows[-2:]] == ["not testable here"] * 2
    assert len(rows) == 4


@pytest.mark.slow
def test_finite_differences_in_a_tiny_form(script, tmp_path, monkeypatch):
    module = script("finite_differences")
    monkeypatch.setattr(module, "QUICK", module.Size(hidden=8, epochs=1, draws=(4, 16), seeds=2))
    module.main(["--quick", "--out", str(tmp_path)])
    rows = {row["claim"]: row for row in table_of(tmp_path, "finite_differences")}
    assert len(rows) == 8
    corrected, printed = (rows[name]["ours"] for name in (
        "differences, NI (30) corrected is an estimate of the diagonal of the Hessian of a ReLU network",
        "NI (30) as printed estimates the diagonal",
    ))  # fmt: skip
    assert float(printed.split()[3]) < float(corrected.split()[3]) - 10  # per cent: about a third is missing


@pytest.mark.slow
def test_hyperparameters_in_a_tiny_form(script, tmp_path, monkeypatch):
    module = script("hyperparameters")
    few = {name: (*entry[:2], (0.0, entry[2][-1])) for name, entry in module.DIGITS.regularisers.items()}
    monkeypatch.setattr(script("arms"), "RESAMPLES", 30)
    monkeypatch.setattr(module, "DIGITS", replace(module.DIGITS, epochs=1, seeds=2, regularisers=few))
    module.main(["--out", str(tmp_path)])
    rows = table_of(tmp_path, "hyperparameters")
    assert len(rows) == 3 * len(module.MEASURES) + 1
    assert rows[-1]["verdict"] == "not testable here"
