"""From files to what the processor collates: parquet, conversation, withheld modalities, functionals, augmentation."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from pyarrow import parquet

from hf_mse_adapter import MseConfig, MseForConditionalGeneration, MseProcessor
from training.checkpoints import EpochSampler
from training.data.msa_augmentation import FeatureAugmentation
from training.data.msa_batches import MsaSamples, earlier_utterances
from training.data.msa_functionals import window_functionals, with_window_functionals
from training.data.msa_parquet import load_msa_parquet
from training.data.msa_samples import count_replaced, samples_to_dataset, split_sample_id
from training.data.tiny_language_model import build_tiny_language_model


def dialogue(**change):
    turns = [("d1", 2, "Ann", "three"), ("d2", 0, "Cat", "alone"), ("d1", 0, "Ann", "one"), ("d1", 1, "Ben", "two")]
    generator = np.random.default_rng(0)
    return [
        {
            "id": f"{name}_{number}",
            "dialogue_id": name,
            "utterance_id": number,
            "speaker": speaker,
            "text": text,
            "audio": generator.normal(size=(4 + number, 3)),
            "vision": generator.normal(size=2),
            "label": "joy" if number else "anger",
            **change,
        }
        for name, number, speaker, text in turns
    ]


@pytest.fixture
def dataset():
    return samples_to_dataset(dialogue(), "classification", "dialogues")


def write_parquet(folder, rows, name="train"):
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame(rows)
    for column in ("audio", "vision"):
        if column in table:
            table[column] = [None if cell is None else np.asarray(cell).tolist() for cell in table[column]]
    table.to_parquet(folder / f"{name}.parquet")
    return folder


def test_parquet_equals_the_same_samples_from_memory(dataset, tmp_path):
    rows = dialogue()
    rows[1] |= {"audio": None, "speaker": None}
    write_parquet(tmp_path / "set", rows)
    write_parquet(tmp_path / "set", rows[:1], "dev")
    loaded = load_msa_parquet(tmp_path / "set", "classification", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 4, "valid": 1}
    assert loaded["train"].features == dataset.features
    assert loaded["train"][1]["audio"].shape == (0, 3) and loaded["train"][1]["speaker"] == ""
    for index in (0, 2, 3):
        for name, value in dataset[index].items():
            np.testing.assert_array_equal(loaded["train"][index][name], value)


def test_a_changed_parquet_file_is_read_again(tmp_path):
    cache = str(tmp_path / "cache")
    for label in ("joy", "fear"):
        write_parquet(tmp_path / "set", dialogue(label=label))
        assert set(load_msa_parquet(tmp_path / "set", "classification", cache)["train"]["label"]) == {label}


def test_gaps_in_parquet_are_counted(tmp_path):
    rows = dialogue()
    rows[0]["audio"][1, 1] = -np.inf
    write_parquet(tmp_path / "set", rows)
    loaded = load_msa_parquet(tmp_path / "set", "classification", str(tmp_path / "cache"))["train"]
    assert count_replaced(loaded)["audio"] == {"values": 1, "samples": 1}
    assert np.isfinite(loaded[0]["audio"]).all()


def test_text_without_features(shared_data):
    loaded = load_msa_parquet(shared_data / "msa" / "text_only" / "simsv2", "regression")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2722, "valid": 647, "test": 778}
    sample = MsaSamples(loaded["train"])[0]
    assert sample["audio"] is None and sample["vision"] is None and sample["label"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "change, task, message",
    [
        ({"id": "same"}, "classification", "the id same occurs twice"),
        ({"label": "joy"}, "regression", "d1_2.*finite number"),
        ({"label": float("nan")}, "regression", "finite number"),
        ({"audio": np.zeros((2, 2, 2))}, "classification", "audio must"),
        ({"audio": np.zeros((2, 2), dtype="datetime64[s]")}, "classification", "audio must hold numbers"),
    ],
)
def test_what_is_wrong_in_parquet_is_named(tmp_path, change, task, message):
    write_parquet(tmp_path / "set", dialogue(**change))
    with pytest.raises(ValueError, match=message):
        load_msa_parquet(tmp_path / "set", task, str(tmp_path / "cache"))


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(OSError, match="is not a folder"):
        load_msa_parquet(tmp_path / "nowhere", "regression")
    with pytest.raises(OSError, match=r"none of train\.parquet"):
        load_msa_parquet(tmp_path, "regression")
    write_parquet(tmp_path, [{"id": "a", "text": "b"}])
    with pytest.raises(ValueError, match="label is missing"):
        load_msa_parquet(tmp_path, "regression")
    write_parquet(tmp_path, [{"id": "a", "text": "b", "label": 1.0, "vison": [1.0]}])
    with pytest.raises(ValueError, match="has the column 'vison'; expected 'vision'"):
        load_msa_parquet(tmp_path, "regression")


@pytest.mark.parametrize(
    "sample_id, parts",
    [
        ("1DmNV9C1hbY$_$12", ("1DmNV9C1hbY", 12)),
        ("video_0001/0003", ("video_0001", 3)),
        ("video_0010_0038", ("video_0010", 38)),
        ("clip", ("clip", 0)),
    ],
)
def test_ids_name_dialogue_and_utterance(sample_id, parts):
    assert split_sample_id(sample_id) == parts


def test_earlier_utterances_of_the_same_dialogue_in_order(dataset):
    assert earlier_utterances(dataset, 5) == [[("Ann", "one"), ("Ben", "two")], [], [], [("Ann", "one")]]
    assert earlier_utterances(dataset, 1) == [[("Ben", "two")], [], [], [("Ann", "one")]]


def test_conversations_of_meld(shared_data):
    meld = load_msa_parquet(shared_data / "msa" / "text_only" / "meld", "classification")["valid"]
    context = earlier_utterances(meld, 3)
    dialogues, numbers = list(meld["dialogue_id"]), list(meld["utterance_id"])
    for row in range(1, len(meld)):
        if dialogues[row] == dialogues[row - 1] and numbers[row - 1] < numbers[row]:
            assert context[row][-1] == (meld[row - 1]["speaker"], meld[row - 1]["text"])
        assert len(context[row]) <= 3


def test_samples_show_no_id_and_a_speaker_only_in_a_conversation(dataset):
    sample = MsaSamples(dataset)[0]
    assert set(sample) == {"text", "audio", "vision", "label"}
    sample = MsaSamples(dataset, num_context_utterances=1)[0]
    assert sample["context"] == [("Ben", "two")] and sample["speaker"] == "Ann"


def test_withheld_modalities_are_gone(dataset):
    for modality, gone in (("text", ""), ("audio", None), ("vision", None)):
        sample = MsaSamples(dataset, withhold=[modality])[0]
        assert sample[modality] == gone
        assert all(sample[other] is not None for other in ("text", "audio", "vision") if other != modality)
    with pytest.raises(ValueError, match="not smell"):
        MsaSamples(dataset, withhold=["smell"])


def test_a_face_is_swapped_for_one_of_the_same_label(dataset):
    samples = MsaSamples(dataset, swap_vision=1.0)
    faces = {label: [dataset[row]["vision"].tolist() for row in range(4) if dataset[row]["label"] == label]
             for label in ("joy", "anger")}  # fmt: skip
    seen = set()
    for epoch in range(20):
        for row in range(4):
            sample = samples[row, epoch]
            assert sample["vision"].tolist() in faces[sample["label"]]
            seen.add((row, faces[sample["label"]].index(sample["vision"].tolist())))
            np.testing.assert_array_equal(sample["audio"], dataset[row]["audio"])
    assert len(seen) == 8  # each label has two faces, and each row meets both
    np.testing.assert_array_equal(samples[0]["vision"], dataset[0]["vision"])


STATISTICS = {"audio": {"mean": [10.0, 20.0, 30.0, 40.0], "std": [1.0, 2.0, 3.0, 4.0]}}


def test_augmentation_depends_on_seed_epoch_and_row_alone(dataset):
    statistics = {"audio": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    augmentation = FeatureAugmentation(time_crop=1, noise=0.1, offset=0.1, feature_dropout=0.2)
    one, two = (
        MsaSamples(dataset, augmentation=augmentation, feature_statistics=statistics, seed=3) for _ in range(2)
    )
    together = one.__getitems__([(0, 1), (1, 1), (2, 1)])
    np.testing.assert_array_equal(two[2, 1]["audio"], together[2]["audio"])
    assert not np.array_equal(two[2, 1]["audio"].ravel()[:3], two[2, 2]["audio"].ravel()[:3])
    np.testing.assert_array_equal(two[2]["audio"], dataset[2]["audio"])  # without an epoch nothing is changed


def test_masks_put_the_mean_and_leave_the_rest():
    values = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    augmentation = FeatureAugmentation(time_masks=2, time_mask_steps=3, feature_dropout=0.3)
    original, seen = values.copy(), 0
    for seed in range(20):
        changed = augmentation(values, "audio", STATISTICS, np.random.default_rng(seed))
        masked = changed != values
        np.testing.assert_array_equal(changed[masked], np.broadcast_to(STATISTICS["audio"]["mean"], (12, 4))[masked])
        seen += masked.sum()
    assert 0 < seen < 20 * values.size
    np.testing.assert_array_equal(values, original)


def test_noise_and_offset_are_in_standard_deviations():
    values = np.zeros((4000, 4), dtype=np.float32)
    noisy = FeatureAugmentation(noise=0.5)(values, "audio", STATISTICS, np.random.default_rng(0))
    np.testing.assert_allclose(noisy.std(axis=0), [0.5, 1.0, 1.5, 2.0], rtol=0.1)
    shifted = FeatureAugmentation(offset=0.5)(values, "audio", STATISTICS, np.random.default_rng(0))
    assert (shifted == shifted[0]).all() and (shifted[0] != 0).all()


def test_window_functionals_by_hand():
    values = np.array([[0.0], [2.0], [4.0], [0.0], [6.0]])
    result = window_functionals(values, window=4, hop=2)
    expected = [values[:4, 0], values[2:5, 0]]
    assert result.shape == (2, 3)
    for row, part in zip(result, expected, strict=True):
        np.testing.assert_allclose(row, [part.mean(), part.std(), np.diff(part).std()], rtol=1e-6)
    np.testing.assert_array_equal(window_functionals(values[:1], 4, 2), [[0.0, 0.0, 0.0]])
    assert window_functionals(values[:0], 4, 2).shape == (0, 3)


def test_functionals_replace_one_modality_of_a_dataset(dataset):
    changed = with_window_functionals(dataset, "audio", 4, 2)
    for index in range(len(dataset)):
        np.testing.assert_array_equal(changed[index]["audio"], window_functionals(dataset[index]["audio"], 4, 2))
        np.testing.assert_array_equal(changed[index]["vision"], dataset[index]["vision"])
        assert changed[index]["audio_steps"] == len(changed[index]["audio"])


def test_grouped_order_has_every_record_once_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 500, size=1003)
    sampler = EpochSampler(1003, seed=1, step_size=8, lengths=lengths)
    order = [record for record, _ in sampler]
    assert len(order) == len(set(order)) == len(sampler) == 1000
    spread = np.ptp(lengths[order].reshape(-1, 8), axis=1).mean()
    shuffled = [record for record, _ in EpochSampler(1003, seed=1, step_size=8)]
    assert spread < 0.1 * np.ptp(lengths[shuffled].reshape(-1, 8), axis=1).mean()
    sampler.set_epoch(1)
    assert [record for record, _ in sampler] != order
    sampler.set_epoch(0)
    assert [record for record, _ in sampler] == order


def model_and_processor(**options):
    llm, tokenizer = build_tiny_language_model(["one two three alone"], hidden_size=32, num_hidden_layers=2)
    config = MseConfig(audio_dim=3, vision_dim=2, task="classification", id2label={0: "joy", 1: "anger"})
    return MseForConditionalGeneration.from_backbone(llm, config), MseProcessor.from_config(
        config, tokenizer, **options
    )


@pytest.mark.parametrize("withhold", [(), ("audio",), ("text", "vision")])
@pytest.mark.parametrize("context", [0, 2])
def test_a_samples_cost_is_that_of_its_tokens_and_steps(dataset, withhold, context):
    model, processor = model_and_processor(max_text_tokens=3, max_audio_length=5)
    samples = MsaSamples(dataset, num_context_utterances=context, withhold=withhold)
    costs = samples.costs(processor, model)
    llm = sum(weight.numel() for name, weight in model.language_model.named_parameters() if "embed" not in name)
    for index in range(len(dataset)):
        batch = processor.collate([{**samples[index], "label": None}])
        expected = llm * int(batch["attention_mask"].sum())
        for modality, dim, hidden in (("audio", 3, 64), ("vision", 2, 32)):
            weights = 4 * hidden * (dim + hidden + 2)
            expected += weights * int(batch[f"{modality}_attention_mask"].sum())
        assert costs[index] == expected


def test_batches_grouped_by_cost_pad_less_text():
    """Conversations of MELD's kind: what differs is the text, while the clips are of any length."""
    generator = np.random.default_rng(0)
    rows = [
        {"id": str(i), "text": "well " * int(generator.integers(1, 40)), "label": "joy",
         "audio": np.zeros((int(generator.integers(1, 60)), 3)), "vision": np.zeros((1, 2))}
        for i in range(403)
    ]  # fmt: skip
    model, processor = model_and_processor()
    samples = MsaSamples(samples_to_dataset(rows, "classification", "here"))
    tokens = np.array([processor.num_tokens(row["text"]) for row in rows])

    def padded(lengths):
        order = [record for record, _ in EpochSampler(403, seed=0, step_size=8, lengths=lengths)]
        return tokens[order].reshape(-1, 8).max(axis=1).sum() * 8 / tokens[order].sum()

    by_cost, by_steps, shuffled = (
        padded(samples.costs(processor, model)),
        padded(samples.steps["audio_steps"]),
        padded(None),
    )
    assert by_cost < 1.1 < 1.3 < min(by_steps, shuffled)


