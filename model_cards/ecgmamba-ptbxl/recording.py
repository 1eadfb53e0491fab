"""Any ECG file or array, read as one thing: a `Recording` in millivolts with named leads and a sampling rate.

`open_recording` looks at what is there without loading it, and its `read` brings any span, so that a day of ECG fits
through a small memory; `read_recording` does both. They find the family of formats, by a file's content first and its
ending second, and leave the parsing to that family's file: `recording_wfdb.py`, `recording_text.py`,
`recording_arrays.py`, `recording_edf.py`, `recording_clinical.py`. What all of them share is in
`recording_channels.py`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recording_arrays import ManyRecordings, open_array, open_hdf5, open_matlab, open_numpy
from .recording_channels import (
    FILE_ENDINGS,
    STANDARD_LEADS,
    Recording,
    RecordingFile,
    agree,
    checked_leads,
    choose_leads,
    in_order,
    one_line_errors,
    settle_names,
    settle_rate,
    settle_units,
)
from .recording_clinical import clinical_family
from .recording_edf import open_edf
from .recording_text import open_text
from .recording_uploads import require_harmless_file, require_limits, unpack_upload
from .recording_wfdb import open_wfdb

_BY_ENDING = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), open_text),
    **dict.fromkeys((".npy", ".npz"), open_numpy),
    **dict.fromkeys((".h5", ".hdf5"), open_hdf5),
    **dict.fromkeys((".edf", ".bdf", ".rec"), open_edf),
    ".mat": open_matlab,
}


def read_recording(source, **kwargs) -> Recording:
    """All of a recording, in memory: [`open_recording`] with the same arguments, then `read`."""
    return source if isinstance(source, Recording) and not kwargs else open_recording(source, **kwargs).read()


def open_recording(
    source,
    *,
    sampling_rate=None,
    leads=None,
    units=None,
    record=None,
    unnamed_leads=STANDARD_LEADS,
    trusted=True,
):
    """Look at an ECG without loading it.

    Args:
        source: one of
            - a path: a WFDB record (`.hea`, its signal file, or the name without an ending; multi-segment, FLAC-coded
              and MATLAB-coded too), `.csv`/`.tsv`/`.txt` columns with or without a header, `.npy`, `.npz`, `.mat`
              (CPSC 2018, CODE-15), `.h5` (SPH and the like), `.edf`/`.bdf`/`.rec`, and with the extra
              `clinical` DICOM, HL7 aECG, GE MUSE and Philips Sierra XML, SCP-ECG, ISHNE;
            - bytes: the content of such a file, or of a zip archive of them (a WFDB record);
            - an array `[time]`, `[leads, time]` or `[time, leads]` (numpy or torch); masked samples are missing;
            - a table with a column for each lead, by its name, and perhaps one of time (pandas, polars, pyarrow);
            - a dict with `array`, and `sampling_rate`, `leads`, `units` where known;
            - a `Recording` or `RecordingFile`.
        sampling_rate (`float`, *optional*): Hz, for a source that does not state its own.
        leads (`list[str | None]`, *optional*): the lead of each channel, in the order of the source, in place of its
            own names; None leaves a channel out. Or, by their names, those that count: `["ECG=II"]`. Case, and
            prefixes such as "ECG ", do not matter. A column of time need not be counted.
        units (`str`, `float` or a list, *optional*): "mV", "uV", "V" or "nV", or the millivolts that one unit is, for
            a source that does not state its own; or one for each channel. Unstated and not given means mV, if the
            values can be that; whole numbers are counts, which cannot.
        record (`str` or `int`, *optional*): which recording, of a source that holds many in an array
            `[recordings, leads, time]` or `[recordings, time, leads]` (CODE-15's HDF5): its exam_id or, where none is
            there, its number from 0 on. [`open_recordings`] gives all.
        unnamed_leads (`tuple[str]`): what the channels of a source without names are, if they are as many; twelve are
            else taken in the usual order.
        trusted (`bool`): False for what strangers send: a file may then lead to no other but the signal files beside
            its header, and rate, duration and what a file unpacks to have the limits of `recording_uploads.py`.

    Returns:
        `RecordingFile`

    Raises:
        ValueError: in one line, for what cannot be read as ECG: no lead among the channels (with their names), unknown
            names, no sampling rate, no unit, a broken file, arguments that contradict the source, many
            recordings and no `record`.
        OSError: for a file that is missing, or a file that a header names and that is missing.
    """
    given = {"sampling_rate": sampling_rate, "leads": checked_leads(leads), "units": units}
    if isinstance(source, (RecordingFile, Recording)):
        if record is not None:
            raise ValueError(f"{source.name} is one recording; record is {record!r}, expected none")
        return _open_opened(source, given)
    held = _look_into(source, given, unnamed_leads, trusted)
    if isinstance(held.content, ManyRecordings):
        return held.settled(held.content.channels(held.content.place_of(record)))
    if record is not None:
        raise ValueError(f"{held.content.name} holds one recording; record is {record!r}, expected none")
    return held.settled(held.content)


def open_recordings(
    source, *, sampling_rate=None, leads=None, units=None, unnamed_leads=STANDARD_LEADS, trusted=True
) -> "Recordings":
    """All recordings of a source that may hold many, with the arguments of [`open_recording`]: those of an array
    `[recordings, leads, time]` or `[recordings, time, leads]` (CODE-15's HDF5, `.npy`, `.npz`, `.mat`), called by
    their exam_id or number and without the zeros that fill them up; else the one."""
    given = {"sampling_rate": sampling_rate, "leads": checked_leads(leads), "units": units}
    if isinstance(source, (RecordingFile, Recording)):
        return Recordings(_open_opened(source, given))
    held = _look_into(source, given, unnamed_leads, trusted)
    return Recordings(held if isinstance(held.content, ManyRecordings) else held.settled(held.content))


class Recordings(Sequence):
    """The recordings of one source, each a `RecordingFile`, opened when it is asked for by its place. Made by
    [`open_recordings`].

    Attributes:
        names (`tuple[str]`): what the source calls them: exam_ids, numbers, or the name of the only one.
    """

    def __init__(self, held):
        self._held = held
        self.names = held.content.names if isinstance(held, _Held) else (held.name,)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, place):
        """
        Raises:
            IndexError: for a place beyond the last.
            ValueError: for a recording that cannot be read as ECG; see [`open_recording`].
        """
        if isinstance(place, slice):
            return [self[k] for k in range(len(self))[place]]
        place = range(len(self))[place]
        return self._held.settled(self._held.content.channels(place)) if isinstance(self._held, _Held) else self._held


@dataclass
class _Held:
    """What a source holds, `Channels` or `ManyRecordings`, and what was given beside it."""

    content: Any
    given: dict
    unnamed_leads: tuple
    trusted: bool
    is_file: bool
    folder: Any = None  # of what came as bytes: it goes with the object

    def settled(self, channels) -> RecordingFile:
        """Channels whose open questions what was given answers."""
        given = self.given
        settle_rate(channels, given["sampling_rate"])
        if not self.trusted:
            require_limits(channels)
        names, naming_notes, are_stated = settle_names(channels, given["leads"], self.unnamed_leads)
        settle_units(channels, given["units"])
        chosen, kept, factors, notes = choose_leads(channels, names, given=given["leads"] is not None)
        if not self.is_file and not are_stated:  # who gives an array of twelve knows their order
            naming_notes = []
        opened = RecordingFile(channels, chosen, kept, factors, [*channels.notes, *naming_notes, *notes], are_stated)
        opened.folder, opened.given = self.folder, given
        return opened


def _look_into(source, given, unnamed_leads, trusted):
    if isinstance(source, os.PathLike):
        source = Path(source)
    folder = None
    if isinstance(source, (bytes, bytearray)):
        folder, source = unpack_upload(source)
    is_file = isinstance(source, (str, Path))
    if is_file:
        with one_line_errors(Path(source).name):
            if not trusted:
                require_harmless_file(Path(source))
            content = _open_path(Path(source), in_order(given["leads"]))
    elif isinstance(source, dict):
        content = _open_dict(source, given, unnamed_leads)
    else:
        content = open_array(source, "array", in_order(given["leads"]), unnamed_leads)
    return _Held(content, given, unnamed_leads, trusted, is_file, folder)


def _open_opened(source, given):
    """A `RecordingFile` as it is, one of a `Recording`; what is given beside them may not contradict them, unless it
    is what they were opened with."""
    before = getattr(source, "given", {})
    given = {key: None if key in before and before[key] == value else value for key, value in given.items()}
    agree(source.name, {"sampling_rate": source.sampling_rate, "leads": list(source.leads), "units": "mV"}, given)
    if isinstance(source, RecordingFile):
        return source
    leads = list(source.leads) if given["leads"] is None else given["leads"]
    opened = open_recording(source.signal, sampling_rate=source.sampling_rate, leads=leads, units="mV")
    opened.name, opened.notes = source.name, tuple(source.notes)
    return opened


def _open_dict(source, given, unnamed_leads):
    """The channels of a dict; into `given` goes what it states, which may not be contradicted."""
    surplus = sorted(map(str, set(source) - {"array", "sampling_rate", "leads", "units", "name"}))
    if "array" not in source or surplus:
        raise ValueError(
            f"recording given as a dict has the keys {sorted(map(str, source))}; expected array, and sampling_rate, "
            "leads, units, name where known"
        )
    name = source.get("name", "array")
    stated = {key: source[key] for key in ("sampling_rate", "leads", "units") if source.get(key) is not None}
    if "leads" in stated:
        stated["leads"] = checked_leads(stated["leads"])
    agree(name, stated, given)
    given |= {key: value for key, value in stated.items() if key != "leads" or given["leads"] is None}
    return open_array(source["array"], name, in_order(given["leads"]), unnamed_leads)


# -- which family of formats a file belongs to ------------------------------------------------------------------------


def _open_path(path, leads):
    suffix = path.suffix.lower()
    if suffix == ".hea":
        return open_wfdb(path)
    if path.is_dir() and not Path(f"{path.resolve()}.hea").is_file():
        raise FileNotFoundError(f"{path} is a folder; give one file")
    is_file = path.is_file()
    # copies by way of DOS are in capitals
    headers = [path.with_suffix(end) if is_file else path.with_name(path.name + end) for end in (".hea", ".HEA")]
    header = next((header for header in headers if header.is_file()), headers[0])
    if not is_file and header.is_file():
        return open_wfdb(header)
    if not is_file:
        raise FileNotFoundError(f"{path}: no such file")
    # a header that names the file decides: MATLAB's format holds WFDB's signals too
    may_be_signals = _BY_ENDING.get(suffix) in (None, open_matlab) and header.is_file()
    if may_be_signals and (suffix == ".dat" or path.name in header.read_text(errors="replace")):
        return open_wfdb(header)
    family = _family_by_content(path) or _BY_ENDING.get(suffix)
    if family is not None:
        return family(path, leads)
    if suffix == ".dat":
        raise FileNotFoundError(f"{path.name}: a WFDB signal file, whose header {header.name} is missing beside it")
    raise ValueError(
        f"{path.name}: {suffix or 'a file without an ending'} is not a format of ECG signals that is read here; "
        f"expected WFDB ({FILE_ENDINGS[0]}) or {', '.join(FILE_ENDINGS[1:])}"
    )


def _family_by_content(path):
    """The function that opens files that begin as this one does; None where its first bytes are no format's own."""
    with open(path, "rb") as file:
        head = file.read(2056)
    if any(head[start : start + 8] == b"\x89HDF\r\n\x1a\n" for start in (0, 512, 1024, 2048)):
        return open_hdf5  # MATLAB 7.3 writes it behind 512 bytes of its own
    length = int.from_bytes(head[26:28], "little")  # of the name of a zip archive's first file
    if head.startswith(b"\x93NUMPY") or (head.startswith(b"PK\x03\x04") and head[30 : 30 + length].endswith(b".npy")):
        return open_numpy
    if head.startswith(b"MATLAB 5.0"):
        return open_matlab
    if head.startswith((b"0       ", b"\xffBIOSEMI")) and len(head) >= 256:
        return open_edf
    return clinical_family(head, path.suffix.lower())
