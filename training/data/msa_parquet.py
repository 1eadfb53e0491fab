"""Parquet files with id, text, audio, vision, label: a folder of train, valid and test.

Read row group by row group into an Arrow cache that `datasets` maps into memory, so that more data than memory works.
"""

import json
import logging
import re
from difflib import get_close_matches
from pathlib import Path

import pyarrow.parquet as parquet
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from training.data.msa_samples import MODALITIES, SPLIT_NAMES, clean_sample, fit_widths, sample_features, widths_of

logger = logging.getLogger(__name__)

# raise it when the code below or msa_samples gives other rows than before: it keeps old caches from being used
CACHE_VERSION = 4
COLUMNS = ("id", "text", "audio", "vision", "label", "dialogue_id", "utterance_id", "speaker")
OTHER_NAMES = {"video": "vision", "visual": "vision", "acoustic": "audio", "labels": "label"}


def load_msa_parquet(folder, task, cache_dir=None):
    """Load `train.parquet`, `valid.parquet` (or validation, dev, val) and `test.parquet` of a folder, those there are.

    They may lie in a folder `data` in it, and a split in parts as the Hub names them: train-00000-of-00002.parquet.

    Columns: id, text and label (or labels) must be there; audio and vision (or video, visual; [time, dim] or [dim],
    null where missing), dialogue_id, utterance_id and speaker may. Others are not read. Labels that `datasets` wrote
    as ClassLabel become their names.

    Args:
        folder (str or Path): the folder.
        task (str): "regression" or "classification".
        cache_dir (str, optional): place of the Arrow cache instead of the one of `datasets`.

    Returns:
        dict[str, Dataset]: by split, in numpy format.

    Raises:
        OSError: no such folder or no such file in it.
        ValueError: a column is missing or misspelt, or a value is not what it should be; the message names file and
            sample.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of parquet files")
    datasets = {}
    for split, names in SPLIT_NAMES.items():
        paths = _files_of(folder, names)
        if paths:
            datasets[split] = _load_files(paths, task, cache_dir)
        else:
            logger.warning("%s has no %s split: no file %s.parquet", folder, split, ".parquet or ".join(names))
    if not datasets:
        raise FileNotFoundError(f"{folder} has none of train.parquet, valid.parquet and test.parquet")
    return datasets


def _files_of(folder, names):
    """The files of a split, under the first of its names that has any."""
    for place in (folder, folder / "data"):
        for name in names:
            if (place / f"{name}.parquet").is_file():
                return [place / f"{name}.parquet"]
            parts = sorted(place.glob(f"{name}-*-of-*.parquet"))
            numbers = [re.fullmatch(rf"{name}-(\d+)-of-(\d+)", part.stem) for part in parts]
            parts = [part for part, number in zip(parts, numbers, strict=True) if number]
            counts = {(int(number[1]), int(number[2])) for number in numbers if number}
            if counts and counts != {(index, len(parts)) for index in range(len(parts))}:
                raise ValueError(
                    f"{place} holds the parts {', '.join(part.name for part in parts)}; expected all of one split"
                )
            if parts:
                return parts
    return []


def _load_files(paths, task, cache_dir):
    for path in paths:
        _check_columns(path)
    widths = widths_of(row for path in paths for row in _read_rows(path, task))
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    try:
        dataset = Dataset.from_generator(
            _rows,
            features=sample_features(widths["audio"], widths["vision"], task),
            cache_dir=cache_dir,
            # size, time and version stand among the arguments because these make the name of the cache
            gen_kwargs={
                # not a list, which `datasets` would take for shards
                "paths": tuple(str(path.resolve()) for path in paths),
                "task": task,
                "widths": widths,
                "version": (CACHE_VERSION, *states),
            },
        )
    except DatasetGenerationError as error:
        # it says only that something went wrong; what did stands in its cause
        raise error.__cause__ or error from None
    if not len(dataset):
        raise ValueError(f"{paths[0]} holds no samples")
    return dataset.with_format("numpy")


def _check_columns(path):
    columns = parquet.read_schema(path).names
    names = [OTHER_NAMES.get(column, column) for column in columns]
    twice = sorted(name for name in COLUMNS if names.count(name) > 1)
    if twice:
        raise ValueError(f"{path} has {', '.join(twice)} and another name of it; expected one column each")
    missing = [column for column in ("id", "text", "label") if column not in names]
    if missing:
        raise ValueError(f"{path}: the column {', '.join(missing)} is missing; present are {', '.join(columns)}")
    unread = [column for column in columns if OTHER_NAMES.get(column, column) not in COLUMNS]
    for modality in MODALITIES:
        if modality not in names:
            misspelt = get_close_matches(modality, unread, n=1, cutoff=0.8)
            if misspelt:
                raise ValueError(f"{path} has the column {misspelt[0]!r}; expected {modality!r}")
            logger.warning("%s has no column %s, so that all samples lack it", path, modality)


def _rows(paths, task, widths, version):
    yield from fit_widths((row for path in paths for row in _read_rows(path, task)), widths, paths[0])


def _read_rows(path, task):
    with parquet.ParquetFile(path) as file:
        class_names = _class_names(file.schema_arrow)
        columns = [column for column in file.schema_arrow.names if OTHER_NAMES.get(column, column) in COLUMNS]
        for batch in file.iter_batches(batch_size=256, columns=columns):
            # pandas keeps the inner arrays as numpy, where to_pylist would make a Python float of every value
            for row in batch.to_pandas().to_dict("records"):
                # pandas writes a missing string or number as NaN
                present = {OTHER_NAMES.get(key, key): value for key, value in row.items() if not _is_missing(value)}
                if class_names and "label" in present:
                    present["label"] = _named(present["label"], class_names, f"{path}, sample {present.get('id')}")
                yield clean_sample(present, task, str(path))


def _class_names(schema):
    """The names of the label's classes, where `datasets` wrote them into the file."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features") or {}
    label = next((features[name] for name in ("label", "labels") if name in features), {})
    return label.get("names") if isinstance(label, dict) and label.get("_type") == "ClassLabel" else None


def _named(label, class_names, name):
    if not 0 <= label < len(class_names):
        raise ValueError(f"{name}: the label is {label}; expected the number of one of {class_names}")
    return class_names[int(label)]


def _is_missing(value):
    return value is None or (isinstance(value, float) and value != value)
