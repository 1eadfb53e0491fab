"""Labelled ECG recordings, from wherever they come, as arrow-cached tensors.

Every data set is a [`EcgCollection`]: where its recordings are, what they are labelled with and which split they
belong to. `load_splits` runs each recording through the feature extractor once and caches the result with `datasets`:
epochs neither filter nor resample again, and as the cache is memory-mapped it may be larger than memory.
"""

import hashlib
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from multiprocess import Pool
from tqdm import tqdm
from transformers.utils import logging

from training.data.arrow_cache import shared_dataset

logger = logging.get_logger(__name__)

SPLITS = ("train", "validation", "test")
_PART = 64  # records that a process reads at once


@dataclass(frozen=True)
class EcgRecord:
    """
    Attributes:
        name (`str`): unique in its collection.
        source: what the feature extractor reads (path, dict, array), or a function without arguments that makes it.
        labels (`tuple[str]`): of the collection's `label_names`; empty means that the recording has none of them.
        split (`str`): train, validation or test.
        stated (`dict`): what is known of the recording beside its file: sampling_rate, leads, units.
    """

    name: str
    source: Any | Callable[[], Any]
    labels: tuple[str, ...]
    split: str
    stated: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EcgCollection:
    """The recordings of a data set with the names that their labels may have, in the order of the model's outputs."""

    label_names: tuple[str, ...]
    records: tuple[EcgRecord, ...]

    def __post_init__(self):
        if not self.records:
            raise ValueError("the data set holds no labelled recording; expected at least one")
        if not self.label_names:
            raise ValueError("the data set names no label; expected at least one that a recording has")
        names = [record.name for record in self.records]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"recording {twice!r} occurs twice; expected each name once")
        known = set(self.label_names)
        for record in self.records:
            if not known.issuperset(record.labels):
                raise ValueError(
                    f"recording {record.name!r} is labelled {sorted(set(record.labels) - known)}; "
                    f"expected some of {list(self.label_names)}"
                )


def assign_splits(names, labels, groups=None):
    """
    Eight parts train, one validation, one test, for data without splits of its own.

    Deterministic, and the rarer label combinations are spread evenly: groups are ordered by their labels, within
    equal labels by a hash of their name, and of every ten in a row the fifth goes to validation, the tenth to test.

    Args:
        names (`list[str]`): the recordings.
        labels (`list[tuple[str]]`): the labels of each.
        groups (`list[str]`, *optional*): what must not be torn apart (the patient); the recording's name by default.

    Returns:
        `list[str]`: the split of each recording.
    """
    groups = list(names if groups is None else groups)
    labels_of = {}
    for group, own in zip(groups, labels, strict=True):
        labels_of.setdefault(group, set()).update(own)

    def place(group):
        return sorted(labels_of[group]), hashlib.sha256(group.encode()).hexdigest()

    split_of = {
        group: {4: "validation", 9: "test"}.get(position % 10, "train")
        for position, group in enumerate(sorted(labels_of, key=place))
    }
    return [split_of[group] for group in groups]


# how tables write what is not known, which is no label and not the lack of one
_UNKNOWN = ("nan", "na", "n/a", "<na>", "nat", "none", "null", "?", "-")


def split_labels(text):
    """
    The label names in a cell of a table, each once and in order: between commas, semicolons or bars, or a list as
    Python, pandas, numpy and JSON write it, such as "['AFIB', 'LBBB']", whose quoted names may hold commas.

    Raises:
        ValueError: for a cell that says that its labels are unknown ("nan", "?"), or a list without an end.
    """
    text = text.strip()
    brackets = {"[": "]", "(": ")", "{": "}"}
    if text[:1] in brackets and text[-1:] != brackets[text[0]]:
        raise ValueError(f"{text!r} is a list without an end; expected label names")
    if text[:1] in brackets:
        quoted = re.findall(r"'([^']*)'|\"([^\"]*)\"", text[1:-1])
        names = {one or other for one, other in quoted} if quoted else set(re.split(r"[,;|]", text[1:-1]))
    else:
        names = set(re.split("[,;|]", text))
    names = {name.strip().strip("'\"").strip() for name in names} - {""}
    if unknown := sorted(name for name in names if name.lower() in _UNKNOWN):
        raise ValueError(f"labels are {unknown[0]!r}, unknown; expected names, or nothing for none of them")
    return tuple(sorted(names))


def is_unknown(text):
    """Whether a cell says nothing, or that nothing is known."""
    return text.strip().lower() in ("", *_UNKNOWN, "unknown")


MOST_UNREADABLE = 0.01  # of all records, that may be left out


def load_splits(collection, feature_extractor, cache_dir=None, num_proc=None, on_error="raise"):
    """
    `collection` as `datasets.DatasetDict` of those splits that have recordings.

    Columns: `record` (name), `input_values` float32 [leads * time] (row-major [leads, time], filtered, in millivolts;
    normalisation is left to the crops, as it is a matter of the window), `num_samples` (time), `lead_mask` bool
    [leads], `labels` float32 [labels] (1 where the recording has the label).

    The cache is found again as long as the records, their files' sizes and times of change, the feature extractor's
    settings and the code that reads files are the same.

    Args:
        on_error (`"raise"` or `"list"`): what to do about recordings that cannot be read: stop at the first, or leave
            them out and list them all.

    Raises:
        ValueError: when a recording cannot be read, or, with `on_error="list"`, one of a hundred or more; the message
            names them.
    """
    splits = {
        split: _cached(records, split, collection.label_names, feature_extractor, cache_dir, num_proc, on_error)
        for split in SPLITS
        if (records := [record for record in collection.records if record.split == split])
    }
    failed = [
        f"{split} {name}: {error}"
        for split, dataset in splits.items()
        for name, error in zip(dataset["record"], dataset["error"], strict=True)
        if error
    ]
    if failed:
        listed = "\n  ".join(failed)
        logger.warning(f"{len(failed)} of {len(collection.records)} recordings cannot be read:\n  {listed}")
    if len(failed) >= MOST_UNREADABLE * len(collection.records) > 0 and failed:
        raise ValueError(
            f"{len(failed)} of {len(collection.records)} recordings cannot be read, the first: {failed[0]}; expected "
            f"less than {MOST_UNREADABLE:.0%}"
        )
    for split, dataset in splits.items():
        if failed:
            readable = [index for index, error in enumerate(dataset["error"]) if not error]
            dataset = dataset.select(readable) if len(readable) < len(dataset) else dataset
        splits[split] = dataset.remove_columns("error")
    return datasets.DatasetDict({split: dataset for split, dataset in splits.items() if len(dataset)})


