"""Errors in the user's code, from Python: named by their place, with the original error as the cause."""

from __future__ import annotations

import types
from functools import partial

import pytest
import torch
from torch import nn

from spectra import GGNOperator, HessianOperator, Task, Tracker, gradient_norm
from spectra.errors import DataError, TaskError
from spectra.task.user_errors import batches_of, calling, place_of, words_of

X, Y = torch.ones(6, 4), torch.zeros(6).long()


class Failing(nn.Module):
    """Fails from a given call of its forward pass on."""

    def __init__(self, error, after=0):
        super().__init__()
        self.net, self.error, self.left = nn.Linear(4, 3), error, after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.net(x)


def task_of(model):
    return Task(model, nn.CrossEntropyLoss(), [(X, Y)])


def nine_products(kind):
    def use(task):
        operator = kind(task)
        for _ in range(9):
            operator @ torch.ones(15)

    return use


@pytest.mark.parametrize(
    ("use", "after"),
    [
        *((nine_products(kind), after) for kind in (HessianOperator, GGNOperator) for after in (0, 1, 3, 8)),
        *((gradient_norm, after) for after in (0, 1, 2)),
    ],
)
def test_the_message_has_the_place_and_the_cause_is_the_original_error(use, after):
    error = KeyError("lost")
    task = task_of(Failing(error, after))
    place = r"Failing\.forward in test_user_errors\.py line \d+"
    with pytest.raises(TaskError, match=rf"^the forward pass fails at {place}: KeyError: 'lost'$") as caught:
        use(task)
    assert caught.value.__cause__ is error


def test_memory_that_runs_out_and_interrupts_pass_as_they_are():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt(),
                  RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")):  # fmt: skip
        with pytest.raises(type(error)) as caught:
            HessianOperator(task_of(Failing(error))) @ torch.ones(15)
        assert caught.value is error


def test_errors_of_spectra_pass_as_they_are():
    error = DataError("mine")
    with pytest.raises(DataError, match=r"^mine$"), calling("anything"):
        raise error


def test_a_later_failure_is_a_warning_of_the_tracker_and_training_goes_on(tmp_path, caplog):
    model = Failing(ValueError("late"), after=10**6)
    with Tracker(task_of(model), out=tmp_path / "run.h5", lanczos_steps=2, num_probes=2) as tracker:
        assert tracker(epoch=0)
        model.left = 2
        with torch.no_grad():
            model.net.bias += 1
        assert tracker(epoch=1)
    assert "Failing.forward in test_user_errors.py" in caplog.text


def module_from(name, file, source):
    """A module whose code is said to lie in a file."""
    module = types.ModuleType(name)
    exec(compile(source, file, "exec"), module.__dict__)
    return module


RAISES = "def raises(*args):\n    raise ValueError('x')\n\ndef calls(function):\n    return function()\n"


def place_from(function):
    """The place of what a function raises, with no frame of this file in its traceback."""
    with pytest.raises(ValueError, match="x") as caught:
        function()
    trace = caught.value.__traceback__
    while trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return place_of(caught.value.with_traceback(trace))


def test_the_innermost_frame_that_is_no_library_is_named():
    root = "/v/lib/python3.11/site-packages"
    library = module_from("library", f"{root}/library/core.py", RAISES)
    mine = module_from("mine", "/home/me/net.py", RAISES)
    cell = module_from("cell", "<ipython-input-3-abc>", RAISES)
    inside = torch.__file__.replace("__init__.py", "nn/whatever.py")
    of_torch = module_from("torch.whatever", inside, RAISES)
    assert place_from(mine.raises) == "raises in net.py line 2"
    assert place_from(lambda: mine.calls(library.raises)) == "calls in net.py line 5"
    assert place_from(lambda: library.calls(mine.raises)) == "raises in net.py line 2"
    assert place_from(lambda: mine.calls(partial(library.calls, of_torch.raises))) == "calls in net.py line 5"
    assert place_from(cell.raises) == "raises in <ipython-input-3-abc> line 2"
    assert place_from(lambda: library.calls(of_torch.raises)) == "calls in core.py line 5"  # nothing else is there
    assert place_from(of_torch.raises) == ""


def test_a_long_message_is_shortened_and_lines_are_joined():
    assert words_of(ValueError("a\n  b")) == "ValueError: a b"
    assert words_of(ValueError()) == "ValueError"
    assert len(words_of(ValueError("x" * 9999))) < 420


def test_data_are_read_to_the_end_and_no_error_is_lost():
    assert list(batches_of(iter(range(3)))) == [0, 1, 2]
    assert list(batches_of([])) == []

    def some():
        yield 1
        raise ZeroDivisionError

    read = batches_of(some())
    assert next(read) == 1
    with pytest.raises(DataError, match=r"reading the data fails at .*some in test_user_errors.py .*ZeroDivisionError"):
        next(read)

    class NoData:
        def __iter__(self):
            raise OSError("gone")

    with pytest.raises(DataError, match="OSError: gone") as caught:
        Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), NoData()).survey()
    assert isinstance(caught.value.__cause__, OSError)
