"""Any folder of recordings with a table of labels."""

import os
from contextlib import suppress
from pathlib import Path

import pandas as pd
from transformers.utils import logging

from training.data.ecg_records import SPLITS, EcgCollection, EcgRecord, assign_splits, is_unknown, split_labels

logger = logging.get_logger(__name__)


def load_record_folder(folder, table="labels.csv", sampling_rate=None, units=None, leads=None):
    """
    Args:
        folder: the recordings, in any format that the feature extractor reads.
        table: a CSV, absolute or relative to `folder`, with the columns `record` (a path relative to `folder`, with
            or without its extension) and `labels` (names between commas, semicolons or bars; empty: none of them),
            and optionally `split` (train, validation or test; for every record) and `patient`, whose recordings then
            stay together when the splits are drawn here; records of unknown patients are each by themselves. Labels
            may be lists as pandas writes them. Of recordings that do not state them, the columns `sampling_rate`,
            `units` and `leads` (names between blanks or semicolons) may.
        sampling_rate, units, leads: of recordings of which neither their file nor the table states them.

    Raises:
        OSError: when the table or a recording is missing.
        ValueError: when a column is missing, a split or labels unknown, a name fits several files, or one file is
            listed twice.
    """
    folder = Path(folder)
    table = folder / table
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    missing = {"record", "labels"} - set(rows.columns)
    if missing:
        raise ValueError(f"{table} has the columns {list(rows.columns)}; expected {sorted(missing)} as well")
    names = [name.strip() for name in rows.record]
    labels = [_labels_of(name, cell, table) for name, cell in zip(names, rows.labels, strict=True)]
    _refuse_torn_labels(names, list(rows.labels), table)
    paths = [find_recording(folder, name) for name in names]
    _refuse_one_file_twice(names, paths)
    if "split" in rows:
        splits = list(rows.split)
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ValueError(f"{table} names the splits {unknown}; expected {SPLITS}")
    else:
        splits = assign_splits(names, labels, _patients(names, rows.patient) if "patient" in rows else None)
    given = {"sampling_rate": sampling_rate, "units": units, "leads": leads}
    stated = [_stated(name, cells, given, table) for name, cells in zip(names, rows.to_dict("records"), strict=True)]
    return EcgCollection(
        tuple(sorted({label for own in labels for label in own})),
        tuple(
            EcgRecord(name, str(path), own, split, of_record)
            for name, path, own, split, of_record in zip(names, paths, labels, splits, stated, strict=True)
        ),
    )


def _stated(name, cells, given, table):
    """What the table says of a recording, else what was given for all."""
    stated = {key: value for key, value in given.items() if value is not None}
    for key in given:
        cell = str(cells.get(key, "")).strip()
        if cell and not is_unknown(cell):
            stated[key] = cell.replace(";", " ").split() if key == "leads" else cell
    if isinstance(stated.get("sampling_rate"), str):
        try:
            stated["sampling_rate"] = float(stated["sampling_rate"])
        except ValueError:
            raise ValueError(
                f"{table}, record {name!r}: sampling_rate is {stated['sampling_rate']!r}; expected a number of Hz"
            ) from None
    with suppress(KeyError, ValueError):  # no units, or their name
        stated["units"] = float(stated["units"])
    return stated


def _labels_of(name, cell, table):
    try:
        return split_labels(cell)
    except ValueError as error:
        raise ValueError(f"{table}, record {name!r}: {error}") from error


def _refuse_torn_labels(names, cells, table):
    """ValueError for "MI, anterior" where neither "MI" nor "anterior" occurs without the other: one label, most
    likely, that its comma would tear."""
    whole = {cell.strip() for cell in cells}
    for name, cell in zip(names, cells, strict=True):
        cell = cell.strip()
        if ", " not in cell or any(mark in cell for mark in "[({;|"):
            continue
        parts = {part.strip() for part in cell.split(",")}
        if not any(parts & set(split_labels(other)) for other in whole - {cell}):
            raise ValueError(
                f"{table}, record {name!r}: {cell!r} may be one label or several, which occur only together; expected "
                f"a list, [{cell!r}] for one, or {'; '.join(sorted(parts))} for several"
            )


def _refuse_one_file_twice(names, paths):
    seen = {}
    for name, path in zip(names, paths, strict=True):
        file = os.path.realpath(path)
        stem = os.path.splitext(file)[0]
        record = stem if os.path.isfile(f"{stem}.hea") else file  # a header and its signal file are one recording
        if seen.setdefault(record, name) != name:
            raise ValueError(f"{seen[record]!r} and {name!r} are the same recording, {path}; expected each once")


def _patients(names, patients):
    """The group of each record: its patient, or, where that is unknown, itself."""
    unknown = sum(map(is_unknown, patients))
    if unknown:
        logger.warning(f"patient of {unknown} of {len(names)} records unknown: each is taken for one of its own")
    return [
        f"record {name}" if is_unknown(patient) else f"patient {patient.strip()}"
        for name, patient in zip(names, patients, strict=True)
    ]


def find_recording(folder, name):
    """The file that `name` means in `folder`; of a record with a header, the header."""
    exact, header = folder / name, folder / f"{name}.hea"
    if exact.is_file() or header.is_file():
        return exact if exact.is_file() else header
    candidates = sorted(exact.parent.glob(f"{exact.name}.*"))
    if not candidates:
        raise OSError(f"{folder} holds no recording {name!r}")
    if len(candidates) > 1:
        raise ValueError(f"recording {name!r} may be any of {[path.name for path in candidates]}; expected one file")
    return candidates[0]
