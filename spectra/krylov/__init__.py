"""Lanczos methods: probe vectors, Lanczos in lockstep, stochastic Lanczos quadrature, eigenpairs and Hutch++."""
