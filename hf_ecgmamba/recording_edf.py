"""EDF and BDF (polysomnographs, EEG and Holter recorders), by the library pyedflib."""

import numpy as np

from .recording_channels import Channels, library, one_line


def open_edf(path, leads=None):
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
    except OSError as error:
        raise ValueError(f"{path.name}: not an EDF or BDF file that can be read ({one_line(error)})") from error


def _read_edf(path, indices, start, stop):
    with library("pyedflib").EdfReader(str(path)) as file:
        return np.stack([file.readSignal(k, start, stop - start) for k in indices])
