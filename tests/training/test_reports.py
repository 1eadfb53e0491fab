"""What a training writes down."""

import math

from training.reports import finite_or_none


def test_what_json_does_not_know_is_left_open():
    assert [finite_or_none(value) for value in (math.nan, math.inf, 0.5, 3)] == [None, None, 0.5, 3]
