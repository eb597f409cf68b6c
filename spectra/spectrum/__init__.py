"""The spectrum of an operator, and its estimates with errors, from tridiagonal matrices of Lanczos; NumPy only."""
