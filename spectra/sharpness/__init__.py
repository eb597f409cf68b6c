"""Sharpness measures of a network: measures invariant under function-preserving rescalings, and baselines."""
