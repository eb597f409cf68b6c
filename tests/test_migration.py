"""The page about coming from another library: its examples run and give right numbers, and its names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cases import batches_of
from torch import nn
from torch.nn import functional as F

import spectra

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")


@pytest.fixture
def names(float64):
    """What the examples define, run one after the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    space = {"model": model, "criterion": nn.CrossEntropyLoss(), "loader": batches_of(x, y, 12, 12, 6)}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(code, space)
    space["dense"] = dense(model, x, y)
    return space


def dense(model, x, y):
    """The Hessian of all data at once by double backward, (n, n)."""
    parameters = list(model.parameters())
    slope = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    flat = torch.cat([piece.reshape(-1) for piece in slope])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    return torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])


def test_the_examples_give_the_numbers_of_the_dense_hessian(names):
    matrix = names["dense"]
    values = torch.linalg.eigvalsh(matrix)
    trace = float(matrix.trace())
    torch.testing.assert_close(names["Hv"], matrix @ names["v"])
    torch.testing.assert_close(names["difference"] @ names["v"], names["Hv"] - names["Gv"])
    largest = values[values.abs().argsort(descending=True)]
    assert names["largest"] == pytest.approx(float(largest[0]), abs=1e-5 * float(largest[0]))
    assert names["error"] < 1e-5
    assert names["top"].values == pytest.approx(largest[:3].numpy(), abs=1e-5 * float(largest[0]))
    assert names["exact"].applies
    assert names["exact"].total == pytest.approx(trace)
    assert names["trace"].lower <= trace <= names["trace"].upper
    assert names["by_hutchpp"].lower <= trace <= names["by_hutchpp"].upper
    assert names["frobenius"].lower <= float(matrix.norm()) <= names["frobenius"].upper
    diagonal = torch.cat([entries.reshape(-1) for entries in names["diagonal"].values()])
    torch.testing.assert_close(diagonal, matrix.diagonal())
    assert all(names["same_as_hessian"].values())
    assert names["taken"].trace().value == pytest.approx(names["trace"].value)
    assert names["few"].n == 4 * 6 + 6 * 3
    assert names["values"].lower <= trace <= names["values"].upper


def test_every_name_of_spectra_on_the_page_exists():
    used = set(re.findall(r"\bspectra\.([A-Za-z_]+)", PAGE))
    assert used <= {*spectra.__all__, "compat"}, used - set(spectra.__all__)
    assert {"slq", "eigsh", "hutchpp", "exact_trace", "exact_diagonal", "as_operator"} - used == {"as_operator"}
    for method in re.findall(r"`s\.([a-z_]+)\(", PAGE):
        assert callable(getattr(spectra.Spectrum, method))
