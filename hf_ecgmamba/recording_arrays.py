"""Arrays, in memory and in files that hold them by name: numpy, MATLAB, HDF5."""

import numpy as np

from .recording_channels import STANDARD_LEADS, Channels, as_array, from_matrix, library, one_line, orientation

# Layouts whose files leave the rate to the data set's own description.
_CPSC2018_RATE = 500.0
_SPH_RATE = 500.0  # Liu et al. 2022

_RATE_KEYS = ("sampling_rate", "sampling_frequency", "sample_rate", "fs")
_SIGNAL_KEYS = ("signal", "array", "ecg", "data", "tracings")
_LEAD_KEYS = ("leads", "lead_names", "sig_name")
_UNIT_KEYS = ("units", "unit")


def open_array(array, name, leads=None, unnamed_leads=STANDARD_LEADS):
    array = as_array(array, name)
    known = leads if leads is not None else unnamed_leads
    transposed, count, _ = orientation(name, array.shape, array.dtype, known)
    matrix = array.T if transposed else array.reshape(count, -1)
    return from_matrix(name, matrix, [None] * count, [None] * count, None)


def open_numpy(path, leads):
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path.name}: not a numpy file without pickled objects ({_own_words(error)})") from error
    if isinstance(loaded, np.ndarray):
        return open_array(loaded, path.stem, leads)
    with loaded:
        key = _signal_key(path, loaded.files)
        try:
            signal = loaded[key]
            stated = [_first_of(loaded, loaded.files, keys) for keys in (_RATE_KEYS, _LEAD_KEYS, _UNIT_KEYS)]
        except ValueError as error:
            raise ValueError(f"{path.name}: not an archive of numbers ({_own_words(error)})") from error
        rate, names, units = stated
        names = None if names is None else [str(name) for name in names.ravel()]
        channels = open_array(signal, path.stem, leads or names)
    if names is not None:
        channels.names = names
    if rate is not None:
        channels.rates = [float(rate.ravel()[0])] * len(channels.rates)
    if units is not None:
        channels.units = [str(units.ravel()[0])] * len(channels.units)
    return channels


def open_matlab(path, leads):
    """CPSC 2018's struct (ECG: sex, age, data) and CODE-15's variables (feats, curr_sample_rate). The first states no
    rate, neither states units or names: 500 Hz, mV and the usual order of leads by the data sets' descriptions."""
    try:
        content = library("scipy.io").loadmat(path)
        variables = {key: value for key, value in content.items() if not key.startswith("__")}
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path.name}: not a MATLAB file ({one_line(error)})") from error
    struct = variables.get("ECG")
    if struct is not None and "data" in (struct.dtype.names or ()):
        channels = open_array(struct[0, 0]["data"], path.stem, leads)
        channels.rates = [_CPSC2018_RATE] * len(channels.names)
        channels.notes = ["500 Hz, as CPSC 2018 describes its files"]
        channels.rate_is_stated = False
    elif {"feats", "curr_sample_rate"} <= set(variables):
        channels = open_array(variables["feats"], path.stem, leads)
        channels.rates = [float(variables["curr_sample_rate"].ravel()[0])] * len(channels.names)
    elif "val" in variables:
        raise FileNotFoundError(f"{path.name}: a WFDB signal file, whose header {path.stem}.hea is missing beside it")
    else:
        raise ValueError(
            f"{path.name} has the variables {', '.join(variables) or 'none'}; expected ECG (CPSC 2018) or feats and "
            "curr_sample_rate (CODE-15)"
        )
    return channels


def open_hdf5(path, leads):
    """The data set named signal, array, ecg, data or tracings, or the only one; rate, leads and units from its own or
    the file's attributes. SPH's files (`ecg`, float16, 12 leads) state no rate: 500 Hz by its description."""
    h5py = library("h5py")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path.name}: not an HDF5 file ({one_line(error)})") from error
    with file:
        found = {}
        file.visititems(lambda key, item: found.update({key: item}) if isinstance(item, h5py.Dataset) else None)
        key = _signal_key(path, list(found))
        item = found[key]
        stated = {**file.attrs, **item.attrs}
        rate, names, units = (_first_of(stated, stated, keys) for keys in (_RATE_KEYS, _LEAD_KEYS, _UNIT_KEYS))
        names = None if names is None else [_text(name) for name in np.ravel(names)]
        shape, dtype = item.shape, item.dtype
        looks_like_sph = key == "ecg" and dtype == np.float16 and rate is None and min(shape) == 12
    transposed, count, length = orientation(path.stem, shape, dtype, leads or names)

    def read(indices, start, stop):
        with h5py.File(path, "r") as opened:
            data = opened[key]
            span = data[start:stop] if transposed or len(shape) == 1 else data[:, start:stop]
        return (span.reshape(-1, count).T if transposed or len(shape) == 1 else span)[indices]

    return Channels(
        name=path.stem,
        names=names or [None] * count,
        units=[None if units is None else _text(np.ravel(units)[0])] * count,
        rates=[_SPH_RATE if looks_like_sph else rate and float(np.ravel(rate)[0])] * count,
        lengths=[length] * count,
        read=read,
        notes=["500 Hz, as SPH describes its files"] if looks_like_sph else [],
        rate_is_stated=not looks_like_sph,
    )


def _signal_key(path, keys):
    """Which of a file's arrays is the signal."""
    by_name = [key for key in keys if key.rsplit("/")[-1].lower() in _SIGNAL_KEYS]
    candidates = by_name or list(keys)
    if len(candidates) != 1:
        raise ValueError(
            f"{path.name} holds the arrays {', '.join(keys) or 'none'}; expected one, or one named "
            f"{', '.join(_SIGNAL_KEYS)}"
        )
    return candidates[0]


def _own_words(error):
    """numpy's messages advise its reader to unpickle."""
    return "it holds Python objects" if "pickle" in str(error) or "Python objects" in str(error) else one_line(error)


def _first_of(mapping, present, keys):
    return next((mapping[key] for key in keys if key in present), None)


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)
