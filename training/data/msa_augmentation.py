"""Small changes to feature sequences that leave the feeling in them alone."""

from dataclasses import dataclass

import numpy as np


@dataclass
class FeatureAugmentation:
    """
    Augments the audio and vision of a training sample, in the units of the data.

    "Standard" below means: in standard deviations of the feature over the training split; a masked value becomes the
    feature's mean, which is what a standardising processor turns into zero.

    Args:
        statistics (dict): `MseProcessor.feature_statistics`, {"audio": {"mean": [...], "std": [...]}, ...}.
        time_crop (int): up to this many steps are cut from either end, never more than a quarter of the sequence.
        time_masks, feature_masks (int): how many spans of each sequence are masked (SpecAugment, arXiv 1904.08779).
        time_mask_steps, feature_mask_features (int): the spans' longest length, never more than a third.
        feature_dropout (float): probability of masking each feature in the whole sequence, alone.
        noise (float): standard deviation of noise on every value, standard.
        offset (float): standard deviation of a feature's shift over the whole sequence, standard: another speaker.
    """

    statistics: dict
    time_crop: int = 0
    time_masks: int = 0
    time_mask_steps: int = 0
    feature_masks: int = 0
    feature_mask_features: int = 0
    feature_dropout: float = 0.0
    noise: float = 0.0
    offset: float = 0.0

    def __call__(self, values, modality, generator):
        """Augment a copy of `values` [time, dim]; `generator` (numpy) decides everything random."""
        if not len(values) or modality not in (self.statistics or {}):
            return values
        mean, std = (np.float32(self.statistics[modality][name]) for name in ("mean", "std"))
        quarter = min(self.time_crop, len(values) // 4)
        start, stop = generator.integers(0, quarter + 1, size=2)
        values = values[start : len(values) - stop] + np.zeros(1, np.float32)
        num_steps, num_features = values.shape
        if self.offset:
            values += generator.normal(scale=self.offset, size=num_features).astype(np.float32) * std
        if self.noise:
            values += generator.normal(scale=self.noise, size=values.shape).astype(np.float32) * std
        for _ in range(self.feature_masks):
            span = _span(num_features, self.feature_mask_features, generator)
            values[:, span] = mean[span]
        for _ in range(self.time_masks):
            values[_span(num_steps, self.time_mask_steps, generator)] = mean
        if self.feature_dropout:
            dropped = generator.random(num_features) < self.feature_dropout
            values[:, dropped] = mean[dropped]
        return values


def _span(size, longest, generator):
    length = int(generator.integers(0, min(longest, size // 3) + 1))
    start = int(generator.integers(0, size - length + 1))
    return slice(start, start + length)
