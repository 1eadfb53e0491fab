"""What a file holds, whatever its format: leads, millivolts, rate; or one line that says what is wrong."""

import sys

import numpy as np
import pytest
import torch

from hf_ecgmamba.recording import STANDARD_LEADS, Recording, lead_name, open_recording, read_recording


@pytest.fixture(scope="session")
def ecg(shared_data):
    return shared_data / "ecg"


def waves(leads, samples):
    """Something of an ECG's size, other in every lead."""
    time = np.arange(samples) / 100
    return np.stack([0.5 * np.sin(2 * np.pi * (1 + 0.3 * k) * time) + 0.1 * k for k in range(leads)]).astype("float32")


# -- names ------------------------------------------------------------------------------------------------------------


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


# -- units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "scale"), [("mV", 1), ("uV", 1e3), ("µV", 1e3), ("V", 1e-3), ("nV", 1e6), (0.5, 2)])
def test_units_become_millivolts(unit, scale):
    signal = waves(12, 300)
    recording = read_recording({"array": signal * scale, "sampling_rate": 100, "units": unit})
    np.testing.assert_allclose(recording.signal, signal, rtol=1e-5, atol=1e-6)


def test_numbers_that_cannot_be_millivolts_need_their_unit():
    counts = (waves(12, 300) * 1000).astype(np.int16)
    for array in (counts, waves(12, 300) * 1e-3):
        with pytest.raises(ValueError, match=r"states no unit, and a spread of .* give units="):
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


# -- the user's word and the file's -----------------------------------------------------------------------------------


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


# -- WFDB -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "mitbih_long/100",
        "odd/wfdb/mixedsignals",
        "odd/wfdb/multi-segment/041s/041s",
        "odd/wfdb/multi-segment/fixed1/v102s",
        "odd/wfdb/multi-segment/s25047/s25047-2704-05-04-10-44",
        "odd/wfdb/a103l-no-len",
        "odd/wfdb/s0010_re.xyz",
    ],
)
def test_a_span_equals_the_same_span_of_all(ecg, name):
    file = open_recording(ecg / name)
    whole = file.read()
    assert whole.signal.shape == (len(file.leads), file.num_samples) and whole.signal.dtype == np.float32
    for start, stop in ((0, 7), (701, 1503), (file.num_samples - 333, file.num_samples), (50, 50)):
        np.testing.assert_array_equal(file.read(start, stop).signal, whole.signal[:, start:stop])
    with pytest.raises(ValueError, match="is outside of"):
        file.read(0, file.num_samples + 1)


def test_a_record_read_at_once_is_the_one_read_in_spans(ecg, monkeypatch):
    """Short WFDB records are read as they are opened, long ones when asked: same samples, same words."""

    def read(path):
        try:
            recording = read_recording(path)
        except (ValueError, OSError) as error:
            return str(error)
        return recording.leads, recording.sampling_rate, recording.notes, recording.signal.tobytes()

    headers = [*(ecg / "odd").rglob("*.hea"), *sorted((ecg / "cinc2021").glob("*.hea"))[:5]]
    at_once = {path: read(path) for path in headers}
    monkeypatch.setattr("hf_ecgmamba.recording._read_short", lambda path: None)
    assert {path: read(path) for path in headers} == at_once


def test_a_header_that_wfdb_rejects_gives_what_the_signal_file_holds(ecg):
    from scipy.io import loadmat

    recording = read_recording(ecg / "cinc2021" / "E00015.hea")
    np.testing.assert_allclose(recording.signal, loadmat(ecg / "cinc2021" / "E00015.mat")["val"] / 4880, rtol=1e-6)
    assert recording.leads == STANDARD_LEADS and recording.sampling_rate == 500


def test_a_header_without_a_length_reads_as_that_with_one(ecg):
    stated, open_ended = (read_recording(ecg / "odd" / "wfdb" / name) for name in ("a103l", "a103l-no-len"))
    np.testing.assert_array_equal(open_ended.signal, stated.signal)


def test_several_samples_in_a_frame_keep_their_rate(ecg):
    import wfdb

    file = open_recording(ecg / "odd" / "wfdb" / "mixedsignals")
    assert file.leads == ("II", "III", "V") and file.sampling_rate == pytest.approx(62.4725 * 4)
    reference = wfdb.rdrecord(str(ecg / "odd" / "wfdb" / "mixedsignals"), smooth_frames=False).e_p_signal[:3]
    np.testing.assert_allclose(file.read().signal, np.stack(reference), rtol=1e-6)


