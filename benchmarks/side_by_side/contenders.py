"""Every contender's own way to each task, at the settings its documentation gives for speed and exactness.

A contender is made from a model, a criterion and the batches. A method returns a vector, or a number; ``product``
returns the function that is measured.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from scipy.sparse.linalg import eigsh as scipy_eigsh
from torch import nn

from side_by_side.networks import Batches
from side_by_side.reference import Product, Reference


def _flat(pieces: Any) -> torch.Tensor:
    return torch.cat([piece.detach().reshape(-1) for piece in pieces])


class Spectra(Reference):
    """spectra; the checks before the first product are part of every task."""

    def task(self) -> Any:
        from spectra import Task

        return Task(self.model, self.criterion, self.data)

    def operator(self, kind: str) -> Any:
        from spectra import GGNOperator, HessianOperator

        return {"hessian": HessianOperator, "ggn": GGNOperator}[kind](self.task())

    def product(self, kind: str) -> Product:
        operator = self.operator(kind)
        self.kept = ExitStack()
        self.kept.enter_context(operator.prepared())
        return lambda vector: operator @ vector

    def slq(self, steps: int) -> torch.Tensor:
        from spectra import slq

        return torch.as_tensor(slq(self.operator("hessian"), steps, 1).nodes.max())

    def lambda_max(self) -> torch.Tensor:
        from spectra import eigsh

        return torch.from_numpy(eigsh(self.operator("hessian"), 1, "LA", tol=1e-3).vectors[:, 0])

    def trace(self) -> float:
        from spectra import slq

        return slq(self.operator("hessian"), 1, 10).trace().value

    def diagonal(self, kind: str) -> torch.Tensor:
        """Of the Hessian: with the certificate that the entries are its own. Of the GGN: without."""
        from spectra import exact_diagonal
        from spectra.exact import trace
        from spectra.exact.certificate import Certificate

        def none(function: Any, params: Any) -> Certificate:
            return Certificate(dict.fromkeys(function.names, False), ("not measured",))

        certify = trace.certify
        trace.certify = certify if kind == "hessian" else none
        try:
            found = exact_diagonal(self.task())
        finally:
            trace.certify = certify
        if found.kind != kind:
            raise RuntimeError(f"the diagonal is that of the {found.kind}: {found.reasons}")
        return _flat(found.values())


class SpectraExact(Spectra):
    """The exact trace of spectra, with its certificate, in place of probes."""

    def trace(self) -> float:
        from spectra import exact_trace

        found = exact_trace(self.task(), method="exact")
        if found.total is None or found.kind != "hessian":
            raise RuntimeError(f"no exact trace of the Hessian: {found.reasons}")
        return found.total


class Curvlinops:
    """curvlinops: vectorised products; its determinism check is off."""

    def __init__(self, model: nn.Module, criterion: nn.Module, data: Batches) -> None:
        self.model, self.criterion, self.data = model, criterion, data

    def operator(self, kind: str) -> Any:
        import curvlinops

        make = {"hessian": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}[kind]
        samples = sum(len(y) for _, y in self.data)
        parameters = list(self.model.parameters())
        return make(
            self.model, self.criterion, parameters, self.data, check_deterministic=False, num_data=samples
        )  # fmt: skip

    def product(self, kind: str) -> Product:
        operator = self.operator(kind)
        return lambda vector: operator @ vector

    def slq(self, steps: int) -> torch.Tensor:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        torch.manual_seed(2)
        return fast_lanczos(self.operator("hessian"), steps)[0].max()

    def lambda_max(self) -> torch.Tensor:
        _, vectors = scipy_eigsh(self.operator("hessian").to_scipy(), k=1, which="LA", tol=1e-3)
        return torch.from_numpy(vectors[:, 0])

    def trace(self) -> float:
        from curvlinops import hutchinson_trace

        torch.manual_seed(2)
        return float(hutchinson_trace(self.operator("hessian"), 10))


class Eigenthings:
    """hessian-eigenthings: exact products (autograd). Lanczos needs a number of steps: it is doubled from 10."""

    def __init__(self, model: nn.Module, criterion: nn.Module, data: Batches) -> None:
        self.model, self.criterion, self.data = model, criterion, data

    def operator(self, kind: str) -> Any:
        import hessian_eigenthings as he

        if kind == "hessian":
            return he.HessianOperator(self.model, self.data, he.supervised_loss(self.criterion))
        of_output = he.supervised_loss_of_output(self.criterion)
        return he.GGNOperator(self.model, self.data, he.supervised_forward, of_output)

    def product(self, kind: str) -> Product:
        return self.operator(kind).matvec

    def slq(self, steps: int) -> torch.Tensor:
        from hessian_eigenthings import spectral_density

        found = spectral_density(self.operator("hessian"), num_runs=1, lanczos_steps=steps)
        return found.raw_eigenvalues.max()

    def lambda_max(self) -> torch.Tensor:
        from hessian_eigenthings import lanczos

        steps = 10
        while True:
            found = lanczos(self.operator("hessian"), k=1, max_iter=steps, tol=1e-3, which="LA", seed=2)
            if bool(found.converged.all()) or steps > 300:
                return found.eigenvectors[0]
            steps *= 2

    def trace(self) -> float:
        from hessian_eigenthings import trace

        return trace(self.operator("hessian"), num_matvecs=10, method="hutchinson", seed=2).estimate


class PyHessian(Reference):
    """PyHessian: keeps the graph of the gradient where there is one batch."""

    def hessian(self) -> Any:
        from pyhessian import hessian

        if len(self.data) == 1:
            return hessian(self.model, self.criterion, data=self.data[0], cuda=False)
        return hessian(self.model, self.criterion, dataloader=self.data, cuda=False)

    def product(self, kind: str) -> Product:
        from pyhessian.utils import hessian_vector_product

        made = self.hessian()
        if len(self.data) == 1:
            return lambda vector: _flat(hessian_vector_product(made.gradsH, made.params, self.pieces(vector)))
        return lambda vector: _flat(made.dataloader_hv_product(self.pieces(vector))[1])

    def slq(self, steps: int) -> torch.Tensor:
        nodes, _ = self.hessian().density(iter=steps, n_v=1)
        return torch.as_tensor(max(nodes[0]))

    def lambda_max(self) -> torch.Tensor:
        torch.manual_seed(2)
        return _flat(self.hessian().eigenvalues(maxIter=300, tol=1e-3)[1][0])

    def trace(self) -> float:
        torch.manual_seed(2)
        return float(sum(self.hessian().trace(maxIter=10, tol=0.0)) / 10)


class BackPACK(Reference):
    """BackPACK: products from given graphs, and diagonals."""

    def product(self, kind: str) -> Product:
        from backpack.hessianfree.ggnvp import ggn_vector_product
        from backpack.hessianfree.hvp import hessian_vector_product

        products = []
        for x, y in self.data:
            output = self.model(x)
            loss = self.criterion(output, y) * (len(y) / self.samples)
            if kind == "hessian":
                slopes = torch.autograd.grad(loss, self.parameters, create_graph=True)
                products.append(
                    lambda pieces, loss=loss, slopes=slopes: hessian_vector_product(
                        loss, self.parameters, pieces, grad_params=slopes
                    )
                )
            else:
                products.append(
                    lambda pieces, loss=loss, output=output: ggn_vector_product(loss, output, self.model, pieces)
                )
        return lambda vector: sum(_flat(one(self.pieces(vector))) for one in products)

    def diagonal(self, kind: str) -> torch.Tensor:
        from backpack import backpack, extend, extensions

        extension, attribute = {
            "hessian": (extensions.DiagHessian, "diag_h"),
            "ggn": (extensions.DiagGGNExact, "diag_ggn_exact"),
        }[kind]
        model, criterion, total = extend(self.model), extend(self.criterion), 0
        for x, y in self.data:
            with backpack(extension()):
                criterion(model(x), y).backward()
            total = total + _flat(getattr(p, attribute) for p in self.parameters) * (len(y) / self.samples)
        return total


CONTENDERS: dict[str, type] = {
    "spectra": Spectra,
    "spectra, exact trace": SpectraExact,
    "reference": Reference,
    "curvlinops": Curvlinops,
    "hessian-eigenthings": Eigenthings,
    "PyHessian": PyHessian,
    "BackPACK": BackPACK,
}
# Distribution and module of each peer.
PEERS = {
    "curvlinops": ("curvlinops-for-pytorch", "curvlinops"),
    "hessian-eigenthings": ("hessian-eigenthings", "hessian_eigenthings"),
    "PyHessian": ("pyhessian", "pyhessian"),
    "BackPACK": ("backpack-for-pytorch", "backpack"),
}


def offered(task: str, kind: str, *, exact_trace: bool) -> list[str]:
    """The contenders that have a task; ``exact_trace``: whether the network has few enough columns for one."""
    names = {
        ("product", "hessian"): ["spectra", "reference", "curvlinops", "hessian-eigenthings", "PyHessian", "BackPACK"],
        ("product", "ggn"): ["spectra", "reference", "curvlinops", "hessian-eigenthings", "BackPACK"],
        ("diagonal", "hessian"): ["spectra", "BackPACK"],
        ("diagonal", "ggn"): ["spectra", "reference", "BackPACK"],
    }.get((task, kind), ["spectra", "reference", "curvlinops", "hessian-eigenthings", "PyHessian"])
    return [*names, "spectra, exact trace"] if task == "trace" and exact_trace else names


def preload() -> None:
    """Import what the contenders use, and what torch imports at a first derivative: no turn then pays for it."""
    modules = ["torch.fx.experimental.symbolic_shapes", "spectra.krylov.slq", "spectra.krylov.eigsh"]
    modules += ["spectra.exact.trace", "spectra.operators.hessian", "spectra.operators.ggn"]
    modules += [module for _, module in PEERS.values() if find_spec(module)]
    for module in modules:
        import_module(module)


def missing() -> list[str]:
    """The peers that are not installed."""
    return [name for name, (_, module) in PEERS.items() if find_spec(module) is None]
