"""What electrocardiographs and hospital archives write: DICOM by pydicom; HL7 aECG, GE MUSE and Philips Sierra XML,
SCP-ECG and ISHNE by ecgdatakit. Both come with the optional extra `clinical`.

Of everything in such a file the rhythm strip is taken, never the averaged beats that many hold beside it.
"""

import re
import struct
import warnings

import numpy as np

from .recording_channels import Channels, lead_name, library, one_line

# Leads by code (ISO 11073-10101, which DICOM's context group 3001 lists), whatever the words beside it
_LEAD_BY_CODE = {
    **{"2:1": "I", "2:2": "II", "2:61": "III", "2:62": "aVR", "2:63": "aVL", "2:64": "aVF"},
    **{f"2:{2 + n}": f"V{n}" for n in range(1, 7)},
}
_DEVICE_FORMATS = {
    "hl7_aecg": "HL7 aECG",
    "ge_muse_xml": "GE MUSE XML",
    "sierra_xml": "Philips Sierra XML",
    "scp_ecg": "SCP-ECG",
    "ishne_holter": "ISHNE",
}
_MISSING_COUNT = -32768
_MOST_VALUES = 2**27  # that groups of channels, which may begin at different times, are put together to
# what a damaged file makes the libraries raise
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, NotImplementedError, OSError)
_PULSE_SECONDS, _PULSE_MILLIVOLTS = 0.1, 0.5  # at least, for a stretch in which all leads are equal


def clinical_family(head, suffix):
    """The function that opens a file which begins with the bytes `head`, None for one that is of none of these
    formats."""
    if head[128:132] == b"DICM" or suffix == ".dcm":
        return open_dicom
    start = head.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").replace(b"\0", b"").lstrip()
    # what it holds may stand behind comments; a binary file may begin with the same sign
    is_xml = re.match(rb"<[?!A-Za-z_]", start) is not None and min(start) >= 9
    if (
        is_xml
        or head.startswith(b"ISHNE1.0")
        or head[16:22] == b"SCPECG"
        or suffix in (".xml", ".aecg", ".scp", ".ecg")
    ):
        return open_device_file
    return None


def _clinical_library(path, name):
    try:
        return library(name)
    except ImportError as error:
        raise ImportError(
            f"{path.name} cannot be read without {name.split('.')[0]}: pip install 'hf-human-signals[clinical]'"
        ) from error


def open_dicom(path, leads=None):
    pydicom = _clinical_library(path, "pydicom")
    waveforms = _clinical_library(path, "pydicom.waveforms")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are longer than their type allows
            dataset = pydicom.dcmread(path)
            groups = [
                _Group(group, waveforms.multiplex_array(dataset, index)) for index, group in _ecg_groups(dataset)
            ]
    except (*_DAMAGE, struct.error, pydicom.errors.InvalidDicomError) as error:
        raise ValueError(f"{path.name}: not a DICOM file whose waveforms can be read ({one_line(error)})") from error
    if not groups:
        raise ValueError(f"{path.name} holds no original ECG, only averaged beats or no waveforms at all")
    notes = []
    if len({group.rate for group in groups}) > 1:
        notes.append(f"{len(groups)} groups of channels at several rates, the first taken")
        groups = groups[:1]
    # groups may follow one another, as the four times three leads of a printed page do
    length = max(group.start + group.values.shape[1] for group in groups)
    held = sum(group.values.size for group in groups)
    if min(group.start for group in groups) < 0 or length * sum(len(g.names) for g in groups) > max(
        _MOST_VALUES, held
    ):
        raise ValueError(f"{path.name}: its groups of channels begin {length / groups[0].rate:g} s apart")
    names, units, rows = [], [], []
    for group in groups:
        for name, unit, values in zip(group.names, group.units, group.values, strict=True):
            if (name, unit) not in zip(names, units, strict=True):
                names.append(name)
                units.append(unit)
                rows.append(np.full(length, np.nan))
            row = rows[list(zip(names, units, strict=True)).index((name, unit))]
            place = slice(group.start, group.start + len(values))
            row[place] = np.where(np.isnan(row[place]), values, row[place])
    return _channels(path, np.stack(rows), names, units, [groups[0].rate] * len(rows), notes)


def _ecg_groups(dataset):
    """The multiplex groups that hold a recording as it was taken; where none says so, those that are not derived."""
    groups = list(enumerate(dataset.get("WaveformSequence") or []))
    original = [(k, group) for k, group in groups if str(group.get("WaveformOriginality", "ORIGINAL")) == "ORIGINAL"]
    rhythm = [(k, group) for k, group in original if "RHYTHM" in str(group.get("MultiplexGroupLabel", "")).upper()]
    return rhythm or [
        (k, group) for k, group in original if "MEDIAN" not in str(group.get("MultiplexGroupLabel", "")).upper()
    ]