def test_leads_at_multiples_of_a_rate_are_averaged_to_it(ecg):
    import wfdb

    path = ecg / "odd" / "wfdb" / "test01_00s_frame"
    recording = read_recording(path, leads=["I", "II", "III"])
    np.testing.assert_allclose(
        recording.signal.T, wfdb.rdrecord(str(path)).p_signal, atol=6e-3
    )  # wfdb rounds to 1/100
    assert recording.sampling_rate == 500


@pytest.mark.parametrize("name", ["flacformats", "flac_3_constant"])
def test_flac(ecg, name):
    import wfdb

    path = ecg / "odd" / "wfdb" / name
    span = open_recording(path, leads=["I", "II", "V1"]).read(100, 400)
    np.testing.assert_allclose(span.signal.T, wfdb.rdrecord(str(path), 100, 400).p_signal, rtol=1e-6)


def test_any_part_of_a_record_names_it(ecg, monkeypatch):
    folder = ecg / "odd" / "ptbxl_flat_lead"
    monkeypatch.chdir(folder)
    recordings = [read_recording(part) for part in ("12722_lr", "12722_lr.hea", "12722_lr.dat", folder / "12722_lr")]
    for recording in recordings:
        np.testing.assert_array_equal(recording.signal, recordings[0].signal)
        assert recording.name == "12722_lr" and recording.leads == STANDARD_LEADS


@pytest.mark.parametrize("lines", ["", "rec\n", "rec twelve 500\n", "rec 1 500 100\nrec.dat sixteen\n"])
def test_broken_headers(tmp_path, lines):
    (tmp_path / "rec.hea").write_text(lines)
    with pytest.raises((ValueError, OSError), match=r"^rec: .*") as caught:
        open_recording(tmp_path / "rec")
    assert "\n" not in str(caught.value)


def test_a_signal_file_shorter_than_its_header_says(tmp_path, ecg):
    source = ecg / "odd" / "ptbxl_flat_lead"
    (tmp_path / "12722_lr.hea").write_bytes((source / "12722_lr.hea").read_bytes())
    (tmp_path / "12722_lr.dat").write_bytes((source / "12722_lr.dat").read_bytes()[:5000])
    with pytest.raises(ValueError, match="12722_lr: wfdb cannot read its signals"):
        read_recording(tmp_path / "12722_lr")


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I,II\n{},{}\n",
        "time;ECG I (mV);ii [uV]\n0;{};{}\n",
        "'sample #'\t'MLI'\t'II'\n5\t{}\t{}\n",
        "# Sampling Rate (Hz):= 100\n# Labels:= I\tII\n{} {}\n",
    ],
)
def test_text_with_a_header(tmp_path, text):
    head, row = text.rsplit("\n", 2)[:2]
    signal = waves(2, 150).astype(np.float64)
    written = signal * [[1], [1000 if "uV" in text else 1]]
    rows = [row.format(*(f"{value:.4f}" for value in pair)) for pair in written.T]
    if ";" in text:
        rows = [line.replace(".", ",") for line in rows]  # as a spreadsheet in German writes it
    path = tmp_path / "ecg.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    recording = read_recording(path, sampling_rate=100)
    assert recording.leads == ("I", "II")
    np.testing.assert_allclose(recording.signal, signal, atol=1e-4)


def test_bare_columns_are_refused_until_rate_and_leads_are_given(ecg):
    path = ecg / "odd" / "csv" / "e0103.csv"
    with pytest.raises(ValueError, match="e0103 does not state its sampling rate; give sampling_rate="):
        open_recording(path)
    with pytest.raises(ValueError, match="e0103 has 1 channel without a name; give leads="):
        open_recording(path, sampling_rate=250)
    recording = read_recording(path, sampling_rate=250, leads="V4")
    np.testing.assert_allclose(recording.signal[0], np.loadtxt(path), rtol=1e-6)


def test_biosppy_text_states_its_rate(ecg):
    path = ecg / "odd" / "csv" / "biosppy_ecg.txt"
    with pytest.raises(ValueError, match="it has 'ECG', no lead's name"):
        open_recording(path)
    with pytest.raises(ValueError, match=r"states no unit, and a spread of 59\.5 is not that of an ECG in mV"):
        open_recording(path, leads=["I"])
    file = open_recording(path, leads=["I"], units=3.3 / 2**12 / 1.1)
    assert file.sampling_rate == 1000 and file.num_samples == 15000


