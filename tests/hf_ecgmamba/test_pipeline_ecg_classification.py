"""The pipeline: every kind of input, the three kinds of problem, and long recordings as windows."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from hf_ecgmamba.attribution import integrated_gradients, looked_at
from hf_ecgmamba.configuration_ecgmamba import EcgMambaConfig
from hf_ecgmamba.feature_extraction_ecgmamba import EcgMambaFeatureExtractor
from hf_ecgmamba.modeling_ecgmamba import EcgMambaForSequenceClassification
from hf_ecgmamba.pipeline_ecg_classification import EcgClassificationPipeline, ScoredRecording, joined
from hf_ecgmamba.recording_channels import STANDARD_LEADS, Recording
from tests.hf_ecgmamba.signals import heart
from tests.hf_ecgmamba.test_feature_extraction_ecgmamba import page

LABELS = ("NORM", "AFIB", "MI")
RATE = 100


def make_pipeline(problem_type="multi_label_classification", **config):
    torch.manual_seed(0)
    config = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}, **config}
    config = {"leads": ("I", "II"), "optional_leads": ("I",), "window_seconds": 4.0, **config}
    config = EcgMambaConfig(hidden_size=16, num_hidden_layers=1, d_state=4, problem_type=problem_type, **config)
    model = EcgMambaForSequenceClassification(config)
    with torch.no_grad():  # scores that differ between recordings
        model.classifier.weight.mul_(8)
    extractor = EcgMambaFeatureExtractor.from_model_config(config)
    return EcgClassificationPipeline(model=model, feature_extractor=extractor, device="cpu")


@pytest.fixture(scope="module")
def ecg():
    return make_pipeline()


def signal(seconds=4.0, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(2, round(seconds * RATE))).cumsum(axis=1).astype(np.float32) * 0.05


def recording(seconds=4.0, seed=0):
    return Recording(signal(seconds, seed), ("I", "II"), float(RATE), f"recording {seed}")


def test_a_digitised_page_has_findings_and_says_what_was_read_when(tmp_path):
    ecg = make_pipeline(leads=STANDARD_LEADS, optional_leads=STANDARD_LEADS)
    signal, _ = page(rate=RATE)
    rows = [",".join("" if np.isnan(value) else f"{value:.4f}" for value in row) for row in signal.T]
    (tmp_path / "page.csv").write_text("\n".join([",".join(STANDARD_LEADS), *rows]))
    result = ecg(str(tmp_path / "page.csv"), sampling_rate=RATE, thresholds=0.0)
    assert result["refused"] is None and len(result["findings"]) == len(LABELS)
    assert {(stretch["start"], stretch["end"]) for stretch in result["timeline"]} == {(0.0, 10.0)}
    assert any("5.00 to 7.50 s: II, V1, V2, V3" in note for note in result["notes"])
    ecg.plot(str(tmp_path / "page.csv"), tmp_path / "page.png", sampling_rate=RATE)
    assert (tmp_path / "page.png").exists()
    strict = make_pipeline(leads=STANDARD_LEADS, optional_leads=())
    with pytest.raises(ValueError, match="page holds its leads at different times"):
        strict(str(tmp_path / "page.csv"), sampling_rate=RATE)


def test_many_recordings_of_one_source(ecg, tmp_path):
    many = np.stack([signal(seed=seed) for seed in range(3)])
    expected = ecg([recording(seed=seed) for seed in range(3)])
    np.save(tmp_path / "many.npy", many)
    given = {"sampling_rate": RATE, "units": "mV"}
    results = [ecg(many, **given), ecg(ecg.recordings(tmp_path / "many.npy", **given))]
    results.append(ecg(ecg.recordings(tmp_path / "many.npy", **given), **given))  # the same again is no contradiction
    results.append([ecg(str(tmp_path / "many.npy"), record=k, **given) for k in range(3)])
    for result in results:
        for one, other in zip(result, expected, strict=True):
            assert {found["label"]: found["score"] for found in one["findings"]} == pytest.approx(
                {found["label"]: found["score"] for found in other["findings"]}, abs=1e-6
            )
    with pytest.raises(ValueError, match="holds 3 recordings"):
        ecg(str(tmp_path / "many.npy"), **given)
    with pytest.raises(ValueError, match="sampling_rate is 500"):
        ecg(ecg.recordings(tmp_path / "many.npy", **given), sampling_rate=500)


def by_hand(ecg, recording):
    """Scores of each window, one at a time, straight through extractor and model."""
    scores = []
    for window in ecg.feature_extractor.windows(recording):
        inputs = {
            name: torch.from_numpy(getattr(window, name))[None]
            for name in ("input_values", "attention_mask", "lead_mask")
        }
        with torch.no_grad():
            scores.append(ecg.model(**inputs).logits[0])
    return torch.stack(scores)


def scores_of(result):
    return {finding["label"]: finding["score"] for finding in result["findings"]}


def test_one_window_gives_the_models_probabilities_in_order(ecg):
    result = ecg(recording())
    expected = dict(zip(LABELS, by_hand(ecg, recording())[0].sigmoid().tolist(), strict=True))
    assert scores_of(result) == pytest.approx(expected, abs=1e-6)
    scores = [finding["score"] for finding in result["findings"]]
    assert scores == sorted(scores, reverse=True)
    assert all(finding["present"] is (finding["score"] >= 0.5) for finding in result["findings"])
    assert result["timeline"] == [] and result["notes"] == []
    json.dumps(result)


def test_every_kind_of_input_gives_the_same(ecg, tmp_path):
    values = signal()
    np.savez(tmp_path / "recording.npz", signal=values, sampling_rate=RATE, leads=["I", "II"], units="mV")
    expected = scores_of(ecg(recording()))
    for source, arguments in (
        (str(tmp_path / "recording.npz"), {}),
        (tmp_path / "recording.npz", {}),
        ({"array": values, "sampling_rate": RATE, "leads": ["I", "II"], "units": "mV"}, {}),
        ({"array": values * 1000, "sampling_rate": RATE, "leads": ["I", "II"], "units": "uV"}, {}),
        (values, {"sampling_rate": RATE}),
        (torch.from_numpy(values), {"sampling_rate": RATE, "leads": ["I", "II"]}),
        ({"array": values.tolist(), "sampling_rate": RATE}, {}),
    ):
        assert scores_of(ecg(source, **arguments)) == pytest.approx(expected, abs=1e-4)


def test_lists_generators_and_data_sets_keep_their_order(ecg):
    lengths = (4.0, 11.0, 4.0, 2.0, 25.0)
    recordings = [recording(seconds, seed) for seed, seconds in enumerate(lengths)]
    alone = [ecg(one) for one in recordings]
    assert len({round(result["findings"][0]["score"], 4) for result in alone}) == len(lengths)

    class DataSet(torch.utils.data.Dataset):
        def __len__(self):
            return len(recordings)

        def __getitem__(self, index):
            return recordings[index]

    for together in (
        ecg(recordings, batch_size=3),
        ecg(tuple(recordings), batch_size=100),
        list(ecg((one for one in recordings), batch_size=1)),
        list(ecg(DataSet(), batch_size=4)),
    ):
        assert len(together) == len(alone)
        for result, expected in zip(together, alone, strict=True):
            assert scores_of(result) == pytest.approx(scores_of(expected), abs=1e-5)
            assert len(result["timeline"]) == len(expected["timeline"])
    assert ecg([]) == []


def test_long_recording_is_pooled_over_its_windows(ecg):
    long = recording(61.3)
    windows = by_hand(ecg, long).sigmoid().numpy()
    assert len(windows) == 30
    result = ecg(long, batch_size=7)
    assert scores_of(result) == pytest.approx(dict(zip(LABELS, windows.max(0).tolist(), strict=True)), abs=1e-5)
    mean = ecg(long, window_pooling="mean")
    assert scores_of(mean) == pytest.approx(dict(zip(LABELS, windows.mean(0).tolist(), strict=True)), abs=1e-5)
    assert make_pipeline(window_pooling="mean")(long)["findings"] == mean["findings"]


def test_timeline_covers_exactly_the_windows_with_the_finding(ecg):
    long = recording(61.3)
    windows = by_hand(ecg, long).sigmoid().numpy()
    thresholds = np.median(windows, axis=0).tolist()
    result = ecg(long, thresholds=thresholds)
    assert {finding["label"] for finding in result["findings"] if finding["present"]} == {
        entry["label"] for entry in result["timeline"]
    }
    for label, threshold, scores in zip(LABELS, thresholds, windows.T, strict=True):
        entries = [entry for entry in result["timeline"] if entry["label"] == label]
        assert all(left["end"] < right["start"] for left, right in pairwise(entries))
        centres = [window.start + 2 for window in ecg.feature_extractor.windows(long)]
        for centre, score in zip(centres, scores, strict=True):
            inside = [entry for entry in entries if entry["start"] <= centre <= entry["end"]]
            assert len(inside) == (score >= threshold)
            assert not inside or inside[0]["score"] >= score - 1e-6


def test_only_one_batch_is_held(ecg, monkeypatch):
    """Windows reach the model as they are read: never more than a batch is waiting."""
    read, scored = [], []
    original = type(ecg.feature_extractor.windows(recording()))
    iterate, score = original.__iter__, ecg._score

    def watched(windows):
        for window in iterate(windows):
            read.append(window)
            assert len(read) - len(scored) <= 8
            yield window

    monkeypatch.setattr(original, "__iter__", watched)
    monkeypatch.setattr(ecg, "_score", lambda batch, *rest: (score(batch, *rest), scored.extend(batch))[0])
    ecg(recording(200.0), batch_size=8)
    assert len(read) == len(scored) == 99


def test_windows_pass_sixteen_at_once_unless_told_otherwise(monkeypatch):
    ecg, sizes = make_pipeline(), []
    forward = ecg.model.forward
    monkeypatch.setattr(
        ecg.model, "forward", lambda input_values, **rest: (sizes.append(len(input_values)), forward(input_values))[1]
    )
    ecg(recording(61.3))
    ecg(recording(61.3), batch_size=20)
    assert sizes == [16, 14, 20, 10]


def test_thresholds_come_from_the_config_or_the_call():
    scores = scores_of(make_pipeline()(recording()))
    below, above = [scores[label] - 0.01 for label in LABELS], [scores[label] + 0.01 for label in LABELS]
    assert all(f["present"] for f in make_pipeline(thresholds=below)(recording())["findings"])
    strict = make_pipeline(thresholds=above)
    assert not any(f["present"] for f in strict(recording())["findings"])
    assert all(f["present"] for f in strict(recording(), thresholds=0.0)["findings"])
    with pytest.raises(ValueError, match=r"thresholds is .*; expected a number or 3"):
        strict(recording(), thresholds=[0.5, 0.5])


def test_one_of_many_labels():
    ecg = make_pipeline("single_label_classification")
    result = ecg(recording(61.3))
    windows = by_hand(ecg, recording(61.3)).softmax(-1).numpy()
    assert scores_of(result) == pytest.approx(dict(zip(LABELS, windows.mean(0).tolist(), strict=True)), abs=1e-5)
    assert sum(scores_of(result).values()) == pytest.approx(1, abs=1e-5)
    assert [finding["present"] for finding in result["findings"]] == [True, False, False]
    timeline = result["timeline"]
    # one label at any time, without a break
    assert timeline[0]["start"] == 0 and timeline[-1]["end"] == pytest.approx(61.3)
    assert all(left["end"] == right["start"] for left, right in pairwise(timeline))


def test_regression():
    ecg = make_pipeline("regression", id2label={0: "age"}, label2id={"age": 0})
    windows = by_hand(ecg, recording(9.0)).numpy()
    result = ecg(recording(9.0))
    (finding,) = result["findings"]
    assert finding == {"label": "age", "score": pytest.approx(windows.mean(), abs=1e-5), "present": None}
    assert [entry["score"] for entry in result["timeline"]] == pytest.approx(windows[:, 0].tolist(), abs=1e-5)


def test_labels_are_named_in_words(ecg):
    found = {finding["label"]: finding for finding in ecg(recording())["findings"]}
    assert (found["AFIB"]["name"], found["AFIB"]["group"]) == ("atrial fibrillation", "rhythm")


def test_measurements_come_where_they_are_asked_for(ecg, tmp_path):
    pytest.importorskip("neurokit2", reason="neurokit2 is not installed (pip install neurokit2)")
    time = np.arange(20 * RATE) / RATE
    beats = np.exp(-(((time % 0.8) - 0.3) ** 2) / (2 * 0.012**2)) + 0.2 * np.exp(-(((time % 0.8) - 0.55) ** 2) / 0.004)
    heart = Recording(np.stack([0.7 * beats, beats]).astype(np.float32), ("I", "II"), float(RATE), "heart")
    assert "measurements" not in ecg(heart)
    results = [*ecg([heart, heart], measurements=True), ecg.plot(heart, tmp_path / "heart.png", measurements=True)[0]]
    for result in results:
        assert result["measurements"]["heart_rate_bpm"] == pytest.approx(75, abs=1)
        json.dumps(result)


def test_top_k(ecg):
    assert ecg(recording(), top_k=2)["findings"] == ecg(recording())["findings"][:2]


def test_stretches_stop_at_gaps(ecg):
    long = recording(40.0)
    long.signal[:, 1500:2000] = np.nan
    result = ecg(long, thresholds=0.0)
    left_out = [note for note in result["notes"] if note.startswith("left out")]
    assert left_out == ["left out: 4 of 19 windows, for their gaps"]
    entries = [(entry["start"], entry["end"]) for entry in result["timeline"] if entry["label"] == "MI"]
    assert entries == [(0, pytest.approx(15, abs=1)), (pytest.approx(20, abs=1), 40)]
    long.signal[:] = np.nan
    with pytest.raises(ValueError, match="each of its 19 windows has a gap"):
        ecg(long)
    short = recording(4.0)
    short.signal[:, 100:300] = np.nan
    with pytest.raises(ValueError, match=r"no samples from 1\.00 to 3\.00 s"):
        ecg(short)


def test_notes_of_windows_are_counted(ecg):
    long = recording(40.0)
    long.signal[0, 1000:1800] = 0.25
    notes = ecg(long)["notes"]
    assert notes == ["flat: I (3 of 19 windows, the first at 10 s)"]


def test_missing_optional_lead_is_noted(ecg):
    result = ecg({"array": signal()[1], "sampling_rate": RATE, "leads": ["II"], "units": "mV"})
    assert result["notes"] == ["absent: I"]


def test_explanation_is_of_the_page_around_the_highest_score(ecg):
    long = recording(61.3)
    windows = list(ecg.feature_extractor.windows(long))
    best = windows[by_hand(ecg, long)[:, 2].argmax()]
    attribution = ecg.explain(long, label="MI")
    assert attribution.label == "MI" and attribution.leads == ("I", "II")
    start = min(max(best.start - 3, 0), 61.3 - 10)
    assert attribution.start == pytest.approx(start)
    # the mean of what every window on the page says, where it says something
    total, count = torch.zeros(2, 6130), torch.zeros(6130)
    for window in windows:
        first = round(window.start * RATE)
        contributions = integrated_gradients(ecg.model, torch.from_numpy(window.input_values)[None], 2)
        total[:, first : first + 400] += contributions
        count[first : first + 400] += 1
    page = slice(round(start * RATE), round(start * RATE) + 1000)
    np.testing.assert_allclose(attribution.weights, looked_at((total / count)[:, page], RATE), atol=1e-3)
    with pytest.raises(ValueError, match="label is 'HYP'; expected one of NORM, AFIB, MI"):
        ecg.explain(long, label="HYP")


def test_explanation_of_a_short_recording_leaves_padding_out(ecg):
    attribution = ecg.explain(recording(3.0))
    assert attribution.weights.shape == (2, 300) and attribution.start == 0
    assert attribution.label == ecg(recording(3.0))["findings"][0]["label"]


def test_plot_returns_the_same_result_and_writes_the_picture(ecg, tmp_path):
    result, figure = ecg.plot(recording(3.0), tmp_path / "ecg.png", batch_size=4, top_k=2)
    assert result == ecg(recording(3.0), top_k=2)
    assert (tmp_path / "ecg.png").read_bytes().startswith(b"\x89PNG")
    assert "recording 0" in [text.get_text() for text in figure.axes[0].texts]


def test_bad_arguments(ecg):
    for arguments, message in (
        ({"top_k": 0}, "top_k is 0; expected a whole number of at least 1"),
        ({"top_k": "2"}, "top_k is '2'"),
        ({"thresholds": "high"}, "thresholds is 'high'; expected a number or 3"),
        ({"window_pooling": "median"}, "window_pooling is 'median'"),
        ({"thresholds": 50}, "thresholds is 50"),
        ({"thresholds": float("nan")}, "thresholds is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"threshold": 0.1}, "threshold: no such argument"),
        ({"num_workers": 2}, "num_workers is 2; expected 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ecg(recording(), **arguments)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ecg("nowhere.hea")
    with pytest.raises(ValueError, match="speed: no such argument"):
        ecg.explain(recording(), speed=25)
    with pytest.raises(ValueError, match=r"thresholds is 0\.2; expected none for a single_label_classification"):
        make_pipeline("single_label_classification", thresholds=None)(recording(), thresholds=0.2)
    with pytest.raises(ValueError, match=r"problem_type is None; expected one of multi_label"):
        make_pipeline(None)


def test_a_stretch_stays_one_where_its_windows_touch():
    class Windows(list):
        class recording:
            name, duration = "r", 18.0

        notes, on_doubt = (), "refuse"

    scored = ScoredRecording(Windows(range(3)))
    scored.spans = [(0.0, 10.0), (5.0, 15.0), (8.0, 18.0)]
    assert scored.stretches() == [(0.0, 7.5), (7.5, 11.5), (11.5, 18.0)]
    entries = joined(scored.stretches(), [0.6, 0.9, 0.2], [True, True, False])
    assert entries == [{"start": 0.0, "end": 11.5, "score": 0.9}]


def test_half_an_hour_of_real_ecg(ecg, shared_data):
    result = ecg(shared_data / "ecg" / "mitbih_long" / "208", batch_size=64, thresholds=0.0)
    assert "MLII taken as II" in result["notes"] and any("V1" in note for note in result["notes"])
    assert result["timeline"][0]["start"] == 0
    assert max(entry["end"] for entry in result["timeline"]) == pytest.approx(1805.6, abs=0.1)


# -- no findings, the reason ------------------------------------------------------------------------------------------


def six_limb_leads(signal, names=STANDARD_LEADS[:6]):
    return {"array": signal, "sampling_rate": RATE, "leads": list(names), "units": "mV"}


@pytest.mark.parametrize(
    ("doubtful", "reason"),
    [
        (six_limb_leads(np.zeros((6, 400))), "every lead is flat"),
        (six_limb_leads(np.full((6, 400), 0.3)), "every lead is flat"),
        (six_limb_leads(1000 * heart(400)[:6]), "its amplitudes are not those of an ECG in mV"),
        (six_limb_leads(heart(400)[:6] / 1000), "its amplitudes are not those of an ECG in mV"),
        (six_limb_leads(heart(400)[[0, 1, 2, 3, 5, 4]]), "explained if aVL and aVF are swapped"),
        ({"array": 10 * heart(400)[:2], "sampling_rate": RATE, "leads": ["I", "II"]}, "no unit, and a height"),
    ],
)
def test_no_findings_in_a_signal_in_doubt(ecg, tmp_path, doubtful, reason):
    result, _ = ecg.plot(doubtful, tmp_path / "ecg.png")
    assert result["findings"] == [] and result["timeline"] == [] and reason in result["refused"]
    assert result == ecg(doubtful) and (tmp_path / "ecg.png").stat().st_size > 0
    with pytest.raises(ValueError, match=r"no findings: .*on_doubt=\"note\" insists"):
        ecg.explain(doubtful)
    insisted = ecg(doubtful, on_doubt="note")
    assert len(insisted["findings"]) == len(LABELS) and insisted["refused"] == result["refused"]
    assert result["refused"] in insisted["notes"]


def test_what_is_right_or_says_too_little_is_read(ecg):
    unnamed = {"array": np.random.default_rng(0).normal(size=(12, 400)), "sampling_rate": RATE}
    for right in (six_limb_leads(heart(400)[:6]), recording(), unnamed):
        result = ecg(right)
        assert result["refused"] is None and len(result["findings"]) == len(LABELS)
    with pytest.raises(ValueError, match="on_doubt is 'ask'; expected 'refuse' or 'note'"):
        ecg(recording(), on_doubt="ask")


def test_flat_windows_of_a_long_recording_are_left_out_and_wrong_leads_refuse_it_all(ecg):
    limbs = heart(2400)[:6]
    off = limbs.copy()
    off[:, 1000:] = 0.1
    result = ecg(six_limb_leads(off))
    assert result["refused"] is None and len(result["findings"]) == len(LABELS)
    assert any("windows, the first at" in note and "every lead is flat" in note for note in result["notes"])
    assert max((entry["end"] for entry in result["timeline"]), default=0) < 14
    swapped = limbs[[0, 1, 2, 3, 5, 4]]
    swapped[:, 2000:] = limbs[:, 2000:]
    assert "aVL and aVF are swapped" in ecg(six_limb_leads(swapped))["refused"]
    together = ecg([six_limb_leads(off * 0), six_limb_leads(limbs), six_limb_leads(swapped)])
    assert [one["refused"] is None for one in together] == [False, True, False]
