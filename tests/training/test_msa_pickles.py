"""The field's pickles, layout by layout: what is in them arrives, and what is wrong with them is named."""

import collections
import math
import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from training.data.msa_parquet import load_msa_parquet
from training.data.msa_pickles import load_feature_dictionary_pickle, load_mmsa_pickle, load_mse_adapter_pickle
from training.data.msa_samples import count_replaced
from training.data.msa_splits import report_splits
from training.data.ravdess import load_ravdess_features


def mmsa_split(size=3, steps=5, **columns):
    generator = np.random.default_rng(size)
    return {
        "id": [f"video{index}$_${index}" for index in range(size)],
        "raw_text": np.array([f"text {index}" for index in range(size)]),
        "audio": generator.normal(size=(size, steps, 4)),
        "vision": generator.normal(size=(size, steps, 2)),
        "regression_labels": np.linspace(-3, 3, size)[:, None],
        **columns,
    }


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def test_mmsa_layout_of_mosi(shared_data):
    datasets = load_mmsa_pickle(shared_data / "msa" / "legacy" / "mmsa_layout_mosi_small.pkl")
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 40, "valid": 12, "test": 12}
    sample = datasets["train"][1]
    assert sample["text"] == "UM I LOVED THE VERY FIRST ALVIN AND THE CHIPMUNKS MOVIE"
    assert (sample["dialogue_id"], sample["utterance_id"]) == ("1DmNV9C1hbY", 2)
    assert sample["label"] == np.float32(1.6)
    assert (sample["audio"].shape, sample["vision"].shape) == ((1, 73), (1, 100))


def test_unaligned_features_are_cut_to_their_lengths(tmp_path):
    split = mmsa_split(audio_lengths=[5, 2, 0], vision_lengths=np.array([1, 5, 3]))
    for modality in ("audio", "vision"):
        for values, length in zip(split[modality], split[f"{modality}_lengths"], strict=True):
            values[length:] = 0
    dataset = load_mmsa_pickle(write(tmp_path / "unaligned.pkl", {"train": split}))["train"]
    assert [len(audio) for audio in dataset["audio"]] == [5, 2, 0]
    assert [len(vision) for vision in dataset["vision"]] == [1, 5, 3]
    np.testing.assert_array_equal(dataset[1]["audio"], split["audio"][1, :2].astype(np.float32))


def test_aligned_features_lose_the_zeros_at_their_ends_only(tmp_path):
    split = mmsa_split()
    split["audio"][0, [0, 1, 3]] = 0
    split["audio"][1] = 0
    dataset = load_mmsa_pickle(write(tmp_path / "aligned.pkl", {"valid": split}))["valid"]
    assert [len(audio) for audio in dataset["audio"]] == [3, 0, 5]
    assert dataset[1]["audio"].shape == (0, 4)


@pytest.mark.parametrize("front", [True, False], ids=["front", "end"])
@pytest.mark.parametrize("lengths", ["the field's script", "true", "none", "longest"])
def test_padding_is_found_wherever_it_is_and_told(tmp_path, front, lengths, capsys):
    generator, true = np.random.default_rng(0), [7, 20, 1, 5, 12, 19]
    audio = np.zeros((6, 20, 4), np.float32)
    for values, steps in zip(audio, true, strict=True):
        values[20 - steps :] = generator.normal(5, 1, (steps, 4))
        if not front:
            values[:] = np.roll(values, steps, axis=0)
    audio[3] = true[3] = 0  # this clip has no sound
    by_script = [max(1, next((i for i, row in enumerate(values) if row.sum() == 0), 20)) for values in audio]
    stated = {"the field's script": by_script, "true": true, "longest": [20] * 6}.get(lengths)
    split = mmsa_split(6, 20, audio=audio) | ({} if stated is None else {"audio_lengths": stated})
    dataset = load_mmsa_pickle(write(tmp_path / "padded.pkl", {"train": split}))["train"]
    expected = true if front or lengths != "longest" else [20 if steps else 0 for steps in true]
    assert [len(values) for values in dataset["audio"]] == expected
    for found, values, steps in zip(dataset["audio"], audio, true, strict=True):
        np.testing.assert_array_equal(found[:steps], values[20 - steps :] if front else values[:steps])
    report_splits({"train": dataset})
    printed = capsys.readouterr().out
    where = "in front in 4 clips, " if front else "at the end in 4 clips, " if lengths != "longest" else ""
    assert f"train: zeros of audio taken for padding: {where}all of it (a missing modality) in 1 clips" in printed


def test_a_length_that_contradicts_the_zeros_is_refused_by_sample(tmp_path):
    split = mmsa_split(audio_lengths=[5, 3, 5])
    with pytest.raises(ValueError, match=r"train, sample video1\$_\$1: audio_lengths is 3, but of 5 steps"):
        load_mmsa_pickle(write(tmp_path / "short.pkl", {"train": split}))


