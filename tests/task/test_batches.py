"""Batches as trees: every kind of container, rows, subsets, re-batching, fingerprints."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from spectra.errors import ArgumentError, DataError
from spectra.task.batches import (
    Rebatched,
    batch_digest,
    choose_rows,
    choose_samples,
    join,
    map_tensors,
    rows_digest,
    rows_of,
    tensors_of,
)

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Batch:
    x: Any
    y: Any
    extra: Any = None


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Any
    rest: Any


def trees():
    x, y = torch.arange(12.0).view(4, 3), torch.arange(4)
    yield (x, y)
    yield [x, y]
    yield Pair(x, y)
    yield {"x": x, "y": y}
    yield UserDict(x=x, y=y)
    yield Batch(x, y)
    yield Frozen(x, {"y": [Pair(y, None)]})
    yield x
    yield {"inputs": {"x": x, "mask": y > 1}, "labels": (y,)}


@pytest.mark.parametrize("tree", list(trees()), ids=lambda t: type(t).__name__)
def test_a_tree_keeps_its_form(tree):
    doubled = map_tensors(tree, lambda t: t * 2)
    assert type(doubled) is type(tree)
    assert all(torch.equal(b, a * 2) for a, b in zip(tensors_of(tree), tensors_of(doubled)))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(tree), tensors_of(map_tensors(tree, torch.clone))))
    assert rows_of(tree) == 4
    two = [choose_rows(tree, torch.tensor([0])), choose_rows(tree, torch.tensor([1, 2, 3]))]
    assert type(two[0]) is type(tree)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(tree), tensors_of(join(two))))


@pytest.mark.parametrize("tree", list(trees()), ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_every_form_from_a_loader_are_counted_chosen_and_rebatched(tree, workers):
    """A loader with workers sends batches from other processes; None in a tree is no data."""
    rows = [choose_rows(tree, torch.tensor([row])) for row in range(4)]
    loader = torch.utils.data.DataLoader(rows, batch_size=3, collate_fn=join, num_workers=workers)
    assert [rows_of(batch) for batch in loader] == [3, 1]
    again = list(Rebatched(loader, 2))
    assert {type(batch) for batch in again} == {type(tree)}
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(tree), tensors_of(join(again))))
    (chosen,) = choose_samples(loader, 3, seed=0)
    assert rows_of(chosen) == 3
    assert type(chosen) is type(tree)


def test_batches_padded_to_several_lengths_are_chosen_from_and_not_joined():
    data = [{"x": torch.ones(4, 3), "y": torch.arange(4)}, {"x": torch.ones(4, 5), "y": torch.arange(4, 8)}]
    chosen = choose_samples(data, 5, seed=0)
    assert [batch["x"].shape[1] for batch in chosen] == [3, 5]
    alike = choose_samples([{**batch, "x": torch.ones(4, 3)} for batch in data], 5, seed=0)
    assert torch.equal(torch.cat([b["y"] for b in chosen]), torch.cat([b["y"] for b in alike]))
    with pytest.raises(DataError, match="pad all data to one length"):
        list(Rebatched(data, 5))


def test_what_has_no_common_rows_says_so():
    assert rows_of((torch.ones(3), torch.ones(4))) is None
    assert rows_of((torch.ones(3), torch.tensor(1.0))) is None
    with pytest.raises(DataError, match=r"batch 0 .* cannot be divided"):
        list(Rebatched([(torch.ones(3), torch.ones(4))], 2))
    with pytest.raises(DataError, match="cannot be divided"):
        list(Rebatched([{"x": torch.ones(3), "text": ["a", "b", "c"]}], 2))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 11, 12, 100])
def test_rebatching_keeps_every_row_in_order(size):
    x = torch.arange(11)
    data = Rebatched([(part, part + 1) for part in x.split(4)], size)
    for _ in range(2):
        batches = list(data)
        assert torch.equal(torch.cat([b[0] for b in batches]), x)
        assert [len(b[0]) for b in batches[:-1]] == [size] * (len(batches) - 1)
    with pytest.raises(ArgumentError, match="batch_size=0"):
        Rebatched([], 0)


def test_a_subset_is_fixed_by_its_seed_and_has_no_row_twice():
    x = torch.arange(50)
    data = [(part,) for part in x.split(7)]
    chosen = [torch.cat([b[0] for b in choose_samples(data, 20, seed)]) for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert len(set(chosen[0].tolist())) == 20
    other_batches = torch.cat([b[0] for b in choose_samples([(part,) for part in x.split(9)], 20, 0)])
    assert torch.equal(chosen[0], other_batches)  # the choice does not depend on the batches
    assert [len(b[0]) for b in choose_samples(data, 20, 0)] == [7, 7, 6]
    with pytest.raises(DataError, match="only 50 rows"):
        choose_samples(data, 51, 0)
    with pytest.raises(ArgumentError, match="samples=0"):
        choose_samples(data, 0, 0)


def test_every_row_is_as_likely_to_be_chosen():
    data = [(torch.arange(20),)]
    counts = torch.zeros(20)
    for seed in range(400):
        counts[choose_samples(data, 5, seed)[0][0]] += 1
    assert counts.sum() == 2000
    assert float((counts - 100).abs().max()) < 45  # five standard deviations of a binomial of 400 x 1/4


def test_digests_tell_content_order_and_rows_apart():
    x, y = torch.randn(6, 3), torch.arange(6)
    turned = torch.tensor([3, 1, 0, 2, 5, 4])
    assert batch_digest((x, y)) == batch_digest((x.clone(), y.clone()))
    assert batch_digest((x, y)) != batch_digest((x[turned], y[turned]))
    assert rows_digest((x, y)) == rows_digest((x[turned], y[turned]))
    assert rows_digest((x, y)) != rows_digest((x[turned], y))  # the pairing counts
    assert rows_digest((x, y)) != rows_digest((x + 1e-6, y))
    split = (rows_digest((x[:2], y[:2])) + rows_digest((x[2:], y[2:]))) % 2**64
    assert split == rows_digest((x, y))
    assert batch_digest((x.to(torch.bfloat16), y)) != batch_digest((x, y))
