"""Notes that the operator and its eigenpairs attach to a record."""

from __future__ import annotations

from collections.abc import Mapping

from spectra.operators.curvature import CurvatureOperator
from spectra.operators.modes import batch_norm_layers
from spectra.spectrum.eigenpairs import Eigenpairs

# A matrix whose rank is at most this fraction of its rows is degenerate by counting alone.
_FEW = 0.5


def notes_of_pairs(pairs: Eigenpairs | None) -> list[str]:
    """The note of the search for eigenpairs, if it has one."""
    return [] if pairs is None or pairs.note is None else [pairs.note]


def notes_of_rank(operator: CurvatureOperator, facts: Mapping[str, float | int | None]) -> list[str]:
    """A note where the number of samples and outputs alone implies most of the degeneracy."""
    bound = facts.get("rank_bound_counting")
    if bound is None or bound > _FEW * operator.n:
        return []
    share, at = 1 - bound / operator.n, operator.task.l2
    words = (
        f"at least {share:.4f} of the eigenvalues are {at:g} by counting alone: the rank is at most {bound:,}, with "
        f"{operator.n:,} parameters; a degeneracy near that says nothing about the network"
    )
    return [words]


def notes_of(operator: CurvatureOperator) -> list[str]:
    """Notes on the operator: its self-test, batch norm, samples, and l2 term."""
    notes = list(operator.self_test.notes)
    if operator.bn_mode != "eval" and not batch_norm_layers(operator.task.model):
        notes.append(f"the network has no batch-norm layer: {operator.bn_mode} mode is the same function as eval mode")
    if operator.scale is not None and operator.bn_mode != "train" and batch_norm_layers(operator.task.model):
        notes.append(
            "the optimizer's denominators are of gradients with batch norm in train mode: a parameter without a "
            f"gradient there, such as a bias before it, can dominate in {operator.bn_mode} mode; take --bn train"
        )
    if operator.per_sample:
        over = operator.task.averaging.over
        notes.append(f"a sample is one row of the target, weighted as in the loss ({over})")
    if operator.task.l2 and operator.with_l2:
        notes.append(f"the numbers are of the loss with its l2 term: every eigenvalue is moved by {operator.task.l2:g}")
    return notes
