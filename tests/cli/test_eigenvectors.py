"""`--eigenpairs`: what show prints about the eigenvectors, and what JSON has."""

from __future__ import annotations

import json

import numpy as np
from analyze_command import QUICK, analysed, direct, spectra


def test_the_eigenvectors_are_analysed_stored_and_printed(here):
    analysed("net_1.pt", *QUICK, "--eigenpairs", "3")
    (same,) = direct(1, eigenpairs=3)
    (entry,) = json.loads(spectra("show", "run.h5", "--json").stdout)
    found, analysis = entry["eigenvector_analysis"], same.eigenvector_analysis
    assert found["tensors"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    np.testing.assert_allclose(found["tensor_shares"], analysis.tensor_shares, rtol=1e-6)
    np.testing.assert_allclose(np.sum(found["classes"]["shares"], axis=0), 1)
    shown = spectra("show", "run.h5", "--all")
    assert shown.exit_code == 0, shown.output
    text = shown.stdout
    assert "computed eigenvectors" in text
    assert "curvature along the gradient, g'Mg/|g|^2: " in text
    assert "classes of the data in the eigenvectors" in text
    assert "v'(H - G)v" in text
    short = spectra("show", "run.h5").stdout
    assert "computed eigenvectors" not in short


def test_a_gauss_newton_matrix_has_nothing_beyond_itself(here):
    analysed("net_1.pt", *QUICK, "--operator", "ggn", "--eigenpairs", "2")
    text = spectra("show", "run.h5", "--all").stdout
    assert "v'Gv" in text
    assert "v'(H - G)v" not in text
