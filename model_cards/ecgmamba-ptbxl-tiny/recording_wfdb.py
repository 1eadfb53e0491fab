"""WFDB records (PhysioNet's format): a header and its signal files. Formats 16 and 212 are read by
`recording_wfdb_plain.py`, all others by the library wfdb, segments of a record one by one."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from .recording_channels import Channels, library, one_line, unit_in_millivolts
from .recording_wfdb_plain import DEFAULT_GAIN, PlainRecord, existing_file, is_plain, read_wfdb_header

_KEPT_SAMPLES = 2**20  # up to so many (8 MB), a record is kept as a whole


def open_wfdb(path, leads=None):
    name = path.stem
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    header = read_wfdb_header(path)
    if header.segments:
        return _open_segments(path)
    if not header.signals:
        raise ValueError(f"{name} has no signals")
    if all(signal.file_name == "~" for signal in header.signals):  # what describes the segments of another
        raise ValueError(f"{name} holds no samples")
    record = PlainRecord(header, path.parent) if is_plain(header) else _CodedRecord(header, path.parent)
    uncalibrated = [signal.name or f"channel {k}" for k, signal in enumerate(header.signals) if signal.gain is None]
    notes = (
        [f"no gain stated, taken as {DEFAULT_GAIN:g} counts a mV: {', '.join(uncalibrated)}"] if uncalibrated else []
    )
    return Channels(
        name=name,
        names=[signal.name or f"channel {k}" for k, signal in enumerate(header.signals)],
        units=[signal.units for signal in header.signals],
        rates=[header.sampling_rate * signal.per_frame for signal in header.signals],
        lengths=[record.num_frames * signal.per_frame for signal in header.signals],
        read=record.read,
        notes=[*header.notes, *notes],
    )


class _CodedRecord:
    """The samples of a record in any other format, by wfdb. Headers in real use say more, less or other than wfdb
    admits: it gets one with what counts, in a folder of its own beside links to the signal files under plain names,
    which lives as long as this object. The user's files stay as they are."""

    def __init__(self, header, folder):
        self.header, self._temporary = header, tempfile.TemporaryDirectory(prefix="ecg_header_")
        self._record = str(Path(self._temporary.name) / "record")
        links = {}
        for signal in header.signals:
            links.setdefault(signal.file_name, f"signal{len(links)}{Path(signal.file_name).suffix}")
        for file_name, link in links.items():
            _link(existing_file(folder, file_name, header.name).resolve(), Path(self._temporary.name) / link)
        self._differences = {
            name: _Differences(Path(self._temporary.name) / link, [s for s in header.signals if s.file_name == name])
            for name, link in links.items()
            if any(s.file_name == name and s.format == "8" for s in header.signals)
        }
        self._lines = [signal.line(links[signal.file_name]) for signal in header.signals]
        self._write(header.num_frames)
        self._whole, self.num_frames = None, header.num_frames
        if self.num_frames is None:
            self.num_frames = len(self._read(channels=[0], physical=False).d_signal)
            self._write(self.num_frames)
        if self.num_frames * sum(signal.per_frame for signal in header.signals) <= _KEPT_SAMPLES:
            # wfdb reads the header with every span of a record, which takes as long as ten seconds of signals
            self._whole = self._read(smooth_frames=False, return_res=64, ignore_skew=True).e_p_signal

    def _write(self, length):
        first = f"record {len(self._lines)} {self.header.sampling_rate!r} {length or ''}".rstrip()
        Path(f"{self._record}.hea").write_text("\n".join([first, *self._lines]) + "\n", encoding="utf-8")

    def _read(self, *span, **arguments):
        try:
            return library("wfdb").rdrecord(self._record, *span, **arguments)
        except (ValueError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"{self.header.name}: wfdb cannot read its signals ({one_line(error)})") from error

    def read(self, indices, start, stop):
        """float64 `[len(indices), stop - start]`, in samples of those signals, which are equally many in a frame."""
        signals = [self.header.signals[index] for index in indices]
        per_frame = signals[0].per_frame
        first, last = start // per_frame, -(-stop // per_frame)
        values = np.full((len(indices), stop - start), np.nan)
        if start == stop:
            return values
        # wfdb shifts signals of several skews wrongly
        end = min(last + max(signal.skew for signal in signals), self.num_frames)
        if self._whole is not None:
            rows = [self._whole[index][first * per_frame : end * per_frame] for index in indices]
        else:
            rows = self._read(
                first, end, channels=indices, smooth_frames=False, return_res=64, ignore_skew=True
            ).e_p_signal
        for value, row, signal in zip(values, rows, signals, strict=True):
            if self._whole is None and signal.format == "8":
                row = row + self._differences[signal.file_name].before(first, signal) / (signal.gain or DEFAULT_GAIN)
            part = row[start - first * per_frame + signal.skew * per_frame :][: stop - start]
            value[: len(part)] = part
        return values


