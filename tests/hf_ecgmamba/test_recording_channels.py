"""What all formats share: names of leads, units, rates, and the user's word against the file's."""

import numpy as np
import pytest

from hf_ecgmamba.recording import open_recording, read_recording
from hf_ecgmamba.recording_channels import lead_name
from tests.hf_ecgmamba.signals import waves


@pytest.mark.parametrize(
    ("written", "lead"),
    [
        ("avr", "aVR"),
        ("AVF", "aVF"),
        (" v1 ", "V1"),
        ("ECG II", "II"),
        ("EKG aVL", "aVL"),
        ("lead_iii", "III"),
        ("ECG lead V2", "V2"),
        ("ECG-V6", "V6"),
        ("MLII", "II"),
        ("MCL1", "V1"),
        ("DII", "II"),
        ("vx", "VX"),
        ("'V5'", "V5"),
    ],
)
def test_lead_names_in_any_writing(written, lead):
    assert lead_name(written) == lead


@pytest.mark.parametrize("name", ["-aVR", "ECG", "ECG 1", "col 0", "PLETH", "Fp1", "V10", ""])
def test_other_names_are_no_leads(name):
    assert lead_name(name) is None


@pytest.mark.parametrize("name", ["PLETH", "PPG", "ABP", "ART", "CVP", "RESP", "EEG", "Fp1", "C3-A2", "EMG", "SpO2"])
def test_other_signals_are_refused_by_name_and_left_out_beside_ecg(name):
    pair = waves(2, 200)
    with pytest.raises(ValueError, match=f"no known ECG lead; it has {name} "):
        open_recording(pair[:1], sampling_rate=100, leads=[name])
    recording = read_recording(pair, sampling_rate=100, leads=[name, "ii"])
    assert recording.leads == ("II",) and any(name in note for note in recording.notes)
    np.testing.assert_array_equal(recording.signal[0], pair[1])


def test_names_that_say_nothing_are_listed_until_the_user_names_them(ecg):
    path = ecg / "odd" / "wfdb" / "test01_00s"
    with pytest.raises(ValueError, match=r"'ECG 1', 'ECG 2', 'ECG 3', 'ECG 4', no lead's name: give leads="):
        open_recording(path)
    recording = read_recording(path, leads=["i", None, "V1", None])
    assert recording.leads == ("I", "V1")
    with pytest.raises(ValueError, match="leads names 2 channels; the recording has 4"):
        open_recording(path, leads=["I", "II"])


def test_the_first_of_two_channels_for_one_lead_counts():
    pair = waves(2, 200)
    recording = read_recording(pair, sampling_rate=100, leads=["II", "MLII"])
    assert recording.leads == ("II",) and "a second channel for lead II left out" in recording.notes
    np.testing.assert_array_equal(recording.signal, pair[:1])


@pytest.mark.parametrize(("unit", "scale"), [("mV", 1), ("uV", 1e3), ("µV", 1e3), ("V", 1e-3), ("nV", 1e6), (0.5, 2)])
def test_units_become_millivolts(unit, scale):
    signal = waves(12, 300)
    recording = read_recording({"array": signal * scale, "sampling_rate": 100, "units": unit})
    np.testing.assert_allclose(recording.signal, signal, rtol=1e-5, atol=1e-6)


def test_numbers_that_cannot_be_millivolts_need_their_unit():
    counts = (waves(12, 300) * 1000).astype(np.int16)
    whole = "states no unit, and its values are whole numbers, as a converter counts; give units="
    for array, message in (
        (counts, whole),
        (counts.astype(float), whole),
        (counts // 32, whole),  # 31 counts a mV
        (waves(12, 300) * 1e-3, r"states no unit, and a spread of .* give units="),
        (waves(12, 300) * 20, r"states no unit, and a height of .* give units="),
    ):
        with pytest.raises(ValueError, match=message):
            open_recording(array, sampling_rate=100)
    np.testing.assert_allclose(
        read_recording(counts, sampling_rate=100, units="uV").signal, waves(12, 300), atol=1.1e-3
    )
    for unit in ("furlong", 0, -1, float("nan"), ["uV"], True):
        with pytest.raises(ValueError, match=r"units is .* expected mV, uV, V, nV or millivolts per unit"):
            open_recording(counts, sampling_rate=100, units=unit)


def test_a_lead_in_a_unit_that_is_no_voltage_is_refused(ecg):
    with pytest.raises(ValueError, match=r"it has PLETH \(PPG\)"):
        open_recording(ecg / "odd" / "wfdb" / "multi-segment" / "p000878" / "3269321_0001")


def test_the_file_is_not_contradicted(ecg):
    path = ecg / "mitbih_long" / "100"
    with pytest.raises(ValueError, match="sampling_rate is 250, but it states 360 Hz"):
        open_recording(path, sampling_rate=250)
    with pytest.raises(ValueError, match="units is 'V', but the recording states mV"):
        open_recording(path, units="V")
    assert open_recording(path, sampling_rate=360, units="mV").sampling_rate == 360


@pytest.mark.parametrize("rate", [0, -5, "fast", float("nan"), float("inf")])
def test_sampling_rate_is_a_number_above_zero(rate):
    with pytest.raises(ValueError, match=r"sampling_rate is .* expected a number of Hz above 0"):
        open_recording(waves(12, 300), sampling_rate=rate)