def test_other_names_of_splits_fields_and_values_are_taken(tmp_path):
    plain = mmsa_split()
    expected = load_mmsa_pickle(write(tmp_path / "plain.pkl", {"valid": plain}))["valid"]
    renamed = collections.OrderedDict(plain)
    renamed["video"], renamed["labels"] = torch.tensor(renamed.pop("vision")), renamed.pop("regression_labels")
    renamed["id"] = np.array([name.encode() for name in plain["id"]])
    renamed["audio"] = list(map(torch.tensor, plain["audio"]))
    for name in ("dev", "validation", "val"):
        found = load_mmsa_pickle(write(tmp_path / f"{name}.pkl", {name: renamed}))["valid"]
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[field], other[field]) for field in one)
    with pytest.raises(ValueError, match="has the splits valid and dev"):
        load_mmsa_pickle(write(tmp_path / "both.pkl", {"valid": plain, "dev": plain}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"visions": "vision"}, "train has no vision, but visions; expected vision or one of its other names: video"),
        ({"video": None}, "has both vision and another name of it"),
        ({"raw_audio": "audio"}, "train has no audio, but raw_audio"),
    ],
)
def test_features_under_a_name_that_nobody_knows_are_refused(tmp_path, change, message):
    split = mmsa_split(text_bert=np.zeros((3, 3, 50), np.float32))
    for name, own in change.items():
        split[name] = split["vision"] if own is None else split.pop(own)
    with pytest.raises(ValueError, match=message):
        load_mmsa_pickle(write(tmp_path / "names.pkl", {"train": split}))


