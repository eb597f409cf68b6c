"""Figures: drawing functions for given axes, complete figures, and saving the figures of a run."""
