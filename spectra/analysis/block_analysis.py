"""The spectra of the diagonal blocks of a record's matrix, and notes on them."""

from __future__ import annotations

from functools import partial

from spectra.analysis.measuring import Planned
from spectra.errors import SpectraError
from spectra.krylov.block_slq import block_slq
from spectra.operators.blocks import Partition, partition
from spectra.operators.curvature import CurvatureOperator
from spectra.runtime.faults import refusal_in
from spectra.runtime.phases import phase
from spectra.spectrum.block_spectra import BlockSpectra

_MOST_NAMED = 5


def partition_of(operator: CurvatureOperator, how: str) -> Partition:
    """The blocks of the operator's parameters; see :func:`spectra.operators.blocks.partition`."""
    return partition(operator.task.model, list(operator.tensor_sizes), how)


def measure_blocks(planned: Planned) -> tuple[BlockSpectra | None, list[str]]:
    """The blocks of a record on the training data, where they are asked for, and notes on them.

    If the numbers of a block are refused, there are no blocks, and a note with the reason.

    Args:
        planned: the record, with the probes and steps of its spectrum.
    """
    asked, operator = planned.settings, planned.operators[0]
    if asked.blocks is None:
        return None, []
    found = partition_of(operator, asked.blocks)
    notes = []
    if found.left_out:
        more = ", ..." if len(found.left_out) > _MOST_NAMED else ""
        some = ", ".join(found.left_out[:_MOST_NAMED]) + more
        notes.append(f"blocks {asked.blocks!r}: parameter tensors in no block: {len(found.left_out)} ({some})")
    if len(found.blocks) == 1:
        notes.append(f"blocks {asked.blocks!r}: all parameters are in one block, so there are no distances")
    try:
        spectra = block_slq(
            operator,
            found.blocks,
            asked.lanczos_steps,
            asked.num_probes,
            asked.seed,
            distribution=asked.distribution,
            width=planned.probes_per_pass,
            progress=partial(phase, "blocks"),
        )
    except SpectraError as error:
        return None, [*notes, f"blocks: not computed: {refusal_in(error)}"]
    return BlockSpectra(asked.blocks, spectra, found.left_out), notes
