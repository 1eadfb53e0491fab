"""WFDB records (PhysioNet's format): a header and its signal files, by the library wfdb."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from .recording_channels import Channels, library, one_line


def open_wfdb(path):
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
        raise ValueError(f"{name}: the header cannot be read ({one_line(error)})") from error


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
