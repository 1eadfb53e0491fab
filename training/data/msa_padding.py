"""Which steps of a stored feature sequence are a clip's own: looked up where its zeros are.

Files of features are padded with zeros to one length, at the end or in front (as MulT's were), and say each clip's
true length in a field that is not always one: the script that MMSA gave its files their lengths by writes the index
of the first step that sums to zero, and never less than 1. For a clip padded in front, or without the modality, that
is 1; for one with a silent step in its middle, the step before it.
"""

import numpy as np

PADDINGS = ("none", "end", "front", "both", "all")


def without_padding(values, length, name):
    """Cut zeros that are padding from a sequence.

    Args:
        values (np.ndarray [time, dim]): numbers.
        length (optional): how many steps are said to be true; any kind of whole number. None where nothing is said.
        name (str): of the length, for errors.

    Returns:
        tuple: the true steps (a view), and of `PADDINGS` where there was padding; "all" says that a clip of steps
        holds zeros alone, which is how files write a missing modality: none is left.

        - A length as MMSA's script writes it says nothing: the steps from the first to the last that is not zero.
        - Another length that holds all that is not zero, counted from the first step or back from the last: the
          steps in it (zeros behind the last such step may be silence, and stay), without zeros in front.

    Raises:
        ValueError: the length is no whole number from 0 to time, or it leaves out steps that are not zero.
    """
    total = len(values)
    if length is not None:
        length = _whole(length, total, name)
    present = np.flatnonzero(np.any(values != 0, axis=1))
    if not len(present):
        return values[:0], "all" if total else "none"
    first, last = int(present[0]), int(present[-1])
    start, stop = first, last + 1
    if length is not None and length != _first_zero_sum(values):
        if last < length:
            stop = length
        elif first >= total - length:
            stop = total
        else:
            raise ValueError(
                f"{name} is {length}, but of {total} steps those from {first} to {last} are not all zero; expected "
                "zeros outside the length, at the end or in front"
            )
    padding = {(False, False): "none", (False, True): "end", (True, False): "front", (True, True): "both"}
    return values[start:stop], padding[start > 0, stop < total]


def _whole(length, total, name):
    length = length.item() if isinstance(length, np.generic | np.ndarray) and np.size(length) == 1 else length
    if not isinstance(length, int | float) or not 0 <= length <= total or length != int(length):
        raise ValueError(f"{name} must be a whole number from 0 to {total}, but is {length!r}")
    return int(length)


def _first_zero_sum(values):
    """What MMSA's data/getLengths.py writes."""
    with np.errstate(invalid="ignore", over="ignore"):
        zeros = np.flatnonzero(values.sum(axis=1) == 0)
    return max(1, int(zeros[0])) if len(zeros) else len(values)
