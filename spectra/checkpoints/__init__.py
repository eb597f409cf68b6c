"""Checkpoint files: finding them, reading them without running their code, and loading weights into a model."""
