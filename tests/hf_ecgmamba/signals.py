"""Signals that tests of several files read and write."""

import numpy as np


def waves(leads, samples):
    """Something of an ECG's size, other in every lead: float32 `[leads, samples]`, 100 Hz."""
    time = np.arange(samples) / 100
    return np.stack([0.5 * np.sin(2 * np.pi * (1 + 0.3 * k) * time) + 0.1 * k for k in range(leads)]).astype("float32")
