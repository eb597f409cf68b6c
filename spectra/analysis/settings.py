"""The settings of an analysis and of a run, with their bounds, and the settings that all records of a run share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from spectra.analysis.held_out import held_out_settings, run_lengths
from spectra.analysis.preconditioning import check_precondition
from spectra.checkpoints.bounds import parse_size
from spectra.errors import ArgumentError
from spectra.krylov.probes import DISTRIBUTIONS
from spectra.logs.destinations import checked_log
from spectra.operators.blocks import check_blocks
from spectra.operators.curvature import CurvatureOperator, torch_dtype_of
from spectra.operators.differences import HESSIANS, check_product
from spectra.operators.fisher import EmpiricalFisherOperator
from spectra.operators.function import choose_parameters
from spectra.operators.ggn import GGNOperator
from spectra.operators.hessian import HessianOperator
from spectra.operators.modes import check_bn_mode
from spectra.operators.residual import ResidualOperator
from spectra.results.measure_catalogue import chosen_measures
from spectra.spectrum.probe_planning import Aims, checked_aims
from spectra.task.task import Task

OPERATORS: dict[str, type[CurvatureOperator]] = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
    "empirical_fisher": EmpiricalFisherOperator,
    "residual": ResidualOperator,
}


LARGEST = 2**63 - 1  # the largest integer that a results file can hold


def bounded(default: int | None, *, least: int | None = None, most: int = LARGEST, **words: str) -> Any:
    """A field of settings that holds a number.

    Args:
        default: of the field; None: the number need not be given.
        least: the smallest possible value; None: another function checks that.
        most: the largest possible value.
        words: for the message about a value that is too small: `unit` of the numbers, `remark` at its end.
    """
    return field(default=default, metadata={"least": least, "most": most, **words})


def check_bounds(settings: Settings | DataChoice) -> None:
    """Check every field against the bounds of its declaration.

    Args:
        settings: an instance of a dataclass of settings.

    Raises:
        ArgumentError: a field is outside its bounds.
    """
    for one in fields(settings):
        value, bounds = getattr(settings, one.name), one.metadata
        if value is None or not bounds:
            continue
        least, most = bounds["least"], bounds["most"]
        if least is not None and value < least:
            needed = f"{least} {bounds['unit']} are needed" if "unit" in bounds else f"{least} is needed"
            remark = f"; {bounds['remark']}" if "remark" in bounds else ""
            raise ArgumentError(f"{one.name}={value}: at least {needed}{remark}")
        if value > most:
            words = str(value) if value < 10**20 else "a number of more than 20 digits"
            raise ArgumentError(f"{one.name}={words}: at most {most} is possible")


@dataclass(frozen=True)
class Settings:
    """The settings of an analysis, apart from the task itself. The defaults are those of the command line.

    Raises:
        ArgumentError: a value outside its range.
    """

    operators: str | Sequence[str] = ("hessian",)
    bn_modes: str | Sequence[str] = ("eval",)
    lanczos_steps: int = bounded(100, least=1, most=10**6, remark="100 is the default")
    num_probes: int = bounded(8, least=1, most=10**6, remark="8 is the default")
    seed: int = bounded(0, least=0)
    distribution: str = "sphere"
    params: str | Sequence[str] | None = None
    dtype: str | None = None
    # Sharpness measures: "all", "none", names, or "cheap": those within the budget. Not for chosen parameters.
    metrics: str | Sequence[str] = "cheap"
    bounds: bool = False  # the PAC-Bayes bounds behind normalized sharpness, among the measures
    # All eigenvalues of the Gauss-Newton matrix on at most so many samples.
    exact_spectrum: int = bounded(0, least=0, most=10**9, unit="samples", remark="0 is none")
    # Compare the traces with exact ones, if these exist. True: whatever the cost; None: within the budget.
    check: bool | None = None
    test_data: bool = False  # the same numbers on the task's test data, in the same records
    preset: str | None = None  # in words, for the record; `presets.filled` gives the options that it stands for
    # Probes that share each pass over the data; None: as many as fit in memory.
    width: int | None = bounded(None, least=1, most=10**6)
    memory: int | str | None = None  # bytes, or text such as "8G", that the process may use; it changes no number
    # The number of eigenpairs of largest magnitude that are computed before the probes; at most n.
    eigenpairs: int = bounded(0, least=0, most=10**6, remark="0, the default, is none")
    warm_start: bool = False  # start the search for eigenpairs from the vectors of the previous checkpoint
    save_eigenvectors: bool = False  # store the eigenvectors in the record
    class_structure: bool = False  # class means in the Gauss-Newton matrix, at C^2 backward passes; for operator "ggn"
    # Also the spectra of diagonal blocks: "layer", "module", or a regular expression whose match names the block.
    blocks: str | None = None
    product: str = "autograd"  # of the Hessian; "differences": of gradients, for networks without a second derivative
    # "optimizer": the matrix P^-1/2 H P^-1/2 with the denominators P of Adam, from the checkpoint.
    precondition: str | None = None
    # Estimate -> the relative error that it is to have. The steps and the number of probes are then the upper limits.
    rtol: Mapping[str, float] | Aims = ()

    def __post_init__(self) -> None:
        for name, value in (("operators", self.operators), ("bn_modes", self.bn_modes)):
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name in self.operators:
            if name not in OPERATORS:
                known = ", ".join(map(repr, OPERATORS))
                raise ArgumentError(f"operator={name!r}: one of {known} is needed")
        for mode in self.bn_modes:
            check_bn_mode(mode)
        if not self.operators or not self.bn_modes:
            raise ArgumentError("at least one operator and one BN mode are needed")
        check_bounds(self)
        if self.distribution not in DISTRIBUTIONS:
            known = ", ".join(map(repr, DISTRIBUTIONS))
            raise ArgumentError(f"distribution={self.distribution!r}: one of {known} is needed")
        if self.warm_start and not self.eigenpairs:
            raise ArgumentError("warm_start without eigenpairs: say how many are to be found with eigenpairs=K")
        if self.save_eigenvectors and not self.eigenpairs:
            raise ArgumentError("save_eigenvectors without eigenpairs: say how many are to be found with eigenpairs=K")
        if self.class_structure and GGNOperator.kind not in self.operators:
            raise ArgumentError("class_structure is of the Gauss-Newton matrix: add the operator 'ggn'")
        parse_size(self.memory, "memory")  # is checked
        check_blocks(self.blocks)
        check_product(self.product)
        if self.product != "autograd" and "hessian" not in self.operators:
            raise ArgumentError(f"product={self.product!r}: only products with the hessian, which is not asked for")
        check_precondition(self)
        object.__setattr__(self, "rtol", checked_aims(self.rtol))
        torch_dtype_of(self.dtype)
        chosen_measures(self.metrics)  # the names are checked

    @property
    def aims(self) -> Aims:
        """The relative errors that estimates are to have, as :func:`checked_aims` returns them."""
        return tuple((name, float(value)) for name, value in dict(self.rtol).items())

    def operator_of(self, name: str) -> type[CurvatureOperator]:
        """The class of an operator, with the products of these settings."""
        return HESSIANS[self.product] if name == "hessian" else OPERATORS[name]

    @property
    def measured_with(self) -> str | None:
        """The operator whose records have the sharpness measures: the first that is not the residual."""
        return next((name for name in self.operators if name != ResidualOperator.kind), None)

    def pairs(self) -> list[tuple[str, str]]:
        """The (operator, BN mode) pairs asked for, in order, each once."""
        return list(dict.fromkeys((name, mode) for name in self.operators for mode in self.bn_modes))


@dataclass(frozen=True)
class DataChoice:
    """The choice of the task's data, and how they are used. None: as in the task."""

    samples: int | None = bounded(None)  # a fixed random subset of this many rows
    data_seed: int = bounded(0)  # of that subset, and of the snapshot
    batch_size: int | None = bounded(None)
    l2: float | None = None
    reduction: str | None = None  # "mean" or "sum" over the data
    snapshot: bool = False  # one pass over the data, frozen and used for every product

    def __post_init__(self) -> None:
        check_bounds(self)

    def as_settings(self) -> dict[str, Any]:
        """The choice as a record keeps it."""
        seeded = self.snapshot or self.samples is not None
        kept: dict[str, Any] = {"samples": self.samples, "data_seed": self.data_seed if seeded else None}
        return kept | ({"snapshot_data": True} if self.snapshot else {})


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run of checkpoints into one file: the analysis, its data, and how checkpoints are read.

    Raises:
        ArgumentError: a value outside its range.
    """

    analysis: Settings = Settings()
    data: DataChoice = DataChoice()  # a subset, a batch size, an l2 or a reduction in place of the task's
    out: Path = Path("run.h5")  # the results file; its folder must exist
    device: str | None = None  # where to compute; None: where the task's model is
    weights: str | None = None  # which weights of a checkpoint that has several
    partial: bool = False  # checkpoints may lack keys, for which the task's model keeps what it has
    unsafe: bool = False  # load checkpoints that hold code, and run it
    max_size: int | str | None = None  # bytes that a checkpoint may take in memory, as of `load_checkpoint`
    # Stop the run at a checkpoint that fails, instead of recording it as failed, and after an unverified record.
    strict: bool = False
    # Replace records of other settings, or of checkpoints whose content has changed, instead of refusing to continue.
    force: bool = False
    # Where the records are logged as well: "tensorboard:DIR", "wandb:PROJECT".
    log: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        parse_size(self.max_size)  # is checked
        object.__setattr__(self, "log", checked_log(self.log))


def run_settings(task: Task, asked: Settings) -> dict[str, Any]:
    """The settings that all records of a run share: what makes their numbers comparable.

    Raises:
        ArgumentError: the pattern of parameters matches none.
        DataError, TaskError: the data cannot be used.
    """
    chosen = choose_parameters(task.model, asked.params)
    survey = task.survey()
    params = asked.params if asked.params is None or isinstance(asked.params, str) else list(asked.params)
    dtype = torch_dtype_of(asked.dtype) or next(iter(chosen.values())).dtype
    return {
        "task": task.name,
        "loss": task.describe(),
        "reduction": task.reduces_to,
        "l2": task.l2,
        "data": survey.fingerprint,
        "batch_sizes": run_lengths(survey.rows),
        "lanczos_steps": asked.lanczos_steps,
        "num_probes": asked.num_probes,
        "seed": asked.seed,
        "distribution": asked.distribution,
        "params": params,
        "dtype": str(dtype).removeprefix("torch."),
        # Only where they are requested, so that files of runs without them can be continued.
        **({"eigenpairs": asked.eigenpairs} if asked.eigenpairs else {}),
        **({"warm_start": True} if asked.warm_start else {}),
        **({"save_eigenvectors": True} if asked.save_eigenvectors else {}),
        **({"class_structure": True} if asked.class_structure else {}),
        **({"preset": asked.preset} if asked.preset else {}),
        **({"precondition": asked.precondition} if asked.precondition is not None else {}),
        **({"blocks": asked.blocks} if asked.blocks is not None else {}),
        **({"product": asked.product} if asked.product != "autograd" else {}),
        **({"rtol": dict(asked.aims)} if asked.rtol else {}),
        **(held_out_settings(task) if asked.test_data else {}),
    }


def sampled(
    task: Task,
    *,
    samples: int | None = None,
    data_seed: int = 0,
    batch_size: int | None = None,
    l2: float | None = None,
    reduction: str | None = None,
) -> Task:
    """The task on a fixed random subset of its data, in other batches, or with another l2 or reduction.

    None leaves each as in the task.
    """
    if samples is not None:
        task = task.subset(samples, data_seed)
    if batch_size is not None:
        task = task.rebatched(batch_size)
    if l2 is not None:
        task = replace(task, l2=l2)
    return task if reduction is None else replace(task, reduction=reduction)
