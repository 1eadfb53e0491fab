"""What a file holds, whatever its format: leads, millivolts, rate; or one line that says what is wrong."""

import numpy as np
import pytest

from hf_ecgmamba.recording import STANDARD_LEADS, Recording, lead_name, open_recording, read_recording


@pytest.fixture(scope="session")
def ecg(shared_data):
    return shared_data / "ecg"


@pytest.mark.parametrize(
    ("written", "lead"),
    [
        ("avr", "aVR"),
        ("AVF", "aVF"),
        (" v1 ", "V1"),
        ("ECG II", "II"),
        ("EKG aVL", "aVL"),
        ("lead_iii", "III"),
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


def test_wfdb_span_equals_the_same_span_of_all(ecg):
    for name in ("mitbih_long/100", "odd/wfdb/mixedsignals", "odd/wfdb/multi-segment/041s/041s", "odd/wfdb/a103l.mat"):
        file = open_recording(ecg / name)
        part, whole = file.read(701, 1503), file.read()
        assert whole.signal.shape == (len(file.leads), file.num_samples)
        np.testing.assert_array_equal(part.signal, whole.signal[:, 701:1503])


def test_header_that_wfdb_rejects_gives_what_the_signal_file_holds(ecg):
    from scipy.io import loadmat

    recording = read_recording(ecg / "cinc2021" / "E00015.hea")
    np.testing.assert_allclose(recording.signal, loadmat(ecg / "cinc2021" / "E00015.mat")["val"] / 4880, rtol=1e-6)
    assert recording.leads == STANDARD_LEADS and recording.sampling_rate == 500


def test_arrays_in_both_orientations():
    signal = np.random.default_rng(0).normal(size=(12, 300)).astype(np.float32)
    for array in (signal, signal.T, signal.T.astype(np.float64)):
        recording = read_recording(array, sampling_rate=100)
        np.testing.assert_allclose(recording.signal, signal, rtol=1e-6)
        assert recording.leads == STANDARD_LEADS
    assert isinstance(recording, Recording) and recording.sampling_rate == 100.0
