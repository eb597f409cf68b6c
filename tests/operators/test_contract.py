"""What an operator promises to those who multiply with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import conv_batch_norm, dense_hessian, mlp_ragged, parameters, unused_and_frozen
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from spectra import DenseOperator, EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.errors import ArgumentError, TaskError

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def hessian():
    return HessianOperator(mlp_ragged()[0])


def test_the_result_is_like_the_input(hessian):
    n = hessian.n
    assert hessian.shape == (n, n)
    assert hessian.dtype == np.dtype("float64")
    for shape in [(n,), (n, 1), (n, 3)]:
        for dtype in [torch.float32, torch.float64]:
            result = hessian @ torch.ones(shape, dtype=dtype)
            assert isinstance(result, torch.Tensor)
            assert (result.shape, result.dtype) == (torch.Size(shape), dtype)
        for kind in [np.float32, np.float64]:
            array = hessian @ np.ones(shape, dtype=kind)
            assert isinstance(array, np.ndarray)
            assert (array.shape, array.dtype) == (shape, np.dtype(kind))


def test_blocks_are_columns_of_single_products_to_the_last_bit(hessian):
    block = torch.randn(hessian.n, 4)
    together = hessian @ block
    for column in range(4):
        assert torch.equal(together[:, column], hessian @ block[:, column])


def test_noncontiguous_inputs_are_read_right(hessian):
    block = torch.randn(3, hessian.n)
    assert torch.equal(hessian @ block.T, hessian @ block.T.contiguous())
    array = np.asfortranarray(np.random.default_rng(0).standard_normal((hessian.n, 2)))
    assert np.array_equal(hessian @ array, hessian @ np.ascontiguousarray(array))


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(2, 3), np.ones((1, 1, 1)), "v", torch.ones(41).int()])
def test_what_cannot_be_multiplied_is_refused(hessian, bad):
    with pytest.raises(ArgumentError):
        hessian @ bad


def test_scipy_takes_the_operator_as_it_is(hessian):
    task, loss = mlp_ragged()
    operator = HessianOperator(task)
    dense = dense_hessian(loss(), parameters(task)).numpy()
    top = eigsh(operator, k=3, which="LA", return_eigenvectors=False)
    assert np.sort(top) == pytest.approx(np.linalg.eigvalsh(dense)[-3:], rel=1e-9)
    assert (LinearOperator.dot(operator_of(operator), np.eye(operator.n)) == operator @ np.eye(operator.n)).all()


def operator_of(operator):
    from scipy.sparse.linalg import aslinearoperator

    return aslinearoperator(operator)


def test_unused_parameters_are_zero_blocks_and_frozen_ones_left_out():
    task, _ = unused_and_frozen()
    operator = HessianOperator(task)
    sizes = operator.tensor_sizes
    assert not any(name.startswith("frozen") for name in sizes)
    start = sizes["body.weight"] + sizes["body.bias"]
    block = slice(start, start + sizes["unused.weight"] + sizes["unused.bias"])
    dense = operator @ torch.eye(operator.n)
    assert not dense[block].any()
    assert not dense[:, block].any()
    assert dense.any()


def test_float32_models_get_float32_products_near_the_float64_ones():
    task, _ = mlp_ragged()
    exact = HessianOperator(task) @ torch.eye(HessianOperator(task).n)
    task.model.float()
    single = Task(task.model, task.criterion, [(x.float(), y) for x, y in task.data])
    operator = HessianOperator(single)
    assert operator.dtype == np.dtype("float32")
    error = float(((operator @ torch.eye(operator.n)) - exact).norm() / exact.norm())
    assert 1e-9 < error < 2e-6
    assert 1.1e-7 < operator.noise < 1e-5


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator, EmpiricalFisherOperator])
def test_another_dtype_is_computed_in_without_touching_the_model(kind):
    task, _ = mlp_ragged()
    task.model.float()
    single = Task(task.model, nn.CrossEntropyLoss(weight=torch.ones(3).float()), [(x.float(), y) for x, y in task.data])
    wide = kind(single, dtype="float64")
    assert wide.dtype == np.dtype("float64")
    v = torch.randn(wide.n)
    error = float((wide @ v - kind(single) @ v).norm() / (wide @ v).norm())
    assert 0 < error < 1e-5
    assert all(p.dtype == torch.float32 for p in task.model.parameters())


def test_half_precision_is_refused_with_the_remedy():
    task, _ = mlp_ragged()
    task.model.bfloat16()
    with pytest.raises(ArgumentError, match=r"dtype='float32'"):
        HessianOperator(task)


def test_the_parameters_are_chosen_by_glob_then_by_regular_expression():
    task, _ = mlp_ragged()
    everything = HessianOperator(task) @ torch.eye(HessianOperator(task).n)
    last = HessianOperator(task, params="2.*")
    assert list(last.tensor_sizes) == ["2.weight", "2.bias"]
    assert torch.allclose(last @ torch.eye(last.n), everything[-last.n :, -last.n :], rtol=0, atol=1e-15)
    assert list(HessianOperator(task, params=r"\d\.(bias)").tensor_sizes) == ["0.bias", "2.bias"]
    assert list(HessianOperator(task, params=["0.bias", "2.weight"]).tensor_sizes) == ["0.bias", "2.weight"]
    with pytest.raises(ArgumentError, match=r"params='9.*'"):
        HessianOperator(task, params="9.*")


def test_the_operator_stays_at_the_parameters_it_was_made_at():
    task, _ = mlp_ragged()
    operator = HessianOperator(task)
    v = torch.randn(operator.n)
    before = operator @ v
    with torch.no_grad():
        task.model[0].weight.add_(1.0)
    assert torch.equal(operator @ v, before)
    assert not torch.equal(HessianOperator(task) @ v, before)


def test_neither_training_nor_running_statistics_move_an_operator_that_is_made():
    task, _ = conv_batch_norm()
    task.model.float()
    single = Task(task.model, task.criterion, [(x.float(), y) for x, y in task.data])
    early, late = HessianOperator(single), HessianOperator(single)
    v = torch.randn(early.n)
    before = early @ v
    with torch.no_grad():
        task.model.bn.running_var.mul_(3.0)
        task.model.conv.weight.add_(1.0)
    assert torch.equal(late @ v, before)  # its self-test too is made here, and belongs to the old parameters
    assert late.noise == early.noise < 1e-5


def test_a_subset_of_a_shuffling_loader_is_fixed_and_leaves_the_random_state_alone():
    x, y = torch.arange(40.0)[:, None], torch.arange(40) % 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    task = Task(nn.Linear(1, 3), nn.CrossEntropyLoss(), loader)
    state = torch.get_rng_state()
    first = task.subset(10, seed=3).survey().fingerprint
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert task.subset(10, seed=3).survey().fingerprint == first


def test_parameters_without_a_shape_are_refused():
    with pytest.raises(TaskError, match="one batch through the model"):
        HessianOperator(Task(nn.LazyLinear(3), nn.MSELoss(), [(torch.ones(2, 4), torch.ones(2, 3))]))


def test_prepared_products_are_the_same_and_read_the_data_once():
    task, _ = mlp_ragged()
    passes = 0

    class Counted(list):
        def __iter__(self):
            nonlocal passes
            passes += 1
            return super().__iter__()

    counted = Task(task.model, task.criterion, Counted(task.data))
    operator = HessianOperator(counted)
    v = torch.randn(operator.n)
    plain = operator @ v
    start = passes
    with operator.prepared():
        assert torch.equal(operator @ v, plain)
        assert torch.equal(operator @ v, plain)
    assert passes == start + 1
    with operator.prepared(memory_budget=10):  # too little to hold anything: read again each time
        assert torch.equal(operator @ v, plain)
    assert passes == start + 3


def test_a_dense_operator_checks_its_matrix():
    with pytest.raises(ArgumentError, match="symmetric"):
        DenseOperator(np.array([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ArgumentError, match="square"):
        DenseOperator(np.ones((2, 3)))
    with pytest.raises(ArgumentError, match="float"):
        DenseOperator(np.eye(2, dtype=int))
