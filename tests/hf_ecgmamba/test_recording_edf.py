"""EDF and BDF."""

import sys

import numpy as np
import pytest

from hf_ecgmamba.recording import open_recording, read_recording
from tests.hf_ecgmamba.signals import waves


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


# -- what only edfio reads --------------------------------------------------------------------------------------------


def written(path, units="uV", labels=("ECG II", "V1"), plus=False):
    """Ten seconds of two leads at 200 Hz, in records of one second; returns the millivolts as written."""
    edfio = pytest.importorskip("edfio")
    signal = waves(2, 2000)
    signals = [
        edfio.EdfSignal(row * 1000, 200, label=label, physical_dimension=units, physical_range=(-3276.8, 3276.7))
        for row, label in zip(signal, labels, strict=True)
    ]
    annotations = [edfio.EdfAnnotation(2.5, None, "beat")] if plus else ()
    edfio.Edf(signals, annotations=annotations, data_record_duration=1).write(path)
    return np.round(signal * 10000) / 10000


def patched(path, *changes):
    content = bytearray(path.read_bytes())
    for place, text in changes:
        content[place : place + len(text)] = text
    path.write_bytes(content)


@pytest.mark.parametrize("ending", [".edf", ".rec", ".REC"])
def test_recorders_have_endings_of_their_own(tmp_path, ending):
    signal = written(tmp_path / f"a{ending}")
    np.testing.assert_allclose(read_recording(tmp_path / f"a{ending}").signal, signal, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        (256 + 2 * 16 + 2 * 80, "\u00b5V      ".encode("latin-1")),  # the unit
        (8, "M\u00fcller".encode("latin-1")),  # the patient
        (168, b"00.00.00"),  # the date
        (236, b"-1      "),  # the number of records
    ],
)
def test_what_pyedflib_refuses(tmp_path, change):
    signal = written(tmp_path / "a.edf")
    patched(tmp_path / "a.edf", change)
    recording = read_recording(tmp_path / "a.edf")
    assert recording.leads == ("II", "V1") and recording.sampling_rate == 200
    np.testing.assert_allclose(recording.signal, signal, atol=1e-4)


def test_a_hole_in_a_discontinuous_recording_is_missing(tmp_path):
    path = tmp_path / "a.edf"
    signal = written(path, plus=True)
    content = path.read_bytes()
    head, count = int(content[184:192]), int(content[252:256])
    sizes = [2 * int(content[256 + 216 * count + 8 * k :][:8]) for k in range(count)]
    patched(path, (192, b"EDF+D"))
    for record in range(10):  # from the fifth on, 3.25 s later
        place = head + record * sum(sizes) + sum(sizes[:-1])
        if content[256 + 16 * (count - 1) :][:15] != b"EDF Annotations":
            place = head + record * sum(sizes)
        rest = content[place : place + min(sizes)].partition(b"\x14\x14\0")[2] if record == 0 else b""
        onset = f"+{record + 3.25 * (record >= 4):g}".encode() + b"\x14\x14\0" + rest
        width = sizes[-1] if content[256 + 16 * (count - 1) :][:15] == b"EDF Annotations" else sizes[0]
        patched(path, (place, onset[:width].ljust(width, b"\0")))
    opened = open_recording(path)
    assert opened.duration == 13.25 and opened.notes == ("1 hole in the recording, 3.25 s in all",)
    whole = opened.read().signal
    np.testing.assert_allclose(whole[:, :800], signal[:, :800], atol=1e-4)
    assert np.isnan(whole[:, 800:1450]).all()
    np.testing.assert_allclose(whole[:, 1450:], signal[:, 800:], atol=1e-4)
    np.testing.assert_array_equal(opened.read(700, 1500).signal, whole[:, 700:1500])


def test_a_discontinuous_recording_without_times_is_refused(tmp_path):
    written(tmp_path / "a.edf", plus=True)
    content = (tmp_path / "a.edf").read_bytes()
    patched(tmp_path / "a.edf", (192, b"EDF+D"), (content.index(b"EDF Annotations"), b"something else "))
    with pytest.raises(ValueError, match="a discontinuous recording without annotations"):
        read_recording(tmp_path / "a.edf")


def test_without_edfio_the_message_names_the_extra(tmp_path, monkeypatch):
    written(tmp_path / "a.edf")
    patched(tmp_path / "a.edf", (192, b"EDF+D"))
    monkeypatch.setitem(sys.modules, "edfio", None)
    with pytest.raises(ImportError, match=r"takes edfio: .*\[clinical\]"):
        read_recording(tmp_path / "a.edf")
    patched(tmp_path / "a.edf", (192, b"     "), (168, b"00.00.00"))
    with pytest.raises(ValueError, match=r"not an EDF or BDF file .*\[clinical\]"):
        read_recording(tmp_path / "a.edf")
