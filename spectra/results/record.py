"""What was asked and what was found: a Record is one checkpoint x operator x batch-norm mode."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra.errors import ArgumentError
from spectra.jsonable import dumps, to_jsonable
from spectra.results.headline import Headline, exact_traces, headline_tensor_traces, headlines_of
from spectra.spectrum.estimates import Estimate

if TYPE_CHECKING:
    from spectra.results.exact_trace import ExactTrace
    from spectra.results.measure import Measure
    from spectra.results.trace_checks import Check
    from spectra.spectrum.error_budget import Budget
    from spectra.spectrum.exact_spectrum import GGNSpectrum
    from spectra.spectrum.overlap import Overlap
    from spectra.spectrum.spectrum import Spectrum

#: The numbers about a record that `to_json` shows on its first level.
HEADLINE_FACTS = ("loss", "n_parameters", "n_samples")
#: From the least to the most that a record holds: no numbers; numbers of which a check or a measure failed
#: unexpectedly; all that was asked for. The first two are computed again by the same command.
STATUSES = ("failed", "unverified", "complete")
#: The numbers that can be exact; `to_json` shows them with their source.
HEADLINE_NUMBERS = ("trace", "mean_eigenvalue")


@dataclass(frozen=True)
class Identity:
    """What makes two records the same record: which weights, which matrix, which probes, which data.

    The weights are known by the SHA-256 of their file; where there is none, by the file's name; where there is no
    file, by epoch and step, and the SHA-256 of the weights if that is known. Where the file holds only a part of the
    weights, the SHA-256 of all of them counts too. Two identities are equal when all but the name of a hashed file is
    equal.
    """

    subject: str  # the file's SHA-256 (and that of the weights), else its path, else (the latter and) epoch and step
    operator: str
    bn_mode: str
    params: str | None = None  # the pattern that selects parameters; None: all
    l2: float = 0.0
    seed: int | None = None  # of the probes
    data_seed: int | None = None  # of the subset of the data
    checkpoint: str | None = field(default=None, compare=False)  # the path, else epoch and step of hashed weights
    weights: str | None = field(default=None, compare=False)  # the SHA-256 of those that came from a file, if known
    time: tuple[float | None, int | None] = field(default=(None, None), compare=False)  # epoch and step

    @classmethod
    def of(
        cls,
        *,
        operator: str,
        bn_mode: str,
        settings: Mapping[str, Any],
        checkpoint: str | None = None,
        checkpoint_sha256: str | None = None,
        epoch: float | None = None,
        step: int | None = None,
        weights_sha256: str | None = None,
        own_tensors: int | None = None,
    ) -> Identity:
        """The identity of the record that these would lead to; `settings` are those of the record."""
        time = _time(epoch, step)
        if checkpoint is None:
            place = None if checkpoint_sha256 is None else time
            subject = time if checkpoint_sha256 is None else f"{checkpoint_sha256} {time}"
        else:
            place, subject = checkpoint, checkpoint_sha256 or checkpoint
            if own_tensors:
                subject = f"{subject} {weights_sha256}"
        params = settings.get("params")
        return cls(
            subject=subject,
            operator=operator,
            bn_mode=bn_mode,
            params=params if params is None or isinstance(params, str) else dumps(params),
            l2=float(settings.get("l2") or 0.0),
            seed=settings.get("seed"),
            data_seed=settings.get("data_seed"),
            checkpoint=place,
            weights=weights_sha256,
            time=(epoch, step),
        )

    def is_of_file(self, other: Identity) -> bool:
        """Whether this is of a part of the weights, from the file of the other, whose weights are not known."""
        same = other.weights is None and self.subject == f"{other.subject} {self.weights}"
        return same and self.question == other.question

    def twin_of(self, other: Identity) -> bool:
        """Whether both are of the same weights from two files, at no two moments of training, and the same question."""
        same = self.weights is not None and self.weights == other.weights
        return same and not apart(self.time, other.time) and self.question == other.question

    @property
    def question(self) -> tuple[object, ...]:
        """What is asked of the weights: everything but which they are."""
        return self.operator, self.bn_mode, self.params, self.l2, self.seed, self.data_seed

    def same_place(self, other: Identity) -> bool:
        """Whether both are of the same file by name, or the same epoch, whatever the weights, and the same question."""
        return self.checkpoint is not None and self.checkpoint == other.checkpoint and self.question == other.question


def apart(one: tuple[float | None, int | None], other: tuple[float | None, int | None]) -> bool:
    """Whether two moments, as epoch and step, are known to be different ones."""
    return any(a is not None and b is not None and a != b for a, b in zip(one, other))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the weights of a record are from: a checkpoint file, or a moment of training."""

    checkpoint: str | None = None  # path as it was given; None: the weights were in memory
    sha256: str | None = None  # of the file, else of the weights and buffers
    epoch: float | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()  # what was not literal in reading them
    weights: str | None = None  # the SHA-256 of the weights and buffers that came from a file, once they are loaded
    own_tensors: int | None = None  # so many of them are the task's own; None: all are from the file

    @property
    def words(self) -> str:
        """The file, else epoch and step."""
        return self.checkpoint or _time(self.epoch, self.step)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One checkpoint, one operator, one batch-norm mode: what was asked, and what came out.

    `spectrum` (the tridiagonals) is the result; every estimate follows from it. A record that failed has no spectrum,
    and a reason. One whose check or measures ended in an unexpected error is unverified: it has both.
    """

    operator: str  # "hessian" | "ggn" | "empirical_fisher"
    bn_mode: str  # "eval" | "train" | "recalibrated"
    checkpoint: str | None = None  # path as it was given; None: the weights were in memory
    checkpoint_sha256: str | None = None
    weights_sha256: str | None = None  # of the weights and buffers as they were loaded from it
    own_tensors: int | None = None  # so many of them are the task's own, since the checkpoint lacks them; None: none
    epoch: float | None = None
    step: int | None = None
    status: str = "complete"  # one of STATUSES
    reason: str | None = None  # why it failed, or what of it did; one line
    settings: Mapping[str, Any] = field(default_factory=dict)  # what was asked; JSON-able
    facts: Mapping[str, float | int | None] = field(default_factory=dict)  # loss, accuracy, norms, counts
    spectrum: Spectrum | None = None
    test_spectrum: Spectrum | None = None  # of the same operator on held-out data, by the same probes
    provenance: Mapping[str, Any] = field(default_factory=dict)  # where it comes from; JSON-able
    notes: tuple[str, ...] = ()  # warnings to print beside the numbers
    exact: ExactTrace | None = None  # None: not asked for, or not a matrix that has one (the empirical Fisher)
    checks: tuple[Check, ...] = ()  # of the estimates against it
    exact_spectrum: GGNSpectrum | None = None  # all eigenvalues of the Gauss-Newton matrix of few samples
    overlap: Overlap | None = (
        None  # of the eigenvectors with those of the record before, where eigenpairs are asked for
    )
    remainder: Estimate | None = None  # Tr H - Tr G, where the exact trace is not the Hessian's
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

    @functools.cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """Name -> Estimate, the standard list: as stored with the record, else computed from its spectrum.

        An exact trace, where it is known, is a control variate for what correlates with it; the trace itself stays an
        estimate here, and is exact in `headlines`.
        """
        if self.status == "failed" or self.spectrum is None:
            return {}
        return self.informed_spectrum.estimates() if self.cached_estimates is None else self.cached_estimates

    @functools.cached_property
    def informed_spectrum(self) -> Spectrum:
        """The spectrum with the exact trace of its matrix, where that is known."""
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
        """Name -> the number to quote: that of ``estimates``, but the trace and mean eigenvalue exact where known."""
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
    def budgets(self) -> Mapping[str, Budget]:
        """Name -> what limits the estimate, for those that have an error budget; computed from the spectrum."""
        from spectra.spectrum.error_budget import budgets_of

        return {} if self.spectrum is None else budgets_of(self.informed_spectrum, self.estimates)

    @functools.cached_property
    def test_estimates(self) -> Mapping[str, Estimate]:
        """The same names on the test data; empty where none were asked for."""
        if self.status == "failed" or self.test_spectrum is None:
            return {}
        cached = self.cached_test_estimates
        return self.test_spectrum.estimates() if cached is None else cached

    @property
    def identity(self) -> Identity:
        return Identity.of(
            operator=self.operator,
            bn_mode=self.bn_mode,
            settings=self.settings,
            checkpoint=self.checkpoint,
            checkpoint_sha256=self.checkpoint_sha256,
            epoch=self.epoch,
            step=self.step,
            weights_sha256=self.weights_sha256,
            own_tensors=self.own_tensors,
        )

    @property
    def place(self) -> Place:
        return Place(
            checkpoint=self.checkpoint,
            sha256=self.checkpoint_sha256,
            epoch=self.epoch,
            step=self.step,
            weights=self.weights_sha256,
            own_tensors=self.own_tensors,
        )

    @property
    def where(self) -> str:
        """The checkpoint in a few words: its name, and its epoch or step."""
        name = Path(self.checkpoint).name if self.checkpoint else ""
        if self.epoch is not None:
            return f"{name} epoch {self.epoch:g}".strip()
        return name if self.step is None else f"{name} step {self.step}".strip()

    @property
    def label(self) -> str:
        """A few words that tell this record from the others of its run, for messages."""
        return f"{self.where} {self.operator} {self.bn_mode}".strip()

    def to_json(self) -> dict[str, Any]:
        """The record as JSON has it: a number that could not be computed is None, with its reason, never 0 or NaN.

        Returns:
            checkpoint, checkpoint_sha256, epoch, step, operator, bn_mode, status, reason, loss, n_parameters,
            n_samples, estimates {name: {value, stderr, lower, upper, ...}}, headline {trace, mean_eigenvalue: the
            number to quote, and its source, "exact" or "probes"}, tensor_traces {tensor: the estimate}, facts,
            settings, provenance, notes; and, where they were asked for, eigenpairs {values, residuals, lower, upper,
            ...}, exact {total, by_layer, applies, reasons, ...}, check [{name, z, dof, detectable, verdict, ...}] and
            sharpness {name: {value, ...}}, test {loss, accuracy, n_samples, estimates}; and weights_sha256 and
            own_tensors, where some of the weights are the task's own.
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
            "headline": {
                name: _estimate_json(self.headlines[name]) for name in HEADLINE_NUMBERS if name in self.headlines
            },
            "tensor_traces": {name: _estimate_json(estimate) for name, estimate in traces.items()},
            **({} if pairs is None else {"eigenpairs": to_jsonable(pairs.to_json())}),
            "facts": facts,
            "settings": to_jsonable(self.settings),
            "provenance": to_jsonable(self.provenance),
            "notes": to_jsonable(self.notes),
            **found,
            **({} if self.test_spectrum is None else {"test": self._test_json(facts)}),
        }

    def _parts_json(self) -> dict[str, Any]:
        return {"weights_sha256": self.weights_sha256, "own_tensors": self.own_tensors}

    def _test_json(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{name: facts.get(f"test_{name}") for name in ("loss", "accuracy", "n_samples")},
            "estimates": {name: _estimate_json(estimate) for name, estimate in self.test_estimates.items()},
        }


def _time(epoch: float | None, step: int | None) -> str:
    """Epoch and step in words: the same for 3 and 3.0, which are one epoch."""
    whole = epoch is not None and float(epoch).is_integer()
    words = [] if epoch is None else [f"epoch {int(epoch) if whole else epoch!r}"]
    return " ".join([*words, *([] if step is None else [f"step {step}"])]) or "epoch unknown"


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    entry: dict[str, Any] = to_jsonable(estimate.to_json())
    if entry.get("value") is None:
        entry["reason"] = estimate.note or f"not a finite number ({estimate.value})"
    return entry
