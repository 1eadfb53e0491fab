"""A head that begins where a linear probe of the LLM's states ends, instead of at random."""

import copy

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score

# of ridge regression, in samples; of logistic regression, inverse
RIDGE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
LOGISTIC_STRENGTHS = (0.001, 0.003, 0.01, 0.03)


class FittedHead:
    """What [`fit_head`] finds, the same for every seed of a run: it is done once, when the first of them asks."""

    def __init__(self, samples, answers):
        self.samples, self.answers, self.found = samples, answers, None

    def put_into(self, model):
        parts = (model.adapter.layer_mix, model.adapter.head)
        if self.found is None:
            penalty, score = fit_head(model, self.samples["train"], self.samples["valid"], self.answers)
            print(f"the head starts as a linear probe of penalty {penalty:g}: {score:.3f} on valid")
            self.found = [copy.deepcopy(part.state_dict()) for part in parts]
        for part, state in zip(parts, self.found, strict=True):
            part.load_state_dict(state)


@torch.no_grad()
def fit_head(model, train, valid, answers):
    """
    Fit the head of a model with the fusion "head" to the words of the training split: ridge regression, or logistic
    regression, whose penalty the validation split chooses.

    Args:
        model (MseForConditionalGeneration): its head and layer mix are set.
        train, valid (MsaSamples): with `llm_states`.
        answers (AnswerFormat)

    Returns:
        tuple: the penalty, and by it the score on `valid` (mean absolute error, or weighted F1).
    """
    adapter = model.adapter
    states = {"train": train.llm_states.float(), "valid": valid.llm_states.float()}
    adapter.layer_mix.fit(states["train"])
    inputs = {split: adapter.layer_mix(those).numpy() for split, those in states.items()}
    found = {}
    if answers.task == "regression":
        labels = {"train": numbers(train), "valid": numbers(valid)}
        for penalty in RIDGE_PENALTIES:
            probe = Ridge(alpha=penalty * len(train)).fit(inputs["train"], labels["train"])
            guesses = np.clip(probe.predict(inputs["valid"]), answers.candidates[0], answers.candidates[-1])
            found[penalty] = (np.abs(guesses - labels["valid"]).mean(), probe.coef_[None], [probe.intercept_])
        best = min(found, key=lambda penalty: found[penalty][0])
    else:
        labels = {"train": classes(train, answers), "valid": classes(valid, answers)}
        for strength in LOGISTIC_STRENGTHS:
            probe = LogisticRegression(C=strength, max_iter=300).fit(inputs["train"], labels["train"])
            score = f1_score(labels["valid"], probe.predict(inputs["valid"]), average="weighted")
            # a class that no sample has keeps an output of its own, far below
            weight = np.zeros((len(answers.labels), inputs["train"].shape[1]))
            bias = np.full(len(answers.labels), -10.0)
            weight[probe.classes_], bias[probe.classes_] = probe.coef_, probe.intercept_
            found[strength] = (score, weight, bias)
        best = max(found, key=lambda strength: found[strength][0])
    score, weight, bias = found[best]
    adapter.head[1].weight.copy_(torch.as_tensor(weight))
    adapter.head[1].bias.copy_(torch.as_tensor(bias))
    return best, float(score)


def numbers(samples):
    return np.array([float(label) for label in samples.labels])


def classes(samples, answers):
    return np.array([answers.index_of(label) for label in samples.labels])
