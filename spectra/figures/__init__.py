"""Figures: drawing on given axes, whole sheets, and saving those of a run."""
