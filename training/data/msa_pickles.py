"""The pickles that multimodal sentiment analysis passes around, read without running a line of them (`load_pickle`).

Three layouts:

- MMSA's (MOSI, MOSEI, CH-SIMS, CH-SIMS v2; aligned or not): split -> {raw_text, audio, vision, id, audio_lengths,
  vision_lengths, regression_labels, ...}, one file for all splits;
- MSE-Adapter's (MELD, CHERMA, IEMOCAP): a list of {features: {text, audio, video, audio_len, video_len}, label}, one
  file per split;
- a dictionary id -> feature vector, as feature files of RAVDESS come.
"""

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np

from training.data.arrow_cache import shared_dataset
from training.data.msa_padding import without_padding
from training.data.msa_samples import (
    MODALITIES,
    SPLIT_NAMES,
    SPLITS,
    clean_sample,
    fit_widths,
    sample_features,
    samples_to_dataset,
)
from training.data.restricted_pickle import ArrayInFile, load_pickle

logger = logging.getLogger(__name__)

# raise it when what is read here gives other rows than before: it keeps old caches from being used
CACHE_VERSION = 1
# of features that are read at once
CHUNK_BYTES = 8 << 20
MMSA_FIELDS = ("id", "raw_text", "regression_labels", "audio_lengths", "vision_lengths")
# the field's other names, of modalities, their lengths and the label
OTHER_NAMES = {"video": "vision", "visual": "vision", "acoustic": "audio"}
MMSA_ALIASES = OTHER_NAMES | {f"{other}_lengths": f"{own}_lengths" for other, own in OTHER_NAMES.items()}
MMSA_ALIASES |= {"labels": "regression_labels"}
MSE_ADAPTER_ALIASES = OTHER_NAMES | {
    f"{name}_{ending}": f"{own}_len"
    for name, own in (OTHER_NAMES | {"audio": "audio", "vision": "vision"}).items()
    for ending in ("len", "length", "lengths")
}
# arrays that these files hold beside audio and vision: embeddings of the text, labels of single modalities
KNOWN_FEATURES = ("text", "text_bert", "glove", "bert", "classification_labels", "regression_labels")


def load_mmsa_pickle(path, cache_dir=None):
    """Load a pickle in MMSA's layout (CMU-MOSI, CMU-MOSEI, CH-SIMS, CH-SIMS v2; aligned or unaligned).

    The label is `regression_labels` (the multimodal one of the SIMS family). What is padding in audio and vision is
    found as `without_padding` says, with `audio_lengths` and `vision_lengths` where the file has them. The features
    are never all in memory: they go from the file into an Arrow cache, which processes share.

    Args:
        path (str or Path): the pickle.
        cache_dir (str, optional): place of the Arrow cache instead of the one of `datasets`.

    Returns:
        dict[str, Dataset]: by split, of those of train, valid (or validation, dev, val) and test that the file has.

    Raises:
        OSError, UnsafePickleError: as `load_pickle`.
        ValueError: the content is not of this layout, or lengths and zeros contradict each other; the message names
            split, field and sample.
    """
    content = load_pickle(path, leave_large_arrays=True)
    if not isinstance(content, dict) or not all(isinstance(split, dict) for split in content.values()):
        raise ValueError(f"{path} is not in MMSA's layout: expected a dict of splits, each a dict of columns")
    names = {split: [name for name in names if name in content] for split, names in SPLIT_NAMES.items()}
    for split, found in names.items():
        if len(found) > 1:
            raise ValueError(f"{path} has the splits {' and '.join(found)}; expected one {split} split")
    names = {split: found[0] for split, found in names.items() if found}
    unused = sorted(str(split) for split in content if split not in names.values())
    if unused:
        logger.warning("%s: the splits %s are not used", path, ", ".join(unused))
    if not names:
        raise ValueError(f"{path} has none of the splits {', '.join(SPLITS)}, but {', '.join(unused) or 'nothing'}")
    state = Path(path).stat()
    loaded = {}
    for split, name in names.items():
        source = f"{path}, {name}"
        columns = _mmsa_columns(content[name], source)
        widths = {modality: _width_of(columns.get(modality)) for modality in MODALITIES}
        loaded[split] = shared_dataset(
            partial(_mmsa_rows, columns, widths, source),
            sample_features(widths["audio"], widths["vision"], "regression"),
            key=(CACHE_VERSION, str(Path(path).resolve()), state.st_size, state.st_mtime_ns, name),
            name=f"{Path(path).stem}-{split}",
            cache_dir=cache_dir,
        )
    return loaded


