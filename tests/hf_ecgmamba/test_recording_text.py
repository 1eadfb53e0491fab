"""Columns of numbers."""

import json
import re

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


# -- as recorders and spreadsheets write ------------------------------------------------------------------------------


SIGNAL = np.round(waves(2, 400) * 1000) / 1000
ROWS = SIGNAL.T.tolist()


def rows(separator=",", decimal=".", before=lambda k: "", behind=lambda k: "", quote=""):
    lines = []
    for k, row in enumerate(ROWS):
        cells = [quote + f"{value:.3f}".replace(".", decimal) + quote for value in row]
        lines.append(before(k) + separator.join(cells) + behind(k))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "I,II\nmV,mV\n" + rows(),
        "I;II\n" + rows(";"),
        "I;II\n" + rows(";", ","),
        "sep=;\nI;II\n" + rows(";", ","),
        "sep=,\nI,II\n" + rows(),
        "I\tII\n" + rows("\t", ","),
        "I,II\n" + rows(",", ",", quote='"'),
        "I II\n" + rows(" "),
        "I|II\n" + rows("|"),
        "I,II\n" + rows().replace("-", "\u2212"),
        "I,II\n" + rows(behind=lambda k: ","),
        "I_mV,II_mV\n" + rows(),
        "Sampling rate: 100 Hz\nI,II\n" + rows(),
        "Fs,100\nI,II\n" + rows(),
        "# fs = 0.1 kHz\nI,II\n" + rows(),
        "Patient;Erika Mustermann\nAbtastrate;100,0 Hz\nEinheit;mV\n\nI;II\n" + rows(";", ","),
        "Time,I,II\n" + rows(before=lambda k: f"01.02.2024 10:00:{k / 100:06.3f},"),
        "Time,I,II\n" + rows(before=lambda k: f"2/1/2024 10:00:{k / 100:06.3f},"),
        "Time,I,II\n"
        + rows(before=lambda k: f"11:59:{58 + k / 100:06.3f} AM," if k < 200 else f"12:00:0{k / 100 - 2:.3f} PM,"),
        "Time,I,II\n"
        + rows(before=lambda k: f"23:59:{58 + k / 100:06.3f}," if k < 200 else f"00:00:0{k / 100 - 2:.3f},"),
        "'Time and date','I','II'\n'hh:mm:ss.mmm dd/mm/yyyy','mV','mV'\n"
        + rows(before=lambda k: f"'[10:00:{k / 100:06.3f} 01/02/2020]',"),
        "'sample interval','I','II'\n'0.01 sec','mV','mV'\n" + rows(before=lambda k: f"{k},"),
        "Time,I,II\n" + rows(before=lambda k: f"2024-01-01 10:00:{k / 100:06.3f},"),
        "Time,I,II\n" + rows(before=lambda k: f"2024-01-01T10:00:{k / 100:06.3f}Z,"),
        "time;I;II\n" + rows(";", ",", before=lambda k: f"{k / 100:.2f}".replace(".", ",") + ";"),
        "I,II,beat\n" + rows(behind=lambda k: ",N" if k % 80 == 0 else ","),
        "I,II,beat\n" + rows(behind=lambda k: ",N"),
        "'Elapsed time','I','II'\n'hh:mm:ss.mmm','mV','mV'\n" + rows(before=lambda k: f"'0:{k / 100:06.3f}',"),
        "Elapsed time\tI\tII\n(hh:mm:ss.mmm)\t(mV)\t(mV)\n" + rows("\t", before=lambda k: f"0:{k / 100:06.3f}\t"),
        "\n".join(
            f"{lead}," + ",".join(f"{value:.3f}" for value in row)
            for lead, row in zip(("I", "II"), SIGNAL, strict=True)
        ),
        "\n".join(";".join(f"{value:.3f}".replace(".", ",") for value in row) for row in SIGNAL),
    ],
)
def test_columns_as_spreadsheets_and_viewers_write_them(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    named = any(lead in text[:90] for lead in ("I,", "I;", "I\t", "I ", "I'", "I|", "I_"))
    given = {} if re.search("ime|Samp|Fs|fs|rate|interval", text[:50]) else {"sampling_rate": 100}
    recording = read_recording(path, **given, **({} if named else {"leads": ["I", "II"]}))
    assert recording.leads == ("I", "II") and recording.sampling_rate == pytest.approx(100)
    np.testing.assert_allclose(recording.signal, SIGNAL, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "decimal"),
    [
        ("Name,A B\nDate of Birth,\"Jan 1, 1980\"\nRecorded Date,2020-01-01 10:00:00 +0100\nClassification,Sinus "
         "Rhythm\nSymptoms,\nSoftware Version,1.90\nDevice,\"Watch6,2\"\nSample Rate,512 hertz\n\n\nLead,Lead I\nUnit,"
         "\u00b5V\n\n", "."),
        ("Name,A B\nAufnahmedatum,2020-01-01 10:00:00 +0100\nKlassifizierung,Sinusrhythmus\nSymptome,\nGer\u00e4t,\""
         "Watch6,2\"\nAbtastrate,512 Hertz\n\nAbleitung,Ableitung I\nEinheit,\u00b5V\n\n", ","),
    ],
)  # fmt: skip
def test_a_watch(tmp_path, head, decimal):
    (tmp_path / "ecg.csv").write_text(head + "\n".join(f"{v * 1000:.3f}".replace(".", decimal) for v in SIGNAL[0]))
    recording = read_recording(tmp_path / "ecg.csv")
    assert recording.leads == ("I",) and recording.sampling_rate == 512
    np.testing.assert_allclose(recording.signal, SIGNAL[:1], atol=1e-6)


