"""Generated clips of three modalities, for a demonstration and for tests that download nothing.

A speaker says something about a film, in a tone, with a face. Words, tone and face each carry a sentiment of their
own, drawn independently from -1, -0.5, 0, 0.5 and 1; the clip's label is their sum. So each modality explains a third
of the label's variance, and whoever lacks one can do no better than an error of its mean deviation, 0.6.
"""

import numpy as np

from training.data.msa_samples import SPLITS, samples_to_dataset

LABEL_RANGE = (-3.0, 3.0)
LABEL_STEP = 0.5
CLASSES = ("negative", "neutral", "positive")

_LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
_VERBS = {-1.0: ("hated", "loathed"), -0.5: ("disliked", "regretted"), 0.0: ("watched", "saw")}
_VERBS |= {0.5: ("liked", "enjoyed"), 1.0: ("loved", "adored")}
_SUBJECTS = ("i", "we", "my friends", "most people there")
_OBJECTS = ("the film", "the music", "the ending", "every scene", "that actor")
_PLACES = ("", " last night", " at the cinema", " with the whole family")

AUDIO_DIM = 8
VISION_DIM = 6


def load_simulated_msa(num_samples=1200, task="regression", seed=0):
    """Generate train, valid and test in the proportion 4 : 1 : 1.

    Audio [20 to 60 steps, 8] is a pitch that rises or falls with the tone, an energy that grows with it, and six
    distractors; vision [10 to 30 steps, 6] a mouth corner and a brow that move with the face, and four distractors.
    All of it is noisy and offset by the speaker.

    Args:
        num_samples (int): of all splits together, at least six.
        task (str): "regression" labels are sums in [-3, 3] in steps of 0.5; "classification" ones their signs as
            negative, neutral and positive.
        seed (int): the same seed gives the same data.

    Returns:
        dict[str, Dataset]: by split.
    """
    if num_samples < 6:
        raise ValueError(f"num_samples must be at least 6, one for the smallest split, but is {num_samples}")
    generator = np.random.default_rng(seed)
    samples = [_sample(index, task, generator) for index in range(num_samples)]
    held_out = num_samples // 6
    starts = (0, num_samples - 2 * held_out, num_samples - held_out, num_samples)
    return {
        split: samples_to_dataset(samples[starts[index] : starts[index + 1]], task, f"simulated {split}")
        for index, split in enumerate(SPLITS)
    }


def _sample(index, task, generator):
    words, tone, face = generator.choice(_LEVELS, size=3)
    total = float(words + tone + face)
    text = f"{generator.choice(_SUBJECTS)} {generator.choice(_VERBS[words])} {generator.choice(_OBJECTS)}"
    return {
        "id": f"clip{index // 10}_{index % 10}",
        "speaker": f"speaker {index // 10}",
        "text": text + generator.choice(_PLACES),
        "audio": _noisy(int(generator.integers(20, 61)), AUDIO_DIM, generator, slope=tone, level=tone),
        "vision": _noisy(int(generator.integers(10, 31)), VISION_DIM, generator, slope=-face, level=face),
        "label": total if task == "regression" else CLASSES[int(np.sign(total)) + 1],
    }


def _noisy(num_steps, dim, generator, slope, level):
    """[num_steps, dim] of noise: the first column drifts by `slope` to either side, the second stands at `level`."""
    values = generator.normal(scale=0.5, size=(num_steps, dim)) + generator.normal(scale=0.2, size=dim)
    values[:, 0] += 2 * slope * np.linspace(-1, 1, num_steps)
    values[:, 1] += level
    return values.astype(np.float32)
