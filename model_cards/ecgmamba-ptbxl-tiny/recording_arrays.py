"""Arrays and tables, in memory and in files that hold them by name: numpy, MATLAB, HDF5, data frames."""

import re
import zipfile
from collections import Counter

import numpy as np

from .recording_channels import (
    STANDARD_LEADS,
    Channels,
    as_array,
    from_columns,
    from_matrix,
    lead_name,
    library,
    mark_missing,
    one_line,
    orientation,
    place_in_time,
)

# Layouts whose files leave the rate to the data set's own description.
_CPSC2018_RATE = 500.0
_SPH_RATE = 500.0  # Liu et al. 2022

# What stands beside a signal, by the names that people give it, in any case.
_RATE_KEYS = (
    "sampling_rate", "sampling_frequency", "sample_rate", "samplerate", "samplingrate", "sampling_freq", "sampfreq",
    "fs", "freq", "frequency", "srate", "sr", "curr_sample_rate", "sample_frequency", "sample_freq", "samplefrequency",
    "samplingfrequency", "sampling_rate_hz", "sample_rate_hz", "sampling_frequency_hz", "fs_hz", "fsample", "hz",
)  # fmt: skip
_INTERVAL_KEYS = ("dt", "sampling_interval", "sample_interval", "samplinginterval", "sampling_period")  # seconds
_TIME_KEYS = ("time", "times", "t", "timestamp", "timestamps", "time_s", "time_ms", "tm")
_SIGNAL_KEYS = ("signal", "array", "ecg", "data", "tracings")
_LEAD_KEYS = ("leads", "lead_names", "sig_name", "channel_names", "channels")
_UNIT_KEYS = ("units", "unit")
_GAIN_KEYS = ("gain", "gains", "adc_gain", "counts_per_mv", "adu_per_mv")  # counts in one unit, as WFDB has it
_BASELINE_KEYS = ("baseline", "baselines", "adc_zero", "adc_baseline")
# of many recordings in one array
_ID_KEYS = ("exam_id", "exam_ids", "ecg_id", "record", "records", "record_names", "name", "names", "id", "ids")


def open_array(array, name, leads=None, unnamed_leads=STANDARD_LEADS):
    """The channels of an array `[time]`, `[leads, time]` or `[time, leads]`, or of a table; of one with three axes,
    [`ManyRecordings`]."""
    if _is_table(array):
        return _open_table(array, name)
    if getattr(array, "ndim", None) != 3:  # many recordings are looked at one by one
        array = as_array(array, name)
    if array.ndim == 3:
        return ManyRecordings(name, array, leads, unnamed_leads).or_its_only_one()
    if array.dtype.names:  # numpy's structured arrays
        return from_columns(name, array.dtype.names, np.stack([array[title].ravel() for title in array.dtype.names]))
    known = leads if leads is not None else unnamed_leads
    transposed, count, _ = orientation(name, array.shape, array.dtype, known)
    matrix = array.T if transposed else array.reshape(count, -1)
    return from_matrix(name, matrix, [None] * count, [None] * count, None)


def _is_table(array):
    """Whether columns have names: a data frame or series of pandas or polars, a table of pyarrow."""
    return (
        hasattr(array, "columns")
        or hasattr(array, "column_names")
        or (hasattr(array, "to_numpy") and hasattr(array, "name") and hasattr(array, "dtype"))
    )


def _open_table(table, name):
    if hasattr(table, "column_names"):
        table = table.to_pandas()
    if not hasattr(table, "columns"):  # a series
        columns, titles = [table], [table.name]
    elif hasattr(table, "iloc"):  # by place, as pandas allows equal names
        columns, titles = [table.iloc[:, k] for k in range(table.shape[1])], list(table.columns)
    else:
        columns, titles = [table[title] for title in table.columns], list(table.columns)
    index = getattr(table, "index", None)
    if columns and index is not None and len(titles) > len(columns[0]) and all(lead_name(str(row)) for row in index):
        return _open_table(table.T, name)  # a row for each lead
    if not columns or not len(columns[0]):
        raise ValueError(f"{name} is a table without {'rows' if columns else 'columns'}")
    titles = [None if title is None or title == "" else _text(title) for title in titles]
    rows = [_column(column, title, name) for column, title in zip(columns, titles, strict=True)]
    whole = all(row.dtype.kind in "iu" for row in rows)
    matrix = np.stack(rows) if whole else np.stack([np.asarray(row, np.float64) for row in rows])
    return from_columns(name, titles, matrix, step=_index_in_seconds(index))


