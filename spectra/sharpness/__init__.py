"""Sharpness measures of a network: invariant under rescaling that leaves its function alone, and the baselines."""
