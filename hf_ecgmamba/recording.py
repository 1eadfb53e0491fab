"""Any ECG file or array, read as one thing: a `Recording` in millivolts with named leads and a sampling rate.

`open_recording` looks at what is there without loading it, and its `read` brings any span, so that a day of ECG fits
through a small memory; `read_recording` does both. The parsing is left to wfdb, scipy, h5py, pyedflib and pandas,
which are imported when a file needs them. What stays here is what they leave open: which channels are ECG, which lead
each is, what unit it came in, and saying in one line what is wrong.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Real
from pathlib import Path
from zipfile import BadZipFile

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

# Layouts whose files leave the rate to the data set's own description.
_CPSC2018_RATE = 500.0
_SPH_RATE = 500.0  # Liu et al. 2022

_RATE_KEYS = ("sampling_rate", "sampling_frequency", "sample_rate", "fs")
_SIGNAL_KEYS = ("signal", "array", "ecg", "data", "tracings")
_LEAD_KEYS = ("leads", "lead_names", "sig_name")
_UNIT_KEYS = ("units", "unit")


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
class _Channels:
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


def read_recording(source, **kwargs) -> Recording:
    """All of a recording, in memory: [`open_recording`] with the same arguments, then `read`."""
    return source if isinstance(source, Recording) and not kwargs else open_recording(source, **kwargs).read()


def open_recording(source, *, sampling_rate=None, leads=None, units=None, unnamed_leads=STANDARD_LEADS):
    """Look at an ECG without loading it.

    Args:
        source: one of
            - a path: a WFDB record (`.hea`, its signal file, or the name without an ending; multi-segment, FLAC-coded
              and MATLAB-coded too), `.csv`/`.tsv`/`.txt` columns with or without a header, `.npy`, `.npz`, `.mat`
              (CPSC 2018, CODE-15), `.h5` (SPH and the like), `.edf`/`.bdf`;
            - an array `[time]`, `[leads, time]` or `[time, leads]` (numpy or torch);
            - a dict with `array`, and `sampling_rate`, `leads`, `units` where known;
            - a `Recording` or `RecordingFile`.
        sampling_rate (`float`, *optional*): Hz, for a source that does not state its own.
        leads (`list[str | None]`, *optional*): the lead of each channel, in the order of the source, in place of its
            own names; None leaves a channel out. Case, and prefixes such as "ECG ", do not matter.
        units (`str` or `float`, *optional*): "mV", "uV", "V" or "nV", or the millivolts that one unit is, for a
            source that does not state its own. Unstated and not given means mV, if the values can be that.
        unnamed_leads (`tuple[str]`): what the channels of a source without names are, if they are as many; twelve are
            else taken in the usual order.

    Returns:
        `RecordingFile`

    Raises:
        ValueError: in one line, for what cannot be read as ECG: no lead among the channels (with their names), unknown
            names, no sampling rate, no unit, a broken file, arguments that contradict the file.
        OSError: for a file that is missing, or a file that a header names and that is missing.
    """
    if isinstance(source, RecordingFile):
        return source
    if isinstance(source, Recording):
        given = {"sampling_rate": source.sampling_rate, "leads": source.leads, "units": "mV"}
        opened = open_recording(source.signal, **given)
        opened.name, opened.notes = source.name, tuple(source.notes)
        return opened
    if isinstance(source, dict):
        sampling_rate, leads, units = (
            given if source.get(name) is None else source[name]
            for name, given in (("sampling_rate", sampling_rate), ("leads", leads), ("units", units))
        )
    leads = _checked_leads(leads)
    if isinstance(source, (str, Path)):
        try:
            channels = _open_path(Path(source), leads)
        except _ON_DAMAGED_FILES as error:
            raise ValueError(f"{Path(source).name} is damaged ({type(error).__name__}: {_one_line(error)})") from error
    elif isinstance(source, dict):
        surplus = sorted(set(source) - {"array", "sampling_rate", "leads", "units", "name"})
        if "array" not in source or surplus:
            raise ValueError(
                f"recording given as a dict has the keys {sorted(source)}; expected array, and sampling_rate, leads, "
                "units, name where known"
            )
        channels = _open_array(source["array"], source.get("name", "array"), leads, unnamed_leads)
    else:
        channels = _open_array(source, "array", leads, unnamed_leads)

    _settle_rate(channels, sampling_rate)
    names, naming_notes = _settle_names(channels, leads, unnamed_leads)
    _settle_units(channels, units)
    chosen, kept, factors, notes = _choose_leads(channels, names, given=leads is not None)
    if not isinstance(source, (str, Path)):  # who gives an array of twelve knows their order
        naming_notes = []
    return RecordingFile(channels, chosen, kept, factors, [*channels.notes, *naming_notes, *notes])


# -- which channels are ECG, in what unit and at what rate ----------------------------------------------------------


def lead_name(name: str) -> str | None:
    """The lead that a channel's name means, as `STANDARD_LEADS` writes it: "avr", "ECG lead AVR", "ekg_aVR" are aVR,
    "MLII" is II. None for any other name; "-aVR" is another name, as it means the opposite sign."""
    bare = re.sub(r"^((ECG|EKG|LEAD)(-|[\s_:]+))+", "", name.strip().strip("'\"").upper())
    return _LEAD_OF.get(bare)


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


# what the libraries raise on a damaged file, besides ValueError and OSError
_ON_DAMAGED_FILES = (ArithmeticError, LookupError, TypeError, EOFError, BadZipFile)


def _checked_leads(leads):
    """The names that were given as a list, None where none were."""
    if leads is None:
        return None
    names = [leads] if isinstance(leads, str) else list(leads) if isinstance(leads, Iterable) else None
    if names is None or not all(name is None or isinstance(name, str) for name in names):
        raise ValueError(f"leads is {leads!r}; expected a name for each channel, None for one to be left out")
    return names


def _settle_rate(channels, sampling_rate):
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


def _settle_names(channels, leads, unnamed_leads):
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


def _settle_units(channels, units):
    """Fill in the units that the source leaves open; a voltage that it states may not be contradicted."""
    if units is not None and (not isinstance(units, (str, Real)) or unit_in_millivolts(units) is None):
        raise ValueError(f"{channels.name}: units is {units!r}; expected mV, uV, V, nV or millivolts per unit")
    for index, unit in enumerate(channels.units):
        stated = None if unit is None else unit_in_millivolts(unit)
        if units is not None and stated is not None and stated != unit_in_millivolts(units):
            raise ValueError(f"{channels.name}: units is {units!r}, but the recording states {unit}")
        if units is not None:
            channels.units[index] = units


def _choose_leads(channels, names, given):
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


# -- formats ----------------------------------------------------------------------------------------------------------


def _open_path(path, leads):
    suffix = path.suffix.lower()
    if path.is_dir() and not Path(f"{path.resolve()}.hea").is_file():
        raise FileNotFoundError(f"{path} is a folder; give one file")
    header = path.with_name(path.name + ".hea") if not path.is_file() else path.with_suffix(".hea")
    if suffix == ".hea" or (not path.is_file() and header.is_file()):
        return _open_wfdb(path if suffix == ".hea" else header)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if suffix in (".csv", ".tsv", ".txt"):
        return _open_text(path)
    if suffix in (".npy", ".npz"):
        return _open_numpy(path, leads)
    if suffix in (".h5", ".hdf5"):
        return _open_hdf5(path, leads)
    if suffix in (".edf", ".bdf"):
        return _open_edf(path)
    if header.is_file() and (suffix == ".dat" or path.name in header.read_text(errors="replace")):
        return _open_wfdb(header)
    if suffix == ".mat":
        return _open_matlab(path, leads)
    if suffix == ".dat":
        raise FileNotFoundError(f"{path.name}: a WFDB signal file, whose header {header.name} is missing beside it")
    raise ValueError(
        f"{path.name}: {suffix or 'a file without an ending'} is not a format of ECG signals that is read here; "
        "expected WFDB (.hea), .csv, .tsv, .txt, .npy, .npz, .mat, .h5, .hdf5, .edf or .bdf"
    )


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


def _open_wfdb(path):
    wfdb = library("wfdb")
    name, record = path.stem, str(path.with_suffix(""))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    header, temporary = _read_short(path) or _read_header(record, name), None
    if header is None or (header.sig_len is None and header.n_sig):
        length = None if header is None else _length_of(record, header)
        temporary = tempfile.TemporaryDirectory(prefix="ecg_header_")
        record = _plain_header(path, Path(temporary.name), length)
        header = _read_header(record, name)
    if header is None:
        raise ValueError(f"{name}: the header does not follow WFDB's format")

    if not header.fs or header.fs < 0:
        raise ValueError(f"{name}: the header states a sampling rate of {header.fs}; expected a number of Hz above 0")
    segments = [part for part in getattr(header, "segments", None) or [header] if part is not None]
    description = segments[0]  # of a variable layout, the segment that describes all channels
    if not header.n_sig or not description.file_name:
        raise ValueError(f"{name} has no signals")
    for part in segments:
        for file_name in dict.fromkeys(part.file_name or ()):
            if file_name != "~" and not (Path(record).parent / file_name).is_file():
                raise FileNotFoundError(f"{name}: the signal file {file_name}, named by its header, is missing")
    per_frame = [int(count or 1) for count in description.samps_per_frame]
    whole = getattr(header, "e_p_signal", None)

    def read(indices, start, stop, keep=temporary):  # a header's plain copy lives as long as its reader
        if whole is not None:
            return np.stack([whole[index][start:stop] for index in indices])
        frame, multiple = start // per_frame[indices[0]], per_frame[indices[0]]
        if start == stop:
            return np.empty((len(indices), 0))
        try:
            part = wfdb.rdrecord(
                record, frame, -(-stop // multiple), channels=indices, smooth_frames=False, return_res=64
            )
        except (ValueError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"{name}: wfdb cannot read its signals ({_one_line(error)})") from error
        skip = start - frame * multiple
        return np.stack([row[skip : skip + stop - start] for row in part.e_p_signal])

    return _Channels(
        name=name,
        names=[title.strip() if title else f"channel {k}" for k, title in enumerate(header.sig_name)],
        units=list(description.units),
        rates=[header.fs * count for count in per_frame],
        lengths=[header.sig_len * count for count in per_frame],
        read=read,
    )


def _read_short(path):
    """A record of up to 8 MB with its signals; None for a longer one, and for one that needs a closer look. wfdb
    takes as long for a header as for ten seconds of signals, and reads it again with every span of them."""
    fields = path.read_text(errors="replace").partition("\n")[0].split()
    if len(fields) < 4 or not (fields[1].isdigit() and fields[3].isdigit()):
        return None
    if "/" in fields[0] or int(fields[1]) * int(fields[3]) > 2**20:
        return None
    try:
        return library("wfdb").rdrecord(str(path.with_suffix("")), smooth_frames=False, return_res=64)
    except ImportError:
        raise
    except Exception:  # whatever it is, the way through the header says it better
        return None


def _read_header(record, name):
    """wfdb's reading of a header, its segments' included; None for one that wfdb finds malformed."""
    try:
        return library("wfdb").rdheader(record, rd_segments=True)
    except library("wfdb.io.header").HeaderSyntaxError:
        return None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: its segment {Path(error.filename).name} is missing") from error
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: the header cannot be read ({_one_line(error)})") from error


def _length_of(record, header):
    """Samples in a record whose header leaves that to the size of the signal file, None if that is missing."""
    if not (Path(record).parent / header.file_name[0]).is_file():
        return None
    return len(library("wfdb").rdrecord(record, channels=[0], physical=False).d_signal)


def _plain_header(path, folder, length):
    """Headers in real use say more, less or other than wfdb admits (".mat" in the record's name, words for a date, no
    length). Write what counts into `folder`, beside links to the signal files under plain names; return the record's
    path there. The user's files stay as they are."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip() and line[0] != "#"]
    fields = lines[0].split()[1:4] if lines else []
    if len(fields) < 2 or not fields[0].isdigit():
        raise ValueError(f"{path.stem}: the header's first line is not a name, a number of signals and a rate")
    fields = [*fields[:2], str(length)] if length is not None else fields
    plain, links = [" ".join(["record", *fields])], {}
    for line in lines[1 : int(fields[0]) + 1]:
        file_name, _, rest = line.partition(" ")
        link = links.setdefault(file_name, f"signal{len(links)}{Path(file_name).suffix}")
        plain.append(f"{link} {rest}")
    for file_name, link in links.items():
        target = (path.parent / file_name).resolve()
        if not target.is_file():
            raise FileNotFoundError(f"{path.stem}: the signal file {file_name}, named by its header, is missing")
        try:
            (folder / link).symlink_to(target)
        except OSError:  # a system without links
            shutil.copyfile(target, folder / link)
    (folder / "record.hea").write_text("\n".join(plain) + "\n")
    return str(folder / "record")


