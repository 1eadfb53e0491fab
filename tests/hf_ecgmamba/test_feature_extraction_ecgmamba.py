"""From a recording to tensors: what every file that we have becomes, and what a user relies on on the way."""

import csv
import json
import sys
import tracemalloc
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from transformers.dynamic_module_utils import get_imports

from hf_ecgmamba import feature_extraction_ecgmamba, recording
from hf_ecgmamba.configuration_ecgmamba import EcgMambaConfig
from hf_ecgmamba.feature_extraction_ecgmamba import EcgMambaFeatureExtractor
from hf_ecgmamba.recording import open_recording, read_recording
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from tests.hf_ecgmamba.signals import heart


@pytest.fixture(scope="session")
def ecg(shared_data):
    return shared_data / "ecg"


@pytest.fixture(scope="session")
def ptbxl(ecg):
    """Signals [12, 1000] in mV of PTB-XL by ecg_id, loaded fold by fold."""
    sys.path.insert(0, str(ecg.parents[1] / "tools"))
    try:
        import ptbxl as packed
    finally:
        sys.path.pop(0)
    return cache(lambda fold: {int(k): x.T / np.float32(1000) for k, x in zip(*packed.load(fold), strict=True)})


def noise(*shape):
    return np.random.default_rng(0).normal(scale=0.3, size=shape).astype(np.float32)


