"""The exact trace and diagonal against dense float64 matrices, over a table of networks and losses."""

from __future__ import annotations

import pytest
from exact_networks import NETWORKS, dense_diagonals

from spectra import exact_diagonal, exact_trace

pytestmark = pytest.mark.usefixtures("float64")


def close(found, expected, scale):
    return bool(((found - expected).abs() <= 1e-10 * scale).all())


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_trace_and_diagonal_are_those_of_the_dense_matrices(network):
    task = network.make()
    hessian, ggn = dense_diagonals(task)
    diagonal, trace = exact_diagonal(task), exact_trace(task)
    scale = max(float(d.abs().max()) for d in ggn.values())
    assert scale > 1e-3
    assert list(diagonal) == list(trace.by_layer) == list(ggn)
    for name, entries in ggn.items():
        assert close(diagonal[name], entries, scale), name
        assert trace.by_layer[name] == pytest.approx(float(entries.sum()), rel=1e-10, abs=1e-10 * scale)
        if trace.certified[name]:
            assert close(hessian[name], entries, scale), f"{name} is called the Hessian's and is not"
    assert trace.total == pytest.approx(float(sum(d.sum() for d in ggn.values())), rel=1e-10)
    assert trace.stderr is None
    assert trace.applies is diagonal.applies is network.hessian
    assert trace.kind == ("hessian" if network.hessian else "ggn")
    assert all(trace.certified.values()) is network.hessian
    assert network.reason in " ".join(trace.reasons)
    assert bool(trace.reasons) is not network.hessian
    assert ("single samples" in trace.method) is network.fallback
    if not network.hessian and network.name != "hidden_square":  # of which autograd gives no true Hessian
        assert max(float((hessian[name] - ggn[name]).abs().max()) for name in ggn) > 1e-6 * scale
