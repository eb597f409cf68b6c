"""Spectra of diagonal blocks in one run: those of a run for each block, and the eigenvalues of the dense blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import conv_batch_norm, dense_hessian, mlp_ragged, parameters, with_weight_decay

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, slq
from spectra.errors import ArgumentError
from spectra.krylov.block_slq import block_slq
from spectra.operators.blocks import partition

pytestmark = pytest.mark.usefixtures("float64")


def blocks_of(operator, how):
    return partition(operator.task.model, list(operator.tensor_sizes), how).blocks


def test_the_ritz_values_of_exhausted_recurrences_are_the_eigenvalues_of_the_dense_blocks():
    task, written = mlp_ragged()
    operator = HessianOperator(task)
    dense = dense_hessian(written(), parameters(task)).numpy()
    spectra = block_slq(operator, blocks_of(operator, "layer"), num_probes=3)
    assert {name: s.n for name, s in spectra.items()} == {"0": 36, "2": 21}
    for spectrum, rows in zip(spectra.values(), (slice(0, 36), slice(36, 57))):
        values = np.linalg.eigvalsh(dense[rows, rows])
        assert spectrum.lambda_max().value == pytest.approx(values[-1], rel=1e-10)
        assert spectrum.lambda_min().value == pytest.approx(values[0], rel=1e-10)
        for ritz in spectrum.nodes:
            found = ritz[np.isfinite(ritz)]
            assert np.abs(found[:, None] - values).min(axis=1).max() < 1e-10 * abs(values).max()
        assert all(t.exhausted for t in spectrum.tridiagonals)
        trace, norm = spectrum.trace(), spectrum.frobenius_norm()
        assert trace.lower - 1e-9 <= values.sum() <= trace.upper + 1e-9
        assert norm.lower - 1e-9 <= np.linalg.norm(values) <= norm.upper + 1e-9


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator, EmpiricalFisherOperator])
@pytest.mark.parametrize("make", [with_weight_decay, conv_batch_norm])
@pytest.mark.parametrize("distribution", ["sphere", "rademacher"])
def test_a_block_has_the_numbers_of_a_run_of_its_parameters(kind, make, distribution):
    task = make()[0]
    operator = kind(task)
    blocks = blocks_of(operator, "layer")
    options = {"lanczos_steps": 7, "num_probes": 3, "seed": 5, "distribution": distribution}
    spectra = block_slq(operator, blocks, **options)
    for name, names in blocks.items():
        alone = slq(kind(task, params=names), **options)
        block = spectra[name]
        assert block.tensor_sizes == alone.tensor_sizes
        assert (block.n, block.seed, block.distribution, block.semidefinite) == (
            *(alone.n, alone.seed, alone.distribution, alone.semidefinite),
        )
        scale = abs(alone.spectral_norm().value)
        for one, other in zip(block.tridiagonals, alone.tridiagonals, strict=True):
            assert one.exhausted == other.exhausted
            np.testing.assert_allclose(one.alphas, other.alphas, rtol=1e-9, atol=1e-9 * scale)
            np.testing.assert_allclose(one.betas, other.betas, rtol=1e-9, atol=1e-9 * scale)
        np.testing.assert_allclose(block.tensor_forms, alone.tensor_forms, rtol=1e-9, atol=1e-9 * scale)
        np.testing.assert_allclose(block.start_overlaps, alone.start_overlaps, atol=1e-7)
        for key, estimate in block.estimates().items():
            assert estimate.value == pytest.approx(alone.estimates()[key].value, rel=1e-6, abs=1e-9, nan_ok=True)


def test_the_numbers_do_not_depend_on_the_probes_per_pass():
    operator = HessianOperator(with_weight_decay()[0])
    blocks = blocks_of(operator, "layer")
    whole, one_by_one = (block_slq(operator, blocks, 6, 4, width=width) for width in (None, 1))
    for name, spectrum in whole.items():
        for one, other in zip(spectrum.tridiagonals, one_by_one[name].tridiagonals, strict=True):
            np.testing.assert_array_equal(one.alphas, other.alphas)
        np.testing.assert_array_equal(spectrum.start_overlaps, one_by_one[name].start_overlaps)


def test_a_pass_over_the_data_serves_all_blocks_and_probes():
    task = mlp_ragged()[0]
    operator = HessianOperator(task)
    blocks = blocks_of(operator, ".*")
    for part in blocks.values():
        _ = operator.block(part).noise  # the self-tests read data too
    passes = []
    apply = type(operator).apply_to_blocks

    def counted(self, jobs, batch_forms=None):
        passes.append(len(jobs))
        return apply(self, jobs, batch_forms)

    type(operator).apply_to_blocks = counted
    try:
        said = []
        block_slq(operator, blocks, 3, 5, progress=lambda done, most: said.append((done, most)))
    finally:
        type(operator).apply_to_blocks = apply
    assert passes == [4, 4, 4]
    assert said == [(20, 60), (40, 60), (60, 60)]


def test_unknown_parameters_are_refused():
    with pytest.raises(ArgumentError, match="head"):
        block_slq(HessianOperator(mlp_ragged()[0]), {"a": ["head"]})


def test_a_tied_tensor_is_in_one_block():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    model[2].weight = model[0].weight
    x, y = torch.randn(9, 4), torch.randint(4, (9,))
    from spectra import Task

    operator = HessianOperator(Task(model, torch.nn.CrossEntropyLoss(), [(x, y)]))
    spectra = block_slq(operator, blocks_of(operator, "layer"), num_probes=2)
    assert {name: s.n for name, s in spectra.items()} == {"0": 20, "2": 4}
    loss = torch.nn.functional.cross_entropy(model(x), y)
    dense = dense_hessian(loss, list(model.parameters())).numpy()
    assert spectra["0"].lambda_max().value == pytest.approx(np.linalg.eigvalsh(dense[:20, :20])[-1], rel=1e-10)
