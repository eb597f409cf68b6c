"""What every test starts from: seeded generators, and torch's default dtype left as found."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The problems of the tests are too small for a second thread to pay, and on a busy machine it costs a lot."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def float64():
    """Float64 by default within the test, from a fixed seed."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