def test_chest_straps(tmp_path):
    lines = [
        f"2024-01-01T10:00:{k / 100:06.3f};{599618164814402794 + k * 10_000_000};{k * 10.0:.1f};{round(value * 1000)}"
        for k, value in enumerate(SIGNAL[0])
    ]
    (tmp_path / "polar.txt").write_text(
        "Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]\n" + "\n".join(lines)
    )
    recording = read_recording(tmp_path / "polar.txt", leads=[None, None, None, "I"])
    assert recording.leads == ("I",) and recording.sampling_rate == pytest.approx(100)
    np.testing.assert_allclose(recording.signal, SIGNAL[:1], atol=1e-6)
    movesense = "\n".join(f"{k * 10},{value:.3f}" for k, value in enumerate(SIGNAL[0]))
    (tmp_path / "movesense.csv").write_text("Timestamp (ms),ECG (mV)\n" + movesense)
    recording = read_recording(tmp_path / "movesense.csv", leads=[None, "I"])
    assert recording.sampling_rate == pytest.approx(100)
    np.testing.assert_allclose(recording.signal, SIGNAL[:1], atol=1e-6)


def test_opensignals(tmp_path):
    counts = np.round((SIGNAL[0] * 1.1 / 3.3 + 0.5) * 1024)
    head = (
        '# OpenSignals Text File Format\n# {"00:07:80:4D": {"device": "bitalino_rev", "sampling rate": 1000, '
        '"column": ["nSeq", "I1", "O1", "A2"], "label": ["A2"], "sensor": ["ECG"], "resolution": [4, 1, 1, 10]}}\n'
        "# EndOfHeader\n"
    )
    body = "\n".join(f"{k % 16}\t1\t0\t{int(count)}" for k, count in enumerate(counts))
    (tmp_path / "opensignals.txt").write_text(head + body)
    recording = read_recording(tmp_path / "opensignals.txt", leads=["II"])
    assert recording.leads == ("II",) and recording.sampling_rate == 1000
    np.testing.assert_allclose(recording.signal, (counts[None] / 1024 - 0.5) * 3, atol=1e-5)


def test_a_unit_above_a_table_is_that_of_its_leads(tmp_path):
    table = "\n".join(";".join(f"{value * 1000:.0f}" for value in row) for row in ROWS)
    for head in ("Einheit;µV\nI;II\n", "Unit: uV\nI;II\n"):
        (tmp_path / "a.csv").write_text(head + table)
        np.testing.assert_allclose(read_recording(tmp_path / "a.csv", sampling_rate=100).signal, SIGNAL, atol=1e-6)


def test_one_column_with_decimal_commas(tmp_path):
    (tmp_path / "a.csv").write_text("II\n" + "\n".join(f"{value:.3f}".replace(".", ",") for value in SIGNAL[0]))
    recording = read_recording(tmp_path / "a.csv", sampling_rate=100)
    np.testing.assert_allclose(recording.signal, SIGNAL[:1], atol=1e-6)


def test_a_column_called_sample_beside_one_of_time(tmp_path):
    (tmp_path / "a.csv").write_text("timestamp,sample\n" + "\n".join(f"{8 * k},{v}" for k, v in enumerate(SIGNAL[0])))
    recording = read_recording(tmp_path / "a.csv", leads=["II"])
    assert recording.sampling_rate == 125
    np.testing.assert_allclose(recording.signal, SIGNAL[:1], atol=1e-6)


def test_opensignals_of_a_device_whose_gain_is_not_known_asks_for_the_unit(tmp_path):
    """Whose columns of counters and switches are no words that stand in the way."""
    device = {"device": "biosignalsplux", "sampling rate": 1000, "column": ["nSeq", "DI", "CH1"], "label": ["CH1"],
              "sensor": ["ECG"], "resolution": [4, 1, 16]}  # fmt: skip
    lines = [f"{k % 16}\t0\t{32768 + 5000 * value:.0f}" for k, value in enumerate(SIGNAL[0])]
    head = "# OpenSignals Text File Format\n# " + json.dumps({"00:07": device}) + "\n# EndOfHeader\n"
    (tmp_path / "a.txt").write_text(head + "\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="states no unit, and its values are whole numbers"):
        read_recording(tmp_path / "a.txt", leads=["ECG=II"])
    recording = read_recording(tmp_path / "a.txt", leads=["ECG=II"], units=1 / 5000)
    np.testing.assert_allclose(recording.signal - recording.signal[:, :1], SIGNAL[:1] - SIGNAL[0, 0], atol=1e-3)


@pytest.mark.parametrize("header", ["I,II", "V1,V2", "time,II"])
def test_two_columns_of_whole_numbers_are_not_one_with_decimal_commas(tmp_path, header):
    times = np.arange(1000)
    first = 10 * times if header == "time,II" else np.round(300 * np.sin(times / 7))
    second = np.round(500 * np.sin(times / 9))
    rows = "\n".join(f"{int(a)},{int(b)}" for a, b in zip(first, second, strict=True))
    (tmp_path / "two.csv").write_text(f"{header}\n{rows}\n")
    came = read_recording(tmp_path / "two.csv", sampling_rate=100, units="uV")
    expected = [second] if header == "time,II" else [first, second]
    np.testing.assert_allclose(came.signal, np.array(expected) / 1000, atol=1e-6)