class _Differences:
    """Format 8, a byte for the difference from the sample before: wfdb (4.3.1) sums from the beginning of each span
    that it reads, as if the record began there."""

    def __init__(self, path, signals):
        self._path, self._signals = path, signals
        self._width = sum(signal.per_frame for signal in signals)
        self._frame, self._sums = 0, np.zeros(self._width, np.int64)

    def before(self, frame, signal):
        """The sum of a signal's differences before a frame, in counts."""
        if frame < self._frame:
            self._frame, self._sums = 0, np.zeros(self._width, np.int64)
        while self._frame < frame:
            count = min(2**16, frame - self._frame)
            offset = self._signals[0].byte_offset + self._frame * self._width
            part = np.fromfile(self._path, np.int8, count * self._width, offset=offset)
            self._sums += part.reshape(count, self._width).sum(axis=0, dtype=np.int64)
            self._frame += count
        column = 0
        for other in self._signals:
            if other is signal:
                break
            column += other.per_frame
        return int(self._sums[column : column + signal.per_frame].sum())


def _link(target, link):
    try:
        link.symlink_to(target)
    except OSError:  # a system without links
        shutil.copyfile(target, link)


def _open_segments(path):
    """A record of several segments: how they follow one another by wfdb, each read as a record of its own, in its own
    units."""
    name, record = path.stem, str(path.with_suffix(""))
    header = _read_header(record, name)
    if not header.fs or header.fs < 0:
        raise ValueError(f"{name}: the header states a sampling rate of {header.fs}; expected a number of Hz above 0")
    described = [part for part in header.segments if part is not None]
    if not header.n_sig or not described or not described[0].file_name:
        raise ValueError(f"{name} has no signals")
    description = described[0]  # of a variable layout, the segment that describes all channels
    for part in described:
        for file_name in dict.fromkeys(part.file_name or ()):
            if file_name != "~" and not (path.parent / file_name).is_file():
                raise FileNotFoundError(f"{name}: the signal file {file_name}, named by its header, is missing")
    per_frame = [int(count or 1) for count in description.samps_per_frame]
    names = [title.strip() if title else f"channel {k}" for k, title in enumerate(header.sig_name)]
    units = [unit or "mV" for unit in read_wfdb_header(path.with_name(f"{header.seg_name[0]}.hea")).units_of(names)]
    ends = np.cumsum(header.seg_len)
    spans = [
        (segment, int(end - length), int(end))
        for segment, length, end in zip(header.seg_name, header.seg_len, ends, strict=True)
        if length and segment != "~"
    ]
    is_variable, opened = header.layout == "variable", {}

    def open_segment(segment):
        """A segment's channels, and for each of the record's the index there and the factor to the record's unit."""
        if segment not in opened:
            channels = open_wfdb(path.with_name(f"{segment}.hea"))
            places = [channels.names.index(title) if title in channels.names else None for title in names]
            if not is_variable:
                places = list(range(len(names)))
            factors = [
                None if place is None else _unit_factor(channels.units[place], unit, f"{name}: {title} in {segment}")
                for place, unit, title in zip(places, units, names, strict=True)
            ]
            opened[segment] = channels, places, factors
        return opened[segment]

    def read(indices, start, stop):
        multiple = per_frame[indices[0]]
        values = np.full((len(indices), stop - start), np.nan)
        for segment, first, last in spans:
            begin, end = max(start, first * multiple), min(stop, last * multiple)
            if begin >= end:
                continue
            channels, places, factors = open_segment(segment)
            rows = [row for row, index in enumerate(indices) if places[index] is not None]
            if rows:
                of_segment = [places[indices[row]] for row in rows]
                block = channels.read(of_segment, begin - first * multiple, end - first * multiple)
                scale = np.array([factors[indices[row]] for row in rows])[:, None]
                values[rows, begin - start : end - start] = block if (scale == 1).all() else block * scale
        return values

    return Channels(
        name=name,
        names=names,
        units=units,
        rates=[header.fs * count for count in per_frame],
        lengths=[header.sig_len * count for count in per_frame],
        read=read,
    )


def _unit_factor(unit, expected, where):
    """By what values in `unit` are multiplied to be in `expected`."""
    if unit == expected:
        return 1.0
    voltages = unit_in_millivolts(unit), unit_in_millivolts(expected)
    if None in voltages:
        raise ValueError(f"{where} is in {unit}, elsewhere in {expected}; expected one unit")
    return voltages[0] / voltages[1]


def _read_header(record, name):
    """wfdb's reading of a header and of its segments'."""
    try:
        return library("wfdb").rdheader(record, rd_segments=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: its segment {Path(error.filename).name} is missing") from error
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: the header cannot be read ({one_line(error)})") from error
