"""`--class-structure`: analyze, show, JSON and plot."""

from __future__ import annotations

import json

import numpy as np
from analyze_command import QUICK, analysed, refused, spectra

from spectra import load_trajectory


def test_it_is_computed_stored_printed_and_drawn(here):
    analysed("net_1.pt", *QUICK, "--operator", "ggn", "--class-structure", "--eigenpairs", "3")
    (record,) = load_trajectory("run.h5")
    (entry,) = json.loads(spectra("show", "run.h5", "--json").stdout)
    found = record.class_structure
    assert entry["class_structure"] == found.to_json()
    assert entry["settings"]["class_structure"] is True
    np.testing.assert_allclose(sum(found.shares.values()), 1)
    text = spectra("show", "run.h5", "--all").stdout
    assert f"class structure of the Gauss-Newton matrix, {len(found.labels)} classes" in text
    assert "cross-class means" in text
    assert "class structure" not in spectra("show", "run.h5").stdout
    drawn = spectra("plot", "run.h5", "--what", "class-structure", "--out", "figures")
    assert drawn.exit_code == 0, drawn.output
    assert (here / "figures").is_dir()


def test_another_matrix_is_refused(here):
    refused(here, ["net_1.pt", *QUICK, "--class-structure"], "add the operator 'ggn'")
