"""The sentiment metrics against independent computations: sums worked out by hand, scipy, and plain loops."""

import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr

FOLDER = Path(__file__).resolve().parents[2] / "training" / "metrics" / "msa_regression"


@pytest.fixture(scope="module")
def mosi():
    return evaluate.load(str(FOLDER), "mosi")


@pytest.fixture(scope="module")
def sims():
    return evaluate.load(str(FOLDER), "sims")


def weighted_f1(predictions, references):
    """F1 by counting, each class weighted by its share of the references."""
    total = 0.0
    for name in set(references):
        hits = sum(p == r == name for p, r in zip(predictions, references, strict=True))
        if hits:
            precision, recall = hits / predictions.count(name), hits / references.count(name)
            total += references.count(name) / len(references) * 2 * precision * recall / (precision + recall)
    return total


def test_mosi_by_hand(mosi):
    # zeros on both sides, halves (2.5 and -0.5 round to the even 2 and -0), values beyond the range
    references = [0.0, 3.0, -2.5, 1.0, -0.5, 2.0, 0.0, -3.0]
    predictions = [0.0, 4.2, -2.0, -1.0, 0.5, 2.5, -0.1, -2.6]
    result = mosi.compute(predictions=predictions, references=references)
    assert result["mae"] == pytest.approx((0 + 1.2 + 0.5 + 2 + 1 + 0.5 + 0.1 + 0.4) / 8)
    assert result["correlation"] == pytest.approx(pearsonr(predictions, references).statistic)
    assert result["accuracy_7"] == 7 / 8  # only 1.0 against -1.0 falls into another class
    assert result["accuracy_5"] == 7 / 8
    assert result["accuracy_2_has0"] == 5 / 8  # wrong: 1.0, -0.5 and the zero answered by -0.1
    assert result["accuracy_2_non0"] == 4 / 6
    has0 = [["neg", "pos"][value >= 0] for value in predictions], [["neg", "pos"][value >= 0] for value in references]
    assert result["f1_has0"] == pytest.approx(weighted_f1(*has0))
    told = [(p > 0, r > 0) for p, r in zip(predictions, references, strict=True) if r != 0]
    assert result["f1_non0"] == pytest.approx(weighted_f1(*map(list, zip(*told, strict=True))))
    assert result["undefined"] == {}


def test_an_answer_of_exactly_zero_is_not_negative_with_zeros_and_not_positive_without(mosi):
    result = mosi.compute(predictions=[0.0, 0.0], references=[1.0, -1.0])
    assert (result["accuracy_2_has0"], result["accuracy_2_non0"]) == (0.5, 0.5)
    result = mosi.compute(predictions=[0.0], references=[1.0])
    assert (result["accuracy_2_has0"], result["accuracy_2_non0"]) == (1.0, 0.0)


def test_sims_by_hand(sims):
    # every cut itself belongs to the class below it, also in the single precision of the data's files
    references = [float(np.float32(value)) for value in (-1.0, -0.7, -0.1, 0.0, 0.1, 0.7, 1.0, 0.8)]
    predictions = [-1.8, -0.69, -0.1, 0.01, 0.2, 0.6, 0.71, 5.0]
    result = sims.compute(predictions=predictions, references=references)
    assert result["accuracy_2"] == 7 / 8  # 0.0 against 0.01
    assert result["accuracy_3"] == 7 / 8  # 0.1 against 0.2
    assert result["accuracy_5"] == 6 / 8  # and -0.7 against -0.69
    assert result["mae"] == pytest.approx((0 + 0.01 + 0 + 0.01 + 0.1 + 0.1 + 0.29 + 0.2) / 8)
    assert result["correlation"] == pytest.approx(pearsonr(np.clip(predictions, -1, 1), references).statistic)
    signs = [value > 0 for value in predictions], [value > 0 for value in references]
    assert result["f1"] == pytest.approx(weighted_f1(*signs))


@pytest.mark.parametrize("variant", ["mosi", "sims"])
def test_perfect_answers(variant, mosi, sims):
    values = [-1.0, -0.4, 0.0, 0.2, 1.0]
    result = {"mosi": mosi, "sims": sims}[variant].compute(predictions=values, references=values)
    assert result.pop("mae") == 0
    assert result.pop("undefined") == {}
    assert list(result.values()) == pytest.approx([1.0] * len(result))


@pytest.mark.parametrize("constant", [0.0, 0.1, -2.0])
def test_a_constant_prediction_has_no_correlation_and_says_so(mosi, constant):
    result = mosi.compute(predictions=[constant] * 3, references=[-1.0, 0.5, 2.0])
    assert "correlation" not in result
    assert result["undefined"] == {"correlation": "predictions are constant"}
    assert all(np.isfinite(value) for name, value in result.items() if name != "undefined")


def test_only_zeros_as_references(mosi):
    result = mosi.compute(predictions=[0.5, -0.5], references=[0.0, 0.0])
    assert set(result["undefined"]) == {"correlation", "accuracy_2_non0", "f1_non0"}
    assert result["accuracy_2_has0"] == 0.5


@pytest.mark.parametrize("predictions", [[1.0, float("nan")], [1.0, float("inf")]])
def test_an_answer_that_is_no_number_is_an_error(mosi, predictions):
    with pytest.raises(ValueError, match="predictions must be finite numbers"):
        mosi.compute(predictions=predictions, references=[1.0, 2.0])


def test_an_unknown_variant_is_an_error():
    with pytest.raises(ValueError, match="'mosi' and 'sims'"):
        evaluate.load(str(FOLDER), "sst")


def test_loads_without_a_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert evaluate.load(str(FOLDER), "sims").compute(predictions=[0.5], references=[0.5])["accuracy_5"] == 1
