"""Simulated 12-lead ECG: the data set that needs no download.

A beat is the sum of Gaussian waves P, Q, R, S, T as in ECGSYN (McSharry et al. 2003), here of the heart's electric
dipole in three dimensions (Sameni et al. 2007), which the Dower matrix projects onto the leads; Einthoven's and
Goldberger's equations hold between them as they do in a patient. neurokit2's own 12 leads would take 0.7 s a record
and are scaled one by one, so neurokit2 contributes the recording's noise, and in the tests the judgement whether rate,
rhythm and waves are what the label says.

Label names are PTB-XL's. NORM: sinus rhythm at 60-95 / min. SBRAD, STACH: the same below 55 and above 105 / min.
AFIB: irregular intervals, fibrillatory waves in place of P. CLBBB: QRS above 120 ms without a septal wave, T opposed.
STE_: elevated ST segment over the anterior or the inferior wall.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from training.data.ecg_records import EcgCollection, EcgRecord, assign_splits

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LABELS = ("AFIB", "CLBBB", "NORM", "SBRAD", "STACH", "STE_")
# what one patient may have at once, in turn, so that every class is as frequent in any number of records
FINDINGS = (
    ("NORM",),
    ("AFIB",),
    ("STACH",),
    ("SBRAD",),
    ("CLBBB",),
    ("STE_",),
    ("NORM",),
    ("AFIB", "CLBBB"),
    ("STACH", "STE_"),
    ("SBRAD", "CLBBB"),
    ("AFIB", "STE_"),
    ("NORM",),
)
# Dower's matrix: Frank's x (to the left), y (to the feet), z (to the back) -> leads
DOWER = {
    "I": (0.632, -0.235, 0.059),
    "II": (0.235, 1.066, -0.132),
    "V1": (-0.515, 0.157, -0.917),
    "V2": (0.044, 0.164, -1.387),
    "V3": (0.882, 0.098, -1.277),
    "V4": (1.213, 0.127, -0.601),
    "V5": (1.125, 0.127, -0.086),
    "V6": (0.831, 0.076, 0.230),
}


@dataclass(frozen=True)
class Wave:
    """One wave of a beat: when it peaks after R and how wide it is (s), and its dipole (mV: left, feet, back)."""

    delay: float
    width: float
    dipole: tuple[float, float, float]


P = Wave(-0.15, 0.022, (0.08, 0.12, -0.02))
NORMAL_QRS = (
    Wave(-0.026, 0.008, (-0.12, 0.05, -0.25)),
    Wave(0.0, 0.011, (1.0, 0.7, 0.25)),
    Wave(0.03, 0.010, (-0.1, -0.15, 0.4)),
)
BLOCKED_QRS = (Wave(-0.035, 0.018, (0.6, 0.35, 0.5)), Wave(0.032, 0.020, (0.8, 0.25, 0.7)))
NORMAL_T = (Wave(0.24, 0.045, (0.18, 0.10, -0.09)), Wave(0.29, 0.035, (0.22, 0.13, -0.10)))
BLOCKED_T = (Wave(0.28, 0.050, (-0.40, -0.15, -0.35)),)
ELEVATED_ST = {
    "anterior": Wave(0.13, 0.055, (0.10, -0.03, -0.25)),
    "inferior": Wave(0.13, 0.055, (-0.08, 0.28, 0.02)),
}


def load_simulated_ecg(num_records=600, seconds=10.0, sampling_rate=500, seed=0):
    """A collection of `num_records` simulated recordings, each made when it is read; the same for the same seed."""
    labels = [FINDINGS[index % len(FINDINGS)] for index in range(num_records)]
    names = [f"simulated_{seed}_{index:06d}" for index in range(num_records)]
    return EcgCollection(
        LABELS,
        tuple(
            EcgRecord(name, partial(simulate_ecg, own, seconds, sampling_rate, (seed, index)), own, split)
            for index, (name, own, split) in enumerate(zip(names, labels, assign_splits(names, labels), strict=True))
        ),
    )


def simulate_ecg(labels, seconds=10.0, sampling_rate=500, seed=0):
    """
    One recording of a patient with these findings.

    Args:
        labels (`tuple[str]`): of `LABELS`; at most one of NORM, AFIB, STACH, SBRAD.
        seconds (`float`), sampling_rate (`int`, Hz).
        seed (`int` or sequence of them): the same seed gives the same patient.

    Returns:
        `dict`: array float32 [12, seconds * sampling_rate] in mV, sampling_rate, leads, units, as the feature
        extractor takes it.

    Raises:
        ValueError: for labels that are unknown or exclude each other.
    """
    unknown = set(labels) - set(LABELS)
    if unknown or len({"NORM", "AFIB", "STACH", "SBRAD"} & set(labels)) > 1 or {"NORM"} < set(labels):
        raise ValueError(f"labels are {labels}; expected some of {LABELS}, one rhythm at most, NORM alone")
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    beats = beat_times(labels, seconds, generator)
    dipole = _dipole(labels, beats, time, generator)
    leads = _project(dipole @ _rotation(generator).T * generator.uniform(0.7, 1.3))
    leads = _distort(leads, time, sampling_rate, generator)
    return {
        "array": _all_twelve(leads).astype(np.float32),
        "sampling_rate": sampling_rate,
        "leads": LEADS,
        "units": "mV",
    }


def beat_times(labels, seconds, generator):
    """When the R waves peak (s), a beat before the recording and one after it included."""
    if "AFIB" in labels:
        # the intervals of atrial fibrillation are independent and widely spread; the AV node limits the shortest
        mean = 60 / generator.uniform(70, 140)
        intervals = np.maximum(generator.gamma(20, mean / 20, size=int(5 * seconds) + 10), 0.3)
    else:
        low, high = {"STACH": (105, 150), "SBRAD": (35, 55)}.get(
            next(iter({"STACH", "SBRAD"} & set(labels)), None), (60, 95)
        )
        count = int(3 * seconds) + 10
        mean, breathing = 60 / generator.uniform(low, high), generator.uniform(0.15, 0.35)
        phase = 2 * np.pi * (breathing * mean * np.arange(count) + generator.random())
        intervals = mean * (1 + 0.02 * np.sin(phase) + 0.01 * generator.normal(size=count))
    times = np.cumsum(intervals) - intervals[0] * generator.uniform(1, 2)
    return times[: np.searchsorted(times, seconds) + 1]


def _dipole(labels, beats, time, generator):
    """The heart's dipole [time, 3] in mV."""
    blocked = "CLBBB" in labels
    waves = [(wave, False) for wave in (BLOCKED_QRS if blocked else NORMAL_QRS)]
    waves += [(wave, True) for wave in (BLOCKED_T if blocked else NORMAL_T)]
    if "STE_" in labels:
        waves.append((ELEVATED_ST[str(generator.choice(list(ELEVATED_ST)))], True))
    if "AFIB" not in labels:
        waves.append((P, False))

    # repolarisation shortens with the square root of the interval before it (Bazett)
    before = np.clip(np.diff(beats, prepend=2 * beats[0] - beats[1]), 0.35, 1.6)
    dipole = np.zeros((len(time), 3))
    for wave, follows_rate in waves:
        stretch = np.sqrt(before) if follows_rate else 1.0
        delay = wave.delay * generator.uniform(0.92, 1.08) * stretch
        width = wave.width * generator.uniform(0.92, 1.08) * stretch
        vector = np.asarray(wave.dipole) * generator.uniform(0.85, 1.15, size=3)
        distance = (time[:, None] - beats - delay) / width
        dipole += np.exp(-(distance**2) / 2).sum(axis=1)[:, None] * vector
    if "AFIB" in labels:
        dipole += _fibrillation(time, generator)[:, None] * np.array([0.02, 0.05, -0.07])
    return dipole


