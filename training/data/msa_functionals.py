"""Frame features as functionals of short windows: what speech emotion recognition has long fed its models.

How loud, how much it varies and how fast it changes within half a second says more about an emotion, and less about
who is speaking, than the single frames do; and a recurrent encoder then has ten steps to remember instead of sixty.
"""

import numpy as np
from datasets import Array2D, Features


def window_functionals(values, window, hop):
    """Mean, standard deviation and standard deviation of the differences of each feature in overlapping windows.

    Args:
        values (np.ndarray [time, dim]).
        window, hop (int): length and distance of the windows, in steps. A last window is kept if it is at least half
            full; a shorter sequence is one window.

    Returns:
        np.ndarray float32 [windows, 3 * dim]; no window for no step.
    """
    if not len(values):
        return np.zeros((0, 3 * values.shape[1]), dtype=np.float32)
    starts = range(0, max(1, len(values) - window // 2), hop)
    parts = [values[start : start + window] for start in starts]
    # a single step has no differences; twice the same one has, and they are zero
    parts = [np.repeat(part, 2, axis=0) if len(part) == 1 else part for part in parts]
    rows = [np.concatenate([part.mean(axis=0), part.std(axis=0), np.diff(part, axis=0).std(axis=0)]) for part in parts]
    return np.stack(rows).astype(np.float32)


def with_window_functionals(dataset, modality, window, hop):
    """The Dataset with the features of one modality replaced by their `window_functionals`."""
    dim = dataset.features[modality].shape[1]
    features = Features({**dataset.features, modality: Array2D((None, 3 * dim), "float32")})

    def replace(row):
        values = window_functionals(row[modality], window, hop)
        return {modality: values, f"{modality}_steps": len(values)}

    return dataset.map(replace, features=features)
