"""Products with the Hessian and the Gauss-Newton matrix: spectra beside curvlinops and hessian-eigenthings.

    python benchmarks/peers.py [--device cuda] [--threads 1] [--repeats 15] [--samples 512] [--network NAME ...]

All in one process and one go: in each repeat every library computes the same products once, in turn (A B C A B C ...),
so that whatever else the machine does falls on all of them. What is printed are the ratios *theirs / ours* of each
repeat, least, median and greatest: above 1, spectra took less time. Libraries that are not installed are left out;
`make peers` installs them. Before anything is timed, the products are compared.

A block of 8 is one call where a library has blocks (curvlinops vectorises over the columns; spectra shares one forward
pass per batch), and 8 calls where it has none (hessian-eigenthings).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

from spectra import GGNOperator, HessianOperator, Task
from spectra.operators.curvature import CurvatureOperator
from spectra.zoo.data import load_digits
from spectra.zoo.networks.building import seeded
from spectra.zoo.networks.small import convnet, lenet, mlp

Multiply = Callable[[torch.Tensor], torch.Tensor]  # (n, k) -> (n, k)
Batches = list[tuple[torch.Tensor, torch.Tensor]]

PEERS = {"curvlinops": "curvlinops-for-pytorch", "hessian_eigenthings": "hessian-eigenthings"}
NETWORKS: dict[str, Callable[[], nn.Module]] = {"digits-convnet": convnet, "lenet": lenet, "mlp": lambda: mlp(64)}
KINDS = {"hessian": HessianOperator, "ggn": GGNOperator}
CLOSE = 1e-3  # of float32 products, relative to their norm


def data_of(network: str, samples: int, batch_size: int) -> Batches:
    """Digits for the networks that take them; noise of 28 x 28 for LeNet, whose time does not depend on it."""
    if network == "lenet":
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(samples, 1, 28, 28, generator=generator)
        y = torch.randint(10, (samples,), generator=generator)
    else:
        x, y = load_digits("train").batch(slice(samples))
    return list(zip(x.split(batch_size), y.split(batch_size)))


def peer_product(name: str, kind: str, model: nn.Module, data: Batches) -> Multiply:
    """The product of another library, as a function of an (n, k) block."""
    library = importlib.import_module(name)
    criterion = nn.CrossEntropyLoss()
    if name == "curvlinops":
        make = {"hessian": library.HessianLinearOperator, "ggn": library.GGNLinearOperator}[kind]
        operator = make(model, criterion, list(model.parameters()), data)
        return lambda block: operator @ block
    if kind == "hessian":
        operator = library.HessianOperator(model, data, library.supervised_loss(criterion))
    else:
        of_output = library.supervised_loss_of_output(criterion)
        operator = library.GGNOperator(model, data, library.supervised_forward, of_output)
    return lambda block: torch.stack([operator.matvec(column).detach() for column in block.T], dim=1)


def seconds(multiply: Multiply, block: torch.Tensor) -> float:
    """The time of one call, with what it left running on the device."""
    if block.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    multiply(block)
    if block.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """Least, median and greatest of ``theirs / ours``, taken within each repeat."""
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return min(each), median(each), max(each)


def check_agreement(products: dict[str, Multiply], block: torch.Tensor) -> None:
    """Refuse to time products that are not the same; each is computed once, which also warms it up."""
    ours = products["spectra"](block)
    for name, multiply in products.items():
        error = float((multiply(block) - ours).norm() / ours.norm())
        if not error < CLOSE:
            raise SystemExit(f"{name} and spectra differ by {error:.1e} of the norm: nothing is timed")


def compare(operator: CurvatureOperator, others: dict[str, Multiply], width: int, repeats: int) -> dict[str, list]:
    """Seconds by library, interleaved."""
    generator = torch.Generator().manual_seed(1)
    block = torch.randn(operator.n, width, generator=generator).to(operator.device)
    products: dict[str, Multiply] = {"spectra": lambda b: operator @ b, **others}
    with operator.prepared():
        check_agreement(products, block)
        taken: dict[str, list[float]] = {name: [] for name in products}
        for _ in range(repeats):
            for name, multiply in products.items():
                taken[name].append(seconds(multiply, block))
    return taken


def processor() -> str:
    """The name of the CPU, as far as it can be known."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def facts(device: torch.device, installed: Sequence[str]) -> str:
    """What the figures depend on."""
    versions = [f"torch {torch.__version__}"]
    versions += [f"{name} {importlib.metadata.version(PEERS[name])}" for name in installed]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{', '.join(versions)}; Python {platform.python_version()}, {platform.system()}\n"
        f"{where}; {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}; float32"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description="Times of curvature products, spectra beside other libraries.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; 1 on a machine that does other things too")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args(arguments)
    if options.samples % options.batch_size:  # hessian-eigenthings averages batches without weights
        needed = f"a multiple of --batch-size={options.batch_size} is needed, so that all compute the same matrix"
        parser.error(f"--samples={options.samples}: {needed}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    installed = [name for name in PEERS if importlib.util.find_spec(name)]
    print(facts(device, installed))
    if missing := [PEERS[name] for name in PEERS if name not in installed]:
        print(f"not installed, and left out: {', '.join(missing)}")
    print(f"{options.samples} samples in batches of {options.batch_size}, {options.repeats} repeats; theirs / ours\n")
    print(f"{'network':<16}{'matrix':<10}{'block':<7}{'ours':>10}   theirs / ours: least, median, greatest")
    for network in options.network:
        model = seeded(NETWORKS[network], 0).eval().to(device)
        data = [(x.to(device), y.to(device)) for x, y in data_of(network, options.samples, options.batch_size)]
        for kind, make in KINDS.items():
            operator = make(Task(model, nn.CrossEntropyLoss(), data))
            others = {name: peer_product(name, kind, model, data) for name in installed}
            for width in (1, 8):
                taken = compare(operator, others, width, options.repeats)
                ours = taken.pop("spectra")
                print(f"{network:<16}{kind:<10}{width:<7}{1e3 * median(ours):>7.1f} ms", end="")
                for name, theirs in taken.items():
                    print("   {} {:.2f}, {:.2f}, {:.2f}".format(name, *ratios(theirs, ours)), end="")
                print(flush=True)


if __name__ == "__main__":
    main()
