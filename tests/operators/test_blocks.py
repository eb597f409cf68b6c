"""Diagonal blocks: which parameters each has, and products with several blocks in one pass over the data."""

from __future__ import annotations

import pytest
import torch
from cases import conv_batch_norm, dense_hessian, mlp_ragged, parameters, with_weight_decay
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.errors import ArgumentError
from spectra.operators.blocks import ROOT, check_blocks, partition

pytestmark = pytest.mark.usefixtures("float64")


def test_an_operator_times_vectors_of_several_blocks_is_its_diagonal_blocks_times_them():
    task, written = mlp_ragged()
    whole = HessianOperator(task)
    dense = dense_hessian(written(), parameters(task))
    first, second = whole.block(["0.weight", "0.bias"]), whole.block(["2.weight"])
    assert (first.n, second.n) == (36, 18)
    rows = torch.randn(3, 36), torch.randn(2, 18)
    one, other = whole.apply_to_blocks([(first, rows[0]), (second, rows[1])])
    torch.testing.assert_close(one, rows[0] @ dense[:36, :36])
    torch.testing.assert_close(other, rows[1] @ dense[36:54, 36:54])
    torch.testing.assert_close(second.apply(rows[1]), other)  # alone, it needs no other graph


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator, EmpiricalFisherOperator])
@pytest.mark.parametrize("make", [mlp_ragged, with_weight_decay, conv_batch_norm])
def test_a_block_is_the_operator_of_chosen_parameters(kind, make):
    task = make()[0]
    whole = kind(task)
    names = list(whole.tensor_sizes)
    for chosen in (names[:1], names[1:3], names[-1:], names[::2]):
        block, alone = whole.block(chosen), kind(task, params=chosen)
        rows = torch.randn(2, alone.n)
        assert block.tensor_sizes == alone.tensor_sizes
        torch.testing.assert_close(whole.apply_to_blocks([(block, rows)])[0], alone.apply(rows), rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(block.apply(rows), alone.apply(rows), rtol=1e-10, atol=1e-13)
        assert block.semidefinite == alone.semidefinite


def test_batch_norm_in_train_and_recalibrated_mode():
    task = conv_batch_norm()[0]
    for mode in ("train", "recalibrated"):
        whole = HessianOperator(task, mode)
        names = list(whole.tensor_sizes)[:2]
        block, alone = whole.block(names), HessianOperator(task, mode, params=names)
        rows = torch.randn(2, alone.n)
        torch.testing.assert_close(whole.apply_to_blocks([(block, rows)])[0], alone.apply(rows), rtol=1e-9, atol=1e-12)


def test_a_block_has_the_parameters_of_its_operator_when_the_model_moves_on():
    task = mlp_ragged()[0]
    whole = HessianOperator(task)
    rows, names = torch.randn(1, 18), ["2.weight"]
    before = HessianOperator(task, params=names).apply(rows)
    with torch.no_grad():
        for p in task.model.parameters():
            p.mul_(2)
    block = whole.block(names)
    torch.testing.assert_close(whole.apply_to_blocks([(block, rows)])[0], before)
    torch.testing.assert_close(block.apply(rows), before)
    assert block.self_test.noise < 1e-12


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_the_noise_of_a_block_in_float32_is_that_of_the_operator_of_its_parameters(kind):
    task = mlp_ragged()[0]
    task.model.float()
    whole = kind(task)
    block, alone = whole.block(["0.weight"]), kind(task, params=["0.weight"])
    assert block.noise == pytest.approx(alone.noise, rel=0.5)
    assert block.noise > 1e-8


def test_a_parameter_that_the_loss_does_not_depend_on_is_a_block_of_zeros():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(5, 3), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return self.used(x)

    task = mlp_ragged()[0]
    task = type(task)(Idle(), task.criterion, task.data)
    for kind in (HessianOperator, GGNOperator):
        whole = kind(task)
        block, other = whole.block(["idle"]), whole.block(["used.weight"])
        zero, more = whole.apply_to_blocks([(block, torch.randn(2, 4)), (other, torch.randn(1, 15))])
        assert not zero.any()
        assert more.any()


def test_unknown_names_are_refused():
    whole = HessianOperator(mlp_ragged()[0])
    with pytest.raises(ArgumentError, match=r"head\.weight"):
        whole.block(["0.weight", "head.weight"])
    with pytest.raises(ArgumentError, match="names of parameters"):
        whole.block([])


class Tied(nn.Module):
    """Embedding and head share a tensor, a list of layers, a sequence with a parameter of its own, and a free one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(11)])
        self.body = nn.Sequential(nn.Linear(4, 4))
        self.body.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.free = nn.Parameter(torch.ones(2))


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def test_layers_are_the_modules_that_own_parameters():
    blocks = partition(Tied(), names_of(Tied()), "layer").blocks
    assert blocks["embed"] == ["embed.weight"]
    assert blocks["head"] == ["head.bias"]  # its weight is that of the embedding
    assert blocks["layers.10.1"] == ["layers.10.1.weight", "layers.10.1.bias"]
    assert blocks["body"] == ["body.scale"]
    assert blocks[ROOT] == ["free"]


def test_modules_are_children_and_the_elements_of_lists_of_modules():
    found = partition(Tied(), names_of(Tied()), "module")
    expected = [ROOT, "embed", *(f"layers.{i}" for i in range(11)), "body", "body.0", "head"]
    assert sorted(found.blocks) == sorted(expected)
    assert found.left_out == ()
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert list(partition(net, names_of(net), "module").blocks) == ["0", "1.0", "1.1"]


def test_an_expression_names_the_blocks_and_leaves_out_what_it_does_not_match():
    found = partition(Tied(), names_of(Tied()), r"^layers\.(\d+)\.")
    assert list(found.blocks) == [str(i) for i in range(11)]
    assert found.left_out == ("free", "embed.weight", "body.scale", "body.0.weight", "body.0.bias", "head.bias")


@pytest.mark.parametrize("how", ["layer", "module", r"(weight|bias)$", "."])
def test_every_parameter_is_in_exactly_one_block_or_left_out(how):
    names = names_of(Tied())
    found = partition(Tied(), names, how)
    assert sorted([*(n for block in found.blocks.values() for n in block), *found.left_out]) == sorted(names)


def test_bad_expressions_are_refused():
    with pytest.raises(ArgumentError, match=r"matches no name.*there are free, embed\.weight"):
        partition(Tied(), names_of(Tied()), "conv")
    with pytest.raises(ArgumentError, match=r"blocks='\(': neither 'layer' nor 'module'"):
        check_blocks("(")


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_a_product_with_a_block_computes_no_derivatives_in_the_kernels_of_other_layers(kind):
    """Convolutions are custom functions, which autograd does not tell what is asked for."""

    class Kernels(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                self.count += args[-1][1]
            return func(*args, **(kwargs or {}))

    model = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) if i % 2 == 0 else nn.Tanh() for i in range(9)), nn.Flatten())
    task = Task(model, nn.MSELoss(), [(torch.randn(3, 2, 4, 4), torch.randn(3, 32))])
    whole = kind(task)
    names = [name for name in whole.tensor_sizes if name.endswith("weight")]
    counts = {}
    with whole.prepared():
        for name in (None, *names):
            part = whole if name is None else whole.block([name])
            jobs = [(part, torch.randn(1, part.n))]
            whole.apply_to_blocks(jobs)  # makes the graph
            with Kernels() as kernels:
                whole.apply_to_blocks(jobs)
            counts[name] = kernels.count
    assert counts.pop(None) >= len(names)
    assert max(counts.values()) <= 2  # in its own kernel, of the first derivative and of the second
