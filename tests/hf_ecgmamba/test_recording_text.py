"""Columns of numbers."""

import numpy as np
import pytest

from hf_ecgmamba.recording import open_recording, read_recording
from tests.hf_ecgmamba.signals import heart, waves


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
    with pytest.raises(ValueError, match="states no unit, and its values are whole numbers"):
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


def write_csv(path, rows, head=None, separator=",", encoding="utf-8"):
    lines = [separator.join(f"{value:.5f}" for value in row) for row in rows]
    path.write_text("\n".join([head, *lines] if head else lines) + "\n", encoding=encoding)
    return path


def test_what_programs_write_above_columns(tmp_path):
    signal = heart(300)
    numbered = write_csv(tmp_path / "pandas.csv", signal.T, ",".join(map(str, range(12))))
    assert read_recording(numbered, sampling_rate=100).signal.shape == (12, 300)
    with pytest.raises(ValueError, match="as R names columns that have no name"):
        read_recording(
            write_csv(tmp_path / "r.csv", signal.T, ",".join(f'"V{k}"' for k in range(1, 13))), sampling_rate=100
        )
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        path = write_csv(tmp_path / "excel.csv", 1000 * signal[:2].T, "I (\u00b5V),II (\u00b5V)", encoding=encoding)
        recording = read_recording(path, sampling_rate=100)
        assert recording.leads == ("I", "II")
        np.testing.assert_allclose(recording.signal, signal[:2], atol=1e-5)


def test_a_column_of_time_gives_the_rate_and_its_holes(tmp_path):
    rows = np.column_stack([np.arange(300) / 250, heart(300)[1]])
    path = write_csv(tmp_path / "a.csv", rows, "time,II")
    assert read_recording(path).sampling_rate == 250
    with pytest.raises(ValueError, match="sampling_rate is 500, but it states 250 Hz"):
        read_recording(path, sampling_rate=500)
    cut = read_recording(write_csv(tmp_path / "b.csv", np.delete(rows, np.s_[100:200], 0), "time,II"))
    assert cut.signal.shape == (1, 300) and np.isnan(cut.signal[0, 100:200]).all()
    assert not np.isnan(cut.signal[0, 200:]).any()


def test_counts_need_their_unit_and_mark_what_is_missing(tmp_path):
    (tmp_path / "counts.csv").write_text(
        "II\n" + "\n".join(f"{31 * value:.0f}" for value in heart(300)[1]) + "\n-32768\n"
    )
    with pytest.raises(ValueError, match="its values are whole numbers"):
        read_recording(tmp_path / "counts.csv", sampling_rate=100)
    signal = read_recording(tmp_path / "counts.csv", sampling_rate=100, units=1 / 31).signal
    assert np.isnan(signal[0, -1]) and np.isnan(signal).sum() == 1
