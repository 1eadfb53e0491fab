"""Any folder of recordings with a table of labels."""

from pathlib import Path

import pandas as pd

from training.data.ecg_records import SPLITS, EcgCollection, EcgRecord, assign_splits, split_labels


def load_record_folder(folder, table="labels.csv"):
    """
    Args:
        folder: the recordings, in any format that the feature extractor reads.
        table: a CSV, absolute or relative to `folder`, with the columns `record` (a path relative to `folder`, with
            or without its extension) and `labels` (names between commas, semicolons or bars; empty: none of them),
            and optionally `split` (train, validation or test; for every record) and `patient`, whose recordings then
            stay together when the splits are drawn here.

    Raises:
        OSError: when the table or a recording is missing.
        ValueError: when a column is missing, a split unknown, or a name fits several files.
    """
    folder = Path(folder)
    table = folder / table
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    missing = {"record", "labels"} - set(rows.columns)
    if missing:
        raise ValueError(f"{table} has the columns {list(rows.columns)}; expected {sorted(missing)} as well")
    names, labels = list(rows.record), [split_labels(cell) for cell in rows.labels]
    if "split" in rows:
        splits = list(rows.split)
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ValueError(f"{table} names the splits {unknown}; expected {SPLITS}")
    else:
        splits = assign_splits(names, labels, rows.patient if "patient" in rows else None)
    return EcgCollection(
        tuple(sorted({label for own in labels for label in own})),
        tuple(
            EcgRecord(name, str(find_recording(folder, name)), own, split)
            for name, own, split in zip(names, labels, splits, strict=True)
        ),
    )


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