def test_missing_cells_are_missing_samples_and_words_are_an_error(tmp_path):
    (tmp_path / "gap.csv").write_text("I,II\n0.1,0.2\n,0.3\n0.4,nan\n")
    signal = read_recording(tmp_path / "gap.csv", sampling_rate=100).signal
    np.testing.assert_array_equal(np.isnan(signal), [[False, True, False], [False, False, True]])
    (tmp_path / "words.csv").write_text("I,II\n0.1,0.2\nlead off,0.3\n")
    with pytest.raises(ValueError, match=r"words\.csv: not columns of numbers .*lead off"):
        open_recording(tmp_path / "words.csv", sampling_rate=100)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv holds no numbers"):
        open_recording(tmp_path / "empty.csv", sampling_rate=100)


# -- numpy, HDF5, MATLAB, EDF -----------------------------------------------------------------------------------------


def test_numpy_files(tmp_path):
    signal = waves(12, 400)
    np.save(tmp_path / "a.npy", signal.T)
    np.savez(tmp_path / "b.npz", signal=signal[:2] * 1000, fs=250, leads=["ii", "v1"], units="uV", age=50)
    np.testing.assert_array_equal(read_recording(tmp_path / "a.npy", sampling_rate=100).signal, signal)
    recording = read_recording(tmp_path / "b.npz")
    assert (recording.leads, recording.sampling_rate) == (("II", "V1"), 250)
    np.testing.assert_allclose(recording.signal, signal[:2], rtol=1e-6)
    np.savez(tmp_path / "c.npz", signal=signal[:2], fs=250, leads=["ii", "v1", "v2"])
    with pytest.raises(ValueError, match="c names 3 leads for 2 channels"):
        open_recording(tmp_path / "c.npz")


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"signal": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"junk")
    for name in ("a.npy", "b.npy"):
        with pytest.raises(ValueError, match=f"{name}: not a numpy file without pickled objects"):
            open_recording(tmp_path / name, sampling_rate=100)


def test_hdf5_by_its_attributes_and_in_spans(tmp_path):
    import h5py

    signal = waves(2, 500)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("patient/signal", data=signal.T * 1000)
        file["patient/signal"].attrs.update({"fs": 200.0, "leads": ["I", "aVF"], "units": "uV"})
        file["age"] = 50
    (tmp_path / "a.mat").write_bytes(bytes(512) + (tmp_path / "a.h5").read_bytes())  # as MATLAB 7.3 does
    np.testing.assert_array_equal(read_recording(tmp_path / "a.mat").signal, read_recording(tmp_path / "a.h5").signal)
    opened = open_recording(tmp_path / "a.h5")
    assert (opened.leads, opened.sampling_rate, opened.num_samples) == (("I", "aVF"), 200, 500)
    np.testing.assert_allclose(opened.read(100, 300).signal, signal[:, 100:300], rtol=1e-6)
    (tmp_path / "b.h5").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"b\.h5: not an HDF5 file"):
        open_recording(tmp_path / "b.h5")


def test_sph_and_cpsc2018_hold_what_their_files_say(ecg):
    import h5py
    from scipy.io import loadmat

    with h5py.File(ecg / "odd" / "sph_hdf5" / "SPH00002.h5") as file:
        reference = file["ecg"][()]
    recording = read_recording(ecg / "odd" / "sph_hdf5" / "SPH00002.h5")
    np.testing.assert_array_equal(recording.signal, reference.astype(np.float32))
    assert recording.sampling_rate == 500 and "500 Hz, as SPH describes its files" in recording.notes
    reference = loadmat(ecg / "cpsc2018_raw" / "A1980.mat")["ECG"][0, 0]["data"]
    recording = read_recording(ecg / "cpsc2018_raw" / "A1980.mat")
    np.testing.assert_array_equal(recording.signal, reference.astype(np.float32))
    assert recording.sampling_rate == 500 and recording.leads == STANDARD_LEADS


def test_other_matlab_files_say_what_they_hold(tmp_path, ecg):
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"speed": 3.0})
    with pytest.raises(ValueError, match=r"a\.mat has the variables speed; expected ECG .* or feats"):
        open_recording(tmp_path / "a.mat")
    (tmp_path / "b.mat").write_bytes((ecg / "cinc2021" / "A0001.mat").read_bytes())
    with pytest.raises(OSError, match=r"b\.mat: a WFDB signal file, whose header b\.hea is missing"):
        open_recording(tmp_path / "b.mat")
    (tmp_path / "c.mat").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match=r"c\.mat: not a MATLAB file"):
        open_recording(tmp_path / "c.mat")


