"""A data set by its name: what training sees of it."""

import pickle
from pathlib import Path

import pytest
import yaml

from training.data.msa_splits import load_splits
from training.run_msa import DataArguments

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


@pytest.mark.parametrize("dataset, labels", [("cherma", [6, 0]), ("meld", ["disgust", "neutral"])])
def test_class_numbers_get_their_recipes_names(tmp_path, dataset, labels):
    for split in ("train", "dev"):  # the field's other name of the validation split
        entries = [{"features": {"text": "a", "audio": [[1.0]], "video": [[1.0]]}, "label": label} for label in labels]
        (tmp_path / f"{split}.pkl").write_bytes(pickle.dumps(entries))
    recipe = yaml.safe_load((RECIPES / f"msa_{dataset}_qwen.yaml").read_text(encoding="utf-8"))
    names = recipe["labels"]
    data = DataArguments(dataset="mse_adapter", task="classification", labels=names,
                         data_path=str(tmp_path / "{split}.pkl"))  # fmt: skip
    expected = [names[label] if isinstance(label, int) else label for label in labels]
    assert {split: list(rows["label"]) for split, rows in load_splits(data).items()} == {
        "train": expected, "valid": expected
    }  # fmt: skip


def test_classes_counted_from_one_are_not_given_their_neighbours_names(tmp_path):
    for split in ("train", "valid"):
        entries = [{"features": {"text": "a"}, "label": label} for label in range(1, 7)]
        (tmp_path / f"{split}.pkl").write_bytes(pickle.dumps(entries))
    names = ["happy", "sad", "neutral", "angry", "excited", "frustrated", "other"]
    data = DataArguments(
        dataset="mse_adapter", task="classification", labels=names, data_path=str(tmp_path / "{split}.pkl")
    )
    with pytest.raises(ValueError, match="the classes are numbered 1, 2, 3, 4, 5, 6, but labels has 7 names"):
        load_splits(data)
