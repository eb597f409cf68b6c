"""The checkpoints of a run as figures take them: gaps stay gaps, and the axis of time is what is known."""

from __future__ import annotations

import numpy as np
from run_files import failed_record, make_record

from spectra.figures.moments import axis_of, moments_of, values_over


def test_a_failed_or_missing_record_is_a_gap_in_the_values(run):
    moments = moments_of(run, "hessian")
    assert [moment.epoch for moment in moments] == [0, 1, 2]
    train = values_over(moments, "train", "trace")
    assert np.isfinite(train.value).tolist() == [True, False, True]
    assert train.resolved.tolist() == [True, False, True]
    expected = run["hessian", "eval"].trace
    found = values_over(moments, "eval", "trace")
    for name in ("value", "stderr", "lower", "upper"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(values_over(moments, "eval", "loss").value, [2.5, 1.25, 2.5 / 3])
    assert moments[1].gaps == ["train mode at epoch 1 failed: NaN weights"]


def test_records_of_one_checkpoint_are_together_and_of_two_apart():
    one = [make_record(1.0, bn_mode=mode, checkpoint=f"{mode}/a.pt") for mode in ("eval", "train")]
    other = make_record(1.0, checkpoint="b.pt", checkpoint_sha256="f" * 64)
    failed = failed_record(1.0, operator="hessian", bn_mode="train", checkpoint="b.pt", checkpoint_sha256=None)
    assert [len(moment.records) for moment in moments_of([*one, other, failed], "hessian")] == [2, 2]


def test_the_axis_is_epochs_then_steps_then_order():
    def of(*times):
        records = [
            make_record(checkpoint=f"{i}.pt", checkpoint_sha256=None, epoch=epoch, step=step)
            for i, (epoch, step) in enumerate(times)
        ]
        return axis_of(moments_of(records, "hessian"))

    position, words = of((0.0, 0), (2.0, 10))
    assert (position.tolist(), words) == ([0, 2], "epoch")
    position, words = of((1.0, 5), (1.0, 10))
    assert (position.tolist(), words) == ([5, 10], "step")
    position, words = of((None, None), (None, None))
    assert position.tolist() == [1, 2]
    assert "order" in words
