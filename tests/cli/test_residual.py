"""`--operator residual`: the three matrices in one run, and the line that relates their traces."""

from __future__ import annotations

from analyze_command import QUICK, analysed, spectra

THREE = ("--operator", "hessian", "--operator", "ggn", "--operator", "residual")


def test_show_relates_the_traces_of_one_checkpoint_and_counts_several(here):
    analysed("net_0.pt", "net_1.pt", *QUICK, *THREE)
    text = spectra("show", "run.h5").stdout
    assert "Tr H = Tr G + Tr R holds probe by probe in 2 of 2 cases; the largest difference is " in text
    one = spectra("show", "run.h5", "--epoch", "1").stdout
    (line,) = [line for line in one.splitlines() if "Tr H" in line]
    assert line.startswith("Tr H = Tr G + Tr R by ")
    assert "Tr H" not in spectra("show", "run.h5", "--operator", "hessian", "--operator", "ggn").stdout
