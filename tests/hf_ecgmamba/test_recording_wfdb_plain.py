"""Headers as they occur, and the formats that are read without wfdb: what wfdb reads, to the bit."""

import numpy as np
import pytest
import wfdb

from hf_ecgmamba.recording import read_recording
from hf_ecgmamba.recording_wfdb_plain import PlainRecord, is_plain, read_wfdb_header


def test_every_real_record_is_read_as_wfdb_reads_it(ecg):
    compared = 0
    for path in sorted(ecg.rglob("*.hea")):
        header = read_wfdb_header(path)
        if not is_plain(header):
            continue
        try:
            reference = wfdb.rdrecord(str(path.with_suffix("")), smooth_frames=False, return_res=64)
        except (ValueError, OSError):  # headers that wfdb rejects, a missing signal file
            continue
        record = PlainRecord(header, path.parent)
        assert (header.sampling_rate, record.num_frames) == (reference.fs, reference.sig_len), path
        assert [signal.name for signal in header.signals] == reference.sig_name, path
        assert [signal.units for signal in header.signals] == reference.units, path
        for per_frame in {signal.per_frame for signal in header.signals}:
            rows = [row for row, signal in enumerate(header.signals) if signal.per_frame == per_frame]
            whole = record.read(rows, 0, record.num_frames * per_frame)
            np.testing.assert_array_equal(whole, np.stack([reference.e_p_signal[row] for row in rows]), str(path))
            start, stop = len(whole[0]) // 3 | 1, len(whole[0]) // 2
            np.testing.assert_array_equal(record.read(rows[::-2], start, stop), whole[::-2, start:stop], str(path))
        compared += 1
    assert compared > 190


