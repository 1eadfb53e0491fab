"""What all formats of ECG share: a `Recording`, and the way to it from the channels that a file describes.

A family of formats (`recording_wfdb.py`, `recording_text.py`, ...) describes a file's channels as [`Channels`]: names,
units, rates, and how to read a span. Which of them are ECG, which lead each is, what unit it came in, and saying in
one line what is wrong is the same for all of them and stands here.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from numbers import Real

import numpy as np

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Other leads by name: the unplaced chest lead of bedside monitors, further chest leads, Frank's.
_OTHER_LEADS = ("V", "V7", "V8", "V9", "V3R", "V4R", "VX", "VY", "VZ")
# Holter recorders place the limb electrodes on the chest ("modified" leads); the field reads them as the lead that
# they imitate, and so do we, with a note. MCL1 to MCL6 sit where V1 to V6 do.
_MODIFIED_LEADS = {"MLI": "I", "MLII": "II", "MLIII": "III", **{f"MCL{n}": f"V{n}" for n in range(1, 7)}}
_LEAD_OF = {
    **{lead.upper(): lead for lead in (*STANDARD_LEADS, *_OTHER_LEADS)},
    **{"DI": "I", "DII": "II", "DIII": "III", "D1": "I", "D2": "II", "D3": "III"},
    **_MODIFIED_LEADS,
}

_MILLIVOLTS = {
    **dict.fromkeys(("mv", "millivolt", "millivolts"), 1.0),
    **dict.fromkeys(("uv", "µv", "μv", "microvolt", "microvolts"), 1e-3),
    **dict.fromkeys(("v", "volt", "volts"), 1e3),
    **dict.fromkeys(("nv", "nanovolt", "nanovolts"), 1e-6),
}

# What else is recorded beside an ECG, by the names and units that monitors and polysomnographs write.
_OTHER_SIGNALS = (
    ("PPG", r"PLETH.*|PPG.*"),
    ("blood pressure", r"ABP.*|ART.*|PAP.*|CVP.*|ICP.*|N?I?BP.*|UAP|UVP|LAP|RAP"),
    ("respiration", r"RESP.*|FLOW|THOR.*|ABDO.*|CHEST|CO2|ETCO2"),
    ("EEG", r"EEG.*|(FP|AF|F|FC|FT|C|CP|T|TP|P|PO|O|A|M)(Z|\d{1,2})([ :\-].*)?"),
    ("EMG", r"EMG.*|CHIN.*|LEG.*"),
    ("EOG", r"EOG.*|LOC|ROC"),
    ("vital sign", r"HR|PULSE|SPO2|SAO2|TEMP.*"),
    ("time", r"T|TIME.*|ELAPSED.*|INDEX|SAMPLE.*|"),
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
    channels; it is only asked for channels of one rate at a time.
    """

    name: str
    names: list
    units: list
    rates: list
    lengths: list
    read: Callable
    notes: list = field(default_factory=list)
    rate_is_stated: bool = True


class RecordingFile:
    """An opened source: what it holds, and `read` for any span of it. Made by [`open_recording`].

    Attributes:
        name (`str`), leads (`tuple[str]`), sampling_rate (`float`, Hz), num_samples (`int`), duration (`float`,
        seconds), notes (`tuple[str]`).
    """

    def __init__(self, channels, chosen, leads, factors, notes):
        rates = [channels.rates[index] for index in chosen]
        self.name = channels.name
        self.leads = tuple(leads)
        self.sampling_rate = float(min(rates))
        self.notes = tuple(notes)
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
    bare = re.sub(r"^((ECG|EKG|LEAD)(-|[\s_:]+))+", "", name.strip().strip("'\"").upper())
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
    return _MILLIVOLTS.get(unit.strip().lower())


def checked_leads(leads):
    """The names that were given as a list, None where none were."""
    if leads is None:
        return None
    names = [leads] if isinstance(leads, str) else list(leads) if isinstance(leads, Iterable) else None
    if names is None or not all(name is None or isinstance(name, str) for name in names):
        raise ValueError(f"leads is {leads!r}; expected a name for each channel, None for one to be left out")
    return names


