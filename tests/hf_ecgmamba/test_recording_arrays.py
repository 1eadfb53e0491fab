"""Arrays in memory and in numpy's, MATLAB's and HDF5 files."""

import numpy as np
import pytest
import torch

from hf_ecgmamba.recording import open_recording, open_recordings, read_recording
from hf_ecgmamba.recording_channels import STANDARD_LEADS, Recording
from hf_ecgmamba.recording_limb_leads import limb_lead_doubt
from tests.hf_ecgmamba.signals import heart, waves


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
    with pytest.raises(ValueError, match=r"a\.mat has the variables speed .* expected a signal among them"):
        open_recording(tmp_path / "a.mat")
    (tmp_path / "b.mat").write_bytes((ecg / "cinc2021" / "A0001.mat").read_bytes())
    with pytest.raises(OSError, match=r"b\.mat: a WFDB signal file, whose header b\.hea is missing"):
        open_recording(tmp_path / "b.mat")
    (tmp_path / "c.mat").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match=r"c\.mat: not a MATLAB file"):
        open_recording(tmp_path / "c.mat")


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
        (np.zeros((2, 12, 300, 1)), r"array has shape \[2, 12, 300, 1\]; expected \[time\], \[leads, time\]"),
        (np.zeros((2, 12, 300)), r"array holds 2 recordings \(0, 1\); give record=, one of them"),
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


def test_arrays_beside_the_signal_state_rate_units_gain_and_baseline(tmp_path):
    import h5py
    from scipy.io import savemat

    pair = heart(500)[[1, 6]]
    np.savez(tmp_path / "a.npz", signal=pair * [[1000], [1]], Fs=100, sig_name=["II", "V1"], units=["uV", "mV"])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["ecg"] = pair * [[1000], [1]]
        file["ecg"].attrs.update(leads=["II", "V1"], units=["uV", "mV"])
        file["fs"] = 100
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["ecg"] = np.round(pair * [[50], [200]] + [[512], [0]]).astype("i2")
        file["ecg"].attrs.update(fs=100, leads=["II", "V1"], gain=[50.0, 200.0], baseline=[512, 0])
    savemat(tmp_path / "d.mat", {"ECG": {"data": pair, "fs": 100, "leads": ["II", "V1"]}})
    for name, tolerance in (("a.npz", 1e-6), ("b.h5", 1e-6), ("c.h5", 0.011), ("d.mat", 1e-6)):
        recording = read_recording(tmp_path / name)
        assert (recording.leads, recording.sampling_rate) == (("II", "V1"), 100), name
        np.testing.assert_allclose(recording.signal, pair, atol=tolerance, err_msg=name)
        with pytest.raises(ValueError, match="sampling_rate is 250, but it states 100 Hz"):
            read_recording(tmp_path / name, sampling_rate=250)
    with h5py.File(tmp_path / "c.h5", "a") as file:
        del file["ecg"].attrs["gain"]
    with pytest.raises(ValueError, match="states no unit, and its values are whole numbers"):
        read_recording(tmp_path / "c.h5")
    np.savez(tmp_path / "e.npz", signal=pair, fs=100, leads=["II", "V1"], units=["uV", "mV", "mV"])
    with pytest.raises(ValueError, match="states 3 units for 2 channels"):
        read_recording(tmp_path / "e.npz")


def test_damaged_matlab_files_give_one_line(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"ECG": {"data": heart(500)}}, do_compression=True)
    content = (tmp_path / "a.mat").read_bytes()
    for damaged in (b"", content[:50], content[:200], content[:400] + bytes(200) + content[600:]):
        (tmp_path / "b.mat").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"b\.mat: not a MATLAB file"):
            read_recording(tmp_path / "b.mat")


@pytest.mark.parametrize("name", ["val", "ecg", "x"])
@pytest.mark.parametrize("nested", [False, True])
def test_any_matlab_file_with_one_signal(tmp_path, name, nested):
    from scipy.io import savemat

    signal = waves(2, 700)
    content = {name: signal, "fs": 250, "comment": "of somebody"}
    savemat(tmp_path / "a.mat", {"record": content} if nested else content)
    recording = read_recording(tmp_path / "a.mat", leads=["I", "II"], units="mV")
    assert recording.sampling_rate == 250 and recording.leads == ("I", "II")
    np.testing.assert_array_equal(recording.signal, signal)
    savemat(tmp_path / "b.mat", {name: signal})
    given = {"leads": ["I", "II"], "units": "mV", "sampling_rate": 250}
    np.testing.assert_array_equal(read_recording(tmp_path / "b.mat", **given).signal, signal)
    savemat(tmp_path / "c.mat", {"first": signal, "second": signal, "fs": 250})
    with pytest.raises(ValueError, match="holds the arrays first, second"):
        read_recording(tmp_path / "c.mat", leads=["I", "II"])
    savemat(tmp_path / "d.mat", {"age": 70})
    with pytest.raises(ValueError, match=r"has the variables age \[1, 1\]; expected a signal among them"):
        read_recording(tmp_path / "d.mat")


