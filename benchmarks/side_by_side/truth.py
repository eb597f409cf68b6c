"""The same numbers in float64, by the reference, and how far each contender is from them; floors in operations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from side_by_side.networks import NETWORKS
from side_by_side.reference import Reference

if TYPE_CHECKING:
    from side_by_side.rounds import Case

_products: dict[tuple[str, str, Path], np.ndarray] = {}  # one for all numbers of batches
_ENTRIES = 12  # of a diagonal, each compared with a product


def truth_of(case: Case, results: dict[str, np.ndarray], weights: Path) -> dict[str, float]:
    """The relative error of each result; none where no truth is known: the trace of a network that is not plain."""
    from side_by_side import rounds

    if case.task == "product":
        key = (case.network, case.kind, weights)
        if key not in _products:
            _products[key] = rounds.in_own_process(_product, case.network, case.kind, weights)
        return {name: _distance(result, _products[key]) for name, result in results.items()}
    return rounds.in_own_process(_errors, case, results, weights)


def in_float64(name: str, weights: Path) -> Reference:
    """The reference in float64, with all data in one batch."""
    network = NETWORKS[name]
    data = [(x.double() if x.is_floating_point() else x, y) for x, y in network.data(1)]
    return Reference(network.model(weights).double(), nn.CrossEntropyLoss(), data)


def _product(name: str, kind: str, weights: Path) -> np.ndarray:
    from side_by_side.rounds import vector_of

    exact = in_float64(name, weights)
    return exact.product(kind)(vector_of(exact.n).double()).numpy()


def _errors(case: Case, results: dict[str, np.ndarray], weights: Path) -> dict[str, float]:
    network, exact = NETWORKS[case.network], in_float64(case.network, weights)
    if case.task == "diagonal":
        product = exact.product(case.kind)
        places = torch.randint(exact.n, (_ENTRIES,), generator=torch.Generator().manual_seed(4))
        units = nn.functional.one_hot(places, exact.n).double()
        truth = np.array([float(product(unit)[i]) for unit, i in zip(units, places)])
        return {name: _distance(result[places], truth) for name, result in results.items()}
    if case.task == "trace":
        if not network.plain:
            return {}
        truth = float(exact.diagonal("ggn").sum())  # the Hessian's too, of a piecewise linear network
        return {name: abs(float(result) - truth) / abs(truth) for name, result in results.items()}
    product = exact.product("hessian")
    if case.task == "lambda_max":  # the quotients of the vectors, and the greatest of them as the truth
        quotients = {name: _quotient(product, result) for name, result in results.items()}
        truth = max(quotients.values())
        return {name: abs(quotient - truth) / abs(truth) for name, quotient in quotients.items()}
    single = Reference(network.model(weights), nn.CrossEntropyLoss(), network.data(1))
    truth = _quotient(product, single.lambda_max().numpy())  # its error is the square of the residual, 1e-3
    return {name: abs(float(result) - truth) / abs(truth) for name, result in results.items()}


def _distance(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - truth) / np.linalg.norm(truth))


def _quotient(product: Any, vector: np.ndarray) -> float:
    v = torch.from_numpy(vector.astype(np.float64))
    return float(v @ product(v) / (v @ v))


def floors(name: str) -> dict[str, float]:
    """Floating-point operations of the cheapest products, and of those by kept autograd graphs, in gradients.

    A layer with ``F`` operations costs ``3 F`` in a gradient, ``6 F`` in a Hessian product and ``4 F`` in a
    Gauss-Newton product: the values of its forward pass are kept. The first layer needs no derivative in its input: it
    costs ``2 F`` in each of the three. ``F`` of all layers and of the first follow from the counts of a forward pass
    and a gradient.
    """
    network = NETWORKS[name]
    reference = Reference(network.model(), nn.CrossEntropyLoss(), network.data(1))
    ((x, y),) = reference.data
    forward = _operations(lambda: reference.model(x))
    loss = lambda: reference.criterion(reference.model(x), y)  # noqa: E731
    gradient = _operations(lambda: torch.autograd.grad(loss(), reference.parameters))
    first = 3 * forward - gradient
    cheapest = {kind: (each * (forward - first) + 2 * first) / gradient for kind, each in (("hessian", 6), ("ggn", 4))}
    products = {kind: reference.product(kind) for kind in ("hessian", "ggn")}
    vector = torch.ones(reference.n)
    by_graphs = {f"{kind} by graphs": _operations(lambda p=p: p(vector)) / gradient for kind, p in products.items()}
    return {"parameters": reference.n, **cheapest, **by_graphs}


def _operations(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
