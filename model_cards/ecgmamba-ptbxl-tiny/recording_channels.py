"""What all formats of ECG share: a `Recording`, and the way to it from the channels that a file describes.

A family of formats (`recording_wfdb.py`, `recording_text.py`, ...) describes a file's channels as [`Channels`]: names,
units, rates, and how to read a span. Which of them are ECG, which lead each is, what unit it came in, and saying in
one line what is wrong is the same for all of them and stands here.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from numbers import Real

import numpy as np

# what the files that are read end in, and what people call their formats
FILE_ENDINGS = (
    *(".hea", ".edf", ".bdf", ".rec", ".csv", ".tsv", ".txt", ".npy", ".npz", ".mat", ".h5", ".hdf5"),
    *(".dcm", ".xml", ".aecg", ".scp", ".ecg"),
)
FORMATS = (
    *("WFDB", "EDF", "BDF", "CSV", "text of watches and chest straps", "NumPy", "MATLAB", "HDF5"),
    *("DICOM", "HL7 aECG", "GE MUSE and Philips Sierra XML", "SCP-ECG", "ISHNE"),
)

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Other leads by name: the unplaced chest lead of bedside monitors, further chest leads, Frank's.
_OTHER_LEADS = ("V", "V7", "V8", "V9", "V3R", "V4R", "VX", "VY", "VZ")
# Holter recorders place the limb electrodes on the chest ("modified" leads); the field reads them as the lead that
# they imitate, and so do we, with a note. MCL1 to MCL6 sit where V1 to V6 do.
_MODIFIED_LEADS = {"MLI": "I", "MLII": "II", "MLIII": "III", **{f"MCL{n}": f"V{n}" for n in range(1, 7)}}
_LEAD_OF = {
    **{lead.upper(): lead for lead in (*STANDARD_LEADS, *_OTHER_LEADS)},
    **{"DI": "I", "DII": "II", "DIII": "III", "D1": "I", "D2": "II", "D3": "III"},
    **{"LI": "I", "LII": "II", "LIII": "III"},
    **_MODIFIED_LEADS,
}

_MILLIVOLTS = {
    **dict.fromkeys(("m", "milli"), 1.0),
    # micro as the sign of Latin-1, as the Greek letter, as DOS had it (read as Latin-1), as UTF-8 read as Latin-1, and
    # as it is typed
    **dict.fromkeys(
        ("u", "\u00b5", "\u03bc", "\u00e6", "\u00e2\u00b5", "\u00ee\u00bc", "mc", "micro", "&micro;"), 1e-3
    ),
    "": 1e3,
    **dict.fromkeys(("n", "nano"), 1e-6),
}
_PREFIXES = "|".join(sorted(map(re.escape, _MILLIVOLTS), key=len, reverse=True))
# "mV", "micro-volts", "10 uV"
_VOLTAGE = re.compile(rf"(?P<count>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)?[\s*]*(?P<prefix>{_PREFIXES})[\s_-]?v(?:olts?)?")
# how files write that they do not know a unit
_NO_UNIT = ("", "?", "n/a", "na", "none", "nan", "null", "unknown", "-", "--")

# What else is recorded beside an ECG, by the names and units that monitors and polysomnographs write.
_OTHER_SIGNALS = (
    ("PPG", r"PLETH.*|PPG.*"),
    ("blood pressure", r"ABP.*|ART.*|PAP.*|CVP.*|ICP.*|N?I?BP.*|UAP|UVP|LAP|RAP"),
    ("respiration", r"RESP.*|FLOW|THOR.*|ABDO.*|CHEST|CO2|ETCO2"),
    ("EEG", r"EEG.*|(FP|AF|F|FC|FT|C|CP|T|TP|P|PO|O|A|M)(Z|\d{1,2})([ :\-].*)?"),
    ("EMG", r"EMG.*|CHIN.*|LEG.*"),
    ("EOG", r"EOG.*|LOC|ROC"),
    ("vital sign", r"HR|PULSE|SPO2|SAO2|TEMP.*"),
    ("time", r"T([ _(\[].*)?|(\w+[ _])?TIME.*|DATE.*|ELAPSED.*|SEC(OND)?S?|MS|INDEX|SAMPLE.*|UNNAMED.*|#|"),
)


@dataclass
class Recording:
    """A stretch of ECG.

    Args:
        signal (`np.ndarray`): float32 `[leads, time]` in millivolts; NaN where no sample was taken.
        leads (`tuple[str]`): one name a row, as in `STANDARD_LEADS` where it is one of those.
        sampling_rate (`float`): samples per second.
        name (`str`): what messages call it, such as the file's name without its ending.
        notes (`tuple[str]`): what a reader should know of how it was read: channels left out, names or units assumed.
    """

    signal: np.ndarray
    leads: tuple[str, ...]
    sampling_rate: float
    name: str = "recording"
    notes: tuple[str, ...] = ()


@dataclass
class Channels:
    """All channels of a source as its format describes them: what is unknown is None.

    `read(indices, start, stop)` returns `[len(indices), stop - start]` in the channels' units, in samples of those
    channels, NaN where one is missing; it is only asked for channels of one rate at a time. `are_counts` says that
    the values are whole numbers as a converter gives them, which are no millivolts; `doubt` why nothing should be
    found in what is read.
    """

    name: str
    names: list
    units: list
    rates: list
    lengths: list
    read: Callable
    notes: list = field(default_factory=list)
    rate_is_stated: bool = True
    are_counts: bool = False
    doubt: str | None = None


class RecordingFile:
    """An opened source: what it holds, and `read` for any span of it. Made by [`open_recording`].

    Attributes:
        name (`str`), leads (`tuple[str]`), sampling_rate (`float`, Hz), num_samples (`int`), duration (`float`,
        seconds), notes (`tuple[str]`), names_are_stated (`bool`): whether the source or the caller names the leads,
        rather than their number, doubt (`str`, *optional*): why nothing should be found in it without a second look.
    """

    def __init__(self, channels, chosen, leads, factors, notes, names_are_stated=True):
        rates = [channels.rates[index] for index in chosen]
        self.name = channels.name
        self.leads = tuple(leads)
        self.sampling_rate = float(min(rates))
        self.notes = tuple(notes)
        self.names_are_stated = names_are_stated
        self.doubt = channels.doubt
        self.given = {}  # sampling_rate, leads, units that it was opened with
        self._channels = channels
        self._factors = np.array(factors)[:, None]
        # A channel may be sampled at a multiple of the others' rate (several samples in a WFDB frame).
        self._multiples = [round(rate / self.sampling_rate) for rate in rates]
        if any(abs(rate / self.sampling_rate - m) > 1e-6 for rate, m in zip(rates, self._multiples, strict=True)):
            listed = ", ".join(f"{lead} {rate:g} Hz" for lead, rate in zip(leads, rates, strict=True))
            raise ValueError(f"{self.name}: the leads have unrelated sampling rates ({listed}); expected one rate")
        self.num_samples = min(channels.lengths[i] // m for i, m in zip(chosen, self._multiples, strict=True))
        self._rows = {
            m: [row for row, other in enumerate(self._multiples) if other == m] for m in sorted(set(self._multiples))
        }
        self._chosen = chosen
        if self.num_samples == 0:
            raise ValueError(f"{self.name} holds no samples")
        if self.num_samples / self.sampling_rate > 1e12:  # thirty thousand years
            raise ValueError(f"{self.name}: a sampling rate of {self.sampling_rate:g} Hz is none of an ECG")

    @property
    def duration(self) -> float:
        return self.num_samples / self.sampling_rate

    def read(self, start: int = 0, stop: int | None = None) -> Recording:
        """The samples from `start` up to `stop` (default: the end), float32 `[leads, stop - start]` in millivolts.

        Raises:
            ValueError: for a span outside of the recording, infinite samples, or a file that its library cannot read.
        """
        stop = self.num_samples if stop is None else stop
        if not 0 <= start <= stop <= self.num_samples:
            raise ValueError(f"{self.name}: span [{start}, {stop}) is outside of [0, {self.num_samples})")
        signal = np.empty((len(self.leads), stop - start))
        for multiple, rows in self._rows.items():
            indices = [self._chosen[row] for row in rows]
            with one_line_errors(self.name):
                block = np.asarray(self._channels.read(indices, start * multiple, stop * multiple), dtype=np.float64)
            if multiple > 1:
                block = block.reshape(len(rows), -1, multiple).mean(axis=-1)
            signal[rows] = block
        signal = (signal * self._factors).astype(np.float32)
        if np.isinf(signal).any():
            row, sample = np.argwhere(np.isinf(signal))[0]
            seconds = (start + sample) / self.sampling_rate
            raise ValueError(f"{self.name}: lead {self.leads[row]} holds an infinite value at {seconds:.3f} s")
        return Recording(signal, self.leads, self.sampling_rate, self.name, self.notes)


# -- which channels are ECG, in what unit and at what rate ----------------------------------------------------------


@lru_cache(maxsize=4096)  # files of one source name their channels alike
def lead_name(name: str) -> str | None:
    """The lead that a channel's name means, as `STANDARD_LEADS` writes it: "avr", "ECG lead AVR", "ekg_aVR" are aVR,
    "MLII" is II. None for any other name; "-aVR" is another name, as it means the opposite sign."""
    bare = re.sub(r"^((MDC|ECG|EKG|LEAD|ABLEITUNG|DERIVATION)(-|[\s_:.]+))+", "", name.strip().strip("'\"").upper())
    bare = re.sub(r"\s*(\((EINTHOVEN|GOLDBERGER|WILSON)\)|, AUGMENTED VOLTAGE, (RIGHT|LEFT|FOOT))$", "", bare)
    bare = re.sub(r"[\s_-]+LEAD$|^LEAD(?=[IAV])|^E[CK]G(?=[AV])", "", bare)
    bare = re.sub(r"^(A?V)[\s_-](?=[RLF]$|[1-9]R?$)|^V0(?=[1-9]$)", lambda match: match[1] or "V", bare)
    return _LEAD_OF.get(bare)


@lru_cache(maxsize=4096)
def other_signal(name: str, unit: str | None) -> str | None:
    """What a channel holds when it is not ECG ("PPG", "EEG", ...), judged by name, then by a unit that is no voltage;
    None if it may be ECG."""
    for kind, pattern in _OTHER_SIGNALS:
        if re.fullmatch(pattern, name.strip().strip("'\"").upper()):
            return kind
    return f"in {unit}" if unit is not None and unit_in_millivolts(unit) is None else None


def unit_in_millivolts(unit) -> float | None:
    """Millivolts that one of `unit` is: a name ("uV", any case) or the number itself; None if it is no voltage."""
    if isinstance(unit, Real):
        return float(unit) if 0 < unit < np.inf and not isinstance(unit, bool) else None
    match = _VOLTAGE.fullmatch(unit.strip().strip("'\"()[]").strip().lower())
    if match is None:
        return None
    count = float(match["count"] or 1)
    return count * _MILLIVOLTS[match["prefix"]] if 0 < count < np.inf else None


def checked_leads(leads):
    """The names that were given as a list, None where none were."""
    if leads is None:
        return None
    names = [leads] if isinstance(leads, str) else list(leads) if isinstance(leads, Iterable) else None
    if names is None or not all(name is None or isinstance(name, str) for name in names):
        raise ValueError(f"leads is {leads!r}; expected a name for each channel, None for one to be left out")
    return names


def in_order(leads):
    """The given names that stand for the channels in their order; None where none do, or channels are named."""
    return None if leads is None or _by_name(leads) else leads


def _by_name(leads):
    """{channel: lead} of leads given as "ECG=II"; empty where they are given in the order of the channels."""
    pairs = [lead.partition("=") for lead in leads if lead is not None and "=" in lead]
    return {channel.strip().lower(): lead.strip() for channel, _, lead in pairs} if len(pairs) == len(leads) else {}


def agree(name, stated, given):
    """What is given beside a source (sampling_rate, leads, units; None where it is not) repeats what the source says,
    or leaves leads out.

    Raises:
        ValueError: where it contradicts it.
    """
    for key, value in given.items():
        said = stated.get(key)
        if value is None or said is None:
            continue
        if key == "sampling_rate":
            fits = isinstance(value, Real) and isinstance(said, Real) and same_rate(said, value)
        elif key == "leads":
            pairs = zip(value, said, strict=len(value) == len(said))
            fits = len(value) == len(said) and all(
                one is None or other is None or (lead_name(one) or one) == (lead_name(other) or other)
                for one, other in pairs
            )
        else:
            fits = _as_millivolts(value) == _as_millivolts(said)
        if not fits:
            said = f"{said:g} Hz" if key == "sampling_rate" and isinstance(said, Real) else said
            said = ", ".join(map(str, said)) if key == "leads" else said
            raise ValueError(f"{name}: {key} is {value!r}, but it states {said}")


def _as_millivolts(units):
    if isinstance(units, (list, tuple)):
        return [_as_millivolts(unit) for unit in units]
    if isinstance(units, str) and is_number(units):
        units = float(units.replace(",", "."))
    return unit_in_millivolts(units) if isinstance(units, (str, Real)) else None


def settle_rate(channels, sampling_rate):
    """Fill in the rates that the source leaves open; a rate that it states may not be contradicted."""
    is_rate = isinstance(sampling_rate, Real) and not isinstance(sampling_rate, bool) and 0 < sampling_rate < np.inf
    if sampling_rate is not None and not is_rate:
        raise ValueError(f"{channels.name}: sampling_rate is {sampling_rate!r}; expected a number of Hz above 0")
    if sampling_rate is not None and (None in channels.rates or not channels.rate_is_stated):
        channels.rates = [float(sampling_rate)] * len(channels.rates)
    elif None in channels.rates:
        raise ValueError(f"{channels.name} does not state its sampling rate; give sampling_rate=, in Hz")
    elif not all(0 < rate < np.inf for rate in channels.rates):
        raise ValueError(
            f"{channels.name} states a sampling rate of {channels.rates[0]:g}; expected a number of Hz above 0"
        )
    elif sampling_rate is not None and not any(same_rate(rate, sampling_rate) for rate in channels.rates):
        raise ValueError(
            f"{channels.name}: sampling_rate is {sampling_rate:g}, but it states {channels.rates[0]:g} Hz"
        )


def same_rate(stated, given):
    """Whether two rates are one, differently rounded."""
    return abs(stated - given) < 0.01 * stated


def settle_names(channels, leads, unnamed_leads):
    """The channels' names, as given, as found, or, for as many unnamed ones as expected, as is usual; notes on them;
    and whether anybody said what they are."""
    count = len(channels.units)
    # columns of time and index, which nobody counts among the channels
    beside = [k for k, name in enumerate(channels.names) if name is not None and other_signal(name, None) == "time"]
    if leads is not None and _by_name(leads):
        wanted, held = _by_name(leads), [(name or "").strip().lower() for name in channels.names]
        missing = [channel for channel in wanted if channel not in held]
        if missing:
            raise ValueError(
                f"{channels.name} has no channel {missing[0]!r}; expected one of {', '.join(map(str, channels.names))}"
            )
        # the first of equal names; the others are left out as a second channel for the lead would be
        return [wanted.get(name) for name in held], [], True
    if leads is not None:
        if len(leads) == count - len(beside) != count:
            given = iter(leads)
            leads = [channels.names[k] if k in beside else next(given) for k in range(count)]
        if len(leads) != count:
            raise ValueError(f"{channels.name}: leads names {len(leads)} channels; the recording has {count}")
        return leads, [], True
    if len(channels.names) != len(channels.units):
        raise ValueError(f"{channels.name} names {len(channels.names)} leads for {len(channels.units)} channels")
    signals = [k for k in range(count) if k not in beside]
    if any(channels.names[k] is not None for k in signals):
        return channels.names, _check_default_names(channels, signals), True
    for usual in (unnamed_leads, STANDARD_LEADS):
        if len(signals) == len(usual):
            names = list(channels.names)
            for k, lead in zip(signals, usual, strict=True):
                names[k] = lead
            return names, [f"channels without names taken as {', '.join(usual)}"], False
    count = len(signals)
    raise ValueError(
        f"{channels.name} has {count} channel{'s' * (count != 1)} without a name; give leads=, the lead of each"
    )


def _check_default_names(channels, signals):
    """V1, V2, ... are six leads of the chest, and what R calls columns without a name: a note where they may be
    leads, an error where they are not."""
    names = [(channels.names[k] or "").strip().strip("'\"").upper() for k in signals]
    if names != [f"V{k}" for k in range(1, len(names) + 1)]:
        return []
    if len(names) > 6:
        raise ValueError(
            f"{channels.name} names its {len(names)} channels V1 to V{len(names)}, as R names columns that have no "
            "name; give leads=, the lead of each"
        )
    return [f"{', '.join(names)} taken for chest leads, though R names columns without a name so"]


def settle_units(channels, units):
    """Fill in the units that the source leaves open; a voltage that it states may not be contradicted."""
    count = len(channels.units)
    each = list(units) if isinstance(units, (list, tuple)) and len(units) == count else [units] * count
    each = [float(unit.replace(",", ".")) if isinstance(unit, str) and is_number(unit) else unit for unit in each]
    channels.units = [
        None if isinstance(unit, str) and unit.strip().lower() in _NO_UNIT else unit for unit in channels.units
    ]
    for unit in each:
        if unit is not None and (not isinstance(unit, (str, Real)) or unit_in_millivolts(unit) is None):
            raise ValueError(f"{channels.name}: units is {units!r}; expected mV, uV, V, nV or millivolts per unit")
    for index, (stated, unit) in enumerate(zip(channels.units, each, strict=True)):
        is_voltage = stated is not None and unit_in_millivolts(stated) is not None
        if unit is not None and is_voltage and unit_in_millivolts(stated) != unit_in_millivolts(unit):
            raise ValueError(f"{channels.name}: units is {units!r}, but the recording states {stated}")
        if unit is not None and (stated is None or is_voltage):
            channels.units[index] = unit


def is_number(text):
    """Whether a word is a number, with a decimal point or comma; "nan" is one."""
    return re.fullmatch(r"[+\u2212-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?|nan", text.strip(), re.IGNORECASE) is not None


def choose_leads(channels, names, given):
    """Indices, names and millivolts per unit of the channels that are ECG leads; notes on those that are not."""
    chosen, kept, factors, notes, refused, unknown = [], [], [], [], [], []
    for index, (name, unit) in enumerate(zip(names, channels.units, strict=True)):
        if name is None:
            continue
        lead = lead_name(name)
        kind = other_signal(name, unit)
        if kind == f"in {unit}" or (lead is None and kind is not None):
            refused.append(f"{name} ({kind})")
        elif lead is None and not given:
            unknown.append(repr(name))
        elif (lead or name) in kept:
            notes.append(f"a second channel for lead {lead or name} left out")
        else:
            if name.upper().strip() in _MODIFIED_LEADS:
                notes.append(f"{name} taken as {lead}")
            chosen.append(index)
            kept.append(lead or name)
            factors.append(1.0 if unit is None else unit_in_millivolts(unit))
    if not chosen:
        found = [f"it has {', '.join(refused)}"] if refused else []
        found += [f"it has {', '.join(unknown)}, no lead's name: give leads="] if unknown else []
        raise ValueError(f"{channels.name} holds no known ECG lead; {'; '.join(found) or 'it has no other channels'}")
    if refused or unknown:
        notes.append(f"channels left out: {', '.join(refused + unknown)}")
    _require_millivolts(channels, chosen, kept)
    return chosen, kept, factors, notes


def can_be_millivolts(spread):
    """Whether standard deviations can be those of an ECG in mV, of flat lines too: uV and V are far off, and so is a
    hundredfold. (Over 19,601 records of PTB-XL and the other real ones in ../shared the lead that varies most has 0.01
    to 3 mV.)"""
    return (spread < 1e-6) | ((spread > 0.005) & (spread < 10))


# Millivolts that the middle lead rises or falls by within 30 ms, but for 1 % of the time: steep beats, which a
# wandering baseline does not change. Over 19,601 records of PTB-XL 0.22 to 3.2, in the median 0.88: ten times as much
# in the file as in the heart is nearly always beyond, ten times as little where it is not what some patients have.
LEAST_STEP, MOST_STEP = 0.06, 5.0
USUAL_STEPS = (0.15, 4.0)


def middle_step(signal, sampling_rate):
    """That rise of `[leads, time]`, without NaN, looked at in steps of 10 ms as PTB-XL's copies of 100 Hz are."""
    width = max(1, round(sampling_rate / 100))
    means = signal[:, : signal.shape[1] // width * width].reshape(len(signal), -1, width).mean(axis=-1)
    lag = max(1, round(0.03 * sampling_rate / width))
    rises = np.abs(means[:, lag:] - means[:, :-lag])
    return float(np.median(np.quantile(rises, 0.99, axis=1))) if rises.size else 0.0


# of the middle lead in 10 s, in mV, peak to peak: a heart's, and a heart's with all that disturbs it
_USUAL_HEIGHT, _MOST_HEIGHT = 8.0, 15.0


def _require_millivolts(channels, chosen, leads):
    """Values without a unit are millivolts only if they can be: judge by the first minutes, every lead by itself where
    others state their unit."""
    unstated = [(index, lead) for index, lead in zip(chosen, leads, strict=True) if channels.units[index] is None]
    if not unstated:
        return
    spreads, heights, names, whole = [], [], [], True
    for rate in dict.fromkeys(channels.rates[index] for index, _ in unstated):
        indices = [index for index, _ in unstated if channels.rates[index] == rate]
        shortest = min(channels.lengths[index] for index in indices)
        rows = np.asarray(channels.read(indices, 0, min(shortest, 200_000)), dtype=np.float64)
        for index, row in zip(indices, rows, strict=True):
            row = row[np.isfinite(row)]
            if len(row) and np.ptp(row) > 0:
                spreads.append(row.std())
                pieces = np.array_split(row, max(1, round(len(row) / rate / 10)))
                heights.append(np.median([np.ptp(piece) for piece in pieces]))
                names.append(next(lead for other, lead in unstated if other == index))
                # a handful of values, such as a step of 1 mV, may be whole by chance
                whole = whole and bool((row == np.round(row)).all()) and np.ptp(row) > 2
    if not spreads:
        return
    given = "give units= (mV, uV, V, nV or millivolts per unit)"
    if channels.are_counts or whole:
        raise ValueError(
            f"{channels.name} states no unit, and its values are whole numbers, as a converter counts; {given}"
        )
    alone = len(unstated) < len(chosen)
    for spread, name in sorted(zip(spreads, names, strict=True), reverse=True):
        if not can_be_millivolts(spread) and (alone or spread == max(spreads)):
            raise ValueError(
                f"{channels.name} states no unit{f' for {name}' if alone else ''}, and a spread of {spread:.3g} "
                f"is not that of an ECG in mV; {given}"
            )
    height = np.median(heights)
    if height > _MOST_HEIGHT:
        raise ValueError(
            f"{channels.name} states no unit, and a height of {height:.3g} is not that of an ECG in mV; {given}"
        )
    if height > _USUAL_HEIGHT:
        channels.doubt = f"it states no unit, and a height of {height:.3g} is much for mV; {given}"


# -- what the families of formats use ---------------------------------------------------------------------------------


def library(name):
    """A library that only some inputs need. (An import statement, even inside a function, would make transformers ask
    for all of these libraries before it loads this file from the Hub.)

    Raises:
        ImportError: that says what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f"this recording cannot be read without {package}: pip install {package}") from error


def as_array(array, name="array") -> np.ndarray:
    """An array, tensor or nested list as numpy has it; ValueError where it is none of them. What is masked, and the
    least whole number of 16 or 32 bits, which converters write where they have no sample, become NaN."""
    if hasattr(array, "read") and hasattr(array, "close"):
        raise ValueError(f"{name} is an open file; expected its path")
    try:
        if hasattr(array, "detach"):
            array = array.detach().cpu()
            # numpy has no bfloat16
            array = array.float() if array.is_floating_point() and array.itemsize < 4 else array
        elif isinstance(array, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in array):
            array = np.ma.stack([np.ma.asanyarray(row) for row in array])
        array = np.asanyarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no array of numbers ({one_line(error)})") from error
    if isinstance(array, np.ma.MaskedArray) and array.dtype.kind in "fiu":
        missing = np.ma.getmaskarray(array)
        array = np.asarray(array.data)
        array = _without_samples(array, missing) if missing.any() else array
    return mark_missing(array)


_NO_SAMPLE = (-(2**15), -(2**31))


def mark_missing(array):
    """Whole numbers with NaN in place of the least of 16 and of 32 bits; any other array as it is."""
    if array.dtype.kind != "i" or array.dtype.itemsize < 2 or array.size == 0:
        return array
    # one pass finds out that there is none, as nearly always
    if array.min() > _NO_SAMPLE[0]:
        return array
    missing = np.isin(array, _NO_SAMPLE)
    return _without_samples(array, missing) if missing.any() else array


def _without_samples(array, missing):
    """Floats, NaN where `missing`."""
    array = np.array(array, dtype=np.float32 if array.dtype.itemsize <= 2 else np.float64)
    array[missing] = np.nan
    return array


def orientation(name, shape, dtype, leads):
    """Whether time runs along the first axis, the number of channels, the number of samples. The axis that is as long
    as there are leads holds them, else the shorter one."""
    if np.dtype(dtype).kind not in "fiu":
        raise ValueError(f"{name} holds values of type {dtype}; expected real numbers")
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"{name} has shape {list(shape)}; expected [time], [leads, time] or [time, leads]")
    if len(shape) == 1:
        return False, 1, shape[0]
    rows, columns = shape
    count = None if leads is None else len(leads)
    transposed = columns < rows if (rows == count) == (columns == count) else columns == count
    return (transposed, columns, rows) if transposed else (transposed, rows, columns)


def from_matrix(name, matrix, names, units, rate):
    """The channels of a matrix `[channels, time]` in memory, all of one rate."""
    count, length = matrix.shape

    def read(indices, start, stop):
        return matrix[indices, start:stop]

    are_counts = matrix.dtype.kind in "iu"
    return Channels(name, names, units, [rate] * count, [length] * count, read, are_counts=are_counts)


def from_columns(name, titles, matrix, rate=None, step=None, notes=()):
    """
    The channels of a table: each column by its title, such as "II", "ECG lead II (uV)" or "time (ms)".

    Args:
        titles (`list[str | None]`): of the columns; numbers from 0 or 1 on are no names.
        matrix (`np.ndarray`): `[columns, time]`.
        rate (`float`, *optional*): Hz, where the table states it in words. A column of time states it too, and a hole
            in it is one in the signal: NaN.
        step (`np.ndarray`, *optional*): seconds of each row, where the table has them beside its columns.

    Raises:
        ValueError: for times that run backwards, or another rate than `rate`.
    """
    titles = [None if title is None else str(title).strip().strip("'\"\ufeff") for title in titles]
    names, units = (list(part) for part in zip(*map(_split_unit, titles), strict=True))
    is_time = [title is not None and other_signal(title, None) == "time" for title in names]
    numbered = [title for title, beside in zip(names, is_time, strict=True) if not beside]
    if numbered and any(numbered == [str(k) for k in range(n, n + len(numbered))] for n in (0, 1)):
        names = [title if beside else None for title, beside in zip(names, is_time, strict=True)]
    positions = None
    if is_time and all(is_time) and len(is_time) > 1:  # "timestamp, sample"
        is_sample = [str(title).lower() in ("sample", "samples") for title in names]
        is_time = [beside and not sample for beside, sample in zip(is_time, is_sample, strict=True)]
        names = ["signal" if sample else title for title, sample in zip(names, is_sample, strict=True)]
    if step is None:
        columns = [k for k, beside in enumerate(is_time) if beside and _may_be_time(matrix[k])]
        if columns:  # of several the one that says its unit: a phone's clock is less exact than a sensor's
            column = next((k for k in columns if _unit_of_time(titles[k]) is not None), columns[0])
            positions, of_time = _timing(name, np.asarray(matrix[column], np.float64), titles[column])
    else:
        positions, of_time = _timing(name, np.asarray(step, np.float64), "time (s)")
    if positions is not None:
        rate = _one_rate(name, rate, of_time)
        missing = int(positions[-1]) + 1 - matrix.shape[1]
        if missing:
            whole = np.full((len(matrix), int(positions[-1]) + 1), np.nan)
            whole[:, positions] = matrix
            matrix, notes = whole, (*notes, f"{missing} samples missing by the column of time")
    channels = from_matrix(name, matrix, names, units, rate)
    channels.notes = list(notes)
    return channels


def _one_rate(name, stated, of_time):
    if stated is not None and of_time is not None and not same_rate(of_time, stated):
        raise ValueError(f"{name} states {stated:g} Hz, but its times {of_time:g} Hz")
    return of_time if stated is None else stated


def place_in_time(channels, times, rate):
    """
    What the times of samples, which stand beside them, say of channels: holes become missing samples.

    Returns:
        the sampling rate, by them or else `rate`.

    Raises:
        ValueError: for times that run backwards, or another rate than `rate`.
    """
    if not _may_be_time(times):
        return rate
    positions, of_time = _timing(channels.name, np.asarray(times, np.float64), "time")
    if positions is None:
        return rate
    length = int(positions[-1]) + 1
    if length > len(times):
        read = channels.read

        def read_with_holes(indices, start, stop):
            first, last = np.searchsorted(positions, (start, stop))
            values = np.full((len(indices), stop - start), np.nan)
            values[:, positions[first:last] - start] = read(indices, int(first), int(last))
            return values

        channels.read, channels.lengths = read_with_holes, [length] * len(channels.lengths)
        channels.notes.append(f"{length - len(times)} samples missing by the times beside them")
    return _one_rate(channels.name, rate, of_time)


_SECONDS_OF = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "milliseconds": 1e-3}
_SECONDS_OF |= dict.fromkeys(("us", "\u00b5s", "\u03bcs", "microseconds"), 1e-6) | dict.fromkeys(
    ("ns", "nanoseconds"), 1e-9
)


def _may_be_time(column):
    return len(column) > 1 and np.issubdtype(column.dtype, np.number) and bool(np.isfinite(column).all())


def _timing(name, times, title):
    """
    Which sample each row is, and the sampling rate, by a column of time; None for a rate that the column does not
    tell: it counts rows, or its unit is open.

    Raises:
        ValueError: for times that run backwards.
    """
    steps = np.diff(times)
    if not steps.any():
        return None, None
    if (steps < 0).any():
        row = int(np.argmax(steps < 0)) + 1
        raise ValueError(
            f"{name}: its column {title!r} does not run forwards (row {row}: {times[row]:g} after {times[row - 1]:g})"
        )
    # times are rounded, often to milliseconds: a hole is what exceeds a step and the rounding
    rounding = next(
        (10.0**-k for k in range(10) if np.allclose(times, np.round(times, k), rtol=0, atol=1e-3 * 10.0**-k)), 0.0
    )
    stands = steps <= 1e-3 * rounding
    if stands.mean() > 0.1 and steps[~stands].min() > 1.5 * rounding:
        raise ValueError(f"{name}: its column {title!r} has {stands.sum()} times twice; expected one for each sample")
    usual = steps[steps <= 2.5 * max(np.median(steps), rounding)].mean()
    is_exact = 0.9 * rounding <= usual <= 1.0001 * rounding  # a step is the rounding: rows are counted
    is_hole = steps > 1.5 * usual + (0.0 if is_exact else 0.999 * rounding)
    usual = steps[~is_hole].mean()
    counted = np.where(is_hole, np.maximum(np.round(steps / usual), 1), 1)
    positions = np.concatenate([[0], np.cumsum(counted)]).astype(np.int64)
    if positions[-1] > 10 * len(times):
        raise ValueError(f"{name}: by its column {title!r}, less than one sample in ten is there")

    seconds = _unit_of_time(title)
    counts_rows = re.fullmatch(r"|#|.*(INDEX|SAMPLE|ROW|FRAME|UNNAMED).*", title.upper()) is not None
    if seconds is None and (counts_rows or abs(usual - 1) < 1e-9):
        return positions, None
    if seconds is None:  # of seconds, milli-, micro- and nanoseconds the one that makes it an ECG's rate
        seconds = next((unit for unit in (1.0, 1e-3, 1e-6, 1e-9) if 2e-5 < usual * unit <= 0.025), None)
    if seconds is None:
        return positions, None
    rate = 1 / (usual * seconds)
    uncertainty = max(1e-6, 2 * rounding / (times[-1] - times[0]))
    return positions, float(round(rate)) if abs(rate - round(rate)) <= rate * uncertainty else rate


def _unit_of_time(title):
    """Seconds that one of a column's unit is, "ms" in "time (ms)" and "time_ms"; None where its title says none."""
    unit = re.search(r"[\s_(\[]([a-z\u00b5\u03bc]+)[)\]]?$", (title or "").lower())
    return _SECONDS_OF.get(unit[1]) if unit else None


def _split_unit(title):
    """("II", "mV") of "II (mV)", "II [mV]", "II_mV", "II/mV", "II in mV" or "II mV"; ("II", None) of "II"."""
    for pattern in (r"(.*\S)\s*[(\[]([^()\[\]]+)[)\]]", r"(.*?\S)(?:\s+in\s+|\s*[_/,]\s*|\s+)(\S{2,})"):
        match = re.fullmatch(pattern, title or "")
        if match and unit_in_millivolts(match[2]) is not None:
            return match.groups()
    return title, None


@contextmanager
def one_line_errors(name):
    """Whatever a library raises on a damaged file becomes a ValueError in one line; what is one already, and a missing
    file or library, passes."""
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except MemoryError as error:
        raise ValueError(f"{name} states more samples than fit into memory ({one_line(error)})") from error
    except Exception as error:
        raise ValueError(f"{name} is damaged ({type(error).__name__}: {one_line(error)})") from error


def one_line(error):
    return " ".join(str(error).split())[:160] or type(error).__name__
