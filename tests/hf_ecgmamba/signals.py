"""Signals that tests of several files read and write."""

import numpy as np


def waves(leads, samples):
    """Something of an ECG's size, other in every lead: float32 `[leads, samples]`, 100 Hz."""
    time = np.arange(samples) / 100
    return np.stack([0.5 * np.sin(2 * np.pi * (1 + 0.3 * k) * time) + 0.1 * k for k in range(leads)]).astype("float32")


def heart(samples, rate=100):
    """Twelve leads of a dipole that turns with every beat: float64 `[12, samples]` in millivolts, in the usual order;
    the limb leads fit one another, and lead I runs as V6 does."""
    time = np.arange(samples) / rate

    def wave(height, centre, width):
        return height * np.exp(-(((time + 0.1) % 0.8 - centre) ** 2) / (2 * width**2))

    left = wave(0.1, 0.2, 0.02) + wave(1.0, 0.36, 0.012) - wave(0.15, 0.4, 0.01) + wave(0.25, 0.6, 0.04)
    down = wave(0.15, 0.2, 0.02) - wave(0.1, 0.34, 0.008) + wave(0.6, 0.37, 0.012) + wave(0.2, 0.6, 0.04)
    front = wave(0.05, 0.2, 0.02) + wave(0.3, 0.35, 0.01) - wave(0.8, 0.38, 0.012) + wave(0.2, 0.6, 0.04)
    limbs = [left, 0.5 * left + down, down - 0.5 * left]
    limbs += [-(limbs[0] + limbs[1]) / 2, limbs[0] - limbs[1] / 2, limbs[1] - limbs[0] / 2]
    angles = np.linspace(np.pi / 2, 0, 6)
    return np.stack([*limbs, *(np.cos(angle) * left + np.sin(angle) * front for angle in angles)])
