"""Several processes share an analysis: the numbers of one process, to rounding."""

from __future__ import annotations

import numpy as np
import pytest
from processes import in_processes
from shared_cases import CASES, all_numbers, numbers

COUNT = 3


@pytest.fixture(scope="module")
def shared():
    found = in_processes(COUNT, all_numbers, list(CASES))
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


@pytest.mark.parametrize("case", list(CASES))
def test_the_numbers_are_those_of_one_process(case, shared):
    expected = numbers(case)
    batches = expected.pop("batches")
    assert sum(one[case]["batches"] for one in shared) == batches
    for one in shared:
        for name, value in expected.items():
            if value is None:
                assert one[case][name] is None, name
            else:
                np.testing.assert_allclose(one[case][name], value, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("case", list(CASES))
def test_all_processes_have_the_same_bits(case, shared):
    first, *others = shared
    for other in others:
        for name, value in first[case].items():
            if name != "batches" and value is not None:
                np.testing.assert_array_equal(other[case][name], value, err_msg=name)