def _column(column, title, name):
    """A column as numbers: dates and durations as seconds, what is missing as NaN; words, which are no lead's, too."""
    kind = getattr(column.dtype, "kind", None)
    if kind in ("M", "m"):
        return _in_seconds(np.asarray(column.to_numpy() if kind == "m" else column.to_numpy("datetime64[ns]")))
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan) if kind not in "iub" else column.to_numpy()
    except TypeError:  # polars
        values = column.to_numpy()
    except ValueError:
        values = np.asarray(column.to_numpy(), dtype=object)
    values = np.ma.asanyarray(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    if values.dtype.kind in "Mm":
        return _in_seconds(values)
    if values.dtype.kind not in "fiu":
        return np.full(len(values), np.nan)
    return mark_missing(values)


def _in_seconds(times):
    """Seconds since the first of numpy's dates or durations; a missing one is NaN."""
    steps = (times - times[0]).astype("timedelta64[ns]")
    return np.where(np.isnat(steps), np.nan, steps.astype(np.int64) / 1e9)


def _index_in_seconds(index):
    """Seconds of each row by the index of a pandas frame, where that is of time."""
    if index is None or len(index) < 2:
        return None
    # dates of a time zone are objects to numpy
    values = index.to_numpy("datetime64[ns]") if getattr(index.dtype, "kind", "") == "M" else np.asarray(index)
    if values.dtype.kind in "Mm":
        return _in_seconds(values)
    if values.dtype.kind != "f":
        return None
    title = str(getattr(index, "name", None) or "").lower()
    # of an index without a name, steps that are no whole numbers are those of time
    is_time = title.startswith(("time", "t", "sec")) or (not title and (np.diff(values[:3]) % 1).all())
    return values.astype(np.float64) if is_time else None


def open_numpy(path, leads):
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path.name}: not a numpy file without pickled objects ({_own_words(error)})") from error
    if isinstance(loaded, np.ndarray):
        return open_array(loaded, path.stem, leads)
    with loaded:
        try:
            arrays = dict(loaded)
        except ValueError as error:
            raise ValueError(f"{path.name}: not an archive of numbers ({_own_words(error)})") from error
    return _open_named(path, arrays, leads)


def _open_named(path, arrays, leads, key=None):
    """The signal among arrays that a file holds by name (`key`, where known), and what the others say of it."""
    if key is None and (of_leads := _named_by_leads({name: array.shape for name, array in arrays.items()})):
        return _from_leads(path, arrays, of_leads)
    key = key or _signal_key(path, {name: array.shape for name, array in arrays.items()})
    stated = _Stated(path.name, {name: array for name, array in arrays.items() if name != key})
    if arrays[key].ndim == 3:
        many = ManyRecordings(path.stem, arrays[key], leads or stated.leads, stated=stated)
        many.call(first_of(arrays, _ID_KEYS))
        return many.or_its_only_one()
    channels = open_array(arrays[key], path.stem, leads or stated.leads)
    if stated.leads is not None and channels.names == [None] * len(channels.units):
        channels.names = stated.leads
    return stated.into(channels)


def first_of(entries, keys):
    """The value of the first of the names `keys` that is among the `entries`, in any case, whatever group it lies in;
    else None."""
    entries = {key.rsplit("/")[-1].rsplit(".")[-1].lower(): value for key, value in entries.items()}
    return next((entries[key] for key in keys if key in entries), None)


def _named_by_leads(shapes):
    """Of a file that has an array for each lead, under its name, those arrays' names; else nothing."""
    found = [key for key, shape in shapes.items() if lead_name(key.rsplit("/")[-1]) and max(shape, default=0) > 1]
    lengths = {max(shapes[key]) for key in found if np.prod(shapes[key]) == max(shapes[key])}
    is_named_signal = any(key.rsplit("/")[-1].lower() in _SIGNAL_KEYS for key in shapes)
    return found if len(found) > 1 and len(lengths) == 1 and not is_named_signal else []


