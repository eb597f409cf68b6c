"""`--operator residual`: the three matrices in one run, and the line that relates their traces."""

from __future__ import annotations

from analyze_command import QUICK, analysed, spectra

THREE = ("--operator", "hessian", "--operator", "ggn", "--operator", "residual")


def test_show_relates_the_traces_of_one_checkpoint(here):
    result = analysed("net_1.pt", *QUICK, *THREE)
    shown = spectra("show", "run.h5").stdout
    for text in (result.stdout, shown):
        (line,) = [line for line in text.splitlines() if "Tr H" in line]
        assert line.startswith("Tr H = Tr G + Tr R by ")
    assert "Tr H" not in spectra("show", "run.h5", "--operator", "hessian", "--operator", "ggn").stdout


def test_show_counts_several_checkpoints(here):
    analysed("net_0.pt", "net_1.pt", *QUICK, *THREE)
    text = spectra("show", "run.h5").stdout
    assert "Tr H = Tr G + Tr R holds probe by probe in 2 of 2 cases; the largest difference is " in text
