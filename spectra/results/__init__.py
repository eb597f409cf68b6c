"""The results of a run: records, trajectories, checks, comparisons, and their file; NumPy only."""
