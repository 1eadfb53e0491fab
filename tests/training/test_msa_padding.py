"""Which steps are a clip's own, whatever its file says of its length."""

import numpy as np
import pytest

from training.data.msa_padding import without_padding


def sequence(steps):
    """One feature, "x" a step with a value, "." a step of zeros; the second feature makes some steps sum to zero."""
    values = np.array([[float(index + 1), 0.5] if step == "x" else [0.0, 0.0] for index, step in enumerate(steps)])
    return values if len(values) else np.zeros((0, 2))


def by_the_fields_script(values):
    """The length that thuiar/MMSA's data/getLengths.py writes: the first step that sums to zero, at least 1."""
    return max(1, next((step for step, row in enumerate(values) if row.sum() == 0), len(values)))


CASES = {
    "xxxxx": (0, 5, "none"),
    "xxx..": (0, 3, "end"),
    "..xxx": (2, 5, "front"),
    ".xxx.": (1, 4, "both"),
    "xx.xx..": (0, 5, "end"),
    "..xx.xx": (2, 7, "front"),
    ".x.x.": (1, 4, "both"),
    "....x": (4, 5, "front"),
    "x....": (0, 1, "end"),
    ".....": (0, 0, "all"),
    "": (0, 0, "none"),
}


@pytest.mark.parametrize("steps", CASES)
@pytest.mark.parametrize("length_of", [by_the_fields_script, lambda _: None], ids=["script", "no length"])
def test_a_length_by_the_fields_script_says_nothing(steps, length_of):
    values, (start, stop, padding) = sequence(steps), CASES[steps]
    found, where = without_padding(values, length_of(values) if steps else None, "length")
    np.testing.assert_array_equal(found, values[start:stop])
    assert where == padding


@pytest.mark.parametrize(
    "steps, length, start, stop, padding",
    [
        ("xxx....", 3, 0, 3, "end"),
        ("xxx....", 5, 0, 5, "end"),  # two silent steps behind
        ("....xxx", 3, 4, 7, "front"),
        ("....xxx", 5, 4, 7, "front"),
        ("....xx.", 3, 4, 7, "front"),  # a silent step behind
        (".xxx...", 4, 1, 4, "both"),  # a silent step in front
        ("....xxx", 7, 4, 7, "front"),
        ("xx.x...", 4, 0, 4, "end"),
        (".......", 4, 0, 0, "all"),
        (".......", 0, 0, 0, "all"),
    ],
)
def test_a_true_length_is_kept_wherever_the_padding_is(steps, length, start, stop, padding):
    values = sequence(steps)
    found, where = without_padding(values, np.int64(length), "length")
    np.testing.assert_array_equal(found, values[start:stop])
    assert where == padding


@pytest.mark.parametrize("steps, length", [("xxxxx", 3), ("xxxxx", 0), ("..xxxx", 3), ("xxxx..", 2), (".xxxx.", 3)])
def test_a_length_that_leaves_out_what_is_not_zero_is_refused(steps, length):
    with pytest.raises(ValueError, match=f"clip 7's length is {length}, but of {len(steps)} steps"):
        without_padding(sequence(steps), length, "clip 7's length")


def test_steps_that_sum_to_zero_without_being_zero_are_kept():
    values = np.array([[1.0, 2.0], [1.0, -1.0], [3.0, 1.0], [0.0, 0.0]])
    found, where = without_padding(values, by_the_fields_script(values), "length")
    assert len(found) == 3 and where == "end"


def test_values_that_are_no_numbers_are_no_zeros():
    values = np.array([[0.0, 0.0], [np.nan, 0.0], [1.0, 2.0], [np.inf, -np.inf], [0.0, 0.0]])
    found, where = without_padding(values, None, "length")
    assert len(found) == 3 and where == "both"
