"""Every number that follows from the tridiagonal matrices of Lanczos. NumPy only."""
