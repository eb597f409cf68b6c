"""The columns of the matrix: each computes with spectra, and compares with the dense matrices of a problem."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matrix.problem import Dense, Problem, seeded, trainable

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, exact_trace, load_trajectory
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import SpectraError
from spectra.operators.modes import batch_norm_layers
from spectra.sharpness.suite import measure_all

YES = "yes"


class Differs(AssertionError):
    """A number of spectra that is not that of the reference."""


def close(found: torch.Tensor | float, expected: torch.Tensor | float, tolerance: float, what: str) -> None:
    """Raise Differs if the two differ by more than the tolerance, relative to the larger norm."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    error, size = float((found - expected).norm()), max(float(expected.norm()), 1e-300)
    if not error <= tolerance * size:
        raise Differs(f"{what}: the relative difference is {error / size:.3g}")


def _product(kind, matrix: str) -> Callable[[Problem], str]:
    def cell(problem: Problem, bn_mode: str = "eval") -> str:
        operator = kind(problem.task, bn_mode, dtype=problem.dtype)
        product = operator @ torch.eye(operator.n, dtype=operator.torch_dtype)
        expected: Dense = problem.dense(bn_mode)
        if not float(getattr(expected, matrix).norm()) > 1e-3:
            raise Differs(f"the {matrix} of the reference is zero")
        close(product, getattr(expected, matrix), problem.tolerance, f"{matrix}, {bn_mode}")
        return YES

    return cell


hessian, ggn = _product(HessianOperator, "hessian"), _product(GGNOperator, "ggn")
fisher = _product(EmpiricalFisherOperator, "fisher")


def trace(problem: Problem) -> str:
    """The traces of tensors of the Gauss-Newton matrix, and those that are said to be the Hessian's."""
    found, dense = exact_trace(problem.task, dtype=problem.dtype), problem.dense()
    if found.total is None:
        return f"refused: {short(found.reasons[0])}"
    close(found.total, dense.ggn.trace(), problem.tolerance, "trace")
    sizes = [p.numel() for p in problem.params]
    blocks = zip(found.by_layer, *(m.diagonal().split(sizes) for m in (dense.ggn, dense.hessian)))
    scale = float(dense.hessian.diagonal().abs().sum())
    for name, ggn_block, hessian_block in blocks:
        if abs(found.by_layer[name] - float(ggn_block.sum())) > problem.tolerance * scale:
            raise Differs(f"trace of {name}")
        if found.certified[name] and abs(found.by_layer[name] - float(hessian_block.sum())) > problem.tolerance * scale:
            raise Differs(f"{name} is said to have the trace of the Hessian")
    count = sum(found.certified.values())
    if found.applies:
        return YES
    return f"{YES}; the Hessian's: {count} of {len(sizes)}"


def bn_modes(problem: Problem) -> str:
    """Products in train and recalibrated mode; without batch norm both are those of eval mode."""
    for mode in ("train", "recalibrated"):
        for cell in (hessian, ggn):
            try:
                cell(problem, mode)
            except SpectraError as error:
                if batch_norm_layers(problem.task.model):
                    raise type(error)(f"{mode}: {error}") from error
                raise
    return YES if batch_norm_layers(problem.task.model) else "all the same"


def measures(problem: Problem) -> str:
    """The cheap measures; those with a closed form in the dense matrices are compared."""
    found = measure_all(problem.task)
    known = [name for name, measure in found.items() if measure.value == measure.value]
    if len(known) < 2:
        return f"refused: {short(str(found['gradient_norm'].reason))}"
    dense = problem.dense()
    w = torch.cat([p.detach().double().flatten() for p in problem.params])
    truth = {
        "squared_norm": w @ w,
        "gradient_norm": dense.gradient.norm(),
        "fisher_rao_diagonal": w**2 @ dense.fisher.diagonal(),
        "fisher_rao_liang": w @ dense.fisher @ w,
        "fisher_rao_hessian": w**2
        @ (dense.hessian if found["fisher_rao_hessian"].curvature == "hessian" else dense.ggn).diagonal(),
    }
    for name in known:
        if name in truth:
            close(found[name].value, truth[name], problem.tolerance, name)
    return f"{YES}, {len(known)} of {len(found)}"


def trajectory(problem: Problem) -> str:
    """Two checkpoints of other weights through a run: the loss, and the larger end of the Hessian or its stand-in."""
    model, settings = problem.task.model, Settings(lanczos_steps=12, num_probes=1, dtype=problem.dtype, metrics="none")
    generator = torch.Generator().manual_seed(3)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"epoch_{epoch}.pt" for epoch in range(2)]
        for path in paths:
            with torch.no_grad():
                for p in trainable(model):
                    p += 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype)
            torch.save(model.state_dict(), path)
        out = Path(folder) / "run.h5"
        analyze_run(paths, lambda checkpoint: problem.task, settings, out=out, strict=True)
        records = load_trajectory(out).records
        truths = []
        for path in paths:
            model.load_state_dict(torch.load(path))
            with torch.no_grad():
                for own, p in zip(problem.params, trainable(model)):
                    own.copy_(p)
            truths.append(problem.dense(again=True))
    for record, dense in zip(records, truths, strict=True):
        close(record.facts["loss"], dense.loss, max(1e-9, problem.tolerance), "loss")
        largest = record.estimates["lambda_max"]
        value, slack = (
            float(torch.linalg.eigvalsh(dense.hessian)[-1]),
            max(1e-9, problem.tolerance) * float(dense.hessian.norm()),
        )
        if not largest.lower - slack <= value <= largest.upper + slack:
            raise Differs(f"lambda_max is {value}, outside {largest.lower} to {largest.upper}")
    return YES


#: title -> the cell, in the order of the page; the last one changes the weights
COLUMNS: dict[str, Callable[[Problem], str]] = {
    "Hessian": hessian,
    "Gauss-Newton": ggn,
    "empirical Fisher": fisher,
    "exact trace": trace,
    "batch-norm modes": bn_modes,
    "measures": measures,
    "two checkpoints": trajectory,
}
QUICK = list(COLUMNS)[:3]


def short(reason: str) -> str:
    """The first clause of a refusal."""
    reason = re.sub(r"^\S*\.pt:? ", "", re.sub(r"^(train|recalibrated): ", r"\1, ", reason))
    return re.split(r"[:;(]|\. |, so |, and ", reason)[0].strip()


def results(make: Callable[[], Problem], columns: Sequence[str]) -> dict[str, str]:
    """{column: what the page says: "yes", with what it is limited to, or "refused: " and the reason}."""

    def all_cells() -> dict[str, str]:
        problem, found = make(), {}
        for column in columns:
            try:
                found[column] = COLUMNS[column](problem)
            except SpectraError as error:
                found[column] = f"refused: {short(str(error))}"
            except Differs as error:
                raise Differs(f"{column}: {error}") from error
        return found

    return seeded(all_cells)