def _open_text(path):
    """Columns of numbers, with comma, semicolon, tab or blanks between them. Comment lines may state, as biosppy's do,
    "Sampling Rate (Hz):= 1000" and "Labels:= ECG"; a first row of words is the columns' names, as in "II (mV)"."""
    comments, first = [], ""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                first = line.strip()
                break
            comments.append(line.lstrip("# ").strip())
    if not first:
        raise ValueError(f"{path.name} holds no numbers")
    stated = {key.strip().lower(): value.strip() for key, _, value in (c.partition(":=") for c in comments) if value}
    separator = next((mark for mark in (";", "\t", ",") if mark in first), r"\s+")
    cells = [cell.strip().strip("'\"") for cell in re.split(separator, first)]
    has_header = not all(_is_number(cell) for cell in cells)
    try:
        table = (
            library("pandas")
            .read_csv(
                path,
                sep=separator,
                header=None,
                skiprows=len(comments) + has_header,
                decimal="," if separator == ";" else ".",
                na_values=["-", "nan", "NaN", ""],
                dtype=np.float64,
            )
            .to_numpy()
        )
    except ValueError as error:
        raise ValueError(f"{path.name}: not columns of numbers ({_one_line(error)})") from error
    titles = cells if has_header else [None] * table.shape[1]
    if stated.get("labels") and not has_header:
        titles = [label.strip() for label in re.split(r"[,;\t]", stated["labels"])]
    if len(titles) != table.shape[1]:
        raise ValueError(f"{path.name}: {len(titles)} column names for {table.shape[1]} columns")
    names, units = zip(*map(_split_unit, titles), strict=True)
    rate = stated.get("sampling rate (hz)")
    if rate is not None and not _is_number(rate):
        raise ValueError(f"{path.name}: its sampling rate is stated as {rate!r}; expected a number of Hz")
    return _from_matrix(path.stem, table.T, list(names), list(units), rate and float(rate))