def test_a_large_file_is_never_in_memory(tmp_path):
    """Features of 96 MB, of which loading may hold a few, and the second process nothing."""
    split = mmsa_split(120, 1000, audio=np.random.default_rng(0).random((120, 1000, 200), np.float32))
    path = write(tmp_path / "large.pkl", {"train": split})
    code = f"""
from training.data.msa_pickles import load_mmsa_pickle
def kilobytes(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0])
before = kilobytes("VmRSS")
train = load_mmsa_pickle({str(path)!r})["train"]
print(kilobytes("VmHWM") - before, float(train[119]["audio"].sum()), train.cache_files[0]["filename"])
"""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = partial(subprocess.Popen, [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    outputs = [process.communicate()[0].split() for process in (run(), run())]
    for grown, total, _ in outputs:
        assert int(grown) < 64 * 1024
        assert float(total) == pytest.approx(split["audio"][119].sum(), rel=1e-5)
    assert outputs[0][2] == outputs[1][2]
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 1


def test_values_that_are_no_numbers_become_their_features_mean_and_are_counted(tmp_path):
    split = mmsa_split()
    split["audio"][0, 1, 2] = -np.inf
    split["audio"][2, 0, 1:] = np.nan
    split["vision"][1, :, 0] = np.inf
    dataset = load_mmsa_pickle(write(tmp_path / "gaps.pkl", {"train": split}))["train"]
    assert count_replaced(dataset) == {"audio": {"values": 4, "samples": 2}, "vision": {"values": 5, "samples": 1}}
    assert dataset[0]["audio"][1, 2] == pytest.approx(split["audio"][0, [0, 2, 3, 4], 2].mean())
    expected = [split["audio"][2, 0, 0], *split["audio"][2, 1:, 1:].mean(axis=0)]
    np.testing.assert_allclose(dataset[2]["audio"][0], expected, rtol=1e-5)
    np.testing.assert_array_equal(dataset[1]["vision"][:, 0], 0)
    assert all(np.isfinite(audio).all() for audio in dataset["audio"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"raw_text": None}, "raw_text"),
        ({"regression_labels": np.array([1.0, np.nan, 2.0])}, "video1.*finite number"),
        ({"regression_labels": np.array([1.0])}, "regression_labels has 1 entries, id has 3"),
        ({"id": ["a", "b", "a"]}, "the id a occurs twice"),
        ({"audio": np.array([["a"], ["b"], ["c"]])}, "audio must hold numbers"),
        ({"audio": [b"RIFF", b"RIFF", b"RIFF"]}, r"audio must hold numbers \[time, dim\].*it is bytes"),
        ({"id": [["video", 1], ["video", 2], ["video", 3]]}, "id must be a string"),
    ],
)
def test_a_column_that_is_wrong_is_named(tmp_path, change, message):
    split = {key: value for key, value in mmsa_split(**change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_mmsa_pickle(write(tmp_path / "wrong.pkl", {"train": split}))


def test_files_of_another_layout_are_named(tmp_path):
    path = write(tmp_path / "other.pkl", [1, 2])
    with pytest.raises(ValueError, match="MMSA's layout"):
        load_mmsa_pickle(path)
    with pytest.raises(ValueError, match="entry 0"):
        load_mse_adapter_pickle(path)
    with pytest.raises(ValueError, match="dictionary of feature vectors"):
        load_feature_dictionary_pickle(path, {"audio": (0, 1)}, describe={}.get)


def test_mse_adapter_layout(shared_data):
    folder = shared_data / "msa" / "legacy"
    dataset = load_mse_adapter_pickle(folder / "ravdess_train.pkl")
    assert len(dataset) == 24
    with (folder / "ravdess_train.pkl").open("rb") as file:
        entry = pickle.load(file)[0]
    np.testing.assert_array_equal(dataset[0]["audio"], entry["features"]["audio"][: entry["features"]["audio_len"]])
    np.testing.assert_array_equal(dataset[0]["vision"], entry["features"]["video"])
    assert (dataset[0]["text"], dataset[0]["label"]) == (entry["features"]["text"], entry["label"])


def test_an_mse_adapter_files_other_names_and_padding(tmp_path):
    vision, audio = np.eye(4, 2)[[2, 3, 0, 1]], np.eye(5, 3)
    features = collections.defaultdict(list, text="no", acoustic=torch.tensor(audio), vision=vision, vision_len=1)
    dataset = load_mse_adapter_pickle(write(tmp_path / "renamed.pkl", [{"features": features, "label": 1}]))
    np.testing.assert_array_equal(dataset[0]["audio"], audio[:3])
    np.testing.assert_array_equal(dataset[0]["vision"], vision[2:])
    assert (dataset[0]["audio_padding"], dataset[0]["vision_padding"]) == ("end", "front")
    features = {"text": "no", "audio": audio, "face": vision}
    with pytest.raises(ValueError, match="entry 0 has no vision, but face"):
        load_mse_adapter_pickle(write(tmp_path / "unknown.pkl", [{"features": features, "label": 1}]))


def test_mse_adapter_layout_with_numbered_classes_and_missing_modalities(tmp_path):
    entries = [
        {"features": {"text": "你好", "audio": np.eye(4, 3), "audio_len": 3, "video": None}, "label": np.int64(6)},
        {
            "features": {"text": "嗯", "audio": [], "video": [[1.0, 2.0]]},
            "label": 0,
            "dialogue_id": "d1",
            "speaker": "甲",
        },
    ]
    dataset = load_mse_adapter_pickle(write(tmp_path / "chinese.pkl", entries))
    assert list(dataset["label"]) == ["6", "0"]
    assert [audio.shape for audio in dataset["audio"]] == [(3, 3), (0, 3)]
    assert [vision.shape for vision in dataset["vision"]] == [(0, 2), (1, 2)]
    assert (dataset[1]["dialogue_id"], dataset[1]["speaker"]) == ("d1", "甲")


def test_ravdess_features_by_actor(shared_data):
    datasets = load_ravdess_features(shared_data / "msa" / "legacy" / "original_ravdess_au_mfcc.pkl")
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 1080, "valid": 180, "test": 180}
    assert (datasets["train"][0]["audio"].shape, datasets["train"][0]["vision"].shape) == ((1, 259), (1, 35))
    # the same clips, their action units found independently, stand in the parquet files under another channel number
    parquet = load_msa_parquet(shared_data / "msa" / "ravdess", "classification")
    known = {row["id"][2:]: row for row in parquet["valid"]}
    for row in datasets["valid"]:
        same = known[row["id"][2:]]
        assert (row["label"], row["text"], row["speaker"]) == (same["label"], same["text"], same["speaker"])
        np.testing.assert_allclose(row["vision"], same["vision"], rtol=1e-5)


@pytest.mark.parametrize("sample_id", ["clip_1", "03-01-09-01-01-01-01", "03-01-05-01-01-01"])
def test_an_id_that_is_not_ravdess_is_named(tmp_path, sample_id):
    path = write(tmp_path / "other.pkl", {sample_id: np.zeros(294)})
    with pytest.raises(ValueError, match=f"{sample_id!r} is not an id of RAVDESS"):
        load_ravdess_features(path)


@pytest.mark.parametrize("length", [-1, 6, 2.5, math.nan])
def test_a_length_that_cannot_be_is_named(tmp_path, length):
    content = {"train": mmsa_split(audio_lengths=[length, 1, 1], vision_lengths=[1, 1, 1])}
    with pytest.raises(ValueError, match="audio_lengths must be a whole number from 0 to 5"):
        load_mmsa_pickle(write(tmp_path / "lengths.pkl", content))


def test_several_labels_in_a_row_are_refused(tmp_path):
    content = {"train": mmsa_split(regression_labels=np.zeros((3, 4)))}
    with pytest.raises(ValueError, match="the label must be a finite number"):
        load_mmsa_pickle(write(tmp_path / "labels.pkl", content))