class _Group:
    """A multiplex group: `values` `[channels, time]` in `units`, NaN where the file pads."""

    def __init__(self, group, counts):
        self.rate = float(group.SamplingFrequency)
        self.start = round(float(group.get("MultiplexGroupTimeOffset") or 0) / 1000 * self.rate)
        definitions = list(group.ChannelDefinitionSequence)
        if len(definitions) != counts.shape[1] or not 0 < self.rate < np.inf:
            raise ValueError(f"{len(definitions)} channels are described, {counts.shape[1]} held, at {self.rate} Hz")
        values = counts.T.astype(np.float64)
        padding = group.get("WaveformPaddingValue")
        if padding is not None:
            padding = np.frombuffer(padding, counts.dtype)[0] if isinstance(padding, bytes) else padding
            values[padding == counts.T] = np.nan
        self.names, self.units = [], []
        for row, channel in zip(values, definitions, strict=True):
            self.names.append(_channel_name(channel))
            unit = None
            if channel.get("ChannelSensitivity") is not None:
                row *= float(channel.ChannelSensitivity) * float(
                    channel.get("ChannelSensitivityCorrectionFactor") or 1
                )
                row += float(channel.get("ChannelBaseline") or 0)
                unit = next((str(u.CodeValue) for u in channel.get("ChannelSensitivityUnitsSequence") or ()), None)
            self.units.append(unit)
        self.values = values


def _channel_name(channel):
    source = next(iter(channel.get("ChannelSourceSequence") or ()), {})
    meaning, label = str(source.get("CodeMeaning", "")), str(channel.get("ChannelLabel", ""))
    known = _LEAD_BY_CODE.get(str(source.get("CodeValue", "")))
    return known or next((lead for lead in map(lead_name, (meaning, label)) if lead), meaning or label or "channel")


def open_device_file(path, leads=None):
    """XML of electrocardiographs and of regulators, SCP-ECG, ISHNE."""
    kit, errors = _clinical_library(path, "ecgdatakit"), _clinical_library(path, "ecgdatakit.exceptions")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            record = kit.FileParser().parse(path)
    except (*_DAMAGE, struct.error, errors.ECGDataKitError) as error:
        expected = ", ".join(_DEVICE_FORMATS.values())
        raise ValueError(f"{path.name}: none of {expected} that can be read ({one_line(error)})") from error
    if record.source_format not in _DEVICE_FORMATS:
        raise ValueError(f"{path.name} is of the format {record.source_format}, which is not read here")
    if not record.leads:
        raise ValueError(f"{path.name} holds no ECG as it was recorded")
    length = max(len(lead.samples) for lead in record.leads)
    signal = np.full((len(record.leads), length), np.nan)
    for row, lead in zip(signal, record.leads, strict=True):
        row[: len(lead.samples)] = lead.samples
        millivolts = {"uV": 1e-3, "mV": 1.0, "V": 1e3}.get(lead.resolution_unit)
        if millivolts and lead.resolution:  # what a device writes where it has no sample
            lowest = (_MISSING_COUNT * lead.resolution + lead.offset) * millivolts
            row[np.abs(row - lowest) < 1e-6 * abs(lowest)] = np.nan
    rates = [float(lead.sampling_rate) for lead in record.leads]
    notes = [one_line(warning.message) for warning in caught if "ecgdatakit" in str(warning.category.__module__)][:3]
    if record.source_format == "sierra_xml" and len(signal) > 2:
        end = _before_pulse(signal, rates[0])
        if end < length:
            notes.append(f"the calibration pulse at its end cut off, {(length - end) / rates[0]:.3f} s")
            signal = signal[:, :end]
    units = [lead.units or None for lead in record.leads]
    return _channels(path, signal, [lead.label for lead in record.leads], units, rates, notes)


def _before_pulse(signal, rate):
    """Where the stretch begins that ends the recording and in which every lead holds one and the same pulse."""
    differs = np.flatnonzero((signal != signal[0]).any(axis=0))
    start = differs[-1] + 1 if len(differs) else 0
    tail = signal[0, start:]
    is_pulse = len(tail) >= _PULSE_SECONDS * rate and np.ptp(tail) >= _PULSE_MILLIVOLTS
    return start if is_pulse and start > 0 else signal.shape[1]


def _channels(path, signal, names, units, rates, notes):
    return Channels(
        name=path.stem,
        names=names,
        units=units,
        rates=rates,
        lengths=[signal.shape[1]] * len(names),
        read=lambda indices, start, stop: signal[indices, start:stop],
        notes=notes,
    )
