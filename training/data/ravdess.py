"""RAVDESS as the file of action units and MFCCs that goes around: a dictionary id -> vector, without words or labels.

The id is RAVDESS's own file name, modality-channel-emotion-intensity-statement-repetition-actor, and spells everything
out. Whoever chooses this loader says that it may be read so; the id itself is not passed on to a model.
"""

from training.data.msa_pickles import load_feature_dictionary_pickle

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("Kids are talking by the door.", "Dogs are sitting by the door.")
# 35 means of OpenFace's action units, then 259 statistics of MFCCs
COLUMNS = {"vision": (0, 35), "audio": (35, 294)}


def load_ravdess_features(path):
    """Load the file, split by actor: 1-18 for training, 19-21 for validation, 22-24 for the test.

    Args:
        path (str or Path): the pickle, read as `load_pickle` does.

    Returns:
        dict[str, Dataset]: train, valid and test; audio [1, 259], vision [1, 35], labels of `EMOTIONS`.

    Raises:
        OSError, UnsafePickleError: as `load_pickle`.
        ValueError: an id is not one of RAVDESS's, or the vectors are not of 294 numbers.
    """

    def describe(sample_id):
        fields = sample_id.split("-")
        numbers = [int(field) for field in fields if field.isdigit()]
        if len(fields) != 7 or len(numbers) != 7 or not (1 <= numbers[2] <= 8 and 1 <= numbers[4] <= 2):
            raise ValueError(f"{path}: {sample_id!r} is not an id of RAVDESS such as 03-01-06-01-02-01-12")
        emotion, statement, actor = numbers[2], numbers[4], numbers[6]
        return {
            "label": EMOTIONS[emotion - 1],
            "text": STATEMENTS[statement - 1],
            "speaker": f"Actor_{actor:02}",
            "split": "train" if actor <= 18 else "valid" if actor <= 21 else "test",
        }

    return load_feature_dictionary_pickle(path, COLUMNS, describe)
