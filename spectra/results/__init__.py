"""What a run found: records, trajectories, checks, comparisons, and the file they are kept in. NumPy only."""
