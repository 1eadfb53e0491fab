"""The pickles that multimodal sentiment analysis passes around, read without running a line of them.

Three layouts:

- MMSA's (MOSI, MOSEI, CH-SIMS, CH-SIMS v2; aligned or not): split -> {raw_text, audio, vision, id, audio_lengths,
  vision_lengths, regression_labels, ...}, one file for all splits;
- MSE-Adapter's (MELD, CHERMA, IEMOCAP): a list of {features: {text, audio, video, audio_len, video_len}, label}, one
  file per split;
- a dictionary id -> feature vector, as feature files of RAVDESS come.

A pickle is a program. `load_pickle` admits numpy arrays and builtin containers only, and builds even those itself:
numpy's own constructors can be talked into reading foreign memory by a forged dtype.
"""

import logging
import math
import pickle
from pathlib import Path

import numpy as np

from training.data.msa_samples import SPLITS, samples_to_dataset

logger = logging.getLogger(__name__)


class UnsafePickleError(ValueError):
    """A pickle asks for something else than numpy arrays and builtin containers. Nothing of it has run."""


def load_pickle(path):
    """Read a pickle of dicts, lists, tuples, sets, strings, numbers and numpy arrays (also of objects).

    Args:
        path (str or Path): pickles of Python 2 and 3, protocols 0 to 5.

    Returns:
        The object. Its arrays may be read-only.

    Raises:
        OSError: the file cannot be read.
        UnsafePickleError: it names any other global; the message says which.
        ValueError: it is not a pickle, is damaged, or holds an array whose dtype and bytes do not fit each other.
    """
    with open(path, "rb") as file:
        unpickler = _RestrictedUnpickler(file, encoding="latin1")
        try:
            return _with_arrays(unpickler.load())
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{path} is refused: {error}") from None
        # whatever a damaged or hostile stream makes the unpickler stumble over, the caller hears one kind of error
        except (
            pickle.UnpicklingError,
            ArithmeticError,
            AttributeError,
            EOFError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(
                f"{path} cannot be read as a pickle of features: {type(error).__name__}: {error}"
            ) from None


class _PickledDtype:
    """Stands where the pickle says numpy.dtype: keeps the type's name, refuses structures, ignores flags."""

    __slots__ = ("dtype",)

    def __init__(self, code, align=False, copy=True):
        if not isinstance(code, str) or code[:1] not in "biufcSUO" or not (code[1:] or "0").isdigit():
            raise UnsafePickleError(f"it asks for the array type {code!r}; only plain numbers, strings and objects")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        _version, byte_order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None) or byte_order not in ("<", ">", "|", "="):
            raise UnsafePickleError("it asks for a structured array; only plain numbers, strings and objects")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _PickledClass:
    """Stands where the pickle says numpy.ndarray: a name to pass on, never called."""

    __slots__ = ()

    def __new__(cls, *_):
        raise UnsafePickleError("it calls numpy.ndarray itself, which no pickled array does")

    def __setstate__(self, state):
        raise UnsafePickleError("it sets the state of numpy.ndarray itself")


class _PickledArray:
    """Stands where the pickle says numpy's _reconstruct: an array in the making."""

    __slots__ = ("content", "dtype", "order", "shape")

    def __init__(self, array_class, shape, code):
        if array_class is not _PickledClass:
            raise UnsafePickleError(f"it asks for an array of the class {array_class!r}")
        self.content = None

    def __setstate__(self, state):
        _version, shape, dtype, is_fortran, content = state
        self._fill(content, dtype, shape, "F" if is_fortran else "C")

    def _fill(self, content, dtype, shape, order):
        if not isinstance(dtype, _PickledDtype):
            raise UnsafePickleError(f"it gives an array the type {dtype!r}")
        self.dtype, self.order = dtype.dtype, order
        self.shape = tuple(int(size) for size in shape)
        # Python 2 wrote an array's bytes as a str, which arrives here as latin1 text
        self.content = content.encode("latin1") if isinstance(content, str) else content

    def build(self, resolve):
        """The array itself; `resolve` turns each object of an object array."""
        if self.content is None:
            return np.empty(0, dtype=bool)
        size = math.prod(self.shape)
        if self.dtype.hasobject:
            if not isinstance(self.content, list) or len(self.content) != size:
                raise ValueError(f"an object array of shape {self.shape} does not come with {size} objects")
            array = np.empty(size, dtype=object)
            for index, item in enumerate(self.content):
                array[index] = resolve(item)
        else:
            if not isinstance(self.content, bytes | bytearray) or len(self.content) != size * self.dtype.itemsize:
                raise ValueError(f"an array of shape {self.shape} and type {self.dtype} comes with other bytes")
            # frombuffer knows no zero-width strings and no empty buffers
            array = np.frombuffer(self.content, self.dtype) if len(self.content) else np.zeros(size, self.dtype)
        return array.reshape(self.shape, order=self.order)


class _PickledBuffer(_PickledArray):
    """Stands where the pickle says numpy's _frombuffer (protocol 5)."""

    __slots__ = ()

    def __init__(self, buffer, dtype, shape, order):
        if order not in ("C", "F"):
            raise UnsafePickleError(f"it asks for an array in the order {order!r}")
        self._fill(buffer, dtype, shape, order)


class _PickledScalar(_PickledArray):
    """Stands where the pickle says numpy's scalar."""

    __slots__ = ()

    def __init__(self, dtype, content=None):
        self._fill(
            [content] if isinstance(dtype, _PickledDtype) and dtype.dtype.hasobject else content, dtype, (), "C"
        )

    def build(self, resolve):
        return super().build(resolve)[()]


