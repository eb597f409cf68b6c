"""A measure is usable as a number, and goes to JSON and back without an invented value."""

from __future__ import annotations

import json
import math

from spectra.results.measure import Measure, not_measured


def test_a_measure_is_a_number_and_says_so_in_words():
    measure = Measure(value=17.0, form="with biases", stderr=0.25)
    assert float(measure) == 17.0
    assert str(measure) == "17 +- 0.25"


def test_what_could_not_be_measured_is_null_with_its_reason():
    missing = not_measured("the layer trace of fc1.weight is negative", form="matrix", curvature="hessian")
    text = json.dumps(missing.to_json(), allow_nan=False)
    assert json.loads(text)["value"] is None
    assert json.loads(text)["reason"] == missing.reason
    assert math.isnan(missing.value)
    assert str(missing) == "not computed: the layer trace of fc1.weight is negative"


def test_a_measure_is_json_with_all_its_fields():
    measure = Measure(value=1.5, form="arxiv", attained=False, certificate=1e-12, details={"by_layer": {"a": 1.5}})
    assert Measure(**json.loads(json.dumps(measure.to_json()))) == measure
