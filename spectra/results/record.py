"""A Record: the settings and results of one checkpoint, one operator and one batch-norm mode."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spectra.errors import ArgumentError
from spectra.jsonable import to_jsonable
from spectra.results.headline import Headline, exact_traces, headline_tensor_traces, headlines_of
from spectra.results.html_tables import record_html
from spectra.results.identity import Identity, Place
from spectra.results.optimizer import Edge, OptimizerSettings, edge_of
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.estimators import FROM_TRACE

if TYPE_CHECKING:
    from spectra.results.exact_trace import ExactTrace
    from spectra.results.measure import Measure
    from spectra.results.trace_checks import Check
    from spectra.spectrum.block_spectra import BlockSpectra
    from spectra.spectrum.class_structure import ClassStructure
    from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis
    from spectra.spectrum.error_budget import Budget
    from spectra.spectrum.exact_spectrum import GGNSpectrum
    from spectra.spectrum.overlap import Overlap
    from spectra.spectrum.spectrum import Spectrum

#: The numbers about a record that `to_json` shows on its first level.
HEADLINE_FACTS = ("loss", "n_parameters", "n_samples")
#: The status of a record. "failed": no numbers. "unverified": a check or a measure ended in an unexpected error.
#: "complete": everything requested. The same command computes records of the first two kinds again.
STATUSES = ("failed", "unverified", "complete")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The settings and results of one checkpoint, one operator and one batch-norm mode.

    `spectrum` (the tridiagonals) is the result; every estimate follows from it. A failed record has a reason and no
    spectrum. A record is unverified where a check or a measure ended in an unexpected error: it has a spectrum and a
    reason.
    """

    operator: str  # "hessian" | "ggn" | "residual" | "empirical_fisher"
    bn_mode: str  # "eval" | "train" | "recalibrated"
    place: Place = field(default_factory=Place)  # the origin of the weights
    status: str = "complete"  # one of STATUSES
    reason: str | None = None  # why the record, or a check or measure in it, failed; one line
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the analysis; JSON-able
    facts: Mapping[str, float | int | None] = field(default_factory=dict)  # loss, accuracy, norms, counts
    spectrum: Spectrum | None = None
    test_spectrum: Spectrum | None = None  # of the same operator on held-out data, by the same probes
    provenance: Mapping[str, Any] = field(default_factory=dict)  # machine, versions, command, times; JSON-able
    notes: tuple[str, ...] = ()  # warnings to print with the numbers
    exact: ExactTrace | None = None  # None: not requested, or not defined for the matrix (the empirical Fisher)
    checks: tuple[Check, ...] = ()  # of the estimates against exact numbers
    exact_spectrum: GGNSpectrum | None = None  # all eigenvalues of the Gauss-Newton matrix of few samples
    overlap: Overlap | None = (
        None  # of the eigenvectors with those of the record before, where eigenpairs are asked for
    )
    # Shares of tensors, gradient and classes in the eigenvectors, where eigenpairs are asked for.
    eigenvector_analysis: EigenvectorAnalysis | None = None
    class_structure: ClassStructure | None = None  # of the Gauss-Newton matrix, where it is asked for
    blocks: BlockSpectra | None = None  # of the diagonal blocks, where they are asked for
    remainder: Estimate | None = None  # Tr H - Tr G, where the exact trace is not the Hessian's
    optimizer: OptimizerSettings | None = None  # of the checkpoint; None: it has none
    sharpness: Mapping[str, Measure] = field(default_factory=dict)  # name -> measure
    cached_estimates: Mapping[str, Estimate] | None = field(default=None, repr=False, compare=False)
    cached_test_estimates: Mapping[str, Estimate] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ArgumentError(f"status={self.status!r}: a record is one of {', '.join(STATUSES)}")
        if self.status != "failed" and self.spectrum is None:
            raise ArgumentError(f"spectrum=None: a record that is {self.status} has one; else it is 'failed'")
        if self.status != "complete" and not self.reason:
            raise ArgumentError(f"reason=None: a record that is {self.status} says why, in one line")

    def _repr_html_(self) -> str:
        """The numbers of the record with their errors, for notebooks."""
        return record_html(self)

    @functools.cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """Name -> Estimate, the standard list: as stored with the record, else computed from its spectrum.

        If the exact trace is known, it is a control variate for estimates that correlate with it. The trace itself
        stays an estimate here, and is exact in `headlines`.
        """
        if self.status == "failed":
            return {}
        return self.informed_spectrum.estimates() if self.cached_estimates is None else self.cached_estimates

    @functools.cached_property
    def informed_spectrum(self) -> Spectrum:
        """The spectrum with the exact trace of its matrix, if that is known."""
        if self.spectrum is None:
            raise ArgumentError("this record has failed: it has no spectrum")
        total, _ = exact_traces(self)
        return self.spectrum if total is None else self.spectrum.with_exact_trace(total)

    def linear_threshold(self) -> float:
        """`Spectrum.linear_threshold` from the stored estimates: the curve over tolerances is not computed."""
        if self.spectrum is None:
            raise ArgumentError("this record has failed: it has no spectrum")
        return self.spectrum.linear_threshold(self.estimates.get("rank_degeneracy"))

    @functools.cached_property
    def headlines(self) -> Mapping[str, Headline]:
        """Name -> the number to quote: as ``estimates``, but with exact trace and mean eigenvalue if known."""
        return headlines_of(self)

    def headline(self, name: str) -> Headline:
        """The number to quote of this name, with its ``source``: ``"exact"`` or ``"probes"``.

        Raises:
            ArgumentError: the record has no such estimate; the message lists what there is.
        """
        if name not in self.headlines:
            raise ArgumentError(f"no estimate {name!r}: there are {', '.join(self.headlines) or 'none'}")
        return self.headlines[name]

    def headline_tensor_traces(self) -> dict[str, Headline]:
        """The trace of each parameter tensor's diagonal block to quote: exact where known, else the estimate."""
        return headline_tensor_traces(self)

    @functools.cached_property
    def edge(self) -> Edge | None:
        """The edge of stability of the optimizer for `lambda_max`; None where no optimizer is known.

        It has a reason in place of a value for another matrix than the Hessian of all parameters.
        """
        if self.optimizer is None:
            return None
        if self.operator != "hessian" or self.settings.get("params") is not None:
            return Edge(None, "the edge of stability is that of the Hessian of all parameters")
        preconditioned = self.settings.get("precondition") is not None
        return edge_of(self.optimizer, preconditioned=preconditioned, l2=float(self.settings.get("l2") or 0.0))

    @property
    def over_edge(self) -> Estimate | None:
        """``lambda_max`` divided by the edge of stability, with its interval; None where one of them is not known."""
        largest, edge = self.estimates.get("lambda_max"), None if self.edge is None else self.edge.value
        if largest is None or edge is None or edge <= 0:
            return None
        lower, upper = (None if end is None else end / edge for end in (largest.lower, largest.upper))
        return replace(largest, value=largest.value / edge, lower=lower, upper=upper)

    @functools.cached_property
    def budgets(self) -> Mapping[str, Budget]:
        """Name -> error budget, for the estimates that have one; computed from the spectrum."""
        from spectra.spectrum.error_budget import budgets_of

        return {} if self.spectrum is None else budgets_of(self.informed_spectrum, self.estimates)

    @functools.cached_property
    def test_estimates(self) -> Mapping[str, Estimate]:
        """Name -> estimate on the test data; empty where the record has no test data."""
        if self.status == "failed":
            return {}
        if self.cached_test_estimates is not None:
            return self.cached_test_estimates
        return {} if self.test_spectrum is None else self.test_spectrum.estimates()

    @property
    def identity(self) -> Identity:
        """The key by which this record is the same as another one."""
        return Identity.of(self.place, operator=self.operator, bn_mode=self.bn_mode, settings=self.settings)

    @property
    def checkpoint(self) -> str | None:
        """The path of the checkpoint as it was given; None: the weights were in memory."""
        return self.place.checkpoint

    @property
    def checkpoint_sha256(self) -> str | None:
        """The SHA-256 of the file; without a file that of the weights and buffers."""
        return self.place.sha256

    @property
    def weights_sha256(self) -> str | None:
        """The SHA-256 of the weights and buffers as they were loaded from the checkpoint."""
        return self.place.weights

    @property
    def own_tensors(self) -> int | None:
        """The number of tensors that the checkpoint lacks and the task provides; None: none."""
        return self.place.own_tensors

    @property
    def epoch(self) -> float | None:
        """The epoch of the checkpoint; None: not known."""
        return self.place.epoch

    @property
    def step(self) -> int | None:
        """The training step of the checkpoint; None: not known."""
        return self.place.step

    @property
    def where(self) -> str:
        """The checkpoint in a few words: its name, and its epoch or step."""
        return self.place.short

    @property
    def label(self) -> str:
        """A few words that distinguish this record from the others of its run, for messages."""
        return f"{self.where} {self.operator} {self.bn_mode}".strip()

    def to_json(self) -> dict[str, Any]:
        """The record as JSON has it: a number that could not be computed is None, with its reason, never 0 or NaN.

        Returns:
            checkpoint, checkpoint_sha256, epoch, step, operator, bn_mode, status, reason, loss, n_parameters,
            n_samples, estimates {name: {value, stderr, lower, upper, ...}}, headline {trace, mean_eigenvalue: the
            number to quote, and its source, "exact" or "probes"}, tensor_traces {tensor: the estimate}, facts,
            settings, provenance, notes; and, where they were asked for, eigenpairs {values, residuals, lower, upper,
            ...}, eigenvector_analysis {tensors, tensor_shares, gradient, classes, ...},
            class_structure {labels, traces, shares, eigenvalues, ...},
            exact {total, by_layer, applies, reasons, ...}, check [{name, z, dof, detectable, verdict, ...}] and
            sharpness {name: {value, ...}}, test {loss, accuracy, n_samples, estimates}, blocks {how, spectra {name:
            {n, parameters, estimates}}, distances, heterogeneity, left_out}; optimizer {kind, groups, steps, edge,
            edge_words, lambda_max_over_edge}, where the checkpoint has one; and weights_sha256 and
            own_tensors, where the task provides some of the weights.
        """
        facts = to_jsonable(self.facts)
        pairs = None if self.spectrum is None else self.spectrum.eigenpairs
        traces = {} if self.spectrum is None else self.spectrum.tensor_traces()
        found: dict[str, Any] = {}
        if self.exact is not None:
            remainder = None if self.remainder is None else _estimate_json(self.remainder)
            found["exact"] = self.exact.to_json() | {"remainder": remainder}
            found["check"] = [check.to_json() for check in self.checks]
        if self.exact_spectrum is not None:
            found["exact_spectrum"] = to_jsonable(self.exact_spectrum.to_json())
            found["check"] = [check.to_json() for check in self.checks]
        if self.overlap is not None:
            found["overlap"] = self.overlap.to_json()
        if self.eigenvector_analysis is not None:
            found["eigenvector_analysis"] = self.eigenvector_analysis.to_json()
        if self.class_structure is not None:
            found["class_structure"] = self.class_structure.to_json()
        if self.blocks is not None:
            found["blocks"] = self.blocks.to_json()
        if self.optimizer is not None:
            found["optimizer"] = to_jsonable(self.optimizer.to_json() | self._edge_json())
        if self.sharpness:
            found["sharpness"] = {name: measure.to_json() for name, measure in self.sharpness.items()}
        return {
            "checkpoint": to_jsonable(self.checkpoint),
            "checkpoint_sha256": self.checkpoint_sha256,
            **({} if self.own_tensors is None else self._parts_json()),
            "epoch": to_jsonable(self.epoch),
            "step": self.step,
            "operator": self.operator,
            "bn_mode": self.bn_mode,
            "status": self.status,
            "reason": to_jsonable(self.reason),
            **{name: facts.get(name) for name in HEADLINE_FACTS},
            "estimates": {
                name: _estimate_json(estimate)
                | ({"budget": self.budgets[name].to_json()} if name in self.budgets else {})
                for name, estimate in self.estimates.items()
            },
            "headline": {name: _estimate_json(self.headlines[name]) for name in FROM_TRACE if name in self.headlines},
            "tensor_traces": {name: _estimate_json(estimate) for name, estimate in traces.items()},
            **({} if pairs is None else {"eigenpairs": to_jsonable(pairs.to_json())}),
            "facts": facts,
            "settings": to_jsonable(self.settings),
            "provenance": to_jsonable(self.provenance),
            "notes": to_jsonable(self.notes),
            **found,
            **({} if self.test_spectrum is None else {"test": self._test_json(facts)}),
        }

    def _edge_json(self) -> dict[str, Any]:
        edge, ratio = self.edge, self.over_edge
        return {
            "edge": None if edge is None else edge.value,
            "edge_words": None if edge is None else edge.words,
            "lambda_max_over_edge": None if ratio is None else _estimate_json(ratio),
        }

    def _parts_json(self) -> dict[str, Any]:
        return {"weights_sha256": self.weights_sha256, "own_tensors": self.own_tensors}

    def _test_json(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{name: facts.get(f"test_{name}") for name in ("loss", "accuracy", "n_samples")},
            "estimates": {name: _estimate_json(estimate) for name, estimate in self.test_estimates.items()},
        }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    entry: dict[str, Any] = to_jsonable(estimate.to_json())
    if entry.get("value") is None:
        entry["reason"] = estimate.note or f"not a finite number ({estimate.value})"
    return entry
