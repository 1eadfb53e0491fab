"""Samples as Arrow files in the cache of `datasets`: written once, mapped into memory by every process."""

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets.features import Array2D
from filelock import FileLock

from training.reports import atomic_path

# rows are written in tables of about this many bytes of features
TABLE_BYTES = 16 << 20


def shared_dataset(rows, features, key, name, cache_dir=None, split=None):
    """
    A dataset that lies on disk, made of `rows` where no process has made it yet; others wait for the one that does.

    Args:
        rows (Callable[[], Iterable[dict]]): gives the rows; called at most once, rows are held a table at a time.
        features (datasets.Features): of Value, and of List and Array2D, whose arrays rows hold as np.ndarray.
        key: says what the rows depend on, by its repr; with another key they are made anew.
        name (str): of the file, for whoever looks into the cache.
        cache_dir (str, optional): instead of the one of `datasets`.
        split (datasets.NamedSplit, optional): of the dataset.

    Returns:
        Dataset: in numpy format.
    """
    digest = hashlib.blake2b(repr((key, features)).encode(), digest_size=12).hexdigest()
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "samples"
    path = folder / f"{name}-{digest}.arrow"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            with atomic_path(path) as temporary:
                _write(rows(), features, temporary)
    return datasets.Dataset.from_file(str(path), split=split).with_format("numpy")


def _write(rows, features, path):
    waiting, size = [], 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as writer:
        for row in rows:
            waiting.append(row)
            size += sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
            if size >= TABLE_BYTES:
                writer.write_table(_as_table(waiting, features))
                waiting, size = [], 0
        writer.write_table(_as_table(waiting, features))


def _as_table(rows, features):
    schema = features.arrow_schema
    columns = [_as_column([row[name] for row in rows], schema.field(name).type, features[name]) for name in features]
    return pa.Table.from_arrays(columns, schema=schema)


def _as_column(values, arrow_type, feature):
    if isinstance(feature, Array2D):
        return _as_extension(values, arrow_type, feature.shape[1])
    if not isinstance(feature, datasets.List):
        return pa.array(values, arrow_type)
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    numbers = np.concatenate(values) if values else np.zeros(0)
    return pa.ListArray.from_arrays(ends, pa.array(numbers, arrow_type.value_type), type=arrow_type)


def _as_extension(arrays, extension_type, width):
    """Arrays [time, width] as one column: where each begins, where each step begins, and all numbers in a row."""
    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    numbers = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.zeros(0, np.float32)
    steps = pa.ListArray.from_arrays(np.arange(ends[-1] + 1, dtype=np.int32) * width, pa.array(numbers))
    return pa.ExtensionArray.from_storage(extension_type, pa.ListArray.from_arrays(ends, steps))