def write_code15(path, lengths=(4000, 2800, 4096), exam_ids=(1169160, 2873686, 168405), rows=None):
    """A file as CODE-15's description says: zeros on both sides of what is shorter than 4096 samples. Returns what
    each recording holds."""
    import h5py

    signals = [heart(length, rate=400) * (1 + k / 10) for k, length in enumerate(lengths)]
    tracings = np.zeros((len(lengths), 4096, 12), np.float32)
    for row, signal in zip(tracings, signals, strict=True):
        first = (4096 - signal.shape[1]) // 2
        row[first : first + signal.shape[1]] = (signal if rows is None else signal[rows]).T
    with h5py.File(path, "w") as file:
        file["tracings"] = tracings
        if exam_ids is not None:
            file["exam_id"] = np.array(exam_ids)
    return signals


def test_code15_is_as_many_recordings_by_their_exam_ids(tmp_path):
    path = tmp_path / "exams_part0.hdf5"
    signals = write_code15(path)
    recordings = open_recordings(path)
    assert recordings.names == ("1169160", "2873686", "168405") and len(recordings) == 3
    for opened, signal, name in zip(recordings, signals, recordings.names, strict=True):
        assert opened.sampling_rate == 400 and opened.leads == STANDARD_LEADS
        assert opened.name == f"exams_part0 {name}"
        np.testing.assert_array_equal(opened.read().signal, signal.astype(np.float32))
    assert "1296 samples cut off that fill it up" in recordings[1].notes
    for record in ("2873686", 2873686):
        np.testing.assert_array_equal(read_recording(path, record=record).signal, signals[1].astype(np.float32))
    with pytest.raises(
        ValueError, match=r"holds 3 recordings \(1169160, 2873686, 168405\); give record=, one of them"
    ):
        read_recording(path)
    with pytest.raises(ValueError, match="record is 7; expected one of its 3: 1169160"):
        read_recording(path, record=7)
    # bytes, as a server gets them
    opened = open_recording(path.read_bytes(), record=168405, trusted=False)
    np.testing.assert_array_equal(opened.read().signal, signals[2].astype(np.float32))
    assert open_recordings(path, sampling_rate=500)[0].sampling_rate == 500  # the file itself states none


def test_recordings_without_exam_ids_of_their_own(tmp_path):
    # CODE-15's parts end with an empty row, whose exam_id is 0
    write_code15(tmp_path / "twice.hdf5", exam_ids=(5, 0, 0))
    assert open_recordings(tmp_path / "twice.hdf5").names == ("5", "0 (number 1)", "0 (number 2)")
    # the test set of CODE names no exams, and has aVL, aVF, aVR for aVR, aVL, aVF
    write_code15(tmp_path / "test.hdf5", exam_ids=None, rows=[0, 1, 2, 4, 5, 3, *range(6, 12)])
    recordings = open_recordings(tmp_path / "test.hdf5")
    assert recordings.names == ("0", "1", "2")
    recording = recordings[0].read()
    assert recordings[0].names_are_stated
    assert "the leads called aVR, aVL, aVF are aVL, aVF, aVR" in limb_lead_doubt(recording.signal, recording.leads)


@pytest.mark.parametrize("kind", ["npy", "npz", "mat", "array", "tensor", "dict", "list", "[N, T, 12]", "masked"])
def test_arrays_of_many_recordings(tmp_path, kind):
    from scipy.io import savemat

    signal = np.stack([heart(600) * (1 + k / 10) for k in range(3)]).astype(np.float32)
    given, names = {"sampling_rate": 100}, ("0", "1", "2")
    source = {
        "array": signal,
        "tensor": torch.from_numpy(signal),
        "dict": {"array": signal, "sampling_rate": 100},
        "list": signal.tolist(),
        "[N, T, 12]": signal.transpose(0, 2, 1),
        "masked": np.ma.masked_array(signal, np.arange(signal.size).reshape(signal.shape) == 5),
    }.get(kind, tmp_path / f"many.{kind}")
    if kind == "npy":
        np.save(source, signal)
    elif kind == "npz":
        np.savez(source, x=signal, y=np.zeros((3, 5)), ids=["a", "b", "c"], fs=100)
        given, names = {}, ("a", "b", "c")
    elif kind == "mat":
        savemat(source, {"X": signal, "exam_id": [[7, 8, 9]], "fs": 100})
        given, names = {}, ("7", "8", "9")
    elif kind == "dict":
        given = {}
    recordings = open_recordings(source, **given)
    assert recordings.names == names
    for opened, expected in zip(recordings, signal, strict=True):
        read = opened.read().signal
        np.testing.assert_allclose(read[~np.isnan(read)], expected[~np.isnan(read)], rtol=1e-6)
    assert np.isnan(recordings[0].read().signal).sum() == (1 if kind == "masked" else 0)
    with pytest.raises(ValueError, match="holds 3 recordings"):
        open_recording(source, **given)
    np.testing.assert_allclose(read_recording(source, record=names[2], **given).signal, signal[2], rtol=1e-6)


