"""What a careful user would write by hand: products from kept autograd graphs, and Lanczos, in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.linalg import eigh_tridiagonal
from torch import nn

from side_by_side.networks import Batches

Product = Callable[[torch.Tensor], torch.Tensor]


class Reference:
    """Products, stochastic Lanczos quadrature, the largest eigenvalue, the trace and the diagonal."""

    def __init__(self, model: nn.Module, criterion: nn.Module, data: Batches) -> None:
        self.model, self.criterion, self.data = model, criterion, data
        self.parameters = list(model.parameters())
        self.n = sum(p.numel() for p in self.parameters)
        self.samples = sum(len(y) for _, y in data)

    def pieces(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The parts of a vector, in the shapes of the parameters."""
        parts = vector.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters)]

    def product(self, kind: str) -> Product:
        """The product with a vector; the graphs are made now and kept."""
        batch_product = {"hessian": self._hessian, "ggn": self._ggn}[kind]
        products = [batch_product(x, y, len(y) / self.samples) for x, y in self.data]

        def product(vector: torch.Tensor) -> torch.Tensor:
            pieces = self.pieces(vector)
            return sum(torch.cat([part.reshape(-1) for part in one(pieces)]) for one in products)

        return product

    def _hessian(self, x: torch.Tensor, y: torch.Tensor, weight: float) -> Callable:
        loss = weight * self.criterion(self.model(x), y)
        gradient = torch.autograd.grad(loss, self.parameters, create_graph=True)
        return lambda pieces: torch.autograd.grad(gradient, self.parameters, pieces, retain_graph=True)

    def _ggn(self, x: torch.Tensor, y: torch.Tensor, weight: float) -> Callable:
        output = self.model(x)
        cotangent = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(output, self.parameters, cotangent, create_graph=True)
        leaf = output.detach().requires_grad_()
        (slope,) = torch.autograd.grad(weight * self.criterion(leaf, y), leaf, create_graph=True)

        def product(pieces: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            pushed = torch.autograd.grad(pulled, cotangent, pieces, retain_graph=True)
            bent = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
            return torch.autograd.grad(output, self.parameters, bent, retain_graph=True)

        return product

    def lanczos(self, steps: int, enough: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nodes, weights and the Ritz vector of the largest node, orthogonalised twice per step.

        Args:
            steps: at most.
            enough: the residual of the largest Ritz value, relative to it, at which to stop.
        """
        product = self.product("hessian")
        basis = torch.empty(steps, self.n, dtype=self.parameters[0].dtype)
        vector = torch.randn(self.n, generator=torch.Generator().manual_seed(2)).to(basis)
        alphas: list[float] = []
        betas: list[float] = []
        basis[0] = vector / vector.norm()
        for step in range(steps):
            rest = product(basis[step])
            alphas.append(float(rest @ basis[step]))
            for _ in range(2):
                rest -= (basis[: step + 1] @ rest) @ basis[: step + 1]
            length = float(rest.norm())
            if enough or step == steps - 1:
                nodes, inner = eigh_tridiagonal(alphas, betas)
                if step == steps - 1 or length * abs(inner[-1, -1]) <= enough * abs(nodes[-1]):
                    break
            betas.append(length)
            basis[step + 1] = rest / length
        top = torch.from_numpy(inner[:, -1]).to(basis) @ basis[: len(alphas)] if enough else torch.empty(0)
        return torch.from_numpy(nodes), torch.from_numpy(inner[0] ** 2), top

    def slq(self, steps: int) -> torch.Tensor:
        """The largest node of one probe's quadrature."""
        return self.lanczos(steps)[0][-1]

    def lambda_max(self) -> torch.Tensor:
        """The vector of the largest eigenvalue."""
        return self.lanczos(300, enough=1e-3)[2]

    def trace(self) -> float:
        """Ten probes of random signs."""
        product, generator = self.product("hessian"), torch.Generator().manual_seed(2)
        signs = [2.0 * torch.randint(2, (self.n,), generator=generator) - 1 for _ in range(10)]
        return sum(float(v @ product(v)) for v in (sign.to(self.parameters[0]) for sign in signs)) / 10

    def diagonal(self, kind: str) -> torch.Tensor:
        """The diagonal of the Gauss-Newton matrix of linear layers and convolutions, a back-propagation per class."""
        layers = [m for m in self.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        hooks = [
            layer.register_forward_hook(lambda m, arguments, out: seen.update({m: (arguments[0].detach(), out)}))
            for layer in layers
        ]
        total = [torch.zeros_like(p) for layer in layers for p in (layer.weight, layer.bias)]
        for x, _ in self.data:
            output = self.model(x)
            p = output.detach().softmax(1)
            for column in range(p.shape[1]):  # A = diag(p) - pp' is the sum over c of s_c s_c'
                s = -p[:, column : column + 1].sqrt() * p
                s[:, column] += p[:, column].sqrt()
                slopes = torch.autograd.grad(output, [seen[m][1] for m in layers], s, retain_graph=True)
                squares = [part for m, slope in zip(layers, slopes) for part in _squares(m, seen[m][0], slope)]
                for sum_, part in zip(total, squares):
                    sum_ += part / self.samples
        for hook in hooks:
            hook.remove()
        return torch.cat([entries.reshape(-1) for entries in total])


def _squares(layer: nn.Module, inputs: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over the samples of the squared gradients of weight and bias."""
    if isinstance(layer, nn.Linear):
        return slope.square().T @ inputs.square(), slope.square().sum(0)
    patches = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    slope = slope.flatten(2)
    weights = torch.bmm(slope, patches.transpose(1, 2)).square().sum(0)
    return weights.view_as(layer.weight), slope.sum(2).square().sum(0)
