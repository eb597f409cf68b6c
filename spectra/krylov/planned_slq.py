"""slq with as many probes and steps as chosen estimates need: a pilot, then all the probes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spectra.krylov.lanczos import Halfway, Recurrence
from spectra.krylov.slq import slq
from spectra.operators.base import SymmetricOperator
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.probe_planning import Planner, first_steps
from spectra.spectrum.spectrum import Spectrum


def planned_slq(
    operator: SymmetricOperator,
    planner: Planner,
    seed: int = 0,
    *,
    done: Sequence[Recurrence] = (),
    group_done: Callable[[Sequence[Recurrence]], None] | None = None,
    under_way: Sequence[Halfway] = (),
    eigenpairs: Eigenpairs | None = None,
    **options: Any,
) -> tuple[Spectrum, int]:
    """The spectrum by the steps and probes that a planner chooses, and the number of products of the pilot not used.

    The tridiagonal matrices are those of ``slq`` with as many steps and probes, bit for bit. A pilot that was computed
    with more steps is cut to those of the plan. So the numbers do not depend on the probes per pass.

    Args:
        operator: a symmetric operator.
        planner: made for the operator.
        seed: of the probes.
        done: finished recurrences, as `group_done` received them.
        group_done: called after each lockstep group with all finished recurrences, the pilot's with all their steps.
        under_way: as of ``slq``.
        eigenpairs: as of ``slq``.
        options: the others of ``slq``.
    """
    pilot, options = list(done[: planner.pilot]), {"distribution": planner.distribution, **options}
    if len(pilot) < planner.pilot:

        def keep(finished: Sequence[Recurrence]) -> None:
            pilot[:] = finished
            if group_done is not None:
                group_done(finished)

        slq(
            operator,
            planner.most_steps,
            planner.pilot,
            seed,
            done=pilot,
            group_done=keep,
            under_way=under_way,
            planner=planner,
            **options,
        )
        under_way = ()
    plan = planner.plan([recurrence.tridiagonal for recurrence in pilot], pilot[0].start_overlaps)
    spectrum = slq(
        operator,
        plan.steps,
        plan.probes,
        seed,
        done=[_cut(recurrence, plan.steps) for recurrence in (*pilot, *done[planner.pilot :])],
        group_done=None if group_done is None else lambda finished: group_done([*pilot, *finished[len(pilot) :]]),
        under_way=under_way,
        eigenpairs=eigenpairs,
        **options,
    )
    return spectrum, sum(max(0, recurrence.tridiagonal.steps - plan.steps) for recurrence in pilot)


def _cut(recurrence: Recurrence, steps: int) -> Recurrence:
    """The recurrence after its first steps."""
    overlaps = recurrence.start_overlaps
    return replace(
        recurrence,
        tridiagonal=first_steps(recurrence.tridiagonal, steps),
        start_overlaps=None if overlaps is None else overlaps[:, :steps],
    )