def _open_numpy(path, leads):
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path.name}: not a numpy file without pickled objects ({_one_line(error)})") from error
    if isinstance(loaded, np.ndarray):
        return _open_array(loaded, path.stem, leads)
    with loaded:
        key = _signal_key(path, loaded.files)
        rate, names, units = (_first_of(loaded, loaded.files, keys) for keys in (_RATE_KEYS, _LEAD_KEYS, _UNIT_KEYS))
        names = None if names is None else [str(name) for name in names.ravel()]
        channels = _open_array(loaded[key], path.stem, leads or names)
    if names is not None:
        channels.names = names
    if rate is not None:
        channels.rates = [float(rate.ravel()[0])] * len(channels.rates)
    if units is not None:
        channels.units = [str(units.ravel()[0])] * len(channels.units)
    return channels


def _open_matlab(path, leads):
    """CPSC 2018's struct (ECG: sex, age, data) and CODE-15's variables (feats, curr_sample_rate). The first states no
    rate, neither states units or names: 500 Hz, mV and the usual order of leads by the data sets' descriptions."""
    with open(path, "rb") as file:
        if b"\x89HDF\r\n" in file.read(1024):  # MATLAB 7.3 writes HDF5
            return _open_hdf5(path, leads)
    try:
        content = library("scipy.io").loadmat(path)
        variables = {key: value for key, value in content.items() if not key.startswith("__")}
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path.name}: not a MATLAB file ({_one_line(error)})") from error
    struct = variables.get("ECG")
    if struct is not None and "data" in (struct.dtype.names or ()):
        channels = _open_array(struct[0, 0]["data"], path.stem, leads)
        channels.rates = [_CPSC2018_RATE] * len(channels.names)
        channels.notes = ["500 Hz, as CPSC 2018 describes its files"]
        channels.rate_is_stated = False
    elif {"feats", "curr_sample_rate"} <= set(variables):
        channels = _open_array(variables["feats"], path.stem, leads)
        channels.rates = [float(variables["curr_sample_rate"].ravel()[0])] * len(channels.names)
    elif "val" in variables:
        raise FileNotFoundError(f"{path.name}: a WFDB signal file, whose header {path.stem}.hea is missing beside it")
    else:
        raise ValueError(
            f"{path.name} has the variables {', '.join(variables) or 'none'}; expected ECG (CPSC 2018) or feats and "
            "curr_sample_rate (CODE-15)"
        )
    return channels