def _mmsa_columns(columns, name):
    """The columns by their own names, all as long as the ids."""
    columns = _renamed(columns, MMSA_ALIASES, name)
    for field in ("id", "raw_text", "regression_labels"):
        if field not in columns:
            raise ValueError(f"{name}: the field {field} is missing; present are {', '.join(map(str, columns))}")
    for modality in MODALITIES:
        if modality not in columns:
            _refuse_unknown_features(columns, modality, name)
    size = len(columns["id"])
    if not size:
        raise ValueError(f"{name} holds no samples")
    for field in ("raw_text", "regression_labels", "audio", "vision", "audio_lengths", "vision_lengths"):
        if field in columns and len(columns[field]) != size:
            raise ValueError(f"{name}: {field} has {len(columns[field])} entries, id has {size}")
    return columns


def _width_of(column):
    """Features of a step; 1 where there is none, so that a column can exist."""
    if column is None:
        return 1
    if not isinstance(column, list | tuple) and column.ndim > 1:
        return column.shape[-1]
    shapes = (np.shape(values) for values in column if values is not None)
    return next((shape[-1] for shape in shapes if shape and math.prod(shape)), 1)


def _mmsa_rows(columns, widths, name):
    rows = (clean_sample(sample, "regression", name) for sample in _mmsa_samples(columns, name))
    return fit_widths(rows, widths, name)


