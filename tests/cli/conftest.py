"""What the tests of commands start from: no line of progress that depends on how busy the machine is."""

from __future__ import annotations

import pytest

from spectra_cli import phase_clock


@pytest.fixture(autouse=True)
def _phases_are_silent(monkeypatch):
    """A phase has a line when it lasts a second: the tests of progress set that time themselves."""
    monkeypatch.setattr(phase_clock, "FIRST", float("inf"))
