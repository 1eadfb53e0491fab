"""Columns of numbers in a text file."""

import re

import numpy as np

from .recording_channels import from_matrix, library, one_line, unit_in_millivolts


def open_text(path, leads=None):
    """Columns of numbers, with comma, semicolon, tab or blanks between them. Comment lines may state, as biosppy's do,
    "Sampling Rate (Hz):= 1000" and "Labels:= ECG"; a first row of words is the columns' names, as in "II (mV)"."""
    comments, first = [], ""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                first = line.strip()
                break
            comments.append(line.lstrip("# ").strip())
    if not first:
        raise ValueError(f"{path.name} holds no numbers")
    stated = {key.strip().lower(): value.strip() for key, _, value in (c.partition(":=") for c in comments) if value}
    separator = next((mark for mark in (";", "\t", ",") if mark in first), r"\s+")
    cells = [cell.strip().strip("'\"") for cell in re.split(separator, first)]
    has_header = not all(_is_number(cell) for cell in cells)
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
    names, units = zip(*map(_split_unit, titles), strict=True)
    rate = stated.get("sampling rate (hz)")
    if rate is not None and not _is_number(rate):
        raise ValueError(f"{path.name}: its sampling rate is stated as {rate!r}; expected a number of Hz")
    return from_matrix(path.stem, table.T, list(names), list(units), rate and float(rate))


def _split_unit(title):
    """("II", "mV") of "II (mV)" or "II [mV]"; ("II", None) of "II"."""
    match = re.fullmatch(r"(.*\S)\s*[(\[](\S+)[)\]]", title or "")
    return match.groups() if match and unit_in_millivolts(match[2]) is not None else (title, None)


def _is_number(text):
    return re.fullmatch(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?|nan", text.strip(), re.IGNORECASE) is not None