def test_dialogue_and_speaker_may_be_the_number_zero():
    rows = samples_to_dataset(dialogue(dialogue_id=0, speaker=0), "classification", "here")
    assert set(rows["dialogue_id"]) == set(rows["speaker"]) == {"0"}


def test_context_needs_dialogues():
    rows = [{"id": name, "text": "hm", "label": 0.0} for name in ("a", "b")]
    with pytest.raises(ValueError, match="no two samples share a dialogue_id"):
        earlier_utterances(samples_to_dataset(rows, "regression", "here"), 1)


@pytest.mark.parametrize("text", [None, ["hm"], b"\xff"])
def test_text_that_is_none_is_named_with_its_sample(text):
    with pytest.raises(ValueError, match="sample d1_2: text must be"):
        samples_to_dataset(dialogue(text=text), "classification", "here")
    assert samples_to_dataset(dialogue(text="嗯".encode()), "classification", "here")[0]["text"] == "嗯"


def test_withheld_text_is_withheld_from_the_context(dataset):
    assert MsaSamples(dataset, num_context_utterances=1, withhold=["text"])[0]["context"] == []


def test_parquet_as_the_hub_and_datasets_write_it(dataset, tmp_path):
    rows = dialogue(label="joy")
    names = ["anger", "joy", "fear"]
    features = Features(
        {name: Value("string") for name in ("id", "text", "dialogue_id", "speaker")}
        | {"audio": Sequence(Sequence(Value("float32"))), "vision": Sequence(Value("float32"))}
        | {"utterance_id": Value("int64"), "label": ClassLabel(names=names)}
    )
    rows = [row | {"label": names.index(row["label"])} for row in dialogue()]
    folder = tmp_path / "data"
    folder.mkdir()
    for part, some in enumerate((rows[:2], rows[2:])):
        table = Dataset.from_list(some, features=features).rename_columns({"vision": "video", "label": "labels"})
        table.to_parquet(folder / f"train-0000{part}-of-00002.parquet")
    loaded = load_msa_parquet(tmp_path, "classification", cache_dir=str(tmp_path / "cache"))["train"]
    for found, expected in zip(loaded, dataset, strict=True):
        for field in expected:
            np.testing.assert_array_equal(found[field], expected[field])
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds the parts train-00000-of-00002\.parquet; expected all"):
        load_msa_parquet(tmp_path, "classification")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"audio": b"RIFF"}, "audio must hold numbers.*it is bytes"),
        ({"audio": {"bytes": b"RIFF", "path": "a.wav"}}, "audio must hold numbers"),
        ({"vision": "face.npy"}, "vision must hold numbers.*it is str"),
    ],
)
def test_a_parquet_files_bytes_are_no_features(tmp_path, change, message):
    rows = [row | {"audio": row["audio"].tolist(), "vision": row["vision"].tolist()} | change for row in dialogue()]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load_msa_parquet(tmp_path, "classification", cache_dir=str(tmp_path / "cache"))


def test_ids_as_bytes_are_texts(dataset, tmp_path):
    rows = [
        row | {name: row[name].encode() for name in ("id", "dialogue_id", "speaker", "text", "label")}
        for row in dialogue()
    ]
    found = samples_to_dataset(rows, "classification", "bytes")
    for name in ("id", "dialogue_id", "speaker", "text", "label"):
        assert list(found[name]) == list(dataset[name])
