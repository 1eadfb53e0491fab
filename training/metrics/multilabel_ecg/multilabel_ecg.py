"""How well several labels per recording are found: the numbers of the PTB-XL benchmark and of CPSC 2018.

`evaluate.load("training/metrics/multilabel_ecg")` gives the module; `tune_thresholds` chooses what it takes as
`thresholds`.
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

_DESCRIPTION = """
Macro ROC-AUC, macro average precision (AUPRC), macro F1 and accuracy of multi-label predictions, with the same for
each class. A class without a positive or without a negative record has no ROC-AUC: it is left out of every macro
average and named in `left_out`.
"""

_INPUTS = """
Args:
    predictions (float [records, classes]): probabilities, finite.
    references (int [records, classes]): 1 where the record has the label, else 0.
    thresholds (float or list[float], optional): the probability from which a label counts as found, one for all
        classes (0.5 by default) or one for each.
    labels (list[str], optional): names of the classes; "0", "1", ... by default.
Returns:
    macro_auc, macro_auprc, macro_f1 (means over the classes that are not left out), accuracy (share of correct
    decisions over all records and classes), exact_match (share of records with every decision correct), auc, auprc,
    f1 (dict from class to number) and left_out (list of classes).
Raises:
    ValueError: for shapes that do not fit, references other than 0 and 1, predictions that are not finite, or when
        every class would be left out.
"""

_CITATION = """
@article{strodthoff2021ptbxl,
  title={Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL},
  author={Strodthoff, Nils and Wagner, Patrick and Schaeffter, Tobias and Samek, Wojciech},
  journal={IEEE Journal of Biomedical and Health Informatics}, year={2021}}
"""


class MultilabelEcg(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                predictions=datasets.List(datasets.Value("float64")),
                references=datasets.List(datasets.Value("int32")),
            ),
        )

    def _compute(self, predictions, references, thresholds=0.5, labels=None):
        predictions, references = _checked(predictions, references)
        num_classes = references.shape[1]
        labels = [str(index) for index in range(num_classes)] if labels is None else list(labels)
        thresholds = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), np.shape(thresholds) or (num_classes,))
        for name, given in (("labels", labels), ("thresholds", thresholds)):
            if len(given) != num_classes:
                raise ValueError(f"{name} has {len(given)} entries; expected one for each of {num_classes} classes")

        found = predictions >= thresholds
        usable = _has_both(references)
        if not usable.any():
            raise ValueError("references hold no class with both positive and negative records; nothing to measure")
        kept = np.flatnonzero(usable)

        def of_each(measure, scores):
            return {labels[index]: float(measure(references[:, index], scores[:, index])) for index in kept}

        each = {
            "auc": of_each(roc_auc_score, predictions),
            "auprc": of_each(average_precision_score, predictions),
            "f1": of_each(lambda truth, decision: f1_score(truth, decision, zero_division=0.0), found),
        }
        correct = found == (references == 1)
        return {
            **{f"macro_{name}": float(np.mean(list(values.values()))) for name, values in each.items()},
            "accuracy": float(correct.mean()),
            "exact_match": float(correct.all(axis=1).mean()),
            **each,
            "left_out": [labels[index] for index in np.flatnonzero(~usable)],
        }


# tuned on a handful of positives it may be tiny; zero would find everything everywhere
SMALLEST_THRESHOLD = 0.1


def tune_thresholds(predictions, references):
    """
    The threshold of each class that maximises its F1 on these records (`score >= threshold` counts as found).

    It lies midway between the lowest score that should count and the next one below, so that rounding a score does
    not flip a decision. A class without a positive record has nothing to tune on and gets 0.5; what was tuned on a
    handful may be tiny, and is raised to 0.1: nobody is helped by what is found at 1 %.

    Args:
        predictions (float [records, classes]): probabilities.
        references (int [records, classes]): 1 where the record has the label, else 0.

    Returns:
        `list[float]`: one threshold per class.
    """
    predictions, references = _checked(predictions, references)
    return [
        _best_threshold(predictions[:, index], references[:, index]) if references[:, index].any() else 0.5
        for index in range(references.shape[1])
    ]


def _best_threshold(scores, truth):
    precision, recall, candidates = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[:-1]))  # the last point of the curve has no threshold
    below = candidates[best - 1] if best else 0.0
    return max(float((candidates[best] + below) / 2), SMALLEST_THRESHOLD)


def _has_both(references):
    return references.any(axis=0) & (references == 0).any(axis=0)


def _checked(predictions, references):
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references)
    if predictions.shape != references.shape or predictions.ndim != 2 or 0 in predictions.shape:
        raise ValueError(
            f"predictions are {predictions.shape} and references {references.shape}; expected two equal "
            "[records, classes]"
        )
    if not np.isfinite(predictions).all():
        raise ValueError("predictions hold NaN or infinity; expected finite probabilities")
    if not np.isin(references, (0, 1)).all():
        raise ValueError("references hold values other than 0 and 1; expected 1 for a label that the record has")
    return predictions, references