def _open_hdf5(path, leads):
    """The data set named signal, array, ecg, data or tracings, or the only one; rate, leads and units from its own or
    the file's attributes. SPH's files (`ecg`, float16, 12 leads) state no rate: 500 Hz by its description."""
    h5py = library("h5py")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path.name}: not an HDF5 file ({_one_line(error)})") from error
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
    transposed, count, length = _orientation(path.stem, shape, dtype, leads or names)

    def read(indices, start, stop):
        with h5py.File(path, "r") as opened:
            data = opened[key]
            span = data[start:stop] if transposed or len(shape) == 1 else data[:, start:stop]
        return (span.reshape(-1, count).T if transposed or len(shape) == 1 else span)[indices]

    return _Channels(
        name=path.stem,
        names=names or [None] * count,
        units=[None if units is None else _text(np.ravel(units)[0])] * count,
        rates=[_SPH_RATE if looks_like_sph else rate and float(np.ravel(rate)[0])] * count,
        lengths=[length] * count,
        read=read,
        notes=["500 Hz, as SPH describes its files"] if looks_like_sph else [],
        rate_is_stated=not looks_like_sph,
    )


def _open_edf(path):
    try:
        with library("pyedflib").EdfReader(str(path)) as file:
            count = file.signals_in_file
            return _Channels(
                name=path.stem,
                names=[label.strip() for label in file.getSignalLabels()],
                units=[file.getPhysicalDimension(k).strip() or None for k in range(count)],
                rates=[float(rate) for rate in file.getSampleFrequencies()],
                lengths=[int(length) for length in file.getNSamples()],
                read=lambda indices, start, stop: _read_edf(path, indices, start, stop),
            )
    except OSError as error:
        raise ValueError(f"{path.name}: not an EDF or BDF file that can be read ({_one_line(error)})") from error


