"""WFDB headers as they occur in real use, and the samples of formats 16 and 212, without wfdb.

Nearly every public 12-lead ECG is one of these two, ten seconds long; wfdb needs longer for such a header than a
classifier for its signals. What a header says is read by physionet.org/physiotools/wag/header-5.htm and, beyond that,
as it is meant: dates that nobody needs, exponents, names with an ending, "no length" as 0.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

DEFAULT_GAIN = 200.0  # counts a millivolt, of a signal that states none or 0 (WFDB's DEFGAIN)
DEFAULT_RATE = 250.0  # Hz, of a record that states none (WFDB's DEFREQ)
# the count that stands for a missing sample, and the bytes of two samples
_FORMATS = {"16": (-32768, 4), "212": (-2048, 3)}

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RECORD = re.compile(
    r"(?P<name>\S+?)(?:/(?P<segments>\d+))?\s+(?P<signals>\d+)(?:\s+(?P<rate>\S+))?(?:\s+(?P<rest>.+))?"
)
_RATE = re.compile(rf"(?P<rate>{_NUMBER})(?:/{_NUMBER}(?:\({_NUMBER}\))?)?(?:hz)?", re.IGNORECASE)
_SIGNAL = re.compile(
    r"(?P<file>\S+)\s+(?P<format>\d+)(?:x(?P<per_frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?"
    rf"(?:\s+(?P<gain>{_NUMBER})(?:\((?P<baseline>{_NUMBER})\))?(?:/(?P<units>\S+))?(?=\s|$)"
    r"(?:\s+(?P<resolution>\d+)(?=\s|$)(?:\s+(?P<zero>-?\d+)(?=\s|$)(?:\s+(?P<initial>-?\d+)(?=\s|$)"
    r"(?:\s+(?P<checksum>-?\d+)(?=\s|$)(?:\s+(?P<block>\d+)(?=\s|$))?)?)?)?)?)?"
    r"(?:\s+(?P<name>\S.*))?"
)


@dataclass(slots=True)
class WfdbSignal:
    """A signal's line. `gain` is None where the header states none, or 0: an uncalibrated signal."""

    file_name: str
    format: str
    per_frame: int
    skew: int
    byte_offset: int
    gain: float | None
    baseline: float
    units: str
    zero: int
    initial: int
    name: str | None

    def line(self, file_name):
        """The line again, as wfdb reads it, for a signal file under another name."""
        extent = f"{self.format}x{self.per_frame}:{self.skew}+{self.byte_offset}"
        # wfdb drops some units; who asks for a signal's has it from here
        gain = f"{self.gain or DEFAULT_GAIN!r}({self.baseline:.0f})/mV"
        return f"{file_name} {extent} {gain} 0 {self.zero} {self.initial} 0 0 {self.name or ''}".rstrip()


@dataclass(slots=True)
class WfdbHeader:
    """A header: `num_frames` is None where it leaves the length to the signal files, `segments` the names of the
    records that a multi-segment one puts together."""

    name: str
    sampling_rate: float
    num_frames: int | None
    signals: list[WfdbSignal] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def units_of(self, names):
        """The unit of each signal by its name, or else by its place; None for one that is not there."""
        by_name = {signal.name: signal.units for signal in self.signals}
        by_place = dict(enumerate(signal.units for signal in self.signals))
        return [by_name.get(name, by_place.get(place)) for place, name in enumerate(names)]


