"""Columns of numbers in a text file."""

import re

import numpy as np

from .recording_channels import from_columns, is_number, library, one_line


def open_text(path, leads=None):
    """Columns of numbers, with comma, semicolon, tab or blanks between them. Comment lines may state, as biosppy's do,
    "Sampling Rate (Hz):= 1000" and "Labels:= ECG"; a first row of words is the columns' names, as in "II (mV)"."""
    comments, first, second = [], "", ""
    encoding = _encoding(path)
    with open(path, encoding=encoding) as lines:
        for line in lines:
            if first and line.strip():
                second = line.strip()
                break
            if not first and line.strip() and not line.startswith("#"):
                first = line.strip()
            elif not first:
                comments.append(line.lstrip("# ").strip())
    if not first:
        raise ValueError(f"{path.name} holds no numbers")
    stated = {key.strip().lower(): value.strip() for key, _, value in (c.partition(":=") for c in comments) if value}
    separator = next((mark for mark in (";", "\t", ",") if mark in first), r"\s+")
    cells = [cell.strip().strip("'\"") for cell in re.split(separator, first)]
    has_header = not all(is_number(cell) for cell in cells) or _counts_columns(cells, second)
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
                encoding=encoding,
            )
            .to_numpy()
        )
    except ValueError as error:
        raise ValueError(f"{path.name}: not columns of numbers ({one_line(error)})") from error
    titles = cells if has_header else [None] * table.shape[1]
    if stated.get("labels") and not has_header:
        titles = [label.strip() for label in re.split(r"[,;\t]", stated["labels"])]
    if len(titles) != table.shape[1]:
        raise ValueError(f"{path.name}: {len(titles)} column names for {table.shape[1]} columns")
    rate = stated.get("sampling rate (hz)")
    if rate is not None and not is_number(rate):
        raise ValueError(f"{path.name}: its sampling rate is stated as {rate!r}; expected a number of Hz")
    is_sample = ~np.isin(table, (-(2**15), -(2**31)))  # what converters write where they have no sample
    return from_columns(path.stem, titles, np.where(is_sample, table, np.nan).T, rate and float(rate))


def _encoding(path):
    """UTF-8 with or without a mark, UTF-16 with one (what spreadsheets save), else Latin-1, in which old devices
    write their microvolts."""
    with open(path, "rb") as file:
        start = file.read(2**16)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        start.rpartition(b"\n")[0].decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _counts_columns(cells, second):
    """Whether a first row is 0, 1, 2, ... (or from 1 on), as pandas names columns without names: sure of three or
    more, or where the next row has decimals."""
    if not any(cells == [str(k) for k in range(first, first + len(cells))] for first in (0, 1)):
        return False
    return len(cells) > 2 or "." in second
