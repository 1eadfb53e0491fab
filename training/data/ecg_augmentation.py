"""What training does to a recording so that the network does not learn it by heart."""

from dataclasses import dataclass, field

import numpy as np

# What smaller recorders have: limb leads alone, three leads, two, a monitor's one, a watch's one.
FEW_LEADS = (("I", "II", "III", "aVR", "aVL", "aVF"), ("I", "II", "V2"), ("I", "II"), ("II",), ("I",))
_DERIVED = ("III", "aVR", "aVL", "aVF")  # the feature extractor computes them wherever I and II are there


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
    few_leads: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a crop keeps no more than a smaller recorder has: the limb leads, I II V2, "
            "I II, II or I, each as often."
        },
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
        limits = {"lead_dropout": 1.0, "few_leads": 1.0, "amplitude_scaling": 1.0}
        for name, value in vars(self).items():
            if not 0 <= value < limits.get(name, np.inf):
                raise ValueError(f"{name} is {value}; expected a number in [0, {limits.get(name, np.inf)})")

    def crop(self, num_samples, crop_samples, sampling_rate, generator):
        """(start, stop) of a random crop of at most `crop_samples` out of `num_samples`, at least half as long."""
        shift = min(round(self.time_shift_seconds * sampling_rate), min(crop_samples, num_samples) // 2)
        start = int(generator.integers(-shift, max(num_samples - crop_samples, 0) + shift + 1))
        return max(start, 0), min(start + crop_samples, num_samples)

    def __call__(self, signal, lead_mask, sampling_rate, generator, leads=()):
        """
        Args:
            signal (float32 [leads, time]), lead_mask (bool [leads]): a crop; neither is changed.
            sampling_rate (`float`): in Hz.
            generator (`numpy.random.Generator`): the same state gives the same result.
            leads (`tuple[str]`): the names of the leads, for `few_leads`.

        Returns:
            signal and lead_mask, augmented; missing leads are zero.
        """
        num_leads, time = signal.shape
        if self.few_leads and generator.random() < self.few_leads:
            kept = FEW_LEADS[generator.integers(len(FEW_LEADS))]
            kept = kept + _DERIVED if {"I", "II"} <= set(kept) else kept
            keep = lead_mask & np.isin(leads, kept)
            lead_mask = keep if keep.any() else lead_mask
        elif self.lead_dropout:
            keep = lead_mask & (generator.random(num_leads) >= self.lead_dropout)
            # everything dropped would leave nothing to read
            lead_mask = keep if keep.any() else lead_mask
        if self.amplitude_scaling:
            signal = signal * np.float32(generator.uniform(1 - self.amplitude_scaling, 1 + self.amplitude_scaling))
        if self.noise:
            signal = signal + np.float32(self.noise) * generator.standard_normal((num_leads, time), dtype=np.float32)
        if self.baseline_wander:
            height = generator.uniform(0, self.baseline_wander, size=(num_leads, 1))
            turns = generator.uniform(0.05, 0.5) * np.arange(time) / sampling_rate + generator.random((num_leads, 1))
            signal = signal + (height * np.sin(2 * np.pi * turns)).astype(np.float32)
        return signal * lead_mask[:, None], lead_mask
