"""The class with PyHessian's calls beside PyHessian itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import batches_of
from torch import nn

from spectra.compat.pyhessian import hessian

pytestmark = [pytest.mark.peers]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["data", "dataloader"])
def test_the_same_calls_return_the_same_form_and_numbers(how):
    """In float32, which is what PyHessian's accumulators are made in."""
    theirs = pytest.importorskip("pyhessian").hessian
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(70, 4), torch.randint(3, (70,))
    given = {"data": (x, y)} if how == "data" else {"dataloader": batches_of(x, y, 32, 32, 6)}
    found = []
    for made in (theirs, hessian):
        h = made(model, nn.CrossEntropyLoss(), **given, cuda=False)
        found.append((*h.eigenvalues(maxIter=1000, tol=1e-6, top_n=2), h.trace(maxIter=400, tol=1e-9)))
        model.zero_grad(set_to_none=True)
    (values, vectors, samples), (ours, our_vectors, our_samples) = found
    assert ours == pytest.approx(values, rel=1e-3)
    assert type(ours) is type(values)
    for one, other in zip(our_vectors, vectors, strict=True):
        assert [v.shape for v in one] == [v.shape for v in other]
        assert abs(sum(float((a * b).sum()) for a, b in zip(one, other))) == pytest.approx(1.0, abs=1e-2)
    assert len(our_samples) == len(samples) == 400
    error = (np.var(samples) / 400 + np.var(our_samples) / 400) ** 0.5
    assert abs(np.mean(our_samples) - np.mean(samples)) <= 4 * error
