"""WFDB records (PhysioNet's format): a header and its signal files. Formats 16 and 212 are read by
`recording_wfdb_plain.py`, all others and records of several segments by the library wfdb."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from .recording_channels import Channels, library, one_line
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
            part = row[start - first * per_frame + signal.skew * per_frame :][: stop - start]
            value[: len(part)] = part
        return values


def _link(target, link):
    try:
        link.symlink_to(target)
    except OSError:  # a system without links
        shutil.copyfile(target, link)


def _open_segments(path):
    """A record of several segments, by wfdb."""
    wfdb, name, record = library("wfdb"), path.stem, str(path.with_suffix(""))
    header = _read_header(record, name)
    if not header.fs or header.fs < 0:
        raise ValueError(f"{name}: the header states a sampling rate of {header.fs}; expected a number of Hz above 0")
    segments = [part for part in header.segments if part is not None]
    description = segments[0]  # of a variable layout, the segment that describes all channels
    if not header.n_sig or not description.file_name:
        raise ValueError(f"{name} has no signals")
    for part in segments:
        for file_name in dict.fromkeys(part.file_name or ()):
            if file_name != "~" and not (Path(record).parent / file_name).is_file():
                raise FileNotFoundError(f"{name}: the signal file {file_name}, named by its header, is missing")
    per_frame = [int(count or 1) for count in description.samps_per_frame]

    def read(indices, start, stop):
        frame, multiple = start // per_frame[indices[0]], per_frame[indices[0]]
        if start == stop:
            return np.empty((len(indices), 0))
        try:
            part = wfdb.rdrecord(
                record, frame, -(-stop // multiple), channels=indices, smooth_frames=False, return_res=64
            )
        except (ValueError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"{name}: wfdb cannot read its signals ({one_line(error)})") from error
        skip = start - frame * multiple
        return np.stack([row[skip : skip + stop - start] for row in part.e_p_signal])

    return Channels(
        name=name,
        names=[title.strip() if title else f"channel {k}" for k, title in enumerate(header.sig_name)],
        units=list(description.units),
        rates=[header.fs * count for count in per_frame],
        lengths=[header.sig_len * count for count in per_frame],
        read=read,
    )


def _read_header(record, name):
    """wfdb's reading of a header and of its segments'."""
    try:
        return library("wfdb").rdheader(record, rd_segments=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: its segment {Path(error.filename).name} is missing") from error
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: the header cannot be read ({one_line(error)})") from error
