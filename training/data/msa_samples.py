"""The one shape that every loader brings its samples into, and the cleaning that all of them share.

A sample is a row of a `datasets.Dataset` with the columns of `sample_features`: id, dialogue_id, utterance_id,
speaker, text, audio [time, audio_dim], vision [time, vision_dim], label, their numbers of steps, how many values of
each were replaced because they were no finite numbers, and where padding was cut from each (`msa_padding.PADDINGS`).
"""

import re
from collections import Counter

import numpy as np
from datasets import Array2D, Dataset, Features, Value

from training.data.msa_padding import PADDINGS

MODALITIES = ("audio", "vision")
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}
SPLITS = tuple(SPLIT_NAMES)


def sample_features(audio_dim, vision_dim, task):
    """The columns of a sample: labels are float32 in a "regression" task, names in a "classification" task."""
    return Features(
        {
            "id": Value("string"),
            "dialogue_id": Value("string"),
            "utterance_id": Value("int64"),
            "speaker": Value("string"),
            "text": Value("string"),
            "audio": Array2D((None, audio_dim), "float32"),
            "vision": Array2D((None, vision_dim), "float32"),
            "label": Value("float32" if task == "regression" else "string"),
            "audio_steps": Value("int64"),
            "vision_steps": Value("int64"),
            "audio_replaced": Value("int64"),
            "vision_replaced": Value("int64"),
            "audio_padding": Value("string"),
            "vision_padding": Value("string"),
        }
    )


def clean_features(values, name):
    """Feature values as float32 [time, dim], every NaN and infinity replaced.

    It becomes the mean of the finite values of its feature in this sequence, or zero where there is none. (A choice:
    MMSA writes zero always, which lies far outside a feature like a log energy, whose silence is the usual culprit.)
    A single vector [dim] becomes one step; None becomes no step.

    Returns:
        tuple: the array and the number of replaced values.

    Raises:
        ValueError: the values are no numbers or have more than two axes; `name` says whose they are.
    """
    if values is None or len(values) == 0:
        return np.zeros((0, 0), dtype=np.float32), 0
    try:
        if isinstance(values, bytes | bytearray | memoryview | str):
            # numpy would take the bytes of a file for numbers from 0 to 255
            raise TypeError(f"it is {type(values).__name__}")
        # parquet gives an object array of rows
        is_nested = not isinstance(values, np.ndarray) or values.dtype == object
        array = np.stack(values) if is_nested else values
        # None among numbers makes them objects, and becomes NaN
        if array.dtype.kind not in "biufO":
            raise TypeError(f"it holds {array.dtype}")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers [time, dim] with one dim for all steps: {error}") from None
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(f"{name} must be [time, dim] but has the shape {array.shape}")
    finite = np.isfinite(array)
    replaced = int(array.size - finite.sum())
    if replaced:
        known = np.where(finite, array, np.float32(0))
        means = known.sum(axis=0, dtype=np.float64) / np.maximum(finite.sum(axis=0), 1)
        array = np.where(finite, array, means.astype(np.float32))
    return array, replaced


def split_sample_id(sample_id):
    """`(dialogue_id, utterance_id)` of `video$_$3`, `video/0003` or `video_3`; without a number the utterance is 0."""
    match = re.fullmatch(r"(.+?)(?:\$_\$|/|_)(\d+)", sample_id)
    return (match[1], int(match[2])) if match else (sample_id, 0)


def clean_sample(sample, task, source):
    """Bring one loader's dict into the shape of a sample; the features' widths stay as they come.

    Args:
        sample (dict): id, text, label and, as far as known, audio, vision, dialogue_id, utterance_id, speaker,
            audio_padding, vision_padding.
        task (str): "regression" asks for finite numbers as labels, "classification" for names or whole numbers.
        source (str): named in errors.

    Raises:
        ValueError: a label that does not suit the task, or features that are not [time, dim].
    """
    if sample.get("id") is None:
        raise ValueError(f"{source}: a sample has no id")
    sample_id = as_text(sample["id"], f"{source}: id")
    name = f"{source}, sample {sample_id}"
    dialogue_id, utterance_id = split_sample_id(sample_id)
    text = as_text(sample.get("text"), f"{name}: text", numbers=False)
    given = {
        field: as_text(sample[field], f"{name}: {field}")
        for field in ("dialogue_id", "utterance_id", "speaker")
        if sample.get(field) is not None
    }
    try:
        number = int(float(given["utterance_id"])) if "utterance_id" in given else utterance_id
    except ValueError:
        raise ValueError(f"{name}: utterance_id must be a number, but is {given['utterance_id']!r}") from None
    row = {
        "id": sample_id,
        "dialogue_id": given.get("dialogue_id", dialogue_id),
        "utterance_id": number,
        "speaker": given.get("speaker", ""),
        "text": text,
        "label": _label_for(task, sample.get("label"), name),
    }
    for modality in MODALITIES:
        values, replaced = clean_features(sample.get(modality), f"{name}: {modality}")
        row |= {modality: values, f"{modality}_steps": len(values), f"{modality}_replaced": replaced}
        row |= {f"{modality}_padding": sample.get(f"{modality}_padding", "none")}
    return row


