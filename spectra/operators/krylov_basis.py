"""Basis: the orthonormal Krylov basis of one probe, and the operations that Lanczos needs on long vectors.

The basis is stored in the operator's dtype. Where several processes share the analysis, each stores a slice of every
vector: scalar products are added up over the processes, and a vector that was corrected is joined from its slices. The
vectors that are passed in and out are whole in every process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from spectra.runtime.ranks import Ranks, adding_up, joined, ranks

_ORTHOGONAL = {torch.float32: 1e-7, torch.float64: 1e-14}  # what can be reached and measured in each precision
_DROP = 0.7  # a correction that leaves less than this share of a vector was not small, and is repeated
_CORRECTIONS = 3  # at most; a vector that is still not orthogonal is rounding error
_CHUNK_ENTRIES = 2**19  # of the basis, converted to float64 at a time: 4 MiB, which stays in cache


class Basis:
    """Up to ``m`` orthonormal vectors of length ``n``, ``(m, n)`` in memory on one device.

    Args:
        m: the capacity.
        n: the length of a vector.
        dtype: of the stored vectors.
        device: where they are.
        shared: the processes that share the computation store a slice of each vector each, ``(m, n / processes)``.
    """

    def __init__(self, m: int, n: int, dtype: torch.dtype, device: torch.device, *, shared: bool = False) -> None:
        found = ranks() if shared else None
        self._sizes = slice_sizes(n, found)  # of the slices of all processes
        self._start = 0 if found is None else sum(self._sizes[: found.rank])
        self._stop = self._start + self._sizes[0 if found is None else found.rank]
        self._rows = torch.empty(m, self._stop - self._start, dtype=dtype, device=device)
        self._newest: list[torch.Tensor] = []  # the last two vectors, (n,), where the rows are slices
        self.size = 0

    @property
    def capacity(self) -> int:
        """The largest number of vectors that the basis can hold."""
        return len(self._rows)

    @property
    def rows(self) -> torch.Tensor:
        """The vectors so far, ``(size, n)``, as they are stored; of a shared basis, the slices of this process."""
        return self._rows[: self.size]

    def whole_rows(self) -> torch.Tensor:
        """The vectors so far, ``(size, n)``, whole also where each process stores a slice."""
        return self.rows if not self._split else torch.stack([joined(row, self._sizes) for row in self.rows])

    @property
    def last(self) -> torch.Tensor:
        """The newest vector, ``(n,)``, as it is stored: rounded to the dtype of the basis."""
        return self._newest[-1] if self._split else self._rows[self.size - 1]

    @property
    def before_last(self) -> torch.Tensor:
        """The vector before the newest one, ``(n,)``."""
        return self._newest[-2] if self._split else self._rows[self.size - 2]

    @property
    def _split(self) -> bool:
        return len(self._sizes) > 1

    def append(self, vector: torch.Tensor) -> None:
        """Add a unit vector, ``(n,)`` float64."""
        self._rows[self.size] = vector[self._start : self._stop]
        self.size += 1
        if self._split:
            self._newest = [*self._newest[-1:], vector.to(self._rows.dtype)]

    def restore(self, rows: torch.Tensor) -> None:
        """Start from previously stored vectors, ``(any number, n)``."""
        self._rows[: len(rows)] = rows[:, self._start : self._stop].to(self._rows.device)
        self.size = len(rows)
        if self._split:
            self._newest = [row.to(self._rows.device, copy=True) for row in rows[-2:]]

    def make_orthogonal(self, vector: torch.Tensor, limit: float = 0.0) -> tuple[float, float]:
        """Make a float64 vector orthogonal to the basis, in place, where it is not so already.

        The scalar products are measured in the precision of the basis, in a single product with it. They are
        subtracted only where one exceeds the limit. Meant for vectors that are nearly orthogonal, as the residual of a
        three-term recurrence is: then the rounding of scalar products and corrections in float32 does not count.

        Args:
            vector: ``(n,)`` float64.
            limit: the largest scalar product accepted, relative to the norm of the vector; at least what the precision
                of the basis allows (1e-7 or 1e-14).

        Returns:
            The norm of the vector, and its largest scalar product with a basis vector relative to that norm.

        References:
            H. Simon, The Lanczos algorithm with partial reorthogonalization, Math. Comp. 42 (1984).
        """
        rows, limit = self.rows, max(limit, _ORTHOGONAL[self._rows.dtype])
        norm, left = float(vector.norm()), 0.0
        for _ in range(_CORRECTIONS):
            if not 0 < norm < math.inf:
                return norm, 0.0
            cosines = self._added_up(rows @ (self._own(vector) / norm).to(rows.dtype))
            sizes = cosines.abs()
            left = float(sizes.max())
            if left <= limit:
                break
            # The components are those of Ritz vectors that have converged, which lie in the first basis vectors.
            end = int((sizes > limit / 100).nonzero()[-1]) + 1
            self._own(vector).sub_(cosines[:end] @ rows[:end], alpha=norm)
            self._join(vector)
            before, norm = norm, float(vector.norm())
            if norm > _DROP * before:
                left = max(float(torch.finfo(rows.dtype).eps), float(sizes[end:].max()) if end < len(sizes) else 0.0)
                break
        return norm, left

    def remove_from(self, vector: torch.Tensor) -> None:
        """Orthogonalise a float64 vector against the basis, in place: classical Gram-Schmidt, two passes."""
        for _ in range(2):
            self.subtract_from(vector, self.coefficients(vector))

    def coefficients(self, vector: torch.Tensor) -> torch.Tensor:
        """The scalar products of a float64 vector with every vector of the basis, ``(size,)``."""
        total = torch.zeros(self.size, dtype=torch.float64, device=vector.device)
        own = self._own(vector)
        for start, stop, rows in self._chunks():
            total += rows @ own[start:stop]
        return self._added_up(total)

    def subtract_from(self, vector: torch.Tensor, coefficients: torch.Tensor) -> None:
        """Subtract a linear combination of the basis vectors from a float64 vector, in place."""
        own = self._own(vector)
        for start, stop, rows in self._chunks():
            own[start:stop] -= coefficients @ rows
        self._join(vector)

    def combine(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The combinations ``C Q`` of the first ``m`` vectors, ``(r, n)`` float64, for ``C`` of shape ``(r, m)``."""
        count, m = coefficients.shape
        total = torch.empty(count, self._rows.shape[1], dtype=torch.float64, device=self._rows.device)
        for start, stop, rows in self._chunks():
            total[:, start:stop] = coefficients @ rows[:m]
        return total if not self._split else torch.stack([joined(row, self._sizes) for row in total])

    def loss_of_orthogonality(self) -> float:
        """``max |Q Q' - I|`` over the vectors of the basis."""
        gram = torch.zeros(self.size, self.size, dtype=torch.float64, device=self._rows.device)
        for _, _, rows in self._chunks():
            gram += rows @ rows.T
        return float((self._added_up(gram) - torch.eye(self.size).to(gram)).abs().max())

    def _own(self, vector: torch.Tensor) -> torch.Tensor:
        return vector[self._start : self._stop]

    def _added_up(self, sums: torch.Tensor) -> torch.Tensor:
        """The sums over the slices of all processes."""
        if self._split:
            with adding_up([sums]):
                pass
        return sums

    def _join(self, vector: torch.Tensor) -> None:
        """Make a vector whole again, in place, after each process has changed its slice."""
        if self._split:
            vector.copy_(joined(self._own(vector), self._sizes))

    def _chunks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """The basis in pieces of its columns, as (start, stop, float64 rows)."""
        rows = self.rows
        n = rows.shape[1]
        # A float64 basis needs no conversion, so it is not split.
        width = n if rows.dtype == torch.float64 else max(1024, _CHUNK_ENTRIES // max(1, self.size))
        for start in range(0, n, width):
            stop = min(n, start + width)
            yield start, stop, rows[:, start:stop].to(torch.float64)


def slice_sizes(n: int, sharing: Ranks | None) -> list[int]:
    """The numbers of coordinates of a vector that each process stores, as equal as possible; all, where it is alone."""
    count = 1 if sharing is None else sharing.size
    return [n // count + (rank < n % count) for rank in range(count)]
