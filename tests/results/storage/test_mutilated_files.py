"""Mutilated results files and checkpoints: one clear line or the same numbers, never a crash or a hang."""

from __future__ import annotations

import importlib.util

import pytest
from programs import run_program

FEW, MANY = 36, 500
CHECKED = ("results", "zip")  # formats with checksums: other numbers are never taken for right
UNCHECKED = ("legacy", "safetensors")  # formats without: other weights cannot be told from right ones


def mutilate(forms, tmp_path, number, seed=0):
    if importlib.util.find_spec("safetensors") is None:
        forms = [form for form in forms if form != "safetensors"]
    every = run_program("mutilating.py", ",".join(forms), tmp_path, number, seed)
    for form, found in every.items():
        counts = found["counts"]
        assert sum(counts.values()) == number
        assert counts["refused"] > number / 2, (form, counts)
        allowed = {"refused", "same"} | ({"other"} if form in UNCHECKED else set())
        assert counts.keys() <= allowed, (form, found["bad"])
        if form in CHECKED:  # and what changed nothing that is read is not refused
            assert counts["same"] > 0, (form, counts)
        if form == "results":
            for kind in ("in_a_dataset_of_a_file_without_seal", "in_a_dataset_under_a_new_seal"):
                assert found["kinds"][kind].keys() == {"refused"}
    return every


def test_mutilated_files_are_refused_in_one_line_or_give_the_same_numbers(tmp_path):
    mutilate(CHECKED + UNCHECKED, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*CHECKED, *UNCHECKED])
def test_five_hundred_mutilated_files(form, tmp_path, capsys):
    found = mutilate([form], tmp_path, MANY, seed=1)
    with capsys.disabled():
        print(f"\n{found}")