def _mmsa_samples(columns, name):
    used = {field: columns[field] for field in (*MMSA_FIELDS, *MODALITIES) if field in columns}
    row_bytes = sum(
        column.dtype.itemsize * math.prod(column.shape[1:])
        for column in used.values()
        if isinstance(column, ArrayInFile)
    )
    chunk = min(256, max(1, CHUNK_BYTES // max(1, row_bytes)))
    for start in range(0, len(columns["id"]), chunk):
        part = {field: column[start : start + chunk] for field, column in used.items()}
        for index in range(len(part["id"])):
            sample = {
                "id": part["id"][index],
                "text": part["raw_text"][index],
                "label": part["regression_labels"][index],
            }
            for modality in MODALITIES:
                if modality in part:
                    lengths = part.get(f"{modality}_lengths")
                    sample |= _cut(
                        part[modality][index],
                        None if lengths is None else lengths[index],
                        modality,
                        f"{name}, sample {sample['id']}: {modality}_lengths",
                    )
            yield sample


def _cut(values, length, modality, name):
    """`{modality: true steps, modality_padding: where padding was}`; what are no numbers stays, to be named later."""
    array = np.asarray(values) if values is not None and len(values) else None
    if array is None or array.dtype.kind not in "biuf" or array.ndim > 2:
        return {modality: values}
    values, padding = without_padding(np.atleast_2d(array), length, name)
    return {modality: values, f"{modality}_padding": padding}


def _renamed(fields, aliases, name):
    """A dict with its fields called as we call them; ValueError where two fields mean the same."""
    renamed = {}
    for field, value in fields.items():
        own = aliases.get(field, field)
        if own in renamed and value is not None and renamed[own] is not None:
            raise ValueError(f"{name} has both {own} and another name of it; expected one")
        if renamed.get(own) is None:
            renamed[own] = value
    return renamed


def _refuse_unknown_features(fields, modality, name):
    """Raise ValueError where a modality may be there under a name that nobody knows."""
    candidates = [
        str(field)
        for field, value in fields.items()
        if field not in KNOWN_FEATURES and field not in MODALITIES and _may_be_features(value)
    ]
    if candidates:
        raise ValueError(
            f"{name} has no {modality}, but {', '.join(candidates)}; expected {modality} or one of its other names: "
            f"{', '.join(other for other, own in MMSA_ALIASES.items() if own == modality)}"
        )


def _may_be_features(value):
    return getattr(value, "ndim", 0) >= 2 and value.dtype.kind == "f" and value.shape[-1] > 1


def load_mse_adapter_pickle(path, task="classification"):
    """Load one split in the layout of MSE-Adapter's MELD, CHERMA and IEMOCAP files.

    A list of {features: {text, audio, video, audio_len, video_len}, label}; id, dialogue_id, utterance_id and speaker
    are taken from the entry where it has them. Without an id it gets the file's name and its place.

    Returns:
        Dataset: in a "classification" task labels are names, and whole numbers become the names "0", "1", ...

    Raises:
        OSError, UnsafePickleError: as `load_pickle`.
        ValueError: the content is not of this layout; the message names entry and field.
    """
    content = load_pickle(path)
    if not isinstance(content, list | tuple):
        raise ValueError(
            f"{path} is not in MSE-Adapter's layout: expected a list of entries, found {type(content).__name__}"
        )
    return samples_to_dataset(_mse_adapter_samples(content, Path(path)), task, path)


def _mse_adapter_samples(entries, path):
    for index, entry in enumerate(entries):
        features = entry.get("features") if isinstance(entry, dict) else None
        if not isinstance(features, dict) or "text" not in features or "label" not in entry:
            raise ValueError(
                f"{path}, entry {index}: expected {{features: {{text, audio, video, ...}}, label}} (the files of "
                "IEMOCAP's and MELD's conversations are read by load_conversations, --dataset conversations)"
            )
        sample = {"id": f"{path.stem}_{index}", "dialogue_id": f"{path.stem}_{index}"}
        sample |= {field: entry[field] for field in ("id", "dialogue_id", "utterance_id", "speaker") if field in entry}
        sample |= {"text": features["text"], "label": entry["label"]}
        features = _renamed(features, MSE_ADAPTER_ALIASES, f"{path}, entry {index}")
        for modality in MODALITIES:
            if modality not in features:
                _refuse_unknown_features(features, modality, f"{path}, entry {index}")
            length = features.get(f"{modality}_len")
            sample |= _cut(features.get(modality), length, modality, f"{path}, entry {index}: {modality}_len")
        yield sample


def load_feature_dictionary_pickle(path, columns, describe):
    """Load a dictionary id -> feature vector, as the RAVDESS file of action units and MFCCs is.

    Such a file holds neither words nor labels, so the caller says how to tell them from an id. The id is used for
    nothing else and must never reach a model.

    Args:
        path: the pickle.
        columns (dict[str, tuple[int, int]]): modality -> first column of the vector and the one behind the last.
        describe (Callable[[str], dict]): split (train, valid or test), label, text and, where known, speaker of an id.

    Returns:
        dict[str, Dataset]: by split; each sample has one step per modality.

    Raises:
        OSError, UnsafePickleError: as `load_pickle`.
        ValueError: the content is not of this layout, or its vectors are not as wide as `columns` says.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(vector, np.ndarray) for vector in content.values()):
        raise ValueError(f"{path} is not a dictionary of feature vectors by id")
    shapes = {vector.shape for vector in content.values()}
    width = max(stop for _, stop in columns.values())
    if shapes != {(width,)}:
        raise ValueError(f"{path}: expected vectors of {width} numbers, found the shapes {sorted(shapes)}")
    samples = {split: [] for split in SPLITS}
    for sample_id, vector in content.items():
        described = describe(sample_id)
        features = {modality: vector[start:stop] for modality, (start, stop) in columns.items()}
        samples[described["split"]].append({"id": sample_id, **described, **features})
    return {
        split: samples_to_dataset(rows, "classification", f"{path}, {split}")
        for split, rows in samples.items()
        if rows
    }
