"""The tuples of dictionaries of research on emotion in conversation."""

import pickle

import numpy as np
import pytest

from training.data.conversations import IEMOCAP_LABELS, load_conversations
from training.data.msa_batches import earlier_utterances
from training.data.msa_splits import load_splits
from training.run_msa import DataArguments


def iemocap(dialogues=12, turns=3):
    names = [f"Ses{index:02}F_impro01" for index in range(dialogues)]
    generator = np.random.default_rng(0)
    per_turn = {name: range(turns) for name in names}
    features = [
        {name: [generator.normal(size=width) for _ in per_turn[name]] for name in names} for width in (100, 30, 12)
    ]
    return (
        {name: [f"{name}_M{turn:03}" for turn in range(turns)] for name in names},
        {name: ["M", "F", "M"][:turns] for name in names},
        {name: [(index + turn) % 6 for turn in range(turns)] for index, name in enumerate(names)},
        *features,
        {name: [f"{name} says {turn}" for turn in range(turns)] for name in names},
        set(names[:-2]),
        set(names[-2:]),
    )


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_iemocaps_layout(tmp_path):
    content = iemocap()
    splits = load_conversations(write(tmp_path / "IEMOCAP_features.pkl", content))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 27, "valid": 3, "test": 6}
    row = splits["train"][4]
    name = "Ses01F_impro01"
    assert (row["dialogue_id"], row["utterance_id"], row["speaker"]) == (name, 1, "F")
    assert (row["text"], row["label"]) == (f"{name} says 1", "2")
    np.testing.assert_array_equal(row["audio"], np.float32(content[4][name][1])[None])
    np.testing.assert_array_equal(row["vision"], np.float32(content[5][name][1])[None])
    assert earlier_utterances(splits["train"], 3)[5] == [("M", f"{name} says 0"), ("F", f"{name} says 1")]


def test_melds_layout_has_no_vision_and_speakers_by_place(tmp_path):
    ids, _, labels, text, audio, _, sentences, train, test = iemocap()
    speakers = {name: np.eye(9)[[0, 4, 0]] for name in ids}
    content = (ids, speakers, labels, text, audio, sentences, sorted(train, reverse=True), sorted(test), labels)
    splits = load_conversations(write(tmp_path / "MELD_features_raw.pkl", content, 4))
    assert splits["train"][0]["dialogue_id"] == "Ses09F_impro01"  # in the file's order
    assert list(splits["train"]["speaker"][:3]) == ["speaker 1", "speaker 5", "speaker 1"]
    assert splits["train"]["vision_steps"][0] == 0 and splits["train"][0]["audio"].shape == (1, 30)


def test_several_embeddings_of_the_text_stand_before_audio_and_vision(tmp_path):
    content = iemocap()
    longer = (*content[:4], *[content[3]] * 3, *content[4:])
    found = load_conversations(write(tmp_path / "multi.pkl", longer))["test"][0]
    expected = load_conversations(write(tmp_path / "plain.pkl", content))["test"][0]
    assert all(np.array_equal(found[field], expected[field]) for field in expected)


def test_the_numbers_get_their_names(tmp_path):
    path = write(tmp_path / "IEMOCAP_features.pkl", iemocap())
    data = DataArguments(
        dataset="conversations", data_path=str(path), task="classification", labels=list(IEMOCAP_LABELS)
    )
    assert list(load_splits(data)["train"]["label"][:3]) == ["happy", "sad", "neutral"]


def test_what_is_not_of_this_layout_is_named(tmp_path):
    ids, speakers, *others = iemocap()
    for content, message in (
        ([1, 2], "not in the layout of conversations"),
        ({"train": 1}, "not in the layout of conversations"),
        ((ids, {name: turns[:2] for name, turns in speakers.items()}, *others), "speaker has 2 entries, the ids 3"),
        ((ids, speakers, *others[:-1], others[-2]), "in train and in test"),
    ):
        with pytest.raises(ValueError, match=message):
            load_conversations(write(tmp_path / "other.pkl", content))
