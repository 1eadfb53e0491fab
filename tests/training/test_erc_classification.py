"""The emotion metrics against counting by hand."""

from pathlib import Path

import evaluate
import pytest
from sklearn.metrics import accuracy_score, f1_score

FOLDER = Path(__file__).resolve().parents[2] / "training" / "metrics" / "erc_classification"


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(FOLDER))


def test_by_hand(metric):
    result = metric.compute(
        references=[0, 0, 0, 1, 1, 2], predictions=[0, 0, 1, 1, 0, 0], labels=["neutral", "joy", "anger"]
    )
    # neutral: precision 2/4, recall 2/3; joy: 1/2 and 1/2; anger is never answered
    f1 = {"neutral": 4 / 7, "joy": 1 / 2, "anger": 0.0}
    assert result["f1"] == pytest.approx(f1)
    assert result["weighted_f1"] == pytest.approx(3 / 6 * 4 / 7 + 2 / 6 * 1 / 2)
    assert result["accuracy"] == 3 / 6
    assert result["unparsable"] == 0


def test_agrees_with_scikit_learn(metric):
    references = [index % 7 for index in range(60)]
    predictions = [(index * index + index // 9) % 7 for index in range(60)]
    result = metric.compute(references=references, predictions=predictions)
    assert result["accuracy"] == pytest.approx(accuracy_score(references, predictions))
    assert result["weighted_f1"] == pytest.approx(f1_score(references, predictions, average="weighted"))


def test_a_constant_answer(metric):
    result = metric.compute(references=[0, 1, 2, 2], predictions=[2, 2, 2, 2])
    assert result["accuracy"] == 0.5
    assert result["weighted_f1"] == pytest.approx(0.5 * 2 / 3)


def test_an_answer_that_could_not_be_read_is_wrong_and_counted(metric):
    result = metric.compute(references=[0, 1], predictions=[-1, 1])
    assert (result["accuracy"], result["unparsable"]) == (0.5, 1)
    assert result["f1"] == {"0": 0.0, "1": 1.0}


@pytest.mark.parametrize("references, predictions", [([0, 3], [0, 0]), ([0, 1], [0, 3]), ([-1, 0], [0, 0]), ([], [])])
def test_an_index_that_is_no_class_is_an_error(metric, references, predictions):
    with pytest.raises(ValueError, match=r"^(predictions|references) "):
        metric.compute(references=references, predictions=predictions, labels=["a", "b", "c"])
