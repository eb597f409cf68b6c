"""ExactDiagonal: an exact diagonal by parameter tensor, the matrix it belongs to, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from spectra.results.exact_trace import drawn_words


class ExactDiagonal(dict[str, torch.Tensor]):
    """The diagonal of the Gauss-Newton matrix by tensor, in the tensors' shapes, float64; empty if refused.

    The attributes are those of ``ExactTrace``. ``stderr`` has the standard errors by tensor if the diagonal is drawn.
    """

    def __init__(
        self,
        diagonal: Mapping[str, torch.Tensor],
        *,
        kind: str | None,
        reasons: tuple[str, ...],
        certified: Mapping[str, bool],
        stderr: Mapping[str, torch.Tensor] | None,
        method: str,
        bn_mode: str,
        l2: float,
    ) -> None:
        super().__init__(diagonal)
        self.kind = kind
        self.reasons = reasons
        self.certified = certified
        self.stderr = stderr
        self.method = method
        self.bn_mode = bn_mode
        self.l2 = l2

    @property
    def applies(self) -> bool:
        """Whether the entries are also those of the Hessian."""
        return bool(self) and self.kind == "hessian"

    @property
    def how(self) -> list[str]:
        """Sentences on method and matrix, as in :class:`spectra.results.exact_trace.ExactTrace`."""
        return drawn_words(self.method, self.stderr)
