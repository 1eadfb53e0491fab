"""How well emotions are recognised: accuracy and weighted F1, as the literature on MELD, CHERMA and IEMOCAP reports.

`evaluate.load("training/metrics/erc_classification")` gives the module.
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score

_DESCRIPTION = """
Accuracy and F1 weighted by the references' class sizes. A class that is predicted and never right, or in the
references and never predicted, has an F1 of zero. A prediction of -1 stands for an answer that could not be read: it
is wrong, and counted in `unparsable`.
"""

_INPUTS = """
Args:
    predictions (int [samples]): class indices, -1 where an answer could not be read.
    references (int [samples]): class indices.
    labels (list[str], optional): names of the classes; "0", "1", ... by default.
Returns:
    accuracy, weighted_f1, f1 (dict from the name of each class in the references to its F1) and unparsable (count).
Raises:
    ValueError: for no samples, two lengths, or an index that is no class.
"""

_CITATION = """
@inproceedings{poria2019meld,
  title={MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations},
  author={Poria, Soujanya and Hazarika, Devamanyu and Majumder, Navonil and Naik, Gautam and Cambria, Erik and
          Mihalcea, Rada},
  booktitle={ACL}, year={2019}}
"""


class ErcClassification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(predictions=datasets.Value("int64"), references=datasets.Value("int64")),
        )

    def _compute(self, predictions, references, labels=None):
        predictions, references = np.asarray(predictions), np.asarray(references)
        if not len(references) or predictions.shape != references.shape:
            raise ValueError(
                f"predictions has {len(predictions)} classes, references has {len(references)}; expected as "
                "many, at least one"
            )
        classes = np.unique(references)
        num_classes = len(labels) if labels is not None else max(references.max(), predictions.max()) + 1
        for name, side, lowest in (("predictions", predictions, -1), ("references", references, 0)):
            if side.min() < lowest or side.max() >= num_classes:
                raise ValueError(f"{name} must lie in [{lowest}, {num_classes}), found {side.min()} to {side.max()}")
        labels = [str(index) for index in range(num_classes)] if labels is None else labels
        # one F1 per class of the references: the others have no weight
        f1 = f1_score(references, predictions, labels=classes, average=None, zero_division=0.0)
        weights = np.array([(references == index).mean() for index in classes])
        return {
            "accuracy": float(np.mean(predictions == references)),
            "weighted_f1": float(f1 @ weights),
            "f1": {labels[index]: float(value) for index, value in zip(classes, f1, strict=True)},
            "unparsable": int((predictions == -1).sum()),
        }
