"""The tuples of dictionaries that research on emotion in conversation passes around (IEMOCAP, MELD).

One pickle holds, each a dictionary of the dialogue's id, the utterances' ids, speakers and labels, features of text,
possibly of audio and vision, and the sentences; then the ids of the dialogues for training and for the test. How many
there are, and what follows, differs from file to file: (ids, speakers, labels, text, audio, vision, sentences, train,
test) for IEMOCAP, without vision for MELD and with sentiment labels behind, several embeddings of the text in later
ones. The last two features before the sentences are audio and vision where there are three or more, and the last one
is audio where there are two.
"""

import numpy as np

from training.data.msa_samples import as_text, samples_to_dataset
from training.data.restricted_pickle import load_pickle

# of IEMOCAP's numbers, as all these files have them
IEMOCAP_LABELS = ("happy", "sad", "neutral", "angry", "excited", "frustrated")


def load_conversations(path):
    """
    Load such a file. It has no validation split: the last tenth of the training dialogues (in the file's order, or
    sorted where the file has a set of them) becomes one (a choice).

    Args:
        path (str or Path): the pickle, read as `load_pickle` does.

    Returns:
        dict[str, Dataset]: train, valid and test, with dialogues, turns and speakers; labels are the numbers that the
        file has, as names: `labels` of the training script, such as `IEMOCAP_LABELS`, replaces them.

    Raises:
        OSError, UnsafePickleError: as `load_pickle`.
        ValueError: the content is not of this layout; the message names dialogue and field.
    """
    content = load_pickle(path)
    entries = content if isinstance(content, tuple | list) else ()
    sets = [place for place, entry in enumerate(entries) if _is_ids(entry)]
    if len(sets) < 2 or sets[0] < 5 or not all(isinstance(entry, dict) for entry in content[: sets[0]]):
        raise ValueError(
            f"{path} is not in the layout of conversations: expected a tuple of dictionaries by dialogue (ids, "
            "speakers, labels, text, audio, vision, sentences), then the dialogues of train and test"
        )
    ids, speakers, labels, *features, sentences = content[: sets[0]]
    features = {"audio": features[-2], "vision": features[-1]} if len(features) > 2 else {"audio": features[-1]}
    train, test = (_in_order(content[place]) for place in sets[:2])
    if shared := sorted(set(map(str, train)) & set(map(str, test))):
        raise ValueError(f"{path} has the dialogues {shared[:3]} in train and in test; expected each in one")
    kept = len(train) - len(train) // 10
    splits = {"train": train[:kept], "valid": train[kept:], "test": test}
    columns = {"speaker": speakers, "label": labels, "text": sentences} | features
    return {
        split: samples_to_dataset(_samples(dialogues, ids, columns, path), "classification", f"{path}, {split}")
        for split, dialogues in splits.items()
        if dialogues
    }


def _samples(dialogues, ids, columns, path):
    for dialogue in dialogues:
        name = as_text(dialogue, f"{path}: a dialogue's id")
        size = len(ids.get(dialogue, ()))
        for field, column in columns.items():
            if len(column.get(dialogue, ())) != size or not size:
                raise ValueError(
                    f"{path}, dialogue {name}: {field} has {len(column.get(dialogue, ()))} entries, the ids {size}"
                )
        for turn in range(size):
            sample = {field: column[dialogue][turn] for field, column in columns.items()}
            sample["speaker"] = _speaker(sample["speaker"], f"{path}, dialogue {name}: speaker")
            yield sample | {"id": f"{name}_{turn}", "dialogue_id": name, "utterance_id": turn}


def _speaker(value, name):
    """A name, or of a row of zeros and a one its place."""
    if np.size(value) > 1 and not isinstance(value, str | bytes):
        return f"speaker {int(np.argmax(value)) + 1}"
    return as_text(value, name)


def _is_ids(entry):
    return isinstance(entry, set | frozenset | list | tuple | np.ndarray)


def _in_order(dialogues):
    return sorted(dialogues, key=str) if isinstance(dialogues, set | frozenset) else list(dialogues)
