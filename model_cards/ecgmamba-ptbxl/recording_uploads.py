"""Recordings of strangers: files that come over the network, read without touching anything but themselves.

What a user's own files may do, a stranger's may not: name signal files elsewhere, link to them, or ask for more time
and memory than their size lets one expect. `open_recording(..., trusted=False)` looks at all of this before anything
is allocated. Every remote entry (handler, container, Space) reads so.
"""

import io
import os
import re
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from .recording_channels import FILE_ENDINGS, library, one_line
from .recording_wfdb_plain import read_wfdb_header

LOWEST_RATE, HIGHEST_RATE = 10.0, 100_000.0  # Hz
MOST_SECONDS = 30 * 3600.0  # a day's Holter recording, with hours to spare
MOST_VALUES = 2**25  # samples of all channels: a day of 3 leads at 125 Hz, 12 leads at 500 Hz for an hour and a half
MOST_CHANNELS = 256
MOST_BYTES = 2**27  # of a file, and of what it unpacks to
MOST_ELEMENTS = 100_000  # of XML
MOST_FILES = 500  # in an archive, or that a header puts together

_SUFFIX_BY_CONTENT = (
    (b"\x93NUMPY", ".npy"),
    (b"\x89HDF\r\n\x1a\n", ".h5"),
    (b"MATLAB 5.0", ".mat"),
    (b"0       ", ".edf"),
    (b"\xffBIOSEMI", ".bdf"),
)
_PLAIN_NAME = re.compile(r"[\w.~+ -]+")
_MATLAB_COMPRESSED = 15


def unpack_upload(content, name=None):
    """
    Puts an uploaded file into a folder of its own: a single file, or the files of a zip archive (as a WFDB record is).

    Args:
        content (`bytes`), name (`str`, *optional*): the name under which it came, of which only the ending counts.

    Returns:
        `tempfile.TemporaryDirectory`, `Path`: the folder, which goes with its object, and the recording in it.

    Raises:
        ValueError: for no content, too much, or an archive without a recording in it.
    """
    if len(content) == 0:
        raise ValueError("the file is empty")
    if len(content) > MOST_BYTES:
        raise ValueError(f"the file has {len(content):,} bytes; expected at most {MOST_BYTES:,}")
    folder = tempfile.TemporaryDirectory(prefix="ecg_upload_", ignore_cleanup_errors=True)
    is_archive = content[:4] == b"PK\x03\x04"
    if is_archive and not _is_numpy_archive(content):
        return folder, choose_recording(_extract(content, Path(folder.name)))
    suffix = Path(name or "").suffix.lower()
    if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) is None:
        known = next((suffix for start, suffix in _SUFFIX_BY_CONTENT if content.startswith(start)), None)
        suffix = known or (".npz" if is_archive else ".txt" if _is_text(content) else ".bin")
    path = Path(folder.name, f"recording{suffix}")
    path.write_bytes(content)
    return folder, path


def choose_recording(paths):
    """The one of these files that is the recording: a WFDB header, or the only file of a kind that may be one."""
    paths = list(map(Path, paths))
    headers = [path for path in paths if path.suffix.lower() == ".hea"]
    if headers:
        segments = {name for header in headers for name in read_wfdb_header(header).segments}
        wholes = [header for header in headers if header.stem not in segments]
        if len(wholes) != 1:
            raise ValueError(f"the files hold {len(wholes)} WFDB records; expected one")
        return wholes[0]
    found = [path for path in paths if path.suffix.lower() in FILE_ENDINGS]
    if len(found) != 1:
        raise ValueError(
            f"the files hold {len(found)} recordings; expected one: a WFDB header (.hea) with its signal files, or a "
            f"file that ends in {', '.join(FILE_ENDINGS[1:])}"
        )
    return found[0]


def _is_text(content):
    return b"\0" not in content[:4096]


