"""Blocks of parameters, by layer, by module or by a pattern: the names in each diagonal block of a curvature matrix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from spectra.errors import ArgumentError

WAYS = ("layer", "module")
ROOT = "(model)"  # the block of parameters that the model itself owns; modules have no such name


@dataclass(frozen=True)
class Partition:
    """Parameters sorted into blocks."""

    blocks: dict[str, list[str]]  # name -> names of parameters, both in the order of the model
    left_out: tuple[str, ...]  # parameters that the pattern does not match


def check_blocks(how: str | None) -> None:
    """Check that blocks are ``layer``, ``module`` or a regular expression.

    Raises:
        ArgumentError: they are neither.
    """
    if how is not None and how not in WAYS:
        _pattern(how)


def partition(model: nn.Module, names: Sequence[str], how: str) -> Partition:
    """Sort parameters into blocks.

    Args:
        model: the model.
        names: of the parameters; a tied parameter has only its first name, and so belongs to one block.
        how: ``layer``: a block for each module that owns parameters directly. ``module``: for each child of the model,
            or for each element of a child that is a list, dictionary or sequence of modules. Else a regular expression,
            which is searched for in each name: the match is the name of the block, or its first group if it has one.

    Raises:
        ArgumentError: an invalid expression, or one that matches no name.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> names = [name for name, _ in net.named_parameters()]
        >>> partition(net, names, "layer").blocks
        {'0': ['0.weight', '0.bias'], '2': ['2.weight', '2.bias']}
        >>> partition(net, names, "weight|bias").blocks
        {'weight': ['0.weight', '2.weight'], 'bias': ['0.bias', '2.bias']}
    """
    blocks: dict[str, list[str]] = {}
    left_out = []
    for name in names:
        block = _module_of(model, name) if how == "module" else _layer_of(name) if how == "layer" else _match(how, name)
        if block:
            blocks.setdefault(block, []).append(name)
        else:
            left_out.append(name)
    if not blocks:
        some = ", ".join(list(names)[:4])
        raise ArgumentError(f"blocks={how!r}: matches no name of an analysed parameter; there are {some}, ...")
    return Partition(blocks, tuple(left_out))


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0] or ROOT


def _module_of(model: nn.Module, name: str) -> str:
    parts = name.split(".")
    if len(parts) == 1:
        return ROOT
    child = getattr(model, parts[0])
    several = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict) and len(parts) > 2
    return ".".join(parts[: 2 if several else 1])


def _match(how: str, name: str) -> str:
    found = _pattern(how).search(name)
    if found is None:
        return ""
    return (found.group(1) if found.re.groups else found.group()) or ""


def _pattern(how: str) -> re.Pattern[str]:
    try:
        return re.compile(how)
    except re.error as error:
        raise ArgumentError(
            f"blocks={how!r}: neither 'layer' nor 'module', and no valid regular expression ({error})"
        ) from error
