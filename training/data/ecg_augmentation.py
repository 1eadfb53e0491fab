"""What training does to a recording so that the network does not learn it by heart."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class EcgAugmentation:
    """Each field is an argument of run_ecg.py, and raises a ValueError where it is out of range."""

    time_shift_seconds: float = field(
        default=0.0,
        metadata={
            "help": "How far a crop may reach beyond either end of the recording; what lies beyond is missing, so the "
            "crop gets shorter."
        },
    )
    lead_dropout: float = field(
        default=0.0, metadata={"help": "Probability of each lead to be missing; one lead always stays."}
    )
    amplitude_scaling: float = field(
        default=0.0,
        metadata={
            "help": "The signal is multiplied by a factor drawn from 1 +- this, one for all leads, as their "
            "proportions carry the diagnosis."
        },
    )
    noise: float = field(default=0.0, metadata={"help": "Standard deviation of white noise, in millivolts."})
    baseline_wander: float = field(
        default=0.0, metadata={"help": "Largest amplitude of a slow sine (0.05-0.5 Hz) on each lead, in millivolts."}
    )

    def __post_init__(self):
        limits = {"lead_dropout": 1.0, "amplitude_scaling": 1.0}
        for name, value in vars(self).items():
            if not 0 <= value < limits.get(name, np.inf):
                raise ValueError(f"{name} is {value}; expected a number in [0, {limits.get(name, np.inf)})")

    def crop(self, num_samples, crop_samples, sampling_rate, generator):
        """(start, stop) of a random crop of at most `crop_samples` out of `num_samples`, at least half as long."""
        shift = min(round(self.time_shift_seconds * sampling_rate), min(crop_samples, num_samples) // 2)
        start = int(generator.integers(-shift, max(num_samples - crop_samples, 0) + shift + 1))
        return max(start, 0), min(start + crop_samples, num_samples)

    def __call__(self, signal, lead_mask, sampling_rate, generator):
        """
        Args:
            signal (float32 [leads, time]), lead_mask (bool [leads]): a crop; neither is changed.
            sampling_rate (`float`): in Hz.
            generator (`numpy.random.Generator`): the same state gives the same result.

        Returns:
            signal and lead_mask, augmented; missing leads are zero.
        """
        leads, time = signal.shape
        if self.lead_dropout:
            keep = lead_mask & (generator.random(leads) >= self.lead_dropout)
            # everything dropped would leave nothing to read
            lead_mask = keep if keep.any() else lead_mask
        if self.amplitude_scaling:
            signal = signal * np.float32(generator.uniform(1 - self.amplitude_scaling, 1 + self.amplitude_scaling))
        if self.noise:
            signal = signal + np.float32(self.noise) * generator.standard_normal((leads, time), dtype=np.float32)
        if self.baseline_wander:
            height = generator.uniform(0, self.baseline_wander, size=(leads, 1))
            turns = generator.uniform(0.05, 0.5) * np.arange(time) / sampling_rate + generator.random((leads, 1))
            signal = signal + (height * np.sin(2 * np.pi * turns)).astype(np.float32)
        return signal * lead_mask[:, None], lead_mask