def _from_leads(path, arrays, of_leads):
    """The channels of arrays that are called as the leads are."""
    matrix = np.stack([as_array(np.ravel(arrays[key]), path.stem) for key in of_leads])
    names = [key.rsplit("/")[-1] for key in of_leads]
    channels = from_matrix(path.stem, matrix, names, [None] * len(names), None)
    return _Stated(path.name, {name: array for name, array in arrays.items() if name not in of_leads}).into(channels)


class _Stated:
    """What stands beside a signal: `entries` maps names, in any case, to arrays, numbers and words.

    Attributes: `rate` in Hz, `leads` and `units` as lists of words, `gain`, `baseline` as arrays; None where absent.
    """

    def __init__(self, source, entries):
        self.source = source

        def first(keys):
            value = first_of(entries, keys)
            value = None if value is None else _unwrapped(value)
            return None if value is None or value.size == 0 else value

        rate, interval = first(_RATE_KEYS), first(_INTERVAL_KEYS)
        rates = [] if rate is None else sorted(set(self._numbers("sampling rate", rate).tolist()))
        if len(rates) > 1:
            raise ValueError(f"{source} states the sampling rates {rates}; expected one")
        if interval is not None and not rates:
            interval = self._numbers("sampling interval", interval)
            rates = [float(1 / interval[0])] if interval.size == 1 and interval[0] > 0 else []
        self.rate = rates[0] if rates else None
        times = first(_TIME_KEYS)
        self.times = times.ravel() if times is not None and times.dtype.kind in "fiu" else None
        # "channels" may be their number, and the leads may stand under any name
        self.leads = _words(first(_LEAD_KEYS)) or next(filter(None, map(_as_leads, entries.values())), None)
        self.units = _words(first(_UNIT_KEYS))
        gain, baseline = first(_GAIN_KEYS), first(_BASELINE_KEYS)
        self.gain = None if gain is None else self._numbers("gain", gain)
        self.baseline = None if baseline is None else self._numbers("baseline", baseline)
        if self.gain is not None and not (np.isfinite(self.gain) & (self.gain != 0)).all():
            raise ValueError(f"{source} states a gain of {self.gain.tolist()}; expected counts in one unit")

    def _numbers(self, what, value):
        if value.dtype.kind in "SUO" and value.size == 1:  # "250 Hz"
            words = _text(_unwrapped(value).ravel()[0]).strip()
            value = np.asarray(re.sub(r"\s*(Hz|hertz)$", "", words, flags=re.IGNORECASE))
        try:
            return np.asarray(value).ravel().astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.source} states a {what} of {value!r}; expected a number") from error

    def into(self, channels):
        """Rate, units, gain and baseline into the channels, each its own where there are as many. Where the time of
        each sample stands beside them, it states the rate, too, and may have holes.

        Raises:
            ValueError: where what is stated contradicts itself, or the channels.
        """
        count = len(channels.units)
        if self.times is not None and {len(self.times)} == set(channels.lengths):
            self.rate = place_in_time(channels, self.times, self.rate)
        if self.rate is not None:
            if not 0 < self.rate < np.inf:
                raise ValueError(
                    f"{self.source} states a sampling rate of {self.rate:g}; expected a number of Hz above 0"
                )
            channels.rates, channels.rate_is_stated = [self.rate] * count, True
        if self.units is not None:
            channels.units = [unit or None for unit in self._for_each("units", self.units, count)]
        if self.gain is not None:
            gain = np.array(self._for_each("gains", self.gain, count))
            baseline = np.array(self._for_each("baselines", [0.0] if self.baseline is None else self.baseline, count))
            counted, read = [unit or "mV" for unit in channels.units], channels.read

            def read_physical(indices, start, stop):
                values = np.asarray(read(indices, start, stop), dtype=np.float64)
                return (values - baseline[indices, None]) / gain[indices, None]

            channels.read, channels.units, channels.are_counts = read_physical, counted, False
            channels.notes.append(f"counts, {', '.join(f'{g:g}' for g in dict.fromkeys(gain))} in one {counted[0]}")
        return channels

    def _for_each(self, what, values, count):
        values = list(values)
        if len(values) not in (1, count):
            raise ValueError(f"{self.source} states {len(values)} {what} for {count} channels")
        return values * count if len(values) == 1 else values


def _unwrapped(value):
    """An array out of MATLAB's cells and HDF5's single values."""
    value = np.asarray(value)
    while value.dtype == object and value.size == 1 and not isinstance(value.item(), (str, bytes)):
        inner = np.asarray(value.item())
        if inner is value:
            break
        value = inner
    return value