def settle_rate(channels, sampling_rate):
    """Fill in the rates that the source leaves open; a rate that it states may not be contradicted."""
    is_rate = isinstance(sampling_rate, Real) and not isinstance(sampling_rate, bool) and 0 < sampling_rate < np.inf
    if sampling_rate is not None and not is_rate:
        raise ValueError(f"{channels.name}: sampling_rate is {sampling_rate!r}; expected a number of Hz above 0")
    if sampling_rate is not None and (None in channels.rates or not channels.rate_is_stated):
        channels.rates = [float(sampling_rate)] * len(channels.rates)
    elif None in channels.rates:
        raise ValueError(f"{channels.name} does not state its sampling rate; give sampling_rate=, in Hz")
    elif sampling_rate is not None and not any(abs(rate - sampling_rate) < 0.01 * rate for rate in channels.rates):
        raise ValueError(
            f"{channels.name}: sampling_rate is {sampling_rate:g}, but it states {channels.rates[0]:g} Hz"
        )


def settle_names(channels, leads, unnamed_leads):
    """The channels' names, as given, as found, or, for as many unnamed ones as expected, as is usual."""
    count = len(channels.units)
    if leads is not None:
        if len(leads) != count:
            raise ValueError(f"{channels.name}: leads names {len(leads)} channels; the recording has {count}")
        return leads, []
    if len(channels.names) != len(channels.units):
        raise ValueError(f"{channels.name} names {len(channels.names)} leads for {len(channels.units)} channels")
    if any(name is not None for name in channels.names):
        return channels.names, []
    for usual in (unnamed_leads, STANDARD_LEADS):
        if count == len(usual):
            return list(usual), [f"channels without names taken as {', '.join(usual)}"]
    raise ValueError(
        f"{channels.name} has {count} channel{'s' * (count > 1)} without a name; give leads=, the lead of each"
    )


def settle_units(channels, units):
    """Fill in the units that the source leaves open; a voltage that it states may not be contradicted."""
    if units is not None and (not isinstance(units, (str, Real)) or unit_in_millivolts(units) is None):
        raise ValueError(f"{channels.name}: units is {units!r}; expected mV, uV, V, nV or millivolts per unit")
    for index, unit in enumerate(channels.units):
        stated = None if unit is None else unit_in_millivolts(unit)
        if units is not None and stated is not None and stated != unit_in_millivolts(units):
            raise ValueError(f"{channels.name}: units is {units!r}, but the recording states {unit}")
        if units is not None:
            channels.units[index] = units


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
    if all(channels.units[index] is None for index in chosen):
        _require_millivolts(channels, chosen)
    return chosen, kept, factors, notes


def can_be_millivolts(spread):
    """Whether standard deviations can be those of an ECG in mV, of flat lines too: uV and V are far off."""
    return (spread < 1e-6) | ((spread > 0.002) & (spread < 20))


def _require_millivolts(channels, chosen):
    """Values without a unit are millivolts only if they can be: judge by the spread of the first minutes."""
    shortest = min(channels.lengths[index] for index in chosen)
    rows = np.asarray(channels.read(chosen, 0, min(shortest, 200_000)), dtype=np.float64)
    spread = max((row[np.isfinite(row)].std() for row in rows if np.isfinite(row).any()), default=0.0)
    if not can_be_millivolts(spread):
        raise ValueError(
            f"{channels.name} states no unit, and a spread of {spread:.3g} is not that of an ECG in mV; "
            "give units= (mV, uV, V, nV or millivolts per unit)"
        )


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
    """An array, tensor or nested list as numpy has it; ValueError where it is none of them."""
    try:
        if hasattr(array, "detach"):
            array = array.detach().cpu()
            # numpy has no bfloat16
            array = array.float() if array.is_floating_point() and array.itemsize < 4 else array
        return np.asanyarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no array of numbers ({one_line(error)})") from error


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
    count, length = matrix.shape

    def read(indices, start, stop):
        return matrix[indices, start:stop]

    return Channels(name, names, units, [rate] * count, [length] * count, read)


def one_line(error):
    return " ".join(str(error).split())[:160] or type(error).__name__
