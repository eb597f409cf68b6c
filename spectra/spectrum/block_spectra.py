"""BlockSpectra: the spectra of the diagonal blocks of one matrix, and how much they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spectra.jsonable import to_jsonable
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.heterogeneity import Distances, distances
from spectra.spectrum.spectrum import Spectrum

#: The estimates of each block that tables and JSON have.
NAMES = ("trace", "frobenius_norm", "lambda_max", "lambda_min", "rank_degeneracy")


@dataclass(frozen=True, eq=False)
class BlockSpectra(Mapping[str, Spectrum]):
    """The spectra of the diagonal blocks, by name: ``blocks["fc1"].lambda_max()``.

    Each has the numbers of a run on the parameters of the block alone (``params=``).
    """

    how: str  # "layer", "module" or the regular expression
    spectra: Mapping[str, Spectrum]  # in the order of the model
    left_out: tuple[str, ...] = ()  # analysed parameters that the expression does not match
    cached_estimates: Mapping[str, Mapping[str, Estimate]] | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Spectrum:
        return self.spectra[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.spectra)

    def __len__(self) -> int:
        return len(self.spectra)

    @cached_property
    def estimates(self) -> Mapping[str, Mapping[str, Estimate]]:
        """Block -> name -> estimate, of `NAMES`, as in the record of the block alone."""
        if self.cached_estimates is not None:
            return self.cached_estimates
        found = {}
        for block, spectrum in self.spectra.items():
            every = spectrum.estimates()
            found[block] = {name: every[name] for name in NAMES}
        return found

    @cached_property
    def distances(self) -> Distances:
        """The Jensen-Shannon distances between the shapes of the spectra; see ``spectra.spectrum.heterogeneity``."""
        return distances([spectrum.quadrature for spectrum in self.spectra.values()])

    @property
    def heterogeneity(self) -> Estimate | None:
        """The mean distance over all pairs of blocks, from 0 to 1; None with one block."""
        return self.distances.mean

    def to_json(self) -> dict[str, Any]:
        """``how``, ``spectra`` {name: n, parameters, estimates}, ``distances``, ``heterogeneity`` and ``left_out``."""
        blocks = {
            name: {
                "n": self.spectra[name].n,
                "parameters": list(self.spectra[name].tensor_sizes),
                "estimates": {key: estimate.to_json() for key, estimate in estimates.items()},
            }
            for name, estimates in self.estimates.items()
        }
        between, mean = self.distances, self.heterogeneity
        found: dict[str, Any] = to_jsonable(
            {
                "how": self.how,
                "spectra": blocks,
                "distances": {
                    "value": between.value,
                    "stderr": between.stderr,
                    "bias": between.bias,
                    "steps_error": between.steps_error,
                },
                "heterogeneity": None if mean is None else mean.to_json(),
                "left_out": list(self.left_out),
            }
        )
        return found