def _as_leads(value):
    """A list of words that are all leads' names; None for anything else."""
    if getattr(value, "ndim", None) == 0 or getattr(getattr(value, "dtype", None), "kind", "O") not in "SUO":
        return None
    words = _words(np.asarray(value)) if 1 < np.size(value) <= 256 else None
    return words if words and all(map(lead_name, words)) else None


def _words(value):
    """A list of words, out of an array of them or one with commas; None where it holds no words."""
    if value is None:
        return None
    words = [_text(_unwrapped(item).ravel()[0]) if np.size(_unwrapped(item)) else "" for item in np.ravel(value)]
    if value.dtype.kind in "fiub":
        return None
    if len(words) == 1 and any(mark in words[0] for mark in ",;"):
        words = words[0].replace(";", ",").split(",")
    return [word.strip() for word in words]


def open_matlab(path, leads):
    """CPSC 2018's struct (ECG: sex, age, data) and CODE-15's variables (feats, curr_sample_rate), or any file with one
    signal. The first states no rate, neither of these two units or names: 500 Hz, mV and the usual order of leads by
    the data sets' descriptions."""
    try:
        content = library("scipy.io").loadmat(path)
        variables = {key: value for key, value in content.items() if not key.startswith("__")}
    except ImportError:
        raise
    except Exception as error:  # zlib's, struct's and others, whatever a damaged file meets first
        raise ValueError(f"{path.name}: not a MATLAB file ({one_line(error)})") from error
    struct = variables.get("ECG")
    fields = {} if struct is None or not struct.dtype.names or not struct.size else _fields(struct)
    if "data" in fields:
        channels = open_array(fields["data"], path.stem, leads)
        channels.rates = [_CPSC2018_RATE] * len(channels.names)
        channels.rate_is_stated = False
        stated = _Stated(path.name, {key: value for key, value in {**variables, **fields}.items() if key != "data"})
        if stated.leads is not None and len(stated.leads) == len(channels.units):
            channels.names = stated.leads
        channels = stated.into(channels)
        if stated.rate is None:
            channels.notes.append("500 Hz, as CPSC 2018 describes its files")
    elif {"feats", "curr_sample_rate"} <= set(variables):
        channels = open_array(variables["feats"], path.stem, leads)
        channels = _Stated(path.name, {key: value for key, value in variables.items() if key != "feats"}).into(
            channels
        )
    elif set(variables) == {"val"} and leads is None:
        raise FileNotFoundError(f"{path.name}: a WFDB signal file, whose header {path.stem}.hea is missing beside it")
    else:
        channels = _open_variables(path, variables, leads)
    return channels


def _open_variables(path, variables, leads):
    """Any other MATLAB file with one signal in it, by itself or as a field of a struct."""
    arrays = _flat(variables)
    signals = {
        key: array
        for key, array in arrays.items()
        if array.dtype.kind in "fiu"
        and array.ndim in (2, 3)
        and max(array.shape) >= 100
        and key.rsplit("/")[-1].lower() not in (*_ID_KEYS, *_TIME_KEYS)
    }
    if not signals:
        held = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "none"
        raise ValueError(f"{path.name} has the variables {held}; expected a signal among them")
    if _named_by_leads({name: array.shape for name, array in signals.items()}):
        return _open_named(path, arrays, leads)
    key = _signal_key(path, {name: array.shape for name, array in signals.items()})
    return _open_named(
        path, {name: array for name, array in arrays.items() if name == key or name not in signals}, leads, key
    )


def _flat(variables, prefix=""):
    """{name: array} of variables, those of structs as STRUCT/FIELD, however deep."""
    arrays = {}
    for key, value in variables.items():
        if value.dtype.names and value.size == 1 and prefix.count("/") < 8:
            fields = {name: np.asarray(item) for name, item in _fields(value).items()}
            arrays.update(_flat(fields, f"{prefix}{key}/"))
        else:
            arrays[f"{prefix}{key}"] = _unwrapped(value)
    return arrays


def _fields(struct):
    return {name: struct.ravel()[0][name] for name in struct.dtype.names}


