"""What all formats share: names of leads, units, rates, and the user's word against the file's."""

import numpy as np
import pytest

from hf_ecgmamba.recording import open_recording, read_recording
from hf_ecgmamba.recording_channels import STANDARD_LEADS, Recording, lead_name, unit_in_millivolts
from tests.hf_ecgmamba.signals import heart, waves


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
        ("LeadII", "II"),
        ("I lead", "I"),
        ("ECGV1", "V1"),
        ("V-1", "V1"),
        ("V01", "V1"),
        ("aV R", "aVR"),
        ("LIII", "III"),
        ("Ableitung V3", "V3"),
    ],
)
def test_lead_names_in_any_writing(written, lead):
    assert lead_name(written) == lead


@pytest.mark.parametrize("name", ["-aVR", "ECG", "ECG 1", "col 0", "PLETH", "V10", "VR", "V1R", ""])
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


@pytest.mark.parametrize(
    ("unit", "scale"),
    [
        ("mV", 1), ("uV", 1e3), ("µV", 1e3), ("V", 1e-3), ("nV", 1e6), (0.5, 2), ("[mV]", 1), ("\u03bcV", 1e3),
        ("micro-Volts", 1e3), ("microV", 1e3), ("u_V", 1e3), ("mVolt", 1), ("æV", 1e3), ("ÂµV", 1e3),
        ("&micro;V", 1e3),
        ("10uV", 1e2), ("4.88 uV", 1e3 / 4.88), ("0.001V", 1), ("1e-3 V", 1), ("0,5", 2),
    ],
)  # fmt: skip
def test_units_become_millivolts(unit, scale):
    signal = waves(12, 300)
    recording = read_recording({"array": signal * scale, "sampling_rate": 100, "units": unit})
    np.testing.assert_allclose(recording.signal, signal, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", ["mV/bit", "kV", "adu", "%", "mmV", "0 V", "-1 mV", "1/1000", "M"])
def test_other_units_are_no_voltages(unit):
    assert unit_in_millivolts(unit) is None


@pytest.mark.parametrize("unit", ["?", "n/a", "nan", "unknown", "-", ""])
def test_a_unit_that_says_nothing_is_none(tmp_path, unit):
    np.savez(tmp_path / "a.npz", signal=waves(2, 300) * [[1], [1000]], fs=100, leads=["I", "II"], units=["mV", unit])
    with pytest.raises(ValueError, match="states no unit for II"):
        read_recording(tmp_path / "a.npz")
    recording = read_recording(tmp_path / "a.npz", units=["mV", "uV"])
    np.testing.assert_allclose(recording.signal, waves(2, 300), rtol=1e-5, atol=1e-6)


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


# -- names, units and rates that contradict, or say nothing -----------------------------------------------------------


def frame(leads=STANDARD_LEADS):
    pandas = pytest.importorskip("pandas", reason="pandas is absent")
    return pandas.DataFrame(heart(500)[[STANDARD_LEADS.index(lead) for lead in leads]].T, columns=list(leads))


def test_columns_are_read_by_their_names_in_any_order():
    table = frame()
    for columns in (STANDARD_LEADS, STANDARD_LEADS[::-1], ("V5", "II", "aVR")):
        recording = read_recording(table[list(columns)], sampling_rate=100)
        assert recording.leads == tuple(columns)
        expected = heart(500)[[STANDARD_LEADS.index(lead) for lead in columns]]
        np.testing.assert_allclose(recording.signal, expected, atol=1e-6)
    assert read_recording(table["V3"], sampling_rate=100).leads == ("V3",)
    recording = read_recording({"array": table[["V6", "I"]], "sampling_rate": 100})
    assert recording.leads == ("V6", "I")
    with pytest.raises(ValueError, match="'a', 'b', no lead's name: give leads="):
        read_recording(table[["I", "II"]].rename(columns={"I": "a", "II": "b"}), sampling_rate=100)


@pytest.mark.parametrize(
    "kind",
    [
        "seconds", "milliseconds", "timedelta index", "datetime index", "datetime column", "zone index", "zone column",
        "float index", "two clocks", "Unix",
    ],
)  # fmt: skip
def test_a_tables_time_gives_its_rate_and_its_holes(kind):
    import pandas as pd

    table, seconds = frame(("I", "II")), np.arange(500) / 250
    if kind == "seconds":
        table.insert(0, "time", seconds)
    elif kind == "milliseconds":
        table.insert(1, "t (ms)", seconds * 1000)
    elif kind == "timedelta index":
        table.index = pd.to_timedelta(seconds, unit="s")
    elif kind == "datetime index":
        table.index = pd.to_datetime("2024-05-01") + pd.to_timedelta(seconds, unit="s")
    elif kind == "zone index":
        table.index = pd.to_datetime("2024-05-01").tz_localize("Europe/Lisbon") + pd.to_timedelta(seconds, unit="s")
    elif kind == "zone column":
        table["time"] = pd.to_datetime("2024-05-01").tz_localize("Europe/Lisbon") + pd.to_timedelta(seconds, unit="s")
    elif kind == "float index":
        table.index = seconds
    elif kind == "two clocks":  # that of the phone is less exact
        table["Phone timestamp"] = np.sort(seconds + np.random.default_rng(0).uniform(0, 0.3, len(seconds)))
        table["sensor timestamp [ns]"] = 1_700_000_000_000_000_000 + np.round(seconds * 1e9).astype(np.int64)
    elif kind == "Unix":
        table["timestamp"] = 1.7e12 + seconds * 1000
    else:
        table["time"] = pd.to_datetime("2024-05-01") + pd.to_timedelta(seconds, unit="s")
    recording = read_recording(table)
    assert recording.sampling_rate == 250 and recording.leads == ("I", "II")
    with pytest.raises(ValueError, match="sampling_rate is 500, but it states 250 Hz"):
        read_recording(table, sampling_rate=500)
    cut = read_recording(pd.concat([table.iloc[:100], table.iloc[300:]]), sampling_rate=250)
    assert cut.signal.shape == (2, 500) and any("200 samples missing" in note for note in cut.notes)
    assert np.isnan(cut.signal[:, 100:300]).all() and not np.isnan(cut.signal[:, 300:]).any()
    np.testing.assert_array_equal(cut.signal[:, 300:], recording.signal[:, 300:])


@pytest.mark.parametrize(
    ("rate", "decimals"), [(360, 3), (500, 3), (1000, 3), (1024, 3), (2000, 3), (900, 3), (128, 3), (257, 4)]
)
def test_rounded_times_give_the_rate_and_no_holes(rate, decimals):
    table = frame(("I", "II"))
    table["time"] = np.round(np.arange(len(table)) / rate, decimals)
    recording = read_recording(table)
    assert recording.sampling_rate == pytest.approx(rate, rel=5e-3) and recording.signal.shape == (2, len(table))
    table["time"] = np.arange(len(table)) // 2 / 250
    with pytest.raises(ValueError, match="'time' has 250 times twice; expected one for each sample"):
        read_recording(table)
    table["time"] = np.arange(len(table))[::-1] / rate
    with pytest.raises(ValueError, match="'time' does not run forwards"):
        read_recording(table)


def test_titles_with_their_units():
    table = frame(("I", "II", "V1")) * [1, 1000, 1]
    for titles in (("I_mV", "II_uV", "V1_mV"), ("I/mV", "II/µV", "V1/mV"), ("I in mV", "II in uV", "V1 in mV"),
                   ("Lead I mV", "Lead II uV", "Lead V1 [mV]")):  # fmt: skip
        table.columns = titles
        recording = read_recording(table, sampling_rate=100)
        assert recording.leads == ("I", "II", "V1")
        np.testing.assert_allclose(recording.signal, frame(("I", "II", "V1")).T, atol=1e-6)


def test_a_table_with_a_row_for_each_lead():
    recording = read_recording(frame(("I", "II", "V1")).T, sampling_rate=100)
    assert recording.leads == ("I", "II", "V1")
    np.testing.assert_allclose(recording.signal, frame(("I", "II", "V1")).T, atol=1e-6)


def test_tables_of_polars():
    polars = pytest.importorskip("polars", reason="polars is absent")
    leads = STANDARD_LEADS[::-1]
    table = polars.DataFrame({lead: heart(500)[STANDARD_LEADS.index(lead)] for lead in leads})
    recording = read_recording(table, sampling_rate=100)
    assert recording.leads == leads
    np.testing.assert_allclose(recording.signal, heart(500)[::-1], atol=1e-6)
    np.testing.assert_allclose(read_recording(table["V2"], sampling_rate=100).signal[0], heart(500)[7], atol=1e-6)
    assert read_recording(table.select("aVF", "I"), sampling_rate=100).leads == ("aVF", "I")
    timed = table.with_columns(
        (polars.datetime(2024, 5, 1) + polars.duration(milliseconds=4 * polars.int_range(500))).alias("time")
    )
    assert read_recording(timed).sampling_rate == 250
    missing = table.with_columns(polars.when(polars.int_range(500) == 7).then(None).otherwise("II").alias("II"))
    signal = read_recording(missing, sampling_rate=100).signal
    assert np.argwhere(np.isnan(signal)).tolist() == [[10, 7]]
    counts = table.select((polars.all() * 1000).round().cast(polars.Int16))
    with pytest.raises(ValueError, match="whole numbers, as a converter counts"):
        read_recording(counts, sampling_rate=100)
    counts = counts.with_columns(polars.when(polars.int_range(500) == 7).then(-32768).otherwise("II").alias("II"))
    signal = read_recording(counts, sampling_rate=100, units="uV").signal
    assert np.argwhere(np.isnan(signal)).tolist() == [[10, 7]]
    with pytest.raises(ValueError, match="'a', no lead's name"):
        read_recording(table.select("II").rename({"II": "a"}), sampling_rate=100)
    assert read_recording(table.to_arrow(), sampling_rate=100).leads == leads


def test_each_lead_has_its_own_unit_and_one_without_is_judged_alone():
    pair = heart(500)[[1, 6]]
    source = {"array": pair * [[1000], [1]], "sampling_rate": 100, "units": ["uV", "mV"], "leads": ["II", "V1"]}
    recording = read_recording(source)
    np.testing.assert_allclose(recording.signal, pair, atol=1e-6)
    table = frame(("II", "V1")).rename(columns={"II": "II (mV)"})
    np.testing.assert_allclose(read_recording(table, sampling_rate=100).signal, pair, atol=1e-6)
    table["V1"] *= 1000
    with pytest.raises(ValueError, match="states no unit for V1, and a spread of"):
        read_recording(table, sampling_rate=100)


def test_names_that_programs_give_are_asked_for():
    table = frame()
    table.columns = [f"V{k}" for k in range(1, 13)]
    with pytest.raises(ValueError, match="V1 to V12, as R names columns that have no name; give leads="):
        open_recording(table, sampling_rate=100)
    assert open_recording(table, sampling_rate=100, leads=list(STANDARD_LEADS)).leads == STANDARD_LEADS
    chest = open_recording(frame(STANDARD_LEADS[6:]), sampling_rate=100)
    assert chest.leads == STANDARD_LEADS[6:] and "taken for chest leads" in chest.notes[0]
    table.columns = range(12)
    assert open_recording(table, sampling_rate=100).leads == STANDARD_LEADS
    with pytest.raises(ValueError, match="3 channels without a name"):
        open_recording(table[[0, 1, 2]].set_axis(range(3), axis=1), sampling_rate=100)


@pytest.mark.parametrize("given", [{"units": "uV"}, {"sampling_rate": 250}, {"leads": ["V1", "V2"]}, {"leads": ["I"]}])
def test_nobody_contradicts_a_recording_or_a_dict(given):
    pair = heart(500)[:2].astype("float32")
    mine = Recording(pair, ("I", "II"), 100.0)
    stated = {"array": pair, "sampling_rate": 100, "units": "mV", "leads": ["I", "II"]}
    for source in (mine, open_recording(mine), stated):
        with pytest.raises(ValueError, match=f"{next(iter(given))} is .*, but it states"):
            open_recording(source, **given)
        agreeing = open_recording(source, sampling_rate=100.0, units="mV", leads=["ECG I", "ii"])
        assert agreeing.leads == ("I", "II") and agreeing.sampling_rate == 100
    with pytest.raises(ValueError, match="units is 'uV', but it states mV"):
        read_recording(mine, units="uV")


def test_units_may_be_a_number_in_words():
    pair = heart(500)[:2]
    np.testing.assert_allclose(
        read_recording(pair * 1000, sampling_rate=100, leads=["I", "II"], units="0.001").signal, pair, atol=1e-6
    )


def test_what_is_masked_or_marked_is_missing():
    signal = np.ma.masked_array(heart(500), mask=False)
    signal.data[1, 30:40], signal.mask[1, 30:40] = 99, True
    read = read_recording(signal, sampling_rate=100).signal
    assert np.isnan(read[1, 30:40]).all() and np.isnan(read).sum() == 10
    for kind, marker in ((np.int16, -(2**15)), (np.int32, -(2**31)), (np.int32, -(2**15))):
        counts = np.round(1000 * heart(500)).astype(kind)
        counts[2, 5:9] = marker
        read = read_recording(counts, sampling_rate=100, units="uV").signal
        assert np.isnan(read[2, 5:9]).all() and np.isnan(read).sum() == 4
        np.testing.assert_allclose(read[0], counts[0] / 1000, atol=1e-6)


def test_an_open_file_is_told_apart(tmp_path):
    (tmp_path / "a.csv").write_text("I,II\n0.1,0.2\n")
    with open(tmp_path / "a.csv") as file, pytest.raises(ValueError, match="is an open file; expected its path"):
        open_recording(file, sampling_rate=100)


def test_channels_by_their_name(ecg, tmp_path):
    """The one ECG among thirteen channels need not be counted out."""
    import pandas

    names = [*(f"EEG {k}" for k in range(11)), "ECG", "Resp"]
    signal = waves(13, 1000)
    pandas.DataFrame(signal.T, columns=names).to_csv(tmp_path / "a.csv", index=False)
    for leads in ("ECG=II", ["ECG=II"], ["ecg = ii"]):
        recording = read_recording(tmp_path / "a.csv", leads=leads, sampling_rate=100, units="mV")
        assert recording.leads == ("II",)
        np.testing.assert_allclose(recording.signal, signal[[11]], rtol=1e-6)
    with pytest.raises(ValueError, match="a has no channel 'ekg'; expected one of EEG 0, EEG 1, "):
        read_recording(tmp_path / "a.csv", leads=["EKG=II"], sampling_rate=100)
