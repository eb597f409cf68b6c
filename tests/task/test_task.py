"""The task: what its loss averages over, its words, its subsets."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import Task
from spectra.errors import TaskError

X, Y = torch.randn(10, 4), torch.randint(3, (10,))
Y[2] = -100
WEIGHT = torch.tensor([0.5, 1.0, 2.0])
BATCHES = [(X[:6], Y[:6]), (X[6:], Y[6:])]


@pytest.mark.parametrize(
    ("criterion", "target", "expected"),
    [
        (nn.CrossEntropyLoss(), Y, 9.0),
        (F.cross_entropy, Y, 9.0),
        (functools.partial(F.cross_entropy, ignore_index=0), Y.clamp(min=0), float((Y.clamp(min=0) != 0).sum())),
        (nn.CrossEntropyLoss(weight=WEIGHT), Y, float(WEIGHT[Y[Y >= 0]].sum())),
        (nn.NLLLoss(weight=WEIGHT), Y, float(WEIGHT[Y[Y >= 0]].sum())),
        (nn.CrossEntropyLoss(weight=WEIGHT), torch.rand(10, 3), 10.0),
        (nn.CrossEntropyLoss(), torch.rand(10, 3, 5), 50.0),
        (nn.CrossEntropyLoss(), torch.zeros(10, 7, dtype=torch.long), 70.0),
        (nn.MSELoss(), torch.rand(10, 3), 30.0),
        (nn.BCEWithLogitsLoss(), torch.rand(10, 3), 30.0),
        (nn.KLDivLoss(reduction="batchmean"), torch.rand(10, 3), 10.0),
        (nn.KLDivLoss(reduction="mean"), torch.rand(10, 3), 30.0),
        (nn.MultiMarginLoss(), torch.zeros(10, dtype=torch.long), 10.0),
        (lambda out, target: out.mean(), torch.rand(10, 3), 10.0),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_weight_of_a_batch_is_what_the_criterion_divides_by(criterion, target, expected):
    task = Task(nn.Linear(4, 3), criterion, [(X, target)])
    assert task.survey().total_weight == pytest.approx(expected)


def test_subclasses_of_known_criteria_are_not_taken_to_be_known():
    class Mine(nn.CrossEntropyLoss):
        def forward(self, output, target):
            return super().forward(output, target) ** 2

    assert Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), BATCHES).averaging.known
    assert not Task(nn.Linear(4, 3), Mine(), BATCHES).averaging.known


def test_the_loss_is_described_in_words():
    def words(criterion, **options):
        return Task(nn.Linear(4, 3), criterion, BATCHES, **options).describe()

    assert words(nn.CrossEntropyLoss()) == "CrossEntropyLoss, mean over the data (targets not ignored)"
    assert "label_smoothing=0.1" in words(functools.partial(F.cross_entropy, label_smoothing=0.1))
    assert "sum over the data" in words(nn.CrossEntropyLoss(reduction="sum"))
    assert words(nn.MSELoss(), l2=0.01).endswith("l2=0.01")


def test_a_subset_is_a_task_of_its_own():
    task = Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), BATCHES, l2=0.5, name="mine")
    part = task.subset(5, seed=1)
    assert (part.l2, part.name, part.model) == (0.5, "mine", task.model)
    assert part.survey().num_samples == 5
    assert task.survey().num_samples == 10
    assert part.survey().fingerprint == task.subset(5, seed=1).survey().fingerprint
    assert part.survey().fingerprint != task.subset(5, seed=2).survey().fingerprint
    assert [len(b[0]) for b in task.rebatched(4).data] == [4, 4, 2]


def test_a_task_needs_a_criterion_or_a_loss():
    with pytest.raises(TaskError, match="from_loss"):
        Task(nn.Linear(4, 3), None, BATCHES)
    with pytest.raises(TaskError, match="not callable"):
        Task(nn.Linear(4, 3), "mse", BATCHES)
    with pytest.raises(TaskError, match="weight="):
        Task.from_loss(nn.Linear(4, 3), lambda m, b: m(b[0]).mean(), [("text", "more")]).survey()
