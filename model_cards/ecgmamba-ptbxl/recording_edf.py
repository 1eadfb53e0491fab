"""EDF and BDF (polysomnographs, EEG and Holter recorders), by the library pyedflib.

What that library refuses for a `µV`, an umlaut or a date, and discontinuous recordings (EDF+D), edfio reads, of the
extra `clinical`; it joins what lies on either side of a hole, which is undone here.
"""

import re

import numpy as np

from .recording_channels import Channels, library, one_line


def open_edf(path, leads=None):
    with open(path, "rb") as file:
        head = file.read(256)
    if head[192:197] in (b"EDF+D", b"BDF+D"):
        return _open_by_edfio(path, is_discontinuous=True)
    try:
        with library("pyedflib").EdfReader(str(path)) as file:
            count = file.signals_in_file
            return Channels(
                name=path.stem,
                names=[label.strip() for label in file.getSignalLabels()],
                units=[file.getPhysicalDimension(k).strip() or None for k in range(count)],
                rates=[float(rate) for rate in file.getSampleFrequencies()],
                lengths=[int(length) for length in file.getNSamples()],
                read=lambda indices, start, stop: _read_edf(path, indices, start, stop),
            )
    except (OSError, UnicodeDecodeError) as error:
        refusal = one_line(error)
    try:
        return _open_by_edfio(path)
    except ImportError:
        hint = "; pip install 'hf-human-signals[clinical]' reads more of them"
    except ValueError:
        hint = ""
    raise ValueError(f"{path.name}: not an EDF or BDF file that can be read ({refusal}){hint}")


def _read_edf(path, indices, start, stop):
    with library("pyedflib").EdfReader(str(path)) as file:
        return np.stack([file.readSignal(k, start, stop - start) for k in indices])


def _open_by_edfio(path, is_discontinuous=False):
    try:
        edfio = library("edfio")
    except ImportError as error:
        raise ImportError(
            f"{path.name}: reading this EDF takes edfio: pip install 'hf-human-signals[clinical]'"
        ) from error
    with open(path, "rb") as file:
        is_bdf = file.read(1) == b"\xff"
    try:
        opened = (edfio.read_bdf if is_bdf else edfio.read_edf)(path)
        signals, seconds = list(opened.signals), float(opened.data_record_duration)
        starts = _record_starts(path) if is_discontinuous else None
        if is_discontinuous and (len(starts) != opened.num_data_records or seconds <= 0):
            raise ValueError(f"{opened.num_data_records} records, the times of {len(starts)}")
        rates = [float(signal.sampling_frequency) for signal in signals]
        lengths = [len(signal.digital) for signal in signals]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not an EDF or BDF file that can be read ({one_line(error)})") from error
    notes = []
    if is_discontinuous:
        ends = np.array(starts) + seconds
        holes = int((np.array(starts[1:]) - ends[:-1] > 0.5 / max(rates)).sum())
        if (np.diff(starts) < seconds - 0.5 / max(rates)).any():
            raise ValueError(f"{path.name}: its records overlap or are not in the order of time")
        lengths = [round((ends[-1] - starts[0]) * rate) for rate in rates]
        if holes:
            missing = ends[-1] - starts[0] - seconds * len(starts)
            notes.append(f"{holes} hole{'s' * (holes > 1)} in the recording, {missing:g} s in all")

    def read(indices, start, stop):
        rows = np.full((len(indices), stop - start), np.nan)
        for row, index in zip(rows, indices, strict=True):
            data = signals[index].data
            if starts is None:
                row[:] = data[start:stop]
                continue
            size = len(data) // len(starts)
            for k, time in enumerate(starts):
                first = round((time - starts[0]) * rates[index])
                low, high = max(first, start), min(first + size, stop)
                if low < high:
                    row[low - start : high - start] = data[k * size + low - first : k * size + high - first]
        return rows

    return Channels(
        name=path.stem,
        names=[signal.label.strip() for signal in signals],
        units=[signal.physical_dimension.strip() or None for signal in signals],
        rates=rates,
        lengths=lengths,
        read=read,
        notes=notes,
    )


def _record_starts(path):
    """Seconds at which each data record of an EDF+ file begins: the first annotation of a record says so."""
    content = path.read_bytes()
    width = 3 if content[:1] == b"\xff" else 2
    count = int(content[252:256])

    def fields(offset, size):  # of all signals, field by field
        first = 256 + offset * count
        return [content[first + size * k : first + size * (k + 1)].decode("latin-1").strip() for k in range(count)]

    labels, samples = fields(0, 16), [int(number) for number in fields(216, 8)]
    annotation = next((k for k, label in enumerate(labels) if label in ("EDF Annotations", "BDF Annotations")), None)
    if annotation is None:
        raise ValueError("a discontinuous recording without annotations, which tell when a record begins")
    size, first = width * sum(samples), int(content[184:192]) + width * sum(samples[:annotation])
    starts = []
    for begin in range(first, len(content) - width * samples[annotation] + 1, size):
        onset = re.match(rb"([+-]\d+(?:\.\d+)?)[\x14\x15]", content[begin : begin + width * samples[annotation]])
        if onset is None:
            raise ValueError(f"record {len(starts)} does not say when it begins")
        starts.append(float(onset[1]))
    return starts