def as_text(value, name, numbers=True):
    """A text, bytes in UTF-8 or (with `numbers`) a number as `str`, also as the one entry of an array.

    Raises:
        ValueError: it is something else; `name` says what.
    """
    value = value.item() if isinstance(value, np.generic | np.ndarray) and np.size(value) == 1 else value
    try:
        value = value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be UTF-8, but is not: {error}") from None
    if isinstance(value, str) or (numbers and isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"{name} must be a string, but is {value!r}")


def fit_widths(rows, widths, source):
    """Yield the rows of `clean_sample`, checked against each other and with modalities of `widths` columns each.

    Raises:
        ValueError: an id occurs twice, or a modality comes in another width.
    """
    seen = set()
    for row in rows:
        if row["id"] in seen:
            raise ValueError(f"{source}: the id {row['id']} occurs twice")
        seen.add(row["id"])
        for modality, width in widths.items():
            values = row[modality]
            if len(values) and values.shape[1] != width:
                raise ValueError(
                    f"{source}, sample {row['id']}: {modality} has {values.shape[1]} columns, the others have {width}"
                )
            row[modality] = values.reshape(-1, width)
        yield row


def widths_of(rows):
    """`{modality: width}` from the first row that has the modality; 1 where none has, so that a column can exist."""
    widths = {}
    for row in rows:
        for modality in MODALITIES:
            if len(row[modality]):
                widths.setdefault(modality, row[modality].shape[1])
        if len(widths) == len(MODALITIES):
            break
    return {modality: widths.get(modality, 1) for modality in MODALITIES}


def samples_to_dataset(samples, task, source):
    """Turn dicts as `clean_sample` takes them into a Dataset in memory, in numpy format.

    Raises:
        ValueError: no sample, or whatever `clean_sample` and `fit_widths` find wrong.
    """
    rows = [clean_sample(sample, task, source) for sample in samples]
    if not rows:
        raise ValueError(f"{source} holds no samples")
    widths = widths_of(rows)
    rows = list(fit_widths(rows, widths, source))
    features = sample_features(widths["audio"], widths["vision"], task)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features).with_format("numpy")


def count_replaced(dataset):
    """`{modality: {"values": n, "samples": m}}`: how many NaN and infinities were there, and in how many samples."""
    counts = {}
    for modality in MODALITIES:
        replaced = np.asarray(dataset[f"{modality}_replaced"][:])
        counts[modality] = {"values": int(replaced.sum()), "samples": int((replaced > 0).sum())}
    return counts


def count_padding(dataset):
    """`{modality: {padding: samples}}` of the clips that had padding, see `msa_padding.PADDINGS`."""
    counts = {}
    for modality in MODALITIES:
        found = Counter(map(str, dataset[f"{modality}_padding"][:]))
        counts[modality] = {padding: found[padding] for padding in PADDINGS[1:] if found[padding]}
    return counts


def _label_for(task, label, name):
    label = label.item() if isinstance(label, np.generic | np.ndarray) and np.size(label) == 1 else label
    if task == "regression":
        if isinstance(label, int | float) and np.isfinite(label):
            return float(label)
        raise ValueError(f"{name}: the label must be a finite number, but is {label!r}")
    if isinstance(label, bytes):
        label = as_text(label, f"{name}: the label")
    # CHERMA's and IEMOCAP's files number their classes
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, str | int) and str(label).strip():
        return str(label)
    raise ValueError(f"{name}: the label must be the name or number of a class, but is {label!r}")
