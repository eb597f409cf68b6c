"""Every cell of the page about architectures is what a computation gives."""

from __future__ import annotations

import pytest
from matrix.cases import SECTIONS
from matrix.cells import COLUMNS, QUICK, results
from matrix.page import written

pytestmark = [pytest.mark.filterwarnings("ignore")]
CASES = {name: make for cases in SECTIONS.values() for name, make in cases.items()}
LONG = {  # those that take longest are slow tests only
    "activation checkpointing",
    "ensemble, dropout in train mode",
    "group norm",
    "grouped-query attention",
    "instance norm",
    "layer norm",
    "SyncBatchNorm",
    "RNN",
    "instance norm, running statistics",
    "rotary positions (complex numbers)",
    "scaled dot-product attention",
    "spatial transformer (`grid_sample`)",
    "tied embedding",
    "LSTM, two layers",
    "GRU, both directions",
    "GRU, packed sequences",
    "TransformerEncoderLayer",
    "U-Net",
    "`torch.compile`",
}


def test_the_page_has_every_case_once():
    assert list(written()) == list(CASES)
    assert sum(map(len, SECTIONS.values())) == len(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if name not in LONG])
def test_products_are_as_the_page_says(name):
    page = written()[name]
    assert results(CASES[name], QUICK) == {column: page[column] for column in QUICK}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_columns_are_as_the_page_says(name):
    assert results(CASES[name], list(COLUMNS)) == written()[name]