def open_hdf5(path, leads):
    """The data set named signal, array, ecg, data or tracings, or the only one of that size; rate, leads, units and
    gain from its own or the file's attributes, or from data sets so named. SPH's files (`ecg`, float16, 12 leads)
    state no rate: 500 Hz by its description."""
    h5py = library("h5py")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path.name}: not an HDF5 file ({one_line(error)})") from error
    with file:
        found = {}
        file.visititems(lambda key, item: found.update({key: item}) if isinstance(item, h5py.Dataset) else None)
        shapes = {name: item.shape or () for name, item in found.items()}
        if of_leads := _named_by_leads(shapes):
            held = {name: item[()] for name, item in found.items() if name in of_leads or (item.size or 0) <= 1000}
            return _from_leads(path, {**held, **_attributes(file, of_leads[0])}, of_leads)
        key = _signal_key(path, shapes)
        item = found[key]
        beside = {
            name: other[()]
            for name, other in found.items()
            if name != key and ((other.size or 0) <= 1000 or name.rsplit("/")[-1].lower() in _TIME_KEYS)
        }
        stated = _Stated(path.name, {**beside, **_attributes(file, key)})
        shape, dtype = shapes[key], item.dtype
        looks_like_sph = key == "ecg" and dtype == np.float16 and stated.rate is None and min(shape) == 12
        ids = first_of({name: other for name, other in found.items() if name != key}, _ID_KEYS)
        ids = None if ids is None else ids[()]
    if len(shape) == 3:
        many = ManyRecordings(path.stem, _LazyArray(path, key, shape, dtype), leads or stated.leads, stated=stated)
        many.call(ids)
        many.is_code15 = key == "tracings" and shape[1:] == _CODE15_SHAPE and stated.rate is None
        return many.or_its_only_one()
    transposed, count, length = orientation(path.stem, shape, dtype, leads or stated.leads)

    def read(indices, start, stop):
        with h5py.File(path, "r") as opened:
            data = opened[key]
            span = data[start:stop] if transposed or len(shape) == 1 else data[:, start:stop]
        span = (span.reshape(-1, count).T if transposed or len(shape) == 1 else span)[indices]
        return mark_missing(span)

    channels = Channels(
        name=path.stem,
        names=stated.leads or [None] * count,
        units=[None] * count,
        rates=[_SPH_RATE if looks_like_sph else None] * count,
        lengths=[length] * count,
        read=read,
        notes=["500 Hz, as SPH describes its files"] if looks_like_sph else [],
        rate_is_stated=not looks_like_sph,
        are_counts=dtype.kind in "iu",
    )
    return stated.into(channels)


def _attributes(file, key):
    """What is stated of a data set: its own attributes, and of the groups that it lies in the inner ones' first."""
    parts = key.split("/")
    places = ["/", *("/".join(parts[: k + 1]) for k in range(len(parts)))]
    return {name: value for place in places for name, value in file[place].attrs.items()}


def _signal_key(path, shapes):
    """Which of a file's arrays is the signal: by name, or, of one size, the only one that is no single number."""
    by_name = [key for key in shapes if key.rsplit("/")[-1].lower() in _SIGNAL_KEYS]
    stating = (*_RATE_KEYS, *_INTERVAL_KEYS, *_TIME_KEYS, *_LEAD_KEYS, *_UNIT_KEYS, *_GAIN_KEYS)
    stating += (*_BASELINE_KEYS, *_ID_KEYS)
    others = [key for key in shapes if key.rsplit("/")[-1].lower() not in stating]
    many = [key for key in others if len(shapes[key]) == 3]  # beside tables of labels
    candidates = by_name or (many if len(many) == 1 else others if len(others) == 1 else list(shapes))
    if len(candidates) != 1:
        raise ValueError(
            f"{path.name} holds the arrays {', '.join(shapes) or 'none'}; expected one, or one named "
            f"{', '.join(_SIGNAL_KEYS)}"
        )
    return candidates[0]


def _own_words(error):
    """numpy's messages advise its reader to unpickle."""
    return "it holds Python objects" if "pickle" in str(error) or "Python objects" in str(error) else one_line(error)


def _text(value):
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


# -- many recordings in one array -------------------------------------------------------------------------------------

_CODE15_SHAPE, _CODE15_RATE = (4096, 12), 400.0  # Ribeiro et al. 2021