def read_wfdb_header(path) -> WfdbHeader:
    """
    Raises:
        OSError: for a missing file.
        ValueError: for a line that is none of a WFDB header's.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    stem = os.path.splitext(os.path.basename(path))[0]
    first = _RECORD.fullmatch(lines[0]) if lines else None
    if first is None:
        raise ValueError(f"{stem}: the header's first line is not a name, a number of signals and a rate")

    header = WfdbHeader(stem, DEFAULT_RATE, _length(first["rest"]))
    if first["rate"] is None:
        header.notes.append(f"the header states no sampling rate: {DEFAULT_RATE:g} Hz, as WFDB has it")
    else:
        rate = _RATE.fullmatch(first["rate"].replace(",", "."))
        header.sampling_rate = float(rate["rate"]) if rate else 0.0
        if not 0 < header.sampling_rate < np.inf:
            raise ValueError(
                f"{stem}: the header states a sampling rate of {first['rate']}; expected a number of Hz above 0"
            )
    if first["segments"] is not None:
        header.segments = [line.split()[0] for line in lines[1:]]
        return header
    count = int(first["signals"])
    if len(lines) - 1 < count:
        raise ValueError(f"{stem}: the header describes {len(lines) - 1} signals; its first line says {count}")
    header.signals = [_signal(line, stem) for line in lines[1 : count + 1]]
    return header


def _length(rest):
    """Samples of each signal. What else stands here is a time or a date, and 0 says that the files know."""
    token = rest.split(maxsplit=1)[0] if rest else ""
    return int(float(token)) or None if re.fullmatch(r"\d+(\.0*)?|\d+(\.\d+)?[eE]\+?\d+", token) else None


def _signal(line, stem):
    match = _SIGNAL.fullmatch(line)
    if match is None:
        raise ValueError(f"{stem}: the header's line {line[:80]!r} is not that of a signal")
    zero = int(match["zero"] or 0)
    return WfdbSignal(
        file_name=match["file"],
        format=match["format"],
        per_frame=int(match["per_frame"] or 1) or 1,
        skew=int(match["skew"] or 0),
        byte_offset=int(match["offset"] or 0),
        gain=float(match["gain"] or 0) or None,
        baseline=float(match["baseline"] or zero),
        units=match["units"] or "mV",
        zero=zero,
        initial=int(match["initial"] or 0),
        name=match["name"],
    )


def is_plain(header) -> bool:
    """Whether [`PlainRecord`] reads the signals of this header."""
    return bool(header.signals) and all(signal.format in _FORMATS for signal in header.signals)


class PlainRecord:
    """The samples of a record in formats 16 and 212: any span, in the signals' units, as wfdb's `e_p_signal` has it.

    Args:
        header (`WfdbHeader`): of one segment, for which [`is_plain`] holds.
        folder (`Path`): where its signal files lie.

    Raises:
        FileNotFoundError, ValueError: for a signal file that is missing, or shorter than the header says.
    """

    def __init__(self, header, folder):
        self.header = header
        self._files = {}
        for index, signal in enumerate(header.signals):
            self._files.setdefault(signal.file_name, []).append(index)
        self._paths = {name: existing_file(folder, name, header.name) for name in self._files}
        frames = {name: self._frames_in(name) for name in self._files}
        self.num_frames = min(frames.values()) if header.num_frames is None else header.num_frames
        for name, count in frames.items():
            if count < self.num_frames:
                raise ValueError(
                    f"{header.name}: {name} holds {count} samples a signal; its header states {self.num_frames}"
                )

    def _layout(self, file_name):
        """Of a file: its format, the byte at which samples begin, and how many of them make a frame."""
        signals = [self.header.signals[index] for index in self._files[file_name]]
        return signals[0].format, signals[0].byte_offset, sum(signal.per_frame for signal in signals)

    def _frames_in(self, file_name):
        kind, offset, width = self._layout(file_name)
        size = max(os.path.getsize(self._paths[file_name]) - offset, 0)
        return size * 2 // _FORMATS[kind][1] // width

    def read(self, indices, start, stop):
        """float64 `[len(indices), stop - start]`, in samples of those signals, which are equally many in a frame."""
        signals = [self.header.signals[index] for index in indices]
        per_frame = signals[0].per_frame
        first, last = start // per_frame, -(-stop // per_frame)
        values = np.empty((len(indices), stop - start))
        for file_name, members in self._files.items():
            rows = [row for row, index in enumerate(indices) if index in members]
            if not rows:
                continue
            kind, offset, width = self._layout(file_name)
            skew = max(signals[row].skew for row in rows)
            end = min(last + skew, self.num_frames)
            frames = _read_counts(self._paths[file_name], kind, offset, first * width, end * width).reshape(-1, width)
            if end < last + skew:
                missing = np.full((last + skew - end, width), _FORMATS[kind][0], frames.dtype)
                frames = np.concatenate([frames, missing])
            if skew == 0 and per_frame == 1 and [indices[row] for row in rows] == members and len(members) == width:
                counts = frames.T
            else:
                counts = np.stack([self._column(frames, members, indices[row], last - first) for row in rows])
                counts = counts[:, start - first * per_frame : stop - first * per_frame]
            part = counts.astype(np.float64)
            part -= np.array([signals[row].baseline for row in rows])[:, None]
            part /= np.array([signals[row].gain or DEFAULT_GAIN for row in rows])[:, None]
            absent = counts == _FORMATS[kind][0]
            if absent.any():
                part[absent] = np.nan
            values[rows] = part
        return values

    def _column(self, frames, members, index, num_frames):
        """The counts of one signal, in a row."""
        signal = self.header.signals[index]
        column = sum(self.header.signals[other].per_frame for other in members if other < index)
        part = frames[signal.skew : signal.skew + num_frames, column : column + signal.per_frame]
        return part.reshape(-1)


def existing_file(folder, file_name, record):
    """The path of a file that a header names, whatever the case in which a copy by way of DOS has left its name."""
    path = Path(folder) / file_name
    if os.path.isfile(path):
        return path
    lower = file_name.lower()
    for other in os.listdir(folder):
        if other.lower() == lower and os.path.isfile(Path(folder) / other):
            return Path(folder) / other
    raise FileNotFoundError(f"{record}: the signal file {file_name}, named by its header, is missing")


def _read_counts(path, kind, offset, start, stop):
    """Samples `start` to `stop` of a signal file, all signals interleaved, as int16."""
    if kind == "16":
        with open(path, "rb") as file:
            file.seek(offset + 2 * start)
            return np.frombuffer(file.read(2 * (stop - start)), "<i2")
    pair = start // 2  # two samples of 12 bits lie in three bytes
    with open(path, "rb") as file:
        file.seek(offset + 3 * pair)
        content = file.read(-(-(stop - 2 * pair) * 3 // 2))
    content += bytes(-len(content) % 3)
    low, middle, high = np.frombuffer(content, np.uint8).reshape(-1, 3).T.astype(np.int16)
    counts = np.empty((len(low), 2), np.int16)
    counts[:, 0] = low | (middle & 0x0F) << 8
    counts[:, 1] = high | (middle & 0xF0) << 4
    counts = ((counts ^ 0x800) - 0x800).reshape(-1)  # twelve bits, signed
    return counts[start - 2 * pair : stop - 2 * pair]