def test_one_recording_is_one_whatever_its_axes(tmp_path):
    signal = heart(600)
    np.save(tmp_path / "one.npy", signal)
    (one,) = open_recordings(tmp_path / "one.npy", sampling_rate=100, units="mV")
    np.testing.assert_allclose(one.read().signal, signal, rtol=1e-6)
    np.testing.assert_allclose(read_recording(signal[None], sampling_rate=100).signal, signal, rtol=1e-6)
    (again,) = open_recordings(one)
    assert again is one
    with pytest.raises(ValueError, match="one holds one recording; record is 3, expected none"):
        open_recording(tmp_path / "one.npy", sampling_rate=100, record=3)
    with pytest.raises(ValueError, match="one is one recording; record is 3"):
        open_recording(one, record=3)


# -- what stands beside a signal --------------------------------------------------------------------------------------


def write_named(path, arrays):
    """numpy's, MATLAB's or HDF5's file of these arrays, as the ending says."""
    import h5py
    from scipy.io import savemat

    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".mat":
        savemat(path, {name: np.array(item, object) if name == "order" else item for name, item in arrays.items()})
    else:
        with h5py.File(path, "w") as file:
            for name, item in arrays.items():
                file[name] = item


@pytest.mark.parametrize("ending", [".npz", ".mat", ".h5"])
def test_what_stands_beside_a_signal_is_used_or_contradicted(tmp_path, ending):
    signal, path = heart(1500, rate=250).astype(np.float32), tmp_path / f"a{ending}"
    time = np.arange(1500) / 250
    for beside in (
        {"time": time}, {"t": time * 1000}, {"dt": 0.004}, {"sampling_rate_hz": 250}, {"sample_frequency": 250.0},
        {"fs": "250 Hz"}, {"time": time, "fs": 250},
    ):  # fmt: skip
        write_named(path, {"ecg": signal, **beside})
        recording = read_recording(path)
        assert recording.sampling_rate == 250, beside
        np.testing.assert_array_equal(recording.signal, signal)
    write_named(path, {"ecg": signal, "time": time, "fs": 500})
    with pytest.raises(ValueError, match="states 500 Hz, but its times 250 Hz"):
        read_recording(path)
    there = (np.arange(1500) < 400) | (np.arange(1500) >= 600)
    write_named(path, {"ecg": signal[:, there], "time": time[there]})
    recording = read_recording(path)
    np.testing.assert_array_equal(np.isnan(recording.signal), np.broadcast_to(~there, (12, 1500)))
    np.testing.assert_array_equal(recording.signal[:, there], signal[:, there])
    assert any("200 samples missing by the times" in note for note in recording.notes)
    span = open_recording(path).read(390, 610).signal
    np.testing.assert_array_equal(span, recording.signal[:, 390:610])
    # the leads, by whatever name
    write_named(path, {"ecg": signal, "fs": 250, "order": list(STANDARD_LEADS[::-1])})
    assert read_recording(path).leads == STANDARD_LEADS[::-1]


@pytest.mark.parametrize("ending", [".npz", ".mat", ".h5"])
def test_an_array_for_each_lead(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    signal = {lead: heart(500)[STANDARD_LEADS.index(lead)] for lead in ("V6", "II", "I")}
    write_named(path, {**signal, "fs": 100, "age": 50})
    recording = read_recording(path)
    assert set(recording.leads) == {"I", "II", "V6"} and recording.sampling_rate == 100
    for lead, row in zip(recording.leads, recording.signal, strict=True):
        np.testing.assert_allclose(row, signal[lead], atol=1e-6)


def test_structs_in_structs(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"study": {"patient": {"age": 50}, "record": {"ecg": heart(500), "fs": 100}}})
    recording = read_recording(tmp_path / "a.mat")
    assert recording.sampling_rate == 100
    np.testing.assert_allclose(recording.signal, heart(500), atol=1e-6)