class ManyRecordings:
    """
    An array `[recordings, leads, time]` or `[recordings, time, leads]`, each recording to be opened by its name.

    Args:
        name (`str`): of the source.
        array: of three axes, which gives a recording by its place: numpy's, torch's, [`_LazyArray`].
        leads (`list`, *optional*): the lead of each channel, where known; else `unnamed_leads`, if they are as many.
        stated (`_Stated`, *optional*): what stands beside the array.

    Attributes:
        names (`tuple[str]`): of the recordings, each once: what [`~ManyRecordings.call`] has named them, or their
            numbers from 0 on.
    """

    def __init__(self, name, array, leads=None, unnamed_leads=STANDARD_LEADS, stated=None):
        self.name, self._array, self._leads = name, array, leads
        self._known, self._stated, self.is_code15 = leads if leads is not None else unnamed_leads, stated, False
        if 0 in array.shape:
            raise ValueError(f"{name} has shape {list(array.shape)}; expected [recordings, leads, time]")
        self.names = tuple(map(str, range(array.shape[0])))

    def __len__(self):
        return len(self.names)

    def call(self, ids):
        """Names the recordings by `ids`, if there is one for each; those that occur twice with their number, too."""
        ids = None if ids is None else np.ravel(np.asarray(ids))
        if ids is None or len(ids) != len(self.names):
            return
        words = [_text(number) for number in ids.tolist()]
        counted = Counter(words)
        self.names = tuple(
            word if counted[word] == 1 else f"{word} (number {place})" for place, word in enumerate(words)
        )

    def or_its_only_one(self):
        return self.channels(0) if len(self) == 1 else self

    def place_of(self, record):
        """
        Raises:
            ValueError: for no name of a recording; the message says how they are called.
        """
        names = f"{', '.join(self.names[:5])}{', ...' * (len(self) > 5)}"
        if record is None:
            raise ValueError(
                f"{self.name} holds {len(self)} recordings ({names}); give record=, one of them, or read them all "
                "with open_recordings"
            )
        if str(record) not in self.names:
            raise ValueError(f"{self.name}: record is {record!r}; expected one of its {len(self)}: {names}")
        return self.names.index(str(record))

    def channels(self, place):
        """The channels of one recording, without the zeros and missing samples that fill it up on either side."""
        name = self.name if len(self) == 1 else f"{self.name} {self.names[place]}"
        array = as_array(self._array[place], name)
        transposed, count, length = orientation(name, array.shape, array.dtype, self._known)
        matrix = array.T if transposed else array
        some = np.flatnonzero(((matrix != 0) & ~np.isnan(matrix)).any(axis=0))
        matrix = matrix[:, some[0] : some[-1] + 1] if len(some) else matrix
        channels = from_matrix(name, matrix, list(self._leads or [None] * count), [None] * count, None)
        if matrix.shape[1] < length:
            channels.notes.append(f"{length - matrix.shape[1]} samples cut off that fill it up")
        if self.is_code15 and count == len(STANDARD_LEADS):
            channels.rates, channels.rate_is_stated = [_CODE15_RATE] * count, False
            channels.notes.append(f"{_CODE15_RATE:g} Hz, and the order of leads, as CODE-15 describes its files")
            channels.names = list(self._leads or STANDARD_LEADS)
        return channels if self._stated is None else self._stated.into(channels)


class _LazyArray:
    """A data set of an HDF5 file, from which only what is asked for is read."""

    def __init__(self, path, key, shape, dtype):
        self._path, self._key = path, key
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    def __getitem__(self, place):
        with library("h5py").File(self._path, "r") as file:
            return file[self._key][place]


def may_hold_many(path):
    """Whether a file of arrays has one with three axes, by its headers alone; False where they cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False, mmap_mode="r").ndim == 3
        if suffix == ".npz":
            return any(len(shape) == 3 for shape in _shapes_in_archive(path))
        if suffix == ".mat" and not library("h5py").is_hdf5(path):
            return any(len(shape) == 3 for _, shape, _ in library("scipy.io").whosmat(path))
        if suffix in (".mat", ".h5", ".hdf5"):
            shapes = []
            with library("h5py").File(path, "r") as file:
                file.visititems(lambda _, item: shapes.append(getattr(item, "shape", None) or ()))
            return any(len(shape) == 3 for shape in shapes)
    except Exception:  # whatever a damaged file makes a library raise: reading will say it
        pass
    return False


def _shapes_in_archive(path):
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                yield read(member)[0]