# -- every file -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What becomes of the files that match `files` (the first row that matches a file counts): tensors with so many
    samples (one number, or from - to) in so many present leads of the twelve, or an error with this text."""

    files: str
    samples: int | tuple[int, int] | None = None
    present: int = 12
    error: str = ""
    given: dict | None = None


NO_SIGNALS = "is not a format of ECG signals that is read here; expected WFDB"
TABLE = [
    # The challenge's records, the 12 Georgia headers that wfdb rejects among them: 10 to 25 s, all 12 leads.
    Row("cinc2021/*.csv", error="not columns of numbers"),
    Row("cinc2021/*", samples=(1000, 2500)),
    Row("clinical/sierra_1_03.xml", samples=1053),
    Row("clinical/sierra_*.xml", samples=1060),
    Row("clinical/synthetic3.ecg", samples=1000, present=3),
    Row("clinical/*", samples=1000),
    Row("cpsc2018_raw/labels.csv", error="not columns of numbers"),
    Row("cpsc2018_raw/A*.mat", samples=(1000, 5432)),
    Row("mitbih_long/*.atr", error=f".atr {NO_SIGNALS}"),
    Row("mitbih_long/*", samples=180556, present=2),
    Row("ptbxl/fold*.npz", error="holds the arrays ecg_id, shape, lo, hi; expected one, or one named signal"),
    Row("ptbxl/*.csv", error="not columns of numbers"),
    Row("ptbxl500_pairs/records500/*/*", samples=1000),
    Row("odd/cinc_six_leads/*", samples=1000, present=6),
    Row("odd/cinc_two_leads/*", samples=1000, present=6),
    Row("odd/code15_mat/labels.csv", error="not columns of numbers"),
    Row("odd/code15_mat/*.csv", error="not columns of numbers"),
    Row("odd/code15_mat/*.mat", samples=(734, 1024)),
    Row("odd/csv/biosppy_ecg.txt", error="it has 'ECG', no lead's name: give leads="),
    Row("odd/csv/*.csv", error="does not state its sampling rate; give sampling_rate="),
    Row("odd/edf/test_utf8.edf", error="test_utf8 holds no known ECG lead; it has Fp1 (EEG)"),
    Row("odd/ptb_1000hz_mat/S0001.*", samples=3840),
    Row("odd/ptb_1000hz_mat/S0002.*", samples=11520),
    Row("odd/ptbxl_flat_lead/*", samples=1000),
    Row("odd/sph_hdf5/metadata.csv", error="not columns of numbers"),
    Row("odd/sph_hdf5/*.h5", samples=(1000, 1500)),
    # Bedside monitors: MCL1 is read as V1; an unplaced "V" is no lead of the twelve.
    Row("odd/wfdb/03700181.hea", samples=60000, present=1),
    Row("odd/wfdb/03700181.dat", samples=60000, present=1),
    Row("odd/wfdb/03700181.*", error=NO_SIGNALS),
    Row("odd/wfdb/100_3chan.*", samples=278, present=6),
    Row("odd/wfdb/3000003_0003.*", samples=823, present=1),
    Row("odd/wfdb/310derive.*", error="it has 'col 0', 'col 1', no lead's name: give leads="),
    Row("odd/wfdb/a103l*", samples=33000, present=1),
    Row("odd/wfdb/flac_3_constant.*", error="it has 'col 0', 'col 1', 'col 2', no lead's name: give leads="),
    Row("odd/wfdb/flacformats.*", error="it has 'sig 0, fmt 508', 'sig 1, fmt 516', 'sig 2, fmt 524', no lead's name"),
    Row("odd/wfdb/mixedsignals.hea", error="mixedsignals: lead II has no samples from 0.00 to 4.10 s"),
    Row("odd/wfdb/mixedsignals_*.dat", error="a WFDB signal file, whose header mixedsignals_"),
    Row("odd/wfdb/s0010_re.*", samples=3840),
    Row("odd/wfdb/test01_00s.*", error="it has 'ECG 1', 'ECG 2', 'ECG 3', 'ECG 4', no lead's name"),
    Row("odd/wfdb/test01_00s_frame.hea", error="it has 'ECG_1', 'ECG_2', 'ECG_3', no lead's name"),
    Row("odd/wfdb/v102s.*", samples=30000, present=1),
    Row("odd/wfdb/multi-segment/041s/041s.hea", samples=1600, present=6),
    Row("odd/wfdb/multi-segment/041s/041s0*", samples=800, present=6),
    Row("odd/wfdb/multi-segment/fixed1/v102s_*", samples=30000, present=1),
    Row("odd/wfdb/multi-segment/fixed1/v102s.*", samples=90000, present=1),
    Row("odd/wfdb/multi-segment/p000878/p000878-*.hea", error="its segment 3269321_0003.hea is missing"),
    Row("odd/wfdb/multi-segment/p000878/*_layout.hea", error="3269321_layout holds no samples"),
    Row("odd/wfdb/multi-segment/p000878/3269321_0001.*", error="holds no known ECG lead; it has PLETH (PPG)"),
    Row("odd/wfdb/multi-segment/p000878/3269321_0002.*", samples=1400, present=1),
    Row("odd/wfdb/multi-segment/s25047/*_layout.hea", error="3234460_layout holds no samples"),
    Row("odd/wfdb/multi-segment/s25047/3234460n.dat", error="whose header 3234460n.hea is missing"),
    Row("odd/wfdb/multi-segment/s25047/s25047-*n.hea", error="it has HR (vital sign), PULSE (vital sign)"),
    Row("odd/wfdb/multi-segment/s25047/s25047-*.hea", error="lead II has no samples from 0.00 to 205.92 s"),
    Row("odd/wfdb/multi-segment/s25047/3234460_000[2579].*", error="lasts 0.032 s; expected at least 0.5 s"),
    Row("odd/wfdb/multi-segment/s25047/3234460_0011.*", error="lasts 0.032 s; expected at least 0.5 s"),
    Row("odd/wfdb/multi-segment/s25047/3234460_00*", samples=(103, 257689), present=1),
    Row("odd/wfdb_missing_signal/100skew.hea", error="the signal file 100.dat, named by its header, is missing"),
    Row("odd/wfdb_missing_signal/n8_*.hea", error="n8_evoked_raw_95_F1_R9.dat, named by its header, is missing"),
]

# The same files, with what they leave open given by the user.
GIVEN = [
    Row("odd/csv/118e00.csv", samples=12000, present=1, given={"sampling_rate": 360, "leads": ["II"]}),
    Row("odd/csv/118e06.csv", samples=12000, present=1, given={"sampling_rate": 360, "leads": ["MLII"]}),
    Row("odd/csv/e0103.csv", samples=12000, present=1, given={"sampling_rate": 250, "leads": ["V4"]}),
    Row("odd/csv/biosppy_ecg.txt", error="biosppy_ecg states no unit", given={"leads": ["I"]}),
    Row("odd/csv/biosppy_ecg.txt", samples=1500, present=1, given={"leads": ["I"], "units": 0.0007}),
    Row("odd/wfdb/310derive.hea", samples=411, present=6, given={"leads": ["I", "II"]}),
    Row("odd/wfdb/flacformats.hea", samples=250, present=7, given={"leads": ["I", "II", "V1"]}),
    Row("odd/wfdb/test01_00s.hea", samples=800, present=1, given={"leads": [None, "V1", None, None]}),
    Row("odd/wfdb/test01_00s_frame.hea", samples=800, present=7, given={"leads": ["I", "II", "V1"]}),
]


def check(row, path):
    extractor = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS)
    if row.error:
        with pytest.raises((ValueError, OSError)) as caught:
            extractor(path, **row.given or {})
        assert row.error in str(caught.value) and "\n" not in str(caught.value), path
        return
    features = extractor(path, **row.given or {}, return_tensors="pt")
    fewest, most = row.samples if isinstance(row.samples, tuple) else (row.samples, row.samples)
    batch, leads, samples = features["input_values"].shape
    assert (batch, leads) == (1, 12) and fewest <= samples <= most, (path, samples)
    assert features["attention_mask"].shape == (1, samples) and features["attention_mask"].all()
    assert features["lead_mask"].sum() == row.present, path
    assert features["input_values"].isfinite().all(), path
    assert not features["input_values"][features["lead_mask"] == 0].any(), path


def test_every_file_becomes_tensors_or_one_line_of_error(ecg):
    met = set()
    for path in sorted(path for path in ecg.rglob("*") if path.is_file()):
        name = PurePosixPath(path.relative_to(ecg).as_posix())
        row = next((row for row in TABLE if name.match(row.files)), None)
        assert row is not None, f"{name} is not in the table"
        check(row, path)
        met.add(row.files)
    assert met == {row.files for row in TABLE}, "rows of the table without a file"


@pytest.mark.parametrize("row", GIVEN, ids=lambda row: f"{row.files} {row.given}")
def test_files_with_what_they_leave_open(ecg, row):
    check(row, ecg / row.files)


def test_challenge_records_have_the_length_that_their_labels_state(ecg):
    with open(ecg / "cinc2021" / "labels.csv", newline="") as file:
        records = list(csv.DictReader(file))
    assert len(records) == 161 and sum(record["wfdb431_readable"] == "0" for record in records) == 12
    for record in records:
        opened = open_recording(ecg / "cinc2021" / record["record"])
        assert (opened.num_samples, opened.sampling_rate) == (int(record["n_samples"]), 500)


# -- leads ------------------------------------------------------------------------------------------------------------


def test_limb_leads_from_two_of_them_are_those_that_were_recorded(ptbxl):
    extractor = EcgMambaFeatureExtractor(leads=STANDARD_LEADS[:6], normalization="none")
    signals = list(ptbxl(9).values())[:50]
    for pair in (("I", "II"), ("I", "III"), ("II", "III")):
        rows = [STANDARD_LEADS.index(lead) for lead in pair]
        features = extractor([s[rows] for s in signals], sampling_rate=100, leads=pair)
        difference = np.abs(features["input_values"] - np.stack(signals)[:, :6]).max(axis=(1, 2))
        assert np.median(difference) <= 0.0021  # the recorder rounds each lead to 1 microvolt
        assert "computed from the other limb leads" in features.notes[0][0]


def test_leads_in_any_order_and_writing():
    signal = noise(12, 1000)
    order = np.random.default_rng(1).permutation(12)
    extractor = EcgMambaFeatureExtractor()
    written = [f"ecg {STANDARD_LEADS[k].lower()}" for k in order]
    shuffled = extractor(signal[order], sampling_rate=100, leads=written)
    np.testing.assert_array_equal(shuffled["input_values"], extractor(signal, sampling_rate=100)["input_values"])


def test_absent_leads_are_masked_if_the_model_allows_it_and_named_if_not():
    given = {"array": noise(3, 500), "sampling_rate": 100, "leads": ["I", "II", "V2"]}
    strict = EcgMambaFeatureExtractor(optional_leads=("V1", "V3"))
    with pytest.raises(ValueError, match="array has the leads I, II, V2; the model also needs V4, V5, V6"):
        strict(given)
    lenient = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS[6:])(given)
    np.testing.assert_array_equal(lenient["lead_mask"], [[1] * 6 + [0, 1, 0, 0, 0, 0]])
    assert not lenient["input_values"][0, [6, 8, 9, 10, 11]].any()
    assert "absent: V1, V3, V4, V5, V6" in lenient.notes[0]
    with pytest.raises(ValueError, match="the model also needs V5, V6"):
        EcgMambaFeatureExtractor(leads=("V5", "V6"), optional_leads=("V5", "V6"))(given)


# -- rate and filters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folds", "pairs"),
    [([9], 14), pytest.param(range(1, 9), 26, marks=pytest.mark.slow)],  # unpacking a fold takes seconds
    ids=["fold 9", "the other folds"],
)
def test_500_hz_twins_come_out_as_their_100_hz_files(ecg, ptbxl, folds, pairs):
    """PTB-XL's two versions differ in two ways of their own: the 500 Hz files hold one value over their last 0.1 s,
    and the 100 Hz files were sampled 1.25 ms later (a linear phase, the same in all pairs). Past those: 0.99."""
    twins = {k: x for fold in folds for k, x in ptbxl(fold).items()}
    paths = [path for path in sorted((ecg / "ptbxl500_pairs").rglob("*.hea")) if int(path.stem[:5]) in twins]
    assert len(paths) == pairs
    for path in paths:
        assert np.ptp(read_recording(path).signal[:, -50:], axis=1).max() == 0
    ours = EcgMambaFeatureExtractor(normalization="none")(paths)["input_values"][..., :980].astype(np.float64)
    theirs = np.stack([twins[int(path.stem[:5])] for path in paths])[..., :980]

    plain = correlations(ours, theirs)
    assert plain.min() > 0.98 and (plain > 0.99).mean() > 0.98
    padded = np.concatenate([ours, ours[..., ::-1]], axis=-1)  # without a jump where its ends meet
    phase = np.exp(2j * np.pi * np.fft.rfftfreq(padded.shape[-1], 0.01) * 0.00125)
    later = np.fft.irfft(np.fft.rfft(padded) * phase, padded.shape[-1])[..., :980]
    assert correlations(later[..., 10:-10], theirs[..., 10:-10]).min() > 0.99


def correlations(a, b):
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


@pytest.mark.parametrize("rate", [62.4725, 128, 249.89, 257, 360, 500, 1000])
def test_a_wave_comes_out_as_that_wave_at_any_rate(rate):
    extractor = EcgMambaFeatureExtractor(leads=("II",), normalization="none")
    time = np.arange(round(20 * rate)) / rate
    values = extractor(np.sin(2 * np.pi * 7 * time), sampling_rate=rate)["input_values"][0, 0]
    assert len(values) == pytest.approx(2000, abs=1)
    expected = np.sin(2 * np.pi * 7 * np.arange(len(values)) / 100)
    assert correlations(values[100:-100], expected[100:-100]) > 0.9995
    assert np.ptp(values[100:-100]) == pytest.approx(2, abs=0.02)


def test_mains_hum_does_not_fold_into_the_band():
    time = np.arange(5000) / 500
    for hertz in (50, 60):
        hum = np.sin(2 * np.pi * hertz * time + 0.5)
        values = EcgMambaFeatureExtractor(leads=("I",))(hum, sampling_rate=500)["input_values"]
        assert np.abs(values[..., 50:-50]).max() < 0.05


def test_band_pass_and_baseline_removal():
    time = np.arange(3000) / 100
    drift, beat, buzz = (
        2 * np.sin(2 * np.pi * 0.05 * time),
        np.sin(2 * np.pi * 8 * time),
        np.sin(2 * np.pi * 45 * time),
    )
    inside = slice(300, -300)
    for extractor, signal in (
        (EcgMambaFeatureExtractor(leads=("I",), bandpass=(0.5, 35)), drift + beat + buzz),
        (EcgMambaFeatureExtractor(leads=("I",), remove_baseline=True), drift + beat),
    ):
        values = extractor(signal, sampling_rate=100)["input_values"][0, 0]
        assert correlations(values[inside], beat[inside]) > 0.99


# -- gaps, flat leads -------------------------------------------------------------------------------------------------


def test_gaps_are_interpolated_up_to_the_limit_and_reported():
    ramp = np.stack([np.linspace(-1, 1, 1000), np.linspace(0, 2, 1000)]).astype(np.float32)
    broken = ramp.copy()
    broken[1, 300:350] = np.nan
    broken[1, 700] = np.nan
    extractor = EcgMambaFeatureExtractor(leads=("I", "II"), normalization="none", max_gap_seconds=0.5)
    features = extractor(broken, sampling_rate=100)
    np.testing.assert_allclose(features["input_values"][0], ramp, atol=1e-5)
    assert features.notes == [("lead II: 2 gaps filled by interpolation, 0.510 s in all, the first at 3.00 s",)]
    broken[1, 350] = np.nan
    with pytest.raises(ValueError, match=r"lead II has no samples from 3\.00 to 3\.51 s; gaps of up to 0\.5 s"):
        extractor(broken, sampling_rate=100)
    broken[1] = np.nan
    with pytest.raises(ValueError, match="lead II has no samples"):
        extractor(broken, sampling_rate=100)


def test_an_optional_lead_without_samples_is_masked():
    signal = noise(2, 1000)
    signal[1] = np.nan
    extractor = EcgMambaFeatureExtractor(leads=("I", "V1"), optional_leads=("V1",))
    features = extractor(signal, sampling_rate=100)
    np.testing.assert_array_equal(features["lead_mask"], [[1, 0]])
    assert not features["input_values"][0, 1].any() and "lead V1: no samples, masked" in features.notes[0]


def test_a_lead_with_a_long_gap_is_masked_or_computed():
    leads = ("I", "II", "III", "V1")
    extractor = EcgMambaFeatureExtractor(leads=leads, optional_leads=("V1",), normalization="none")
    signal = heart(1000)[[0, 1, 2, 6]].astype(np.float32)
    broken = signal.copy()
    broken[3, 300:450] = np.nan
    features = extractor(broken, sampling_rate=100, leads=leads)
    np.testing.assert_array_equal(features["lead_mask"], [[1, 1, 1, 0]])
    np.testing.assert_array_equal(features["input_values"][0, :3], signal[:3])
    assert not features["input_values"][0, 3].any()
    assert features.notes == [("lead V1: no samples for more than 1 s, masked",)]
    broken = signal.copy()
    broken[1, 200:500] = np.nan
    features = extractor(broken, sampling_rate=100, leads=leads)
    np.testing.assert_allclose(features["input_values"][0], signal, atol=1e-6)
    assert features.notes == [("lead II: no samples for more than 1 s, computed from the other limb leads",)]
    broken[0, 200:500] = np.nan
    with pytest.raises(ValueError, match=r"lead (I|II) has no samples from 2\.00 to 5\.00 s"):
        extractor(broken, sampling_rate=100, leads=leads)


def page(rhythm_strip=True, rate=500, edges=(0, 0, 0)):
    """Twelve leads as a digitised page of paper has them: four columns of three, 2.5 s each, and II below them."""
    whole = heart(10 * rate, rate=rate).astype(np.float32)
    signal = np.full_like(whole, np.nan)
    for column in range(4):
        for row, edge in zip(range(3 * column, 3 * column + 3), edges, strict=True):
            span = slice(round(2.5 * rate * column) + edge, round(2.5 * rate * (column + 1)) - edge)
            signal[row, span] = whole[row, span]
    if rhythm_strip:
        signal[1] = whole[1]
    return signal, whole


@pytest.mark.parametrize("edges", [(0, 0, 0), (10, 3, 17)])
def test_a_digitised_page_is_read_column_by_column(edges):
    extractor = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS, normalization="none", sampling_rate=500)
    signal, whole = page(edges=edges)
    windows = extractor.windows({"array": signal, "sampling_rate": 500, "leads": STANDARD_LEADS})
    read = list(windows)
    assert len(windows) == len(read) == 4
    held = [("I", "II", "III"), ("II", "aVR", "aVL", "aVF"), ("II", "V1", "V2", "V3"), ("II", "V4", "V5", "V6")]
    computed = {0: ("aVR", "aVL", "aVF")}
    for k, window in enumerate(read):
        assert window.start == pytest.approx(2.5 * k, abs=0.04) and window.end == pytest.approx(
            2.5 * k + 2.5, abs=0.04
        )
        leads = {*held[k], *computed.get(k, ())}
        np.testing.assert_array_equal(window.lead_mask, [lead in leads for lead in STANDARD_LEADS])
        first, count = round(500 * window.start), int(window.attention_mask.sum())
        assert window.doubt is None and count == pytest.approx(1250, abs=34)
        expected = whole[:, first : first + count] * window.lead_mask[:, None]
        inner = slice(max(edges), count - max(edges))  # few samples at the edges are held
        np.testing.assert_allclose(window.input_values[:, inner], expected[:, inner], atol=1e-6)
    (note,) = windows.notes
    assert note.startswith("leads at different times, as on a page of paper, read from 0.0")
    assert all(f"s: {', '.join(leads)}" in note for leads in held)


def test_a_page_is_read_by_every_model_that_can():
    signal, whole = page(rhythm_strip=False)
    source = {"array": signal, "sampling_rate": 500, "leads": STANDARD_LEADS}
    every = EcgMambaFeatureExtractor(optional_leads=STANDARD_LEADS)
    assert [window.lead_mask.sum() for window in every.windows(source)] == [6, 3, 3, 3]
    limbs = EcgMambaFeatureExtractor(leads=("I", "II", "V1"), optional_leads=("V1",))
    (window,) = limbs.windows(source)
    assert (window.start, window.end, window.lead_mask.tolist()) == (0, 2.5, [1, 1, 0])
    assert any(
        note.startswith("left out, as the model needs further leads: 2.50 to") for note in limbs.windows(source).notes
    )
    strict = EcgMambaFeatureExtractor()
    with pytest.raises(
        ValueError, match=r"holds its leads at different times \(0\.00 to 2\.50 s: I, II, III;.*the model needs"
    ):
        strict.windows(source)
    # the same hole in all leads is a hole
    hole = whole.copy()
    hole[:, 1500:2500] = np.nan
    with pytest.raises(ValueError, match=r"lead I has no samples from 3\.00 to 5\.00 s"):
        list(every.windows(hole, sampling_rate=500, units="mV"))


def test_flat_leads_are_reported(ecg):
    extractor = EcgMambaFeatureExtractor(normalization="per_lead")
    features = extractor(ecg / "odd" / "ptbxl_flat_lead" / "12722_lr")
    assert "flat: V5" in features.notes[0] and not features["input_values"][0, 10].any()
    offset = np.full((2, 12, 5000), 0.3, np.float32)
    offset[1] = noise(12, 5000)
    assert extractor(offset, sampling_rate=500).notes == [("every lead is flat: there is no ECG in it",), ()]


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [100, 500])
def test_a_batch_of_arrays_equals_its_recordings_one_by_one(rate):
    batch = noise(3, 12, 10 * rate)
    batch[1, 4] = 0.25
    extractor = EcgMambaFeatureExtractor(bandpass=(0.5, 40), remove_baseline=True, normalization="per_record")
    together = extractor(batch, sampling_rate=rate, return_tensors="pt")
    assert together["input_values"].shape == (3, 12, 1000) and together["input_values"].dtype == torch.float32
    assert together["attention_mask"].dtype == together["lead_mask"].dtype == torch.int64
    for k, record in enumerate(batch):
        alone = extractor({"array": record, "sampling_rate": rate})
        np.testing.assert_allclose(together["input_values"][k], alone["input_values"][0], atol=1e-5)
        assert alone.notes[0] == together.notes[k]
    for same in (list(batch), torch.from_numpy(batch), batch.tolist(), batch.transpose(0, 2, 1)):
        features = extractor(same, sampling_rate=rate)
        np.testing.assert_allclose(features["input_values"], together["input_values"], atol=1e-5)
    coarse = torch.from_numpy(batch).bfloat16()  # numpy has no such type
    features, expected = (extractor(tensor, sampling_rate=rate)["input_values"] for tensor in (coarse, coarse.float()))
    np.testing.assert_array_equal(features, expected)


def test_a_unit_that_cannot_be_right_is_noted():
    signal, extractor = noise(2, 12, 1000) * 1000, EcgMambaFeatureExtractor()
    of_batch = extractor(signal, sampling_rate=100, units="mV").notes
    alone = extractor({"array": signal[0], "sampling_rate": 100, "units": "mV"}).notes
    assert of_batch == [alone[0]] * 2 and "is the unit right?" in alone[0][0]
    assert extractor(signal, sampling_rate=100, units="uV").notes == [(), ()]


@pytest.mark.parametrize(
    ("factor", "words", "is_doubt"),
    [
        (1, None, False), (3, None, False), (0.3, None, False), (10, "too much for an ECG: is the unit right?", True),
        (4.5, "much for an ECG: is the unit right?", False), (0.1, "little for an ECG: is the unit right?", False),
        (0.03, "too little for an ECG: is the unit right?", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rate", [100, 500])
def test_ten_times_too_much_is_refused_and_what_is_unusual_noted(factor, words, is_doubt, rate):
    """With a stated unit, which may be wrong: 0.1 mV called mV, or the other way round."""
    signal, extractor = (factor * heart(10 * rate, rate)).astype(np.float32), EcgMambaFeatureExtractor()
    (window,) = extractor.windows({"array": signal, "sampling_rate": rate, "units": "mV"})
    of_batch = extractor(np.stack([signal, signal]), sampling_rate=rate, units="mV").notes
    assert (window.doubt is not None) is is_doubt
    said = [*window.notes, *([window.doubt.reason] if is_doubt else [])]
    assert [note for note in said if "unit" in note and words in note] if words else said == []
    assert of_batch == [tuple(said)] * 2


def test_a_batch_is_looked_at_as_closely_as_one():
    batch = noise(2, 12, 1000)
    extractor = EcgMambaFeatureExtractor()
    batch[1, 3, 5] = np.inf
    with pytest.raises(ValueError, match=r"lead aVR holds an infinite value at 0\.050 s"):
        extractor(batch, sampling_rate=100)
    with pytest.raises(ValueError, match="states no unit"):
        extractor(noise(2, 12, 1000) * 1000, sampling_rate=100)
    with pytest.raises(ValueError, match="does not state its sampling rate"):
        extractor(noise(2, 12, 1000))
    with pytest.raises(ValueError, match="sampling_rate is -100; expected a number of Hz above 0"):
        extractor(noise(2, 12, 1000), sampling_rate=-100)
    with pytest.raises(ValueError, match=r"units is \['mV'\]; expected mV, uV, V, nV"):
        extractor(noise(2, 12, 1000), sampling_rate=100, units=["mV"])
    with pytest.raises(ValueError, match="leads is 5; expected a name for each channel"):
        extractor(noise(2, 12, 1000), sampling_rate=100, leads=5)
    with pytest.raises(ValueError, match="recordings is empty"):
        extractor([])
    with pytest.raises(ValueError, match=r"lasts 0\.400 s; expected at least 0\.5 s"):
        extractor(noise(12, 40), sampling_rate=100)


def test_padding():
    extractor = EcgMambaFeatureExtractor(leads=("I",), window_seconds=10.0)
    pair = [noise(1, 600), noise(1, 1500)]
    longest = extractor(pair, sampling_rate=100, return_tensors="pt")
    assert longest["input_values"].shape == (2, 1, 1500)
    assert longest["attention_mask"].sum(dim=1).tolist() == [600, 1500]
    assert not longest["input_values"][0, :, 600:].any()
    cut = extractor(pair, sampling_rate=100, padding="max_length", truncation=True)
    assert cut["input_values"].shape == (2, 1, 1000) and cut["attention_mask"].sum(axis=1).tolist() == [600, 1000]
    assert extractor(pair, sampling_rate=100, pad_to_multiple_of=512)["input_values"].shape == (2, 1, 1536)
    alone = extractor(pair, sampling_rate=100, padding=False)
    assert [value.shape for value in alone["input_values"]] == [(1, 600), (1, 1500)]
    # as a collator does it
    examples = [
        {"input_values": value, "lead_mask": mask, "labels": [1.0, 0.0]}
        for value, mask in zip(alone["input_values"], alone["lead_mask"], strict=True)
    ]
    batch = extractor.pad(examples, return_tensors="pt")
    torch.testing.assert_close(batch["input_values"], longest["input_values"])
    torch.testing.assert_close(batch["attention_mask"], longest["attention_mask"])
    assert batch["labels"].shape == (2, 2) and batch["lead_mask"].shape == (2, 1)


def test_normalizations():
    signal = noise(2, 1000) * [[1], [4]] + 0.7
    values = {
        name: EcgMambaFeatureExtractor(leads=("I", "II"), normalization=name)(signal, sampling_rate=100)
        for name in ("none", "mean", "per_record", "per_lead")
    }
    values = {name: features["input_values"][0].astype(np.float64) for name, features in values.items()}
    np.testing.assert_allclose(values["none"], signal, rtol=1e-6)
    np.testing.assert_allclose(values["mean"], signal - signal.mean(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(values["per_lead"].std(axis=1), 1, rtol=1e-4)
    assert (values["per_record"] ** 2).mean() == pytest.approx(1, rel=1e-4)
    assert values["per_record"][1].std() / values["per_record"][0].std() == pytest.approx(
        signal[1].std() / signal[0].std(), rel=1e-4
    )


def test_absent_leads_do_not_dilute_the_normalization():
    full = EcgMambaFeatureExtractor(leads=("I", "II"), normalization="per_record")
    wider = EcgMambaFeatureExtractor(leads=("I", "II", "V1"), optional_leads=("V1",), normalization="per_record")
    given = {"sampling_rate": 100, "leads": ["I", "II"]}
    np.testing.assert_allclose(
        wider(noise(2, 500), **given)["input_values"][:, :2], full(noise(2, 500), **given)["input_values"], rtol=1e-6
    )


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"window_overlap": 0.0, "bandpass": (0.5, 40)},
        {"window_overlap": 0.3, "remove_baseline": True},
        {"bandpass": (0.1, 40), "remove_baseline": True, "max_gap_seconds": 0.0},
    ],
)
def test_windows_read_span_by_span_equal_those_of_the_whole(ecg, arguments):
    extractor = EcgMambaFeatureExtractor(leads=("II", "V5"), optional_leads=("V5",), normalization="none", **arguments)
    for name in ("mitbih_long/100", "odd/wfdb/multi-segment/s25047/3234460_0016"):
        path = ecg / name
        if name.startswith("odd") and "max_gap_seconds" in arguments:
            continue
        whole = extractor(path)["input_values"][0]
        windows = extractor.windows(path)
        seconds, last_start = windows.recording.duration, -1.0
        for window in windows:
            start = round(window.start * 100)
            np.testing.assert_allclose(window.input_values, whole[:, start : start + 1000], atol=1e-4)
            assert window.attention_mask.all() and window.start > last_start
            assert window.end - window.start == pytest.approx(10, abs=0.011)
            last_start = window.start
        assert window.end == pytest.approx(seconds, abs=1e-6)
        step = 10 * (1 - arguments.get("window_overlap", 0.5))
        assert len(windows) == np.ceil((seconds - 10) / step) + 1


def test_windows_of_a_rate_without_a_simple_ratio(ecg):
    extractor = EcgMambaFeatureExtractor(leads=("II",), normalization="none", max_gap_seconds=5.0)
    path = ecg / "odd" / "wfdb" / "mixedsignals"
    whole = extractor(path)["input_values"][0]
    windows = extractor.windows(path)
    for k, window in enumerate(windows):
        start = min(500 * k, whole.shape[1] - 1000)
        np.testing.assert_allclose(window.input_values, whole[:, start : start + 1000], atol=1e-4)
        assert window.start == pytest.approx(start / whole.shape[1] * windows.recording.duration, abs=0.01)


def test_gaps_at_the_seams_of_a_long_recording():
    """Spans of 300 s are read at once: gaps across their borders are filled as those elsewhere."""
    signal = noise(1, 70_000)
    for centre in (29_500, 29_980, 60_000, 10):
        signal[0, max(centre - 40, 0) : centre + 40] = np.nan
    extractor = EcgMambaFeatureExtractor(leads=("I",), normalization="none", window_overlap=0.0)
    whole = extractor(signal, sampling_rate=100)["input_values"][0]
    for window in extractor.windows(signal, sampling_rate=100):
        start = round(window.start * 100)
        np.testing.assert_allclose(window.input_values, whole[:, start : start + 1000], atol=1e-5)


def test_short_recordings_make_one_padded_window():
    extractor = EcgMambaFeatureExtractor()
    (window,) = extractor.windows(noise(12, 600), sampling_rate=100)
    assert (window.start, window.end) == (0.0, 6.0)
    assert window.input_values.shape == (12, 1000) and window.attention_mask.sum() == 600
    assert not window.input_values[:, 600:].any() and not window.attention_mask[600:].any()


def test_windows_with_a_gap_raise_or_are_skipped(ecg):
    path = ecg / "odd" / "wfdb" / "multi-segment" / "s25047" / "s25047-2704-05-04-10-44"
    extractor = EcgMambaFeatureExtractor(leads=("II",))
    with pytest.raises(ValueError, match=r"lead II has no samples from 0\.00 to"):
        list(extractor.windows(path))
    kept = list(extractor.windows(path, on_gap="skip"))
    assert kept[0].start == 210.0 and kept[-1].end == pytest.approx(4345.92)
    assert len(kept) < len(extractor.windows(path)) - 41
    assert any("filled by interpolation" in note for window in kept for note in window.notes)
    with pytest.raises(ValueError, match="on_gap is 'ignore'; expected 'raise' or 'skip'"):
        extractor.windows(path, on_gap="ignore")


def test_a_lead_that_falls_off_between_windows_is_masked_in_those():
    signal = noise(2, 4000)
    signal[1, 1500:1800] = np.nan
    extractor = EcgMambaFeatureExtractor(leads=("I", "V1"), optional_leads=("V1",), window_overlap=0.0)
    masks = {window.start: window.lead_mask.tolist() for window in extractor.windows(signal, sampling_rate=100)}
    assert masks == {0.0: [1, 1], 10.0: [1, 0], 20.0: [1, 1], 30.0: [1, 1]}


def test_a_lead_that_falls_off_is_masked_where_it_is_off():
    signal = noise(2, 10_000)
    signal[1, 3000:6000] = np.nan
    extractor = EcgMambaFeatureExtractor(leads=("I", "V1"), optional_leads=("V1",), window_overlap=0.0)
    masks = {window.start: window.lead_mask.tolist() for window in extractor.windows(signal, sampling_rate=100)}
    assert masks == {10.0 * k: [1, 0] if 3 <= k < 6 else [1, 1] for k in range(10)}


def peak_memory(extractor, *arguments, **kwargs):
    tracemalloc.start()
    count = sum(1 for _ in extractor.windows(*arguments, **kwargs))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return count, peak


def test_half_an_hour_takes_no_more_memory_than_its_spans(ecg):
    extractor = EcgMambaFeatureExtractor(leads=("II",), bandpass=(0.5, 40))
    path = ecg / "mitbih_long" / "100"
    peak_memory(extractor, path)  # imports
    count, peak = peak_memory(extractor, path)
    assert count == 361 and peak < 12e6  # the record's two leads as float64: 10.4 MB, without any copy


@pytest.mark.slow
def test_a_day_takes_as_much_memory_as_an_hour(tmp_path):
    extractor = EcgMambaFeatureExtractor(leads=("I", "II", "V1"), window_overlap=0.0)
    peaks = {}
    peak_memory(extractor, noise(3, 5000), sampling_rate=250)  # imports
    for hours in (1, 24):
        path = tmp_path / f"{hours}.npy"
        file = np.lib.format.open_memmap(path, "w+", np.int16, (3, hours * 3600 * 250))
        for start in range(0, file.shape[1], 900_000):
            file[:, start : start + 900_000] = noise(3, 900_000) * 1000
        del file
        given = {"sampling_rate": 250, "leads": ["I", "II", "V1"], "units": "uV"}
        count, peaks[hours] = peak_memory(extractor, path, **given)
        assert count == hours * 360
    assert peaks[24] < 1.2 * peaks[1], peaks  # 24 h are 65 million samples


# -- saved and loaded -------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    extractor = EcgMambaFeatureExtractor(
        leads=("II", "V1"), optional_leads=("V1",), sampling_rate=250, window_seconds=5.0, window_overlap=0.25,
        bandpass=(0.5, 40), remove_baseline=True, normalization="per_lead", max_gap_seconds=0.2,
    )  # fmt: skip
    extractor.save_pretrained(tmp_path)
    loaded = EcgMambaFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict() and loaded.leads == ("II", "V1")
    given = {"sampling_rate": 500, "leads": ["II"]}
    np.testing.assert_array_equal(
        loaded(noise(1, 5000), **given)["input_values"], extractor(noise(1, 5000), **given)["input_values"]
    )


def test_saved_for_its_auto_class_it_brings_its_code(tmp_path, monkeypatch):
    """That this loads where the package is absent is shown in test_publishing.py."""
    monkeypatch.setattr(EcgMambaFeatureExtractor, "_auto_class", "AutoFeatureExtractor")
    EcgMambaFeatureExtractor(optional_leads=("V1",)).save_pretrained(tmp_path)
    needed = {path.name for path in Path(recording.__file__).parent.glob("recording*.py")}
    assert {path.name for path in tmp_path.glob("*.py")} == {"feature_extraction_ecgmamba.py", *needed}
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_ecgmamba.EcgMambaFeatureExtractor"}


def test_loading_from_the_hub_needs_no_library_for_files():
    """transformers imports what a file imports anywhere before it loads it, and fails for what is missing."""
    for module in (feature_extraction_ecgmamba, recording):
        third_party = set(get_imports(module.__file__)) - sys.stdlib_module_names
        assert third_party <= {"numpy", "transformers"}


def test_from_a_model_config():
    config = EcgMambaConfig(leads=("II", "V1"), optional_leads=("V1",), sampling_rate=250.0, window_seconds=5.0)
    extractor = EcgMambaFeatureExtractor.from_model_config(config, bandpass=(0.5, 40))
    assert (extractor.leads, extractor.optional_leads) == (("II", "V1"), ("V1",))
    assert extractor.window_samples == 1250 and extractor.bandpass == (0.5, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"leads": ()}, "leads is "),
        ({"optional_leads": ("V9",)}, "optional_leads is "),
        ({"sampling_rate": 0}, "sampling_rate is 0; expected a number of Hz above 0"),
        ({"leads": 5}, "leads is 5; expected a list of lead names"),
        ({"sampling_rate": "100"}, "sampling_rate is '100'; expected a number of Hz above 0"),
        ({"window_seconds": 0.1}, "window_seconds is 0.1; expected a number of seconds, at least 0.5"),
        ({"window_seconds": float("inf")}, "window_seconds is inf; expected a number of seconds"),
        ({"bandpass": 40}, "bandpass is 40; expected"),
        ({"window_overlap": 1}, "window_overlap is 1; expected a share"),
        ({"bandpass": (0.5, 50)}, r"bandpass is \(0.5, 50\); expected \(low, high\) in Hz"),
        ({"normalization": "zscore"}, "normalization is 'zscore'; expected one of"),
        ({"max_gap_seconds": -1}, "max_gap_seconds is -1; expected seconds"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EcgMambaFeatureExtractor(**arguments)