def _read_edf(path, indices, start, stop):
    with library("pyedflib").EdfReader(str(path)) as file:
        return np.stack([file.readSignal(k, start, stop - start) for k in indices])


def _open_array(array, name, leads=None, unnamed_leads=STANDARD_LEADS):
    array = as_array(array, name)
    known = leads if leads is not None else unnamed_leads
    transposed, count, _ = _orientation(name, array.shape, array.dtype, known)
    matrix = array.T if transposed else array.reshape(count, -1)
    return _from_matrix(name, matrix, [None] * count, [None] * count, None)


def as_array(array, name="array") -> np.ndarray:
    """An array, tensor or nested list as numpy has it; ValueError where it is none of them."""
    try:
        if hasattr(array, "detach"):
            array = array.detach().cpu()
            # numpy has no bfloat16
            array = array.float() if array.is_floating_point() and array.itemsize < 4 else array
        return np.asanyarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no array of numbers ({_one_line(error)})") from error


def _orientation(name, shape, dtype, leads):
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


def _from_matrix(name, matrix, names, units, rate):
    count, length = matrix.shape

    def read(indices, start, stop):
        return matrix[indices, start:stop]

    return _Channels(name, names, units, [rate] * count, [length] * count, read)


# -- small readings of what files say ---------------------------------------------------------------------------------


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


def _first_of(mapping, present, keys):
    return next((mapping[key] for key in keys if key in present), None)


def _split_unit(title):
    """("II", "mV") of "II (mV)" or "II [mV]"; ("II", None) of "II"."""
    match = re.fullmatch(r"(.*\S)\s*[(\[](\S+)[)\]]", title or "")
    return match.groups() if match and unit_in_millivolts(match[2]) is not None else (title, None)


def _is_number(text):
    return re.fullmatch(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?|nan", text.strip(), re.IGNORECASE) is not None


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def _one_line(error):
    return " ".join(str(error).split())[:160] or type(error).__name__