class _PickledBytes:
    """Stands where the pickle says _codecs.encode, which is how protocols 0 to 2 write bytes: gives those bytes."""

    __slots__ = ()

    def __new__(cls, text, encoding="latin1"):
        if encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError(f"it asks for the codec {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state):
        raise UnsafePickleError("it sets the state of _codecs.encode")


_NUMPY_STANDS = {
    ("multiarray", "_reconstruct"): _PickledArray,
    ("multiarray", "scalar"): _PickledScalar,
    ("numeric", "_frombuffer"): _PickledBuffer,
}
_ADMITTED = {
    **{
        (f"numpy.{core}.{module}", name): stand
        for core in ("core", "_core")
        for (module, name), stand in _NUMPY_STANDS.items()
    },
    ("numpy", "ndarray"): _PickledClass,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _PickledBytes,
    # what old protocols write by name; every other builtin type has its own opcode
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, complex, bytearray, bytes)},
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        # Python 2 called the module so
        admitted = _ADMITTED.get(("builtins" if module == "__builtin__" else module, name))
        if admitted is None:
            raise UnsafePickleError(
                f"it asks for {module}.{name}; only numpy arrays and builtin containers are admitted"
            )
        return admitted


def _with_arrays(value):
    """`value` with the stands replaced by what they stand for, containers included; each object once."""
    done = {}

    def resolve(value):
        if isinstance(value, str | bytes | int | float | complex | bytearray | None):
            return value
        if isinstance(value, type):
            raise UnsafePickleError(f"it holds the class {value.__name__} as a value")
        if id(value) not in done:
            done[id(value)] = None
            done[id(value)] = build(value)
        elif done[id(value)] is None:
            raise ValueError("a container holds itself")
        return done[id(value)]

    def build(value):
        if isinstance(value, _PickledArray):
            return value.build(resolve)
        if isinstance(value, _PickledDtype):
            return value.dtype
        if isinstance(value, dict):
            return {resolve(key): resolve(item) for key, item in value.items()}
        return type(value)(resolve(item) for item in value)

    return resolve(value)


def load_mmsa_pickle(path):
    """Load a pickle in MMSA's layout (CMU-MOSI, CMU-MOSEI, CH-SIMS, CH-SIMS v2; aligned or unaligned).

    The label is `regression_labels` (the multimodal one of the SIMS family). Features are cut to `audio_lengths` and
    `vision_lengths`; aligned files have none: there the all-zero steps at either end are taken for padding (a choice).

    Returns:
        dict[str, Dataset]: by split, of those of train, valid and test that the file has.

    Raises:
        OSError, UnsafePickleError: as `load_pickle`.
        ValueError: the content is not of this layout; the message names split and field.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(split, dict) for split in content.values()):
        raise ValueError(f"{path} is not in MMSA's layout: expected a dict of splits, each a dict of columns")
    unused = sorted(str(split) for split in content if split not in SPLITS)
    if unused:
        logger.warning("%s: the splits %s are not used", path, ", ".join(unused))
    datasets = {
        split: samples_to_dataset(_mmsa_samples(content[split], f"{path}, {split}"), "regression", f"{path}, {split}")
        for split in SPLITS
        if split in content
    }
    if not datasets:
        raise ValueError(f"{path} has none of the splits {', '.join(SPLITS)}, but {', '.join(unused) or 'nothing'}")
    return datasets


def _mmsa_samples(columns, name):
    for field in ("id", "raw_text", "regression_labels"):
        if field not in columns:
            raise ValueError(f"{name}: the field {field} is missing; present are {', '.join(map(str, columns))}")
    size = len(columns["id"])
    for field in ("raw_text", "regression_labels", "audio", "vision", "audio_lengths", "vision_lengths"):
        if field in columns and len(columns[field]) != size:
            raise ValueError(f"{name}: {field} has {len(columns[field])} entries, id has {size}")
    for index in range(size):
        sample = {
            "id": str(columns["id"][index]),
            "text": columns["raw_text"][index],
            "label": columns["regression_labels"][index],
        }
        for modality in ("audio", "vision"):
            if modality in columns:
                values = np.atleast_2d(columns[modality][index])
                lengths = columns.get(f"{modality}_lengths")
                if lengths is None:
                    sample[modality] = _without_zero_ends(values)
                else:
                    steps = _true_steps(lengths[index], values, f"{name}, sample {sample['id']}: {modality}_lengths")
                    sample[modality] = values[:steps]
        yield sample


def _true_steps(length, values, name):
    length = length.item() if isinstance(length, np.generic | np.ndarray) and np.size(length) == 1 else length
    if not isinstance(length, int | float) or not 0 <= length <= len(values) or length != int(length):
        raise ValueError(f"{name} must be a whole number from 0 to {len(values)}, but is {length!r}")
    return int(length)


def _without_zero_ends(values):
    steps = np.flatnonzero(np.any(values != 0, axis=1))
    return values[steps[0] : steps[-1] + 1] if len(steps) else values[:0]


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
            raise ValueError(f"{path}, entry {index}: expected {{features: {{text, audio, video, ...}}, label}}")
        sample = {"id": f"{path.stem}_{index}", "dialogue_id": f"{path.stem}_{index}"}
        sample |= {field: entry[field] for field in ("id", "dialogue_id", "utterance_id", "speaker") if field in entry}
        sample |= {"text": features["text"], "label": entry["label"]}
        for modality, field, length in (("audio", "audio", "audio_len"), ("vision", "video", "video_len")):
            values = features.get(field)
            if values is not None and length in features:
                values = values[: _true_steps(features[length], values, f"{path}, entry {index}: {length}")]
            sample[modality] = values
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
