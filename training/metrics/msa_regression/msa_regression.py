"""How well a sentiment's intensity is predicted: the numbers of the CMU-MOSI / MOSEI and of the CH-SIMS literature.

`evaluate.load("training/metrics/msa_regression", "mosi")`, or "sims" for CH-SIMS and CH-SIMS v2.
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score

_DESCRIPTION = """
Mean absolute error, Pearson correlation, and accuracies after cutting the intensity into classes, as MMSA does it.

"mosi" (CMU-MOSI, CMU-MOSEI; intensities in [-3, 3]): accuracy_7 and accuracy_5 clip both sides to [-3, 3] and
[-2, 2] and round (halves to the even number); accuracy_2 and f1 twice, as negative against non-negative over all
samples (accuracy_2_has0, f1_has0) and as negative against positive over the samples whose reference is not zero
(accuracy_2_non0, f1_non0). MAE and correlation are of the unclipped values.

"sims" (CH-SIMS, CH-SIMS v2; intensities in [-1, 1]): both sides are clipped to [-1, 1] for everything; accuracy_2
cuts at 0 (so 0 is negative), accuracy_3 at -0.1 and 0.1, accuracy_5 at -0.7, -0.1, 0.1 and 0.7, each interval closed
above; f1 is that of accuracy_2.

F1 is weighted by the references' class sizes.
"""

_INPUTS = """
Args:
    predictions (float [samples]): finite.
    references (float [samples]): finite.
Returns:
    a dict of floats as above with mae and correlation first, and `undefined` (dict from name to reason): a number that
    these samples do not define (the correlation when one side is constant, the non0 pair when every reference is
    zero) is left out of the dict and named there instead of becoming NaN.
Raises:
    ValueError: for no samples, two lengths, or values that are not finite.
"""

_CITATION = """
@inproceedings{mao2022msena,
  title={M-SENA: An Integrated Platform for Multimodal Sentiment Analysis},
  author={Mao, Huisheng and Yuan, Ziqi and Xu, Hua and Yu, Wenmeng and Liu, Yihe and Gao, Kai},
  booktitle={ACL System Demonstrations}, year={2022}}
"""


class MsaRegression(evaluate.Metric):
    def _info(self):
        if self.config_name not in ("mosi", "sims"):
            raise ValueError(f"msa_regression has the variants 'mosi' and 'sims', not {self.config_name!r}")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                predictions=datasets.Value("float64"),
                references=datasets.Value("float64"),
            ),
        )

    def _compute(self, predictions, references):
        predictions, references = _checked("predictions", predictions), _checked("references", references)
        if predictions.shape != references.shape:
            raise ValueError(f"predictions has {len(predictions)} values, references has {len(references)}")
        if self.config_name == "sims":
            return _sims(np.clip(predictions, -1, 1), np.clip(references, -1, 1))
        return _mosi(predictions, references)


def _mosi(predictions, references):
    result = _errors(predictions, references)
    for classes, bound in ((7, 3), (5, 2)):
        result[f"accuracy_{classes}"] = _share(
            np.round(np.clip(predictions, -bound, bound)) == np.round(np.clip(references, -bound, bound))
        )
    result |= _two_classes(predictions >= 0, references >= 0, "_has0")
    told = references != 0
    if told.any():
        result |= _two_classes(predictions[told] > 0, references[told] > 0, "_non0")
    else:
        result["undefined"] |= dict.fromkeys(("accuracy_2_non0", "f1_non0"), "every reference is zero")
    return result


def _sims(predictions, references):
    result = _errors(predictions, references)
    for cuts in ((0.0,), (-0.1, 0.1), (-0.7, -0.1, 0.1, 0.7)):
        # MMSA compares in single precision, where the data's 0.1 is the cut 0.1 and not a little above it
        classes = [np.searchsorted(np.float32(cuts), np.float32(side)) for side in (predictions, references)]
        result[f"accuracy_{len(cuts) + 1}"] = _share(classes[0] == classes[1])
    result["f1"] = _two_classes(predictions > 0, references > 0, "")["f1"]
    return result


def _errors(predictions, references):
    result = {"mae": float(np.mean(np.abs(predictions - references))), "undefined": {}}
    constant = [
        name
        for name, side in (("predictions", predictions), ("references", references))
        if np.ptp(side) <= 1e-9 * max(1.0, np.abs(side).max())
    ]
    if constant:
        result["undefined"]["correlation"] = f"{' and '.join(constant)} are constant"
    else:
        result["correlation"] = float(np.corrcoef(predictions, references)[0, 1])
    return result


def _two_classes(predictions, references, suffix):
    return {
        f"accuracy_2{suffix}": _share(predictions == references),
        f"f1{suffix}": float(f1_score(references, predictions, average="weighted", zero_division=0.0)),
    }


def _share(hits):
    return float(np.mean(hits))


def _checked(name, values):
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        found = f"{int((~np.isfinite(values)).sum())} of {len(values)} are not" if len(values) else "there is none"
        raise ValueError(f"{name} must be finite numbers, at least one; {found}")
    return values
