"""Records are found by what they are, without going through all of them: the same ones as if all were asked."""

from __future__ import annotations

import random

from spectra.results.identity import Identity
from spectra.results.storage.index import Index, Known

ANYTHING = {
    "subject": ["a", "b", "a w", "a v", "a None"],
    "operator": ["ggn", "hessian"],
    "bn_mode": ["eval"],
    "l2": [0.0, 0.5],
    "checkpoint": ["1.pt", "2.pt", None],
    "weights": ["w", "v", None],
    "time": [(epoch, step) for epoch in (1, 1.0, 2.5, None) for step in (10, 20, None)],
}


def identities(count, seed=0):
    dice = random.Random(seed)
    return [Identity(**{name: dice.choice(values) for name, values in ANYTHING.items()}) for _ in range(count)]


def test_the_index_finds_what_a_search_through_all_finds():
    index, kept = Index(), {}
    for number, identity in enumerate(identities(300)):
        name = number % 250  # the last ones take the places of the first
        kept[name] = identity
        index.add(name, Known(identity, True, True, True, True))
    for name in range(0, 250, 3):
        del kept[name]
        index.remove(name)
    assert len(index) == len(kept)
    found = 0
    for asked in identities(200, seed=1):
        searched = {
            "same": [name for name, one in kept.items() if one == asked],
            "of_file": [name for name, one in kept.items() if one.is_of_file(asked)],
            "at_place": [name for name, one in kept.items() if one.same_place(asked)],
            "twins": [name for name, one in kept.items() if one.twin_of(asked)],
        }
        for way, names in searched.items():
            assert sorted(getattr(index, way)(asked)) == sorted(names), way
            found += len(names)
    assert found > 1000
    for name in kept:
        index.remove(name)
    assert not index._names  # nothing of what is gone is kept
