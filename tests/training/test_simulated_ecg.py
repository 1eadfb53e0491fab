"""Simulated recordings show what their labels say, judged by neurokit2's detectors and by cardiology's criteria."""

import neurokit2
import numpy as np
import pytest

from training.data.simulated_ecg import LABELS, LEADS, load_simulated_ecg, simulate_ecg

RATE = 500


def lead(signal, name):
    return signal["array"][LEADS.index(name)].astype(np.float64)


def r_peaks(signal):
    _, found = neurokit2.ecg_peaks(neurokit2.ecg_clean(lead(signal, "V4"), sampling_rate=RATE), sampling_rate=RATE)
    return found["ECG_R_Peaks"]


def intervals(labels, seeds=range(6)):
    return [np.diff(r_peaks(simulate_ecg(labels, seed=(7, seed)))) / RATE for seed in seeds]


@pytest.mark.parametrize(("labels", "low", "high"), [("NORM", 58, 98), ("STACH", 102, 153), ("SBRAD", 33, 57)])
def test_heart_rate(labels, low, high):
    rates = [60 / np.median(own) for own in intervals((labels,))]
    assert min(rates) > low and max(rates) < high


def test_only_fibrillation_is_irregular():
    assert max(own.std() / own.mean() for own in intervals(("NORM",))) < 0.06
    assert min(own.std() / own.mean() for own in intervals(("AFIB",))) > 0.12


def average_beat(labels, name, seeds=range(8)):
    """Mean over beats and patients from 300 ms before R to 400 ms after, the time before P as zero."""
    beats = []
    for seed in seeds:
        signal = simulate_ecg(labels, seed=(9, seed))
        trace = lead(signal, name)
        peaks = [peak for peak in r_peaks(signal) if 150 <= peak < len(trace) - 200]
        beats += [trace[peak - 150 : peak + 200] - np.median(trace[peak - 150 : peak - 115]) for peak in peaks]
    return np.mean(beats, axis=0)


def test_sinus_rhythm_has_p_waves_and_fibrillation_has_none():
    p_wave = slice(60, 115)  # 180 to 70 ms before R
    assert average_beat(("NORM",), "II")[p_wave].max() > 0.08
    assert average_beat(("AFIB",), "II")[p_wave].max() < 0.04


def test_left_bundle_branch_block():
    normal, blocked = average_beat(("NORM",), "V6"), average_beat(("CLBBB",), "V6")
    ventricular = slice(90, 215)

    def duration(beat):
        return np.count_nonzero(np.abs(np.gradient(beat[ventricular]) * RATE) > 3) / RATE

    assert duration(blocked) > 1.5 * duration(normal)
    assert normal[250:320].mean() > 0.1 > -0.1 > blocked[260:320].mean()  # T opposes the QRS
    assert average_beat(("CLBBB",), "V1").min() < -0.6


def test_elevated_st_segment():
    # 60 to 80 ms after the end of QRS, in whichever territory was drawn
    def elevation(labels, seed):
        return max(average_beat(labels, name, [seed])[200:212].mean() for name in ("V2", "V3", "II", "aVF"))

    assert min(elevation(("STE_",), seed) for seed in range(6)) > 0.1
    assert max(elevation(("NORM",), seed) for seed in range(6)) < 0.1


def test_leads_obey_einthoven_and_goldberger():
    one, two, three, avr, avl, avf = simulate_ecg(("AFIB",), seed=1)["array"][:6].astype(np.float64)
    assert np.abs(one + three - two).max() < 1e-5
    assert np.abs(avr + avl + avf).max() < 1e-5
    assert np.abs(avl - (one - three) / 2).max() < 1e-5


def test_the_seed_decides():
    collection, again, other = load_simulated_ecg(24), load_simulated_ecg(24), load_simulated_ecg(24, seed=1)
    first = [record.source()["array"] for record in collection.records[:3]]
    assert all(np.array_equal(x, r.source()["array"]) for x, r in zip(first, again.records, strict=False))
    assert not np.array_equal(first[0], other.records[0].source()["array"])
    assert not np.array_equal(first[0], collection.records[6].source()["array"])  # both NORM
    assert first[0].shape == (12, 5000) and first[0].dtype == np.float32


def test_every_split_has_every_class():
    records = load_simulated_ecg(600).records
    for split in ("train", "validation", "test"):
        assert {label for record in records if record.split == split for label in record.labels} == set(LABELS)


@pytest.mark.parametrize("labels", [("NORM", "AFIB"), ("STACH", "SBRAD"), ("XYZ",), ("NORM", "STE_")])
def test_labels_that_exclude_each_other(labels):
    with pytest.raises(ValueError, match="expected some of"):
        simulate_ecg(labels)