def _cached(records, split, label_names, feature_extractor, cache_dir, num_proc, on_error):
    features = datasets.Features(
        record=datasets.Value("string"),
        input_values=datasets.List(datasets.Value("float32")),
        num_samples=datasets.Value("int64"),
        lead_mask=datasets.List(datasets.Value("bool")),
        labels=datasets.List(datasets.Value("float32")),
        error=datasets.Value("string"),
    )
    settings = {**feature_extractor.to_dict(), "normalization": "none"}
    read = partial(_rows, type(feature_extractor), settings, label_names, on_error)
    key = (
        split,
        label_names,
        type(feature_extractor).__name__,
        sorted((name, repr(value)) for name, value in settings.items()),
        _code_of(feature_extractor),
        _state_of_files(records),
        on_error,
        _hash_of(records),
    )

    def rows():
        progress = partial(tqdm, total=len(records), desc=f"reading {split}", unit="recording", disable=None)
        parts = [records[first : first + _PART] for first in range(0, len(records), _PART)]
        if (num_proc or 1) == 1 or len(parts) == 1:
            yield from progress(chain.from_iterable(map(read, parts)))
            return
        with Pool(min(num_proc, len(parts))) as pool:
            yield from progress(chain.from_iterable(pool.imap(read, parts)))

    try:
        return shared_dataset(rows, features, key, split, cache_dir, datasets.NamedSplit(split))
    except ValueError as error:
        raise ValueError(f"the {split} split could not be built: {error}") from error


def _rows(extractor_class, extractor_settings, label_names, on_error, records):
    """The rows of some records, as the columns of `load_splits` have them."""
    feature_extractor = extractor_class.from_dict(dict(extractor_settings))
    of_label = {name: place for place, name in enumerate(label_names)}
    rows = []
    for record in records:
        source = record.source() if callable(record.source) else record.source
        signal, lead_mask, labels = np.zeros((0, 0), np.float32), np.zeros(0, bool), np.zeros(0, np.float32)
        problem = ""
        try:
            features = feature_extractor(source, padding=False, return_tensors="np", **record.stated)
        except (ValueError, OSError, ImportError) as error:
            if on_error == "raise":
                raise ValueError(f"recording {record.name!r}: {error}") from error
            problem = str(error)
        else:
            signal = np.asarray(features["input_values"][0], dtype=np.float32)
            lead_mask = np.asarray(features["lead_mask"][0], dtype=bool)
            labels = np.zeros(len(label_names), np.float32)
            labels[[of_label[name] for name in record.labels]] = 1
        rows.append(
            {
                "record": record.name,
                "input_values": signal.reshape(-1),
                "num_samples": signal.shape[1],
                "lead_mask": lead_mask,
                "labels": labels,
                "error": problem,
            }
        )
    return rows


def _hash_of(records):
    """Tells records from others, but for what their files hold: names, sources, labels, what is stated."""
    digest = hashlib.sha256()
    for record in records:
        source = record.source
        # arrays by their values, functions by their code
        source = str(source) if isinstance(source, (str, Path)) else datasets.fingerprint.Hasher.hash(source)
        digest.update(repr((record.name, source, record.labels, sorted(record.stated.items()))).encode())
    return digest.hexdigest()


def _state_of_files(records):
    """A hash of size and time of change of the files that records are read from: each source's own, those beside it
    under the same stem, and those that a WFDB header names."""
    digest, folders = hashlib.sha256(), {}
    for record in records:
        if not isinstance(record.source, (str, Path)):
            continue
        path = Path(record.source)
        if path.parent not in folders:
            folders[path.parent] = _files_by_stem(path.parent)
        of_stem = folders[path.parent]
        stems = [path.stem, path.name]
        if path.suffix.lower() == ".hea" and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            named = [line.split()[0] for line in lines[1:] if line.strip() and not line.startswith("#")]
            stems += [stem for name in dict.fromkeys(named) for stem in (name, name.rpartition(".")[0])]
        for stem in dict.fromkeys(stems):
            digest.update(repr((str(path), of_stem.get(stem))).encode())
    return digest.hexdigest()


def _files_by_stem(folder):
    """(name, size, time of change in ns) of a folder's files, by their names without ending."""
    by_stem = {}
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_file():
                    state = entry.stat()
                    by_stem.setdefault(Path(entry.name).stem, []).append(
                        (entry.name, state.st_size, state.st_mtime_ns)
                    )
    return by_stem


def _code_of(feature_extractor):
    """A hash of the code between file and tensor: when it changes, so does the cache's key."""
    package = Path(inspect.getfile(type(feature_extractor))).parent
    files = [*sorted(package.glob("*recording*.py")), *sorted(package.glob("feature_extraction*.py"))]
    files += sorted(Path(__file__).parent.glob("*ecg*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
