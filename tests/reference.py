"""References in plain numpy, for tests that need tridiagonals of a matrix whose spectrum is known."""

from __future__ import annotations

import numpy as np

from spectra.spectrum.tridiagonal import Tridiagonal


def sphere_starts(n: int, num_probes: int, seed: int) -> np.ndarray:
    """Unit vectors, uniform on the sphere, (k, n)."""
    # A stream of their own: eigenvalues drawn from default_rng(seed) would otherwise be the same normals as the start.
    v = np.random.default_rng([seed, 77]).standard_normal((num_probes, n))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def lanczos(eigenvalues: np.ndarray, start: np.ndarray, steps: int, *, tolerance: float = 1e-10) -> Tridiagonal:
    """Lanczos on ``diag(eigenvalues)`` from a unit start, twice re-orthogonalised against the whole basis.

    A start that is uniform on the sphere makes this the general case: only its squared components along the
    eigenvectors matter, and their law does not depend on the basis.
    """
    n = eigenvalues.size
    basis = np.zeros((min(steps, n), n))
    basis[0] = start
    alphas, betas = [], []
    for j in range(min(steps, n)):
        r = eigenvalues * basis[j]
        alphas.append(float(basis[j] @ r))
        for _ in range(2):
            r -= basis[: j + 1].T @ (basis[: j + 1] @ r)
        betas.append(float(np.linalg.norm(r)))
        scale = max(abs(a) + b for a, b in zip(alphas, betas))
        if betas[-1] <= tolerance * scale or j + 1 == n:
            return Tridiagonal(np.array(alphas), np.array(betas), True)
        if j + 1 < basis.shape[0]:
            basis[j + 1] = r / betas[-1]
    return Tridiagonal(np.array(alphas), np.array(betas), False)


def probes_of(eigenvalues: np.ndarray, steps: int, num_probes: int, seed: int) -> list[Tridiagonal]:
    """Lanczos on ``diag(eigenvalues)`` from independent sphere starts."""
    return [lanczos(eigenvalues, start, steps) for start in sphere_starts(eigenvalues.size, num_probes, seed)]


def bulk_with_outliers(n: int = 2000, seed: int = 0) -> np.ndarray:
    """Eigenvalues: 95 % of ``n`` from N(0, (1e-3)^2), a continuous bulk, and the rest from N(0, 1)."""
    rng = np.random.default_rng(seed)
    inside = round(0.95 * n)
    return np.concatenate([rng.normal(0, 1e-3, inside), rng.normal(0, 1, n - inside)])