def _fibrillation(time, generator):
    """Waves of 4 to 9 Hz whose rate and height wander, of about unit height."""
    frequencies = generator.uniform(4, 9, size=3)
    phases = 2 * np.pi * (frequencies * time[:, None] + generator.random(3))
    return np.sin(phases + 0.8 * np.sin(2 * np.pi * 0.4 * time[:, None])).sum(axis=1) / np.sqrt(3)


def _rotation(generator):
    """The heart lies a little differently in every chest: about 10 degrees around each axis."""
    x, y, z = generator.normal(0, np.pi / 18, size=3)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation, _ = np.linalg.qr(np.eye(3) + skew)
    return rotation * np.sign(np.diag(rotation))


def _project(dipole):
    """[time, 3] -> [8, time], the leads of DOWER."""
    return np.asarray(list(DOWER.values())) @ dipole.T


def _distort(leads, time, sampling_rate, generator):
    """Breathing moves the baseline, muscles tremble."""
    import neurokit2

    height = generator.uniform(0.02, 0.1, size=(len(leads), 1))
    phase = generator.random((len(leads), 1))
    wander = height * np.sin(2 * np.pi * (generator.uniform(0.15, 0.35) * time + phase))
    return wander + np.stack(
        [
            neurokit2.signal_distort(
                lead,
                sampling_rate=sampling_rate,
                noise_amplitude=0.03,
                noise_frequency=[5, 20, 40],
                noise_shape="laplace",
                random_state=int(generator.integers(2**31)),
                silent=True,
            )
            for lead in leads
        ]
    )


def _all_twelve(leads):
    """The 8 leads of DOWER -> the 12 of LEADS, by Einthoven and Goldberger."""
    named = dict(zip(DOWER, leads, strict=True))
    one, two = named["I"], named["II"]
    named |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return np.stack([named[name] for name in LEADS])