def _is_numpy_archive(content):
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _extract(content, folder):
    """The files of an archive, by their last names alone, in one folder; returns their paths."""
    paths, total = [], 0
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_FILES:
                raise ValueError(f"the archive holds {len(members)} files; expected at most {MOST_FILES}")
            for member in members:
                name = PurePosixPath(member.filename.replace("\\", "/")).name
                if name.startswith((".", "__MACOSX")) or member.filename.startswith("__MACOSX"):
                    continue
                if not _PLAIN_NAME.fullmatch(name) or (folder / name).exists():
                    raise ValueError(
                        f"the archive holds {name[:80]!r}: no plain file name, or one that is there twice"
                    )
                with archive.open(member) as source, open(folder / name, "wb") as target:
                    while part := source.read(2**20):
                        total += len(part)
                        if total > MOST_BYTES:
                            raise ValueError(f"the archive unpacks to more than {MOST_BYTES:,} bytes")
                        target.write(part)
                paths.append(folder / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise ValueError(f"the archive is damaged, encrypted, or packed unusually ({one_line(error)})") from None
    return paths


# -- before a file is opened ------------------------------------------------------------------------------------------


def require_harmless_file(path):
    """
    ValueError for a file that leads elsewhere, or unpacks to more than it may.

    Args:
        path (`Path`): any file that [`open_recording`] takes.
    """
    related = [path, path.with_suffix(".hea"), path.with_suffix(".HEA"), path.with_name(path.name + ".hea")]
    for file in related:
        if file.is_symlink():
            raise ValueError(f"{file.name} is a link; expected a file")
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes; expected at most {MOST_BYTES:,}")
    for header in {file for file in related if file.suffix.lower() == ".hea" and file.is_file()}:
        _require_plain_header(header, MOST_FILES)
    if not path.is_file() or path.suffix.lower() == ".hea":
        return
    with open(path, "rb") as file:
        head = file.read(2056)
    if any(head[start : start + 8] == b"\x89HDF\r\n\x1a\n" for start in (0, 512, 1024, 2048)):
        _require_own_content(path)
    elif head.startswith(b"PK\x03\x04"):
        _require_small_archive(path)
    elif head.startswith(b"MATLAB 5.0"):
        _require_small_matlab(path)
    elif head[128:132] == b"DICM":
        _require_small_dicom(path)
    elif head.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").lstrip(b" \t\r\n\0").startswith(b"<"):
        _require_few_elements(path)
    elif _is_text(head):
        _require_columns(path)


def _require_plain_header(header, most):
    """A header's signal files and segments lie beside it, under plain names, and are no links."""
    if header.stat().st_size > 2**20:
        raise ValueError(f"{header.name} has {header.stat().st_size:,} bytes; expected a WFDB header")
    text = header.read_bytes().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    names = [line.split()[0] for line in lines[1:]]
    record = (lines[0].split()[0] if lines else "").partition("/")[0]
    if len(names) > most:
        raise ValueError(f"{header.stem}: the header names {len(names)} files; expected at most {most}")
    for name in (record, *names):
        if name != "~" and (not _PLAIN_NAME.fullmatch(name) or name.startswith("..")):
            raise ValueError(
                f"{header.stem}: the header names {name[:80]!r}; expected a file beside it, by its name alone"
            )
    lower = {name.lower() for name in names} | {f"{name.lower()}.{end}" for name in names for end in ("hea", "dat")}
    for file in header.parent.iterdir():
        if file.name.lower() in lower and file.is_symlink():
            raise ValueError(f"{header.stem}: {file.name}, named by its header, is a link; expected a file")
    if "/" in (lines[0].split()[0] if lines else ""):
        for name in dict.fromkeys(names):
            segment = header.with_name(f"{name}.hea")
            if segment.is_file() and segment != header:
                if "/" in segment.read_bytes().decode("utf-8", errors="replace").split("\n")[0].split("#")[0]:
                    raise ValueError(f"{header.stem}: its segment {name} has segments itself; expected signals")
                _require_plain_header(segment, most)


def _require_own_content(path):
    """An HDF5 file without links, external storage and virtual data sets: they read other files, or in circles."""
    h5py = library("h5py")
    try:
        with h5py.File(path, "r") as file:
            groups, total, seen = [file], 0, 0
            while groups:
                group = groups.pop()
                for name in group:
                    seen += 1
                    link = group.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink):
                        raise ValueError(f"{path.name}: {name[:80]} is a link; expected data in the file itself")
                    if seen > 10 * MOST_FILES:
                        raise ValueError(f"{path.name} holds more than {10 * MOST_FILES} entries")
                    item = group[name]
                    if isinstance(item, h5py.Group):
                        groups.append(item)  # circles of hard links end with the count
                    elif isinstance(item, h5py.Dataset):
                        if item.external or item.is_virtual:
                            raise ValueError(
                                f"{path.name}: {name[:80]} lies in other files; expected data in the file itself"
                            )
                        chunk = 1
                        for length in item.chunks or ():
                            chunk *= length
                        if max(chunk, 1) * item.dtype.itemsize > MOST_BYTES:
                            raise ValueError(f"{path.name}: {name[:80]} unpacks to more than {MOST_BYTES:,} bytes")
                        total += item.size * item.dtype.itemsize if item.dtype.kind not in "fiu" else 0
            if total > MOST_BYTES:
                raise ValueError(f"{path.name} unpacks to more than {MOST_BYTES:,} bytes")
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name}: not an HDF5 file ({one_line(error)})") from None


