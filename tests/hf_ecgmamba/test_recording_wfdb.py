"""WFDB records: every layout, every span, headers as they are found."""

import numpy as np
import pytest

from hf_ecgmamba.recording import open_recording, read_recording
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from tests.hf_ecgmamba.signals import heart


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
    """Short records that wfdb reads are read as they are opened, long ones when asked: same samples, same words."""

    def read(path):
        try:
            recording = read_recording(path)
        except (ValueError, OSError) as error:
            return str(error)
        return recording.leads, recording.sampling_rate, recording.notes, recording.signal.tobytes()

    headers = list((ecg / "odd").rglob("*.hea"))
    at_once = {path: read(path) for path in headers}
    monkeypatch.setattr("hf_ecgmamba.recording_wfdb._KEPT_SAMPLES", 0)
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
    with pytest.raises(ValueError, match=r"12722_lr.dat holds 208 samples a signal; its header states 1000"):
        read_recording(tmp_path / "12722_lr")


@pytest.mark.parametrize("unit", ["µV", "μV", "uV", "mV", "V"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_micro_sign_is_kept(tmp_path, unit, encoding):
    """wfdb 4.3.1 drops it, which makes volts of microvolts."""
    if encoding == "latin-1" and "μ" in unit:
        pytest.skip("Latin-1 has no Greek letter")
    scale = {"mV": 1, "V": 1e-3}.get(unit, 1000)
    counts = np.round(1000 * heart(600)[:2]).astype("<i2")
    counts.T.tofile(tmp_path / "a.dat")
    lines = [f"a.dat 16 {1000 / scale:g}/{unit} 16 0 0 0 0 {lead}" for lead in ("I", "II")]
    (tmp_path / "a.hea").write_text("\n".join(["a 2 100 600", *lines]) + "\n", encoding=encoding)
    np.testing.assert_allclose(read_recording(tmp_path / "a").signal, counts / 1000, atol=1e-6)


def test_segments_of_a_record_have_their_own_units(tmp_path):
    import wfdb

    pair = heart(600)[:2]
    for name, unit, scale in (("s0", "uV", 1000), ("s1", "mV", 1), ("s2", "µV", 1000)):
        wfdb.wrsamp(
            name, 100, [unit] * 2, ["I", "II"], p_signal=pair.T * scale, fmt=["16"] * 2, write_dir=str(tmp_path)
        )
    (tmp_path / "m.hea").write_text("m/4 2 100 2000\ns0 600\ns1 600\n~ 200\ns2 600\n")
    opened = open_recording(tmp_path / "m")
    whole = opened.read().signal
    assert np.isnan(whole[:, 1200:1400]).all()
    np.testing.assert_allclose(whole, np.hstack([pair, pair, np.full((2, 200), np.nan), pair]), atol=1e-4)
    np.testing.assert_array_equal(opened.read(550, 1450).signal, whole[:, 550:1450])


def test_segments_equal_wfdbs_reading_of_them(ecg):
    import wfdb

    for name in ("041s/041s", "fixed1/v102s", "s25047/s25047-2704-05-04-10-44"):
        path = ecg / "odd" / "wfdb" / "multi-segment" / name
        record, recording = wfdb.rdrecord(str(path), return_res=64, smooth_frames=False), read_recording(path)
        columns = {title: k for k, title in enumerate(record.sig_name)}
        for lead, row in zip(recording.leads, recording.signal, strict=True):
            np.testing.assert_allclose(row, record.e_p_signal[columns[lead]], atol=1e-6)


def test_differences_are_summed_from_the_beginning_in_any_span(tmp_path):
    """wfdb 4.3.1 sums format 8 from the beginning of the span."""
    steps = np.random.default_rng(0).integers(-5, 6, size=(2**19 + 5000, 2)).astype(np.int8)
    steps.tofile(tmp_path / "a.dat")
    (tmp_path / "a.hea").write_text(
        f"a 2 500 {len(steps)}\na.dat 8 1000/mV 16 0 7 0 0 I\na.dat 8 500(3)/mV 16 0 -3 0 0 II\n"
    )
    expected = (np.cumsum(steps, axis=0, dtype=np.int64) + np.array([7, -6])) / [1000, 500]
    opened = open_recording(tmp_path / "a")
    for start, stop in ((0, 50), (2**19, 2**19 + 100), (300, 400), (len(steps) - 9, len(steps))):
        np.testing.assert_allclose(opened.read(start, stop).signal.T, expected[start:stop], atol=1e-5)


@pytest.mark.parametrize("gain", ["0", "0/mV", ""])
def test_a_signal_without_gain_is_read_with_a_note(tmp_path, gain):
    counts = np.round(200 * heart(600)[1]).astype("<i2")
    counts.tofile(tmp_path / "a.dat")
    (tmp_path / "a.hea").write_text(f"a 1 100 600\na.dat 16 {gain or ''} {'16 0 0 0 0 II' if gain else ''}".rstrip())
    if not gain:
        (tmp_path / "a.hea").write_text("a 1 100 600\na.dat 16\n")
    recording = read_recording(tmp_path / "a", leads=["II"])
    np.testing.assert_allclose(recording.signal[0], counts / 200, atol=1e-6)
    assert any(note.startswith("no gain stated, taken as 200 counts a mV") for note in recording.notes)
