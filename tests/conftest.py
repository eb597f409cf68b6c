"""What every test starts from: seeded generators, and torch's default dtype left as found."""

from __future__ import annotations

import pytest


@pytest.fixture
def float64():
    """Float64 by default within the test, from a fixed seed."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