def _require_small_archive(path):
    """numpy's .npz, by what its directory says, which zipfile holds it to."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path.name} is damaged ({one_line(error)})") from None
    if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_BYTES:
        raise ValueError(f"{path.name} unpacks to more than {MOST_BYTES:,} bytes, or {MOST_FILES} arrays")


def _require_small_matlab(path):
    """MATLAB's compressed elements do not say how much they hold: they are unpacked once, into nothing."""
    total = 0
    with open(path, "rb") as file:
        header = file.read(128)
        order = ">" if header[126:128] == b"MI" else "<"
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            if kind != _MATLAB_COMPRESSED:
                file.seek(size, os.SEEK_CUR)
                continue
            unpacker, left = zlib.decompressobj(), size
            while left > 0 and (part := file.read(min(left, 2**16))):
                left -= len(part)
                total = _count_unpacked(path, unpacker, part, total)


def _require_small_dicom(path):
    """Of what DICOM may deflate, the whole behind the file's first group, the size is not stated: it is unpacked once,
    into nothing."""
    with open(path, "rb") as file:
        head = file.read(2**16)
        first_group = head[132:144]
        if first_group[:6] != b"\x02\0\0\0UL" or b"1.2.840.10008.1.2.1.99" not in head:
            return
        file.seek(144 + int.from_bytes(first_group[8:], "little"))
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while (part := file.read(2**16)) and not unpacker.eof:
            total = _count_unpacked(path, unpacker, part, total)


def _count_unpacked(path, unpacker, part, total):
    """`total` and the bytes that a part of a file unpacks to, a megabyte at a time and kept nowhere; ValueError beyond
    what is allowed, or where the part is damaged."""
    while part:
        try:
            total += len(unpacker.decompress(part, 2**20))
        except zlib.error as error:
            raise ValueError(f"{path.name} is damaged ({one_line(error)})") from None
        part = unpacker.unconsumed_tail
        if total > MOST_BYTES:
            raise ValueError(f"{path.name} unpacks to more than {MOST_BYTES:,} bytes")
    return total


def _require_few_elements(path):
    """XML of as many elements as an ECG's: each becomes several objects. (Entities are refused where it is parsed.)"""
    count = path.read_bytes().count(b"<")
    if count > MOST_ELEMENTS:
        raise ValueError(f"{path.name} has {count:,} elements; expected at most {MOST_ELEMENTS:,}")


def _require_columns(path):
    """A table of few columns and no endless line: each becomes an object before it becomes a number."""
    looked_at = 0
    with open(path, "rb") as file:
        while line := file.readline(2**16):
            if len(line) == 2**16:
                raise ValueError(f"{path.name} has a line of more than {2**16:,} bytes; expected columns of numbers")
            if looked_at < 100 and line.strip() and not line.startswith(b"#"):
                looked_at += 1  # a line of more columns than the first is refused where they are read
                columns = len(re.split(rb"[;\t,]|\s+", line.strip()))
                if columns > MOST_CHANNELS:
                    raise ValueError(f"{path.name} has {columns} columns; expected at most {MOST_CHANNELS}")


# -- before samples are read ------------------------------------------------------------------------------------------


def require_limits(channels):
    """ValueError where a source has more than it may, or a rate that no ECG has. Rates are settled."""
    if len(channels.units) > MOST_CHANNELS:
        raise ValueError(f"{channels.name} has {len(channels.units)} channels; expected at most {MOST_CHANNELS}")
    for rate, length in zip(channels.rates, channels.lengths, strict=True):
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise ValueError(
                f"{channels.name}: its sampling rate is {rate:g} Hz; expected {LOWEST_RATE:g} to {HIGHEST_RATE:g} Hz"
            )
        if length / rate > MOST_SECONDS:
            raise ValueError(
                f"{channels.name} is {length / rate / 3600:.1f} hours long; expected at most {MOST_SECONDS / 3600:g}"
            )
    if sum(channels.lengths) > MOST_VALUES:
        raise ValueError(f"{channels.name} holds {sum(channels.lengths):,} samples; expected at most {MOST_VALUES:,}")
