"""The ECG metrics against scikit-learn and against numbers worked out by hand."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from training.metrics.multilabel_ecg.multilabel_ecg import tune_thresholds

FOLDER = Path(__file__).resolve().parents[2] / "training" / "metrics" / "multilabel_ecg"


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(FOLDER))


@pytest.fixture
def scored():
    generator = np.random.default_rng(0)
    references = (generator.random((60, 4)) < (0.5, 0.2, 0.05, 0.8)).astype(int)
    references[0] = 1 - references[1]  # both values in every class
    predictions = np.clip(0.3 * references + 0.7 * generator.random((60, 4)), 0, 1)
    return predictions.round(1), references  # rounded: scores tie


def test_agrees_with_scikit_learn(metric, scored):
    predictions, references = scored
    thresholds = [0.5, 0.4, 0.7, 0.2]
    result = metric.compute(predictions=predictions, references=references, thresholds=thresholds)
    found = predictions >= thresholds
    assert result["macro_auc"] == pytest.approx(roc_auc_score(references, predictions, average="macro"))
    assert result["macro_auprc"] == pytest.approx(average_precision_score(references, predictions, average="macro"))
    assert result["macro_f1"] == pytest.approx(f1_score(references, found, average="macro"))
    assert result["auc"]["2"] == pytest.approx(roc_auc_score(references[:, 2], predictions[:, 2]))
    assert result["accuracy"] == pytest.approx((found == references).mean())
    assert result["left_out"] == []


def test_by_hand(metric):
    result = metric.compute(
        predictions=[[0.9, 0.2], [0.6, 0.8], [0.4, 0.5], [0.1, 0.7]],
        references=[[1, 0], [0, 1], [1, 0], [0, 0]],
        labels=["AF", "PVC"],
    )
    assert result["auc"] == {"AF": 0.75, "PVC": 1.0}  # AF: of four pairs one is out of order
    assert result["auprc"] == {"AF": pytest.approx((1 + 2 / 3) / 2), "PVC": 1.0}
    assert result["f1"] == {"AF": 0.5, "PVC": 0.5}  # 0.5 counts as found
    assert (result["accuracy"], result["exact_match"]) == (0.5, 0.25)


def test_a_class_without_positives_or_negatives_is_left_out_and_named(metric, scored):
    predictions, references = scored
    alone = metric.compute(predictions=predictions[:, :2], references=references[:, :2])
    references = references.copy()
    references[:, 2], references[:, 3] = 0, 1
    result = metric.compute(predictions=predictions, references=references, labels=["a", "b", "never", "always"])
    assert result["left_out"] == ["never", "always"]
    assert set(result["auc"]) == {"a", "b"}
    for name in ("macro_auc", "macro_auprc", "macro_f1"):
        assert result[name] == alone[name]


def test_tuned_thresholds_reach_the_best_f1(scored):
    predictions, references = scored
    thresholds = tune_thresholds(predictions, references)
    for index, threshold in enumerate(thresholds):
        truth, scores = references[:, index], predictions[:, index]
        best = max(f1_score(truth, scores >= candidate) for candidate in np.linspace(0, 1, 101))
        assert f1_score(truth, scores >= threshold) == pytest.approx(best)
        assert np.abs(scores - threshold).min() > 1e-3  # between two scores, not on one


def test_a_class_without_positives_keeps_one_half(scored):
    predictions, references = scored
    assert tune_thresholds(predictions, np.zeros_like(references)) == [0.5] * 4


def test_nothing_is_found_at_a_hundredth():
    """One positive record whose score is the highest, and low: its best F1 lies there."""
    scores, truth = np.full((200, 1), 0.001), np.zeros((200, 1), dtype=int)
    scores[7], truth[7] = 0.012, 1
    assert tune_thresholds(scores, truth) == [0.1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [[0.5, np.nan]]}, "NaN"),
        ({"predictions": [[0.5]]}, r"\(1, 1\)"),
        ({"references": [[1, 2]]}, "other than 0 and 1"),
        ({"thresholds": [0.5, 0.5, 0.5]}, "thresholds has 3"),
        ({"labels": ["one"]}, "labels has 1"),
        ({"references": [[1, 0]]}, "no class with both"),
    ],
)
def test_bad_input_is_named(metric, change, message):
    given = {"predictions": [[0.5, 0.2]], "references": [[1, 0]], **change}
    with pytest.raises(ValueError, match=message):
        metric.compute(**given)
