"""Parquet files with id, text, audio, vision, label: a folder of train, valid and test, or one file per split.

Read row group by row group into an Arrow cache that `datasets` maps into memory, so that more data than memory works.
"""

import logging
from difflib import get_close_matches
from pathlib import Path

import pyarrow.parquet as parquet
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from training.data.msa_samples import MODALITIES, SPLIT_NAMES, clean_sample, fit_widths, sample_features, widths_of

logger = logging.getLogger(__name__)

# raise it when the code below or msa_samples gives other rows than before: it keeps old caches from being used
CACHE_VERSION = 3
COLUMNS = ("id", "text", "audio", "vision", "label", "dialogue_id", "utterance_id", "speaker")


def load_msa_parquet(folder, task, cache_dir=None):
    """Load `train.parquet`, `valid.parquet` (or validation, dev) and `test.parquet` of a folder, those that are there.

    Columns: id, text and label must be there; audio and vision ([time, dim] or [dim], null where missing),
    dialogue_id, utterance_id and speaker may. Others are not read.

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
        paths = [path for name in names if (path := folder / f"{name}.parquet").is_file()]
        if paths:
            datasets[split] = _load_file(paths[0], task, cache_dir)
        else:
            logger.warning("%s has no %s split: no file %s.parquet", folder, split, ".parquet or ".join(names))
    if not datasets:
        raise FileNotFoundError(f"{folder} has none of train.parquet, valid.parquet and test.parquet")
    return datasets


def _load_file(path, task, cache_dir):
    columns = parquet.read_schema(path).names
    missing = [column for column in ("id", "text", "label") if column not in columns]
    if missing:
        raise ValueError(f"{path}: the column {', '.join(missing)} is missing; present are {', '.join(columns)}")
    unread = [column for column in columns if column not in COLUMNS]
    for modality in MODALITIES:
        if modality not in columns:
            misspelt = get_close_matches(modality, unread, n=1, cutoff=0.8)
            if misspelt:
                raise ValueError(f"{path} has the column {misspelt[0]!r}; expected {modality!r}")
            logger.warning("%s has no column %s, so that all samples lack it", path, modality)
    widths = widths_of(_read_rows(path, task))
    state = path.stat()
    try:
        dataset = Dataset.from_generator(
            _rows,
            features=sample_features(widths["audio"], widths["vision"], task),
            cache_dir=cache_dir,
            # size, time and version stand among the arguments because these make the name of the cache
            gen_kwargs={
                "path": str(path.resolve()),
                "task": task,
                "widths": widths,
                "version": (CACHE_VERSION, state.st_size, state.st_mtime_ns),
            },
        )
    except DatasetGenerationError as error:
        # it says only that something went wrong; what did stands in its cause
        raise error.__cause__ or error from None
    if not len(dataset):
        raise ValueError(f"{path} holds no samples")
    return dataset.with_format("numpy")


def _rows(path, task, widths, version):
    yield from fit_widths(_read_rows(path, task), widths, path)


def _read_rows(path, task):
    with parquet.ParquetFile(path) as file:
        columns = [column for column in COLUMNS if column in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=256, columns=columns):
            # pandas keeps the inner arrays as numpy, where to_pylist would make a Python float of every value
            for row in batch.to_pandas().to_dict("records"):
                # pandas writes a missing string or number as NaN
                present = {key: value for key, value in row.items() if not _is_missing(value)}
                yield clean_sample(present, task, str(path))


def _is_missing(value):
    return value is None or (isinstance(value, float) and value != value)