@pytest.mark.parametrize("fmt", ["16", "212"])
@pytest.mark.parametrize("samples", [1, 2, 7, 500, 501])
def test_generated_records(tmp_path, fmt, samples):
    counts = np.random.default_rng(samples).integers(-2047, 2048, (samples, 3))
    counts[samples // 2, 1] = {"16": -32768, "212": -2048}[fmt]  # the marker of a missing sample
    wfdb.wrsamp(
        "rec", 250, ["mV", "uV", "V"], ["I", "II", "V1"], d_signal=counts, fmt=[fmt] * 3, write_dir=str(tmp_path),
        adc_gain=[200.0, 1.5, 1e6], baseline=[0, -7, 12],
    )  # fmt: skip
    record = PlainRecord(read_wfdb_header(tmp_path / "rec.hea"), tmp_path)
    reference = wfdb.rdrecord(str(tmp_path / "rec"), return_res=64).p_signal.T
    assert np.isnan(reference[1, samples // 2])
    np.testing.assert_array_equal(record.read([0, 1, 2], 0, samples), reference)
    for start, stop in ((0, 0), (samples // 3, samples), (samples - 1, samples)):
        np.testing.assert_array_equal(record.read([2, 0], start, stop), reference[[2, 0], start:stop])


@pytest.fixture
def two_leads(tmp_path):
    """x.dat with 2000 samples of I and II, and what makes a header for it."""
    time = np.arange(2000) / 500
    counts = np.stack([1000 * np.sin(6 * time), 700 * np.sin(5 * time)], axis=1).astype("<i2")
    counts.tofile(tmp_path / "x.dat")

    def write(first, lines="x.dat 16 1000/mV 16 0 0 0 0 I\nx.dat 16 1000/mV 16 0 0 0 0 II\n", encoding="utf-8"):
        (tmp_path / "rec.hea").write_bytes(f"{first}\n{lines}".encode(encoding))
        return tmp_path / "rec"

    write.millivolts = (counts.T / 1000).astype(np.float32)
    return write


@pytest.mark.parametrize(
    "first",
    [
        "rec 2 500 2000 10:00:00 2006",
        "rec 2 500 2000 10:00:00 00/00/0000",
        "rec 2 500 2000 2020-05-12 12:33:59",
        "rec 2 500 2000 12-May-2020",
        "rec 2 500 0",
        "rec 2 500 0 12:33:59 2006",
        "rec 2 500 12:33:59",
        "rec 2 500",
        "rec 2 5.0e+02 2000",
        "rec 2 500Hz 2000",
        "rec 2 500,0 2000",
        "rec 2 5E2/500(0) 2000",
        "rec.mat 2 500. 2000.0",
        "\ufeff# written elsewhere\n\n  rec 2 500 2000",
    ],
)
def test_headers_that_say_more_less_or_other(two_leads, first):
    recording = read_recording(two_leads(first))
    assert recording.sampling_rate == 500 and recording.leads == ("I", "II") and recording.notes == ()
    np.testing.assert_array_equal(recording.signal, two_leads.millivolts)


@pytest.mark.parametrize("fmt", ["16", "80"])
def test_several_skews(two_leads, tmp_path, fmt):
    lines = f"x.dat {fmt}:2 1000/mV 16 0 0 0 0 I\nx.dat {fmt}:5 1000/mV 16 0 0 0 0 II\n"
    signal = read_recording(two_leads("rec 2 500 1990", lines), units="mV").signal
    plain = read_recording(two_leads("rec 2 500 1990", lines.replace(":2", "").replace(":5", ""))).signal
    np.testing.assert_array_equal(signal[0], [*plain[0, 2:], np.nan, np.nan])
    np.testing.assert_array_equal(signal[1], [*plain[1, 5:], *[np.nan] * 5])


@pytest.mark.parametrize("unit", ["uV", "\u00b5V", "\u03bcV", "[uV]", "micro-Volt"])
@pytest.mark.parametrize("fmt", ["16", "61"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_microvolts_are_not_volts(two_leads, tmp_path, unit, fmt, encoding):
    if unit == "\u03bcV" and encoding == "latin-1":
        pytest.skip("Latin-1 has no Greek mu")
    if fmt == "61":
        np.fromfile(tmp_path / "x.dat", "<i2").astype(">i2").tofile(tmp_path / "x.dat")
    lines = f"x.dat {fmt} 1/{unit} 16 0 0 0 0 I\nx.dat {fmt} 1e0(0.0)/{unit} 16 0 0 0 0 II\n"
    recording = read_recording(two_leads("rec 2 500 2000", lines, encoding))
    np.testing.assert_allclose(recording.signal, two_leads.millivolts, rtol=1e-6)


@pytest.mark.parametrize("fmt", ["16", "61"])
@pytest.mark.parametrize("gain", ["", "0", "0/mV", "0.0(0)/mV"])
def test_an_uncalibrated_signal_is_read_with_a_note(two_leads, tmp_path, gain, fmt):
    if fmt == "61":
        np.fromfile(tmp_path / "x.dat", "<i2").astype(">i2").tofile(tmp_path / "x.dat")
    rest = f"{gain} 16 0 0 0 0 II" if gain else "II"
    recording = read_recording(two_leads("rec 2 500 2000", f"x.dat {fmt} 1000/mV 16 0 0 0 0 I\nx.dat {fmt} {rest}\n"))
    np.testing.assert_allclose(recording.signal, two_leads.millivolts * [[1], [5]], rtol=1e-6)
    assert recording.notes == ("no gain stated, taken as 200 counts a mV: II",)


def test_a_copy_by_way_of_dos(two_leads, tmp_path):
    two_leads("REC 2 500 2000\r")
    (tmp_path / "rec.hea").rename(tmp_path / "REC.HEA")
    (tmp_path / "x.dat").rename(tmp_path / "X.DAT")
    for name in ("REC.HEA", "REC", "X.DAT"):
        if name == "X.DAT":
            (tmp_path / "REC.HEA").rename(tmp_path / "X.HEA")
        np.testing.assert_array_equal(read_recording(tmp_path / name).signal, two_leads.millivolts)


@pytest.mark.parametrize(
    ("first", "lines", "message"),
    [
        ("rec 2 fast 2000", None, "a sampling rate of fast; expected a number of Hz above 0"),
        ("rec 2 0 2000", None, "a sampling rate of 0; expected a number of Hz above 0"),
        ("rec 3 500 2000", None, "describes 2 signals; its first line says 3"),
        ("rec 2 500 2001", None, "x.dat holds 2000 samples a signal; its header states 2001"),
        ("rec 1 500 2000", "x.dat\n", "line 'x.dat' is not that of a signal"),
        ("rec 0 500 2000", "", "rec has no signals"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(two_leads, first, lines, message):
    record = two_leads(first) if lines is None else two_leads(first, lines)
    with pytest.raises(ValueError, match=message):
        read_recording(record)
