"""Exact traces and diagonals of the Gauss-Newton matrix, and the check of whether they are also the Hessian's."""
