"""Small changes to feature sequences that leave the feeling in them alone."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class FeatureAugmentation:
    """
    Augments the audio and vision of a training sample, in the units of the data.

    Each field is an argument of run_msa.py, and raises a ValueError where it is out of range. "Standard" means: in
    standard deviations of the feature over the training split; a masked value becomes the feature's mean, which is
    what a standardising processor turns into zero.
    """

    time_crop: int = field(
        default=0,
        metadata={"help": "Up to this many steps are cut from either end, never more than a quarter of the sequence."},
    )
    time_masks: int = field(
        default=0,
        metadata={"help": "Spans of steps masked in each sequence (SpecAugment, arXiv 1904.08779)."},
    )
    time_mask_steps: int = field(
        default=0, metadata={"help": "Their longest length, never more than a third of the sequence."}
    )
    feature_masks: int = field(default=0, metadata={"help": "Spans of features masked, likewise."})
    feature_mask_features: int = field(
        default=0, metadata={"help": "Their longest length, never more than a third of the features."}
    )
    feature_dropout: float = field(
        default=0.0, metadata={"help": "Probability of each feature to be masked, alone, in the whole sequence."}
    )
    noise: float = field(default=0.0, metadata={"help": "Standard deviation of noise on every value, standard."})
    offset: float = field(
        default=0.0,
        metadata={
            "help": "Standard deviation of a feature's shift over the whole sequence, standard: another speaker."
        },
    )

    def __post_init__(self):
        limits = {"feature_dropout": 1.0}
        for name, value in vars(self).items():
            if not 0 <= value < limits.get(name, np.inf):
                raise ValueError(f"{name} is {value}; expected a number in [0, {limits.get(name, np.inf)})")

    def __call__(self, values, modality, statistics, generator):
        """
        Args:
            values (float32 [time, features]): not changed.
            modality (str): audio or vision.
            statistics (dict): `MseProcessor.feature_statistics`, {"audio": {"mean": [...], "std": [...]}, ...}. A
                modality that has none stays as it is.
            generator (numpy.random.Generator): the same state gives the same result.

        Returns:
            float32 [at most time, features].
        """
        if not len(values) or modality not in (statistics or {}):
            return values
        mean, std = (np.float32(statistics[modality][name]) for name in ("mean", "std"))
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