def test_edf(tmp_path):
    import pyedflib

    path, signal = tmp_path / "a.edf", waves(3, 1000).astype(np.float64)
    with pyedflib.EdfWriter(str(path), 3) as file:
        for k, (label, unit, rate, reach) in enumerate(
            [("EKG II", "uV", 100, 2000), ("EEG Fz", "uV", 100, 2000), ("ECG V1", "mV", 200, 2)]
        ):
            file.setSignalHeader(
                k,
                {"label": label, "dimension": unit, "sample_frequency": rate, "transducer": "", "prefilter": ""}
                | {"physical_max": reach, "physical_min": -reach, "digital_max": 32767, "digital_min": -32768},
            )
        file.writeSamples([signal[0] * 1000, signal[1], np.repeat(signal[2], 2)])
    opened = open_recording(path)
    assert opened.leads == ("II", "V1") and opened.sampling_rate == 100
    assert "channels left out: EEG Fz (EEG)" in opened.notes
    np.testing.assert_allclose(opened.read(300, 500).signal, signal[[0, 2], 300:500], atol=1e-4)
    (tmp_path / "b.edf").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"b\.edf: not an EDF or BDF file"):
        open_recording(tmp_path / "b.edf")


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_in_both_orientations():
    signal = waves(12, 300)
    tensors = (torch.from_numpy(signal), torch.from_numpy(signal).bfloat16())
    for array in (signal, signal.T, signal.T.astype(np.float64), *tensors, signal.tolist()):
        recording = read_recording(array, sampling_rate=100)
        np.testing.assert_allclose(recording.signal, signal, rtol=1e-6 if array is not tensors[1] else 2**-8)
        assert recording.leads == STANDARD_LEADS and recording.sampling_rate == 100.0
    single = read_recording(signal[0], sampling_rate=100, leads=["II"])
    assert single.signal.shape == (1, 300)
    assert open_recording(single).read(10, 20).signal.shape == (1, 10)
    assert read_recording(Recording(signal[:2], ("I", "II"), 50.0, "mine", ("seen",))).notes == ("seen",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 12, 300)), r"array has shape \[2, 12, 300\]; expected \[time\], \[leads, time\]"),
        (np.zeros((0,)), "array has shape"),
        (np.array(["a", "b"]), "holds values of type"),
        (np.zeros((12, 300), dtype=complex), "holds values of type complex128; expected real numbers"),
        ({"signal": np.zeros(3)}, r"dict has the keys \['signal'\]; expected array"),
        (waves(3, 300), "array has 3 channels without a name; give leads="),
        ({"array": waves(12, 300)}, "array does not state its sampling rate"),
        ({"array": waves(12, 300), "sampling_rate": 0}, "array: sampling_rate is 0; expected a number of Hz above 0"),
        ({"array": waves(12, 300), "sampling_rate": 100, "leads": 5}, "leads is 5; expected a name for each channel"),
        ({"array": waves(2, 300), "sampling_rate": 100, "leads": [1, 2]}, r"leads is \[1, 2\]; expected a name"),
        ([[1.0, 2.0], [3.0]], "array is no array of numbers"),
    ],
)
def test_bad_arrays(source, message):
    rate = None if isinstance(source, dict) else 100
    with pytest.raises(ValueError, match=message):
        open_recording(source, sampling_rate=rate)


def test_infinite_samples_are_an_error_that_says_where():
    signal = waves(12, 300)
    signal[6, 150] = np.inf
    with pytest.raises(ValueError, match=r"lead V1 holds an infinite value at 1\.500 s"):
        read_recording({"array": signal, "sampling_rate": 100, "units": "mV"})


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.edf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyedflib", None)
    with pytest.raises(ImportError, match="cannot be read without pyedflib: pip install pyedflib"):
        open_recording(tmp_path / "a.edf")


def test_missing_files(tmp_path):
    for path in ("nowhere.csv", "nowhere", "nowhere.hea"):
        with pytest.raises(FileNotFoundError, match=f"{path}: no such file"):
            open_recording(tmp_path / path)
    with pytest.raises(OSError, match="is a folder; give one file"):
        open_recording(tmp_path)


def test_damaged_files_give_one_line(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04, and no more")
    (tmp_path / "still.hea").write_text("still 1 0 1000\nstill.dat 16 1000/mV 16 0 0 0 0 II\n")
    (tmp_path / "still.dat").write_bytes(bytes(2000))
    for name, message in (
        ("cut.npz", "cut.npz is damaged"),
        ("still.hea", "still: the header states a sampling rate"),
    ):
        with pytest.raises(ValueError, match=message):
            open_recording(tmp_path / name)
