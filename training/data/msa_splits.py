"""A data set by its name, split, checked and told: what training/run_msa.py begins with."""

import logging
from pathlib import Path

import numpy as np

from training.data.clips import Extraction, load_clips
from training.data.conversations import load_conversations
from training.data.msa_functionals import with_window_functionals
from training.data.msa_parquet import load_msa_parquet
from training.data.msa_pickles import load_mmsa_pickle, load_mse_adapter_pickle
from training.data.msa_samples import MODALITIES, SPLIT_NAMES, count_padding, count_replaced
from training.data.ravdess import load_ravdess_features
from training.data.simulated_msa import load_simulated_msa

logger = logging.getLogger(__name__)


def load_splits(data):
    """The data set by split; train and valid must be there, and every label known."""
    splits = LOADERS[data.dataset](data)
    for split in ("train", "valid"):
        if split not in splits:
            raise ValueError(f"{data.data_path} has no {split} split; training needs train and valid")
    if data.audio_window:
        hop = data.audio_hop or max(1, data.audio_window // 2)
        splits = {
            split: with_window_functionals(dataset, "audio", data.audio_window, hop)
            for split, dataset in splits.items()
        }
    if data.task == "classification":
        splits = with_named_classes(splits, data.labels)
        data.labels = data.labels or sorted({str(label) for label in splits["train"]["label"]})
    require_known_labels(splits, data)
    require_equal_widths(splits)
    return splits


def has_one_case(dataset):
    """Whether all texts that have cased letters are upper case, or all lower case, as CMU-MOSI's and CMU-MOSEI's."""
    texts = [text for text in dataset["text"][:] if text != text.swapcase()]
    return bool(texts) and (all(text.isupper() for text in texts) or all(text.islower() for text in texts))


def with_named_classes(splits, labels):
    """The splits with class names for labels where their data set numbers its classes, as CHERMA's files do."""
    numbers = set(map(str, range(len(labels or ()))))
    found = {str(label) for dataset in splits.values() for label in dataset["label"]}
    if not found <= numbers or found <= set(labels):
        return splits
    if "0" not in found:
        # counted from 1, every class would get its neighbour's name
        raise ValueError(
            f"the classes are numbered {', '.join(sorted(found, key=int))}, but labels has {len(labels)} names, the "
            "first of which stands for 0; expected that 0 occurs, or names instead of numbers"
        )
    return {
        split: dataset.remove_columns("label")
        .add_column("label", [labels[int(label)] for label in dataset["label"]])
        .with_format("numpy")
        for split, dataset in splits.items()
    }


def require_known_labels(splits, data):
    """Raise ValueError for a class without name, or a number outside the range."""
    for split, dataset in splits.items():
        if data.task == "classification":
            unknown = {str(label) for label in dataset["label"]} - set(data.labels)
            if unknown:
                raise ValueError(f"the {split} split has the labels {sorted(unknown)}; expected {data.labels}")
            continue
        labels, (low, high) = np.asarray(dataset["label"][:]), data.label_range
        # float32 labels may stand a rounding error outside
        outside = np.flatnonzero((labels < low - 1e-6) | (labels > high + 1e-6))
        if len(outside):
            raise ValueError(
                f"label_range is {data.label_range}, but {len(outside)} labels of the {split} split are outside, as "
                f"{labels[outside[0]]:g} of sample {dataset[int(outside[0])]['id']}; expected all within"
            )


def require_equal_widths(splits):
    """Raise ValueError where a modality has more features in one split than in another."""
    for modality in MODALITIES:
        widths = {
            split: dataset.features[modality].shape[1]
            for split, dataset in splits.items()
            if np.any(dataset[f"{modality}_steps"][:])
        }
        if len(set(widths.values())) > 1:
            raise ValueError(f"{modality} has {widths} features by split; expected equally many")


def load_mse_adapter_splits(data):
    if "{split}" not in data.data_path:
        raise ValueError(f"data_path is {data.data_path!r}; expected one with {{split}} for train, valid and test")
    splits = {}
    for split, names in SPLIT_NAMES.items():
        paths = [Path(data.data_path.replace("{split}", name)) for name in names]
        present = [path for path in paths if path.is_file()]
        if present:
            splits[split] = load_mse_adapter_pickle(present[0], data.task)
        else:
            logger.warning("there is no %s split: no file %s", split, " or ".join(map(str, paths)))
    return splits


def load_clip_splits(data):
    front_ends = data.clip_front_ends()
    wanted = tuple(front_ends or ())
    # windows are made of what was loaded, as of every data set
    front_ends = {
        name: {**fields, "window": 0} if "window" in fields else fields for name, fields in front_ends.items()
    }
    cache = data.clip_cache or str(Path(data.data_path) / "features")
    extraction = Extraction(front_ends, wanted, cache, data.speech_recognizer, data.language)
    return load_clips(data.data_path, data.task, extraction, data.clip_processes)


LOADERS = {
    "clips": load_clip_splits,
    "simulated": lambda data: load_simulated_msa(data.num_samples, data.task),
    "mmsa": lambda data: load_mmsa_pickle(data.data_path),
    "mse_adapter": load_mse_adapter_splits,
    "parquet": lambda data: load_msa_parquet(data.data_path, data.task),
    "conversations": lambda data: load_conversations(data.data_path),
    "ravdess_features": lambda data: load_ravdess_features(data.data_path),
}


PADDING_WORDS = {
    "end": "at the end",
    "front": "in front",
    "both": "in front and at the end",
    "all": "all of it (a missing modality)",
}


def report_splits(splits):
    """Print what was found: samples and the shapes of their features, what is missing, padded, or was replaced."""
    for split, dataset in splits.items():
        found = [f"{len(dataset)} samples"]
        for modality in MODALITIES:
            steps = np.asarray(dataset[f"{modality}_steps"][:])
            present = steps[steps > 0]
            dim = dataset.features[modality].shape[1]
            if not len(present):
                found.append(f"no {modality}")
                continue
            lengths = f"{present.min()} to {present.max()}" if np.ptp(present) else present[0]
            missing = f" (missing in {len(dataset) - len(present)})" if len(present) < len(dataset) else ""
            found.append(f"{modality} [{lengths}, {dim}]{missing}")
        print(f"{split}: {', '.join(found)}")
        for modality, clips in count_padding(dataset).items():
            if clips:
                told = ", ".join(f"{PADDING_WORDS[padding]} in {count} clips" for padding, count in clips.items())
                print(f"{split}: zeros of {modality} taken for padding: {told}")
        for modality, count in count_replaced(dataset).items():
            if count["values"]:
                print(
                    f"{split}: replaced {count['values']} NaN or infinite values of {modality} "
                    f"in {count['samples']} samples"
                )
