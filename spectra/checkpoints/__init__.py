"""Checkpoint files: what is in one, where those of a run are, and how weights get into a model."""
