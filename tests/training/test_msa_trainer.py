"""What the trainer selects by."""

import math
from types import SimpleNamespace

import numpy as np

from training.msa_trainer import metrics_of
from training.run_msa import DataArguments


def test_silence_does_not_win_the_selection():
    answers, labels = np.array([[1.0, 0.0], [math.nan, 0.0]]), np.array([1.0, 2.0])
    metrics = metrics_of(DataArguments())(SimpleNamespace(predictions=answers, label_ids=labels))
    assert (metrics["mae"], metrics["mae_of_all"], metrics["unparsable"]) == (0.0, 3.0, 1)
