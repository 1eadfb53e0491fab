"""CPSC 2018 (Liu et al. 2018; "ICBEB 2018" in the PTB-XL benchmark): 12 leads, 500 Hz, 6-60 s, nine classes.

Two layouts are around. The challenge's own: MATLAB structs with REFERENCE.csv (Recording, First_label, Second_label,
Third_label as numbers from 1 to 9; a table with the columns record and labels is taken as well). And that of the
PhysioNet/CinC Challenges 2020-21: header and .mat, with SNOMED codes in the header's Dx line.

The hidden test set was never published and there are no official folds: the split is `assign_splits`'s.
"""

from pathlib import Path

import pandas as pd

from training.data.ecg_records import EcgCollection, EcgRecord, assign_splits, split_labels

LABELS = ("Normal", "AF", "IAVB", "LBBB", "RBBB", "PAC", "PVC", "STD", "STE")
# with the codes that the Challenge 2021 scores as equal (complete bundle-branch blocks, premature beats)
SNOMED = {
    "426783006": "Normal",
    "164889003": "AF",
    "270492004": "IAVB",
    "164909002": "LBBB",
    "733534002": "LBBB",
    "59118001": "RBBB",
    "713427006": "RBBB",
    "284470004": "PAC",
    "63593006": "PAC",
    "164884008": "PVC",
    "427172004": "PVC",
    "17338001": "PVC",
    "429622005": "STD",
    "164931005": "STE",
}


def load_cpsc2018(folder):
    """
    Args:
        folder: holds, at any depth, headers with Dx codes, or .mat files with REFERENCE.csv or labels.csv.

    Raises:
        OSError: when it holds neither.
        ValueError: for a label that is not one of the nine, or a .mat file that the table has and the folder has not.
    """
    folder = Path(folder)
    headers = sorted(folder.rglob("*.hea"))
    found = _from_headers(headers) if headers else _from_table(folder)
    paths, labels = zip(*found, strict=True) if found else ((), ())
    names = [path.stem for path in paths]
    splits = assign_splits(names, labels)
    return EcgCollection(
        LABELS,
        tuple(
            EcgRecord(name, str(path), own, split)
            for name, path, own, split in zip(names, paths, labels, splits, strict=True)
        ),
    )


def _from_headers(headers):
    """(path, labels) of the headers whose Dx line names one of the nine classes."""
    found = []
    for header in headers:
        lines = [line.lstrip("# ") for line in header.read_text(encoding="utf-8", errors="replace").splitlines()]
        codes = [code.strip() for line in lines if line.startswith("Dx:") for code in line[3:].split(",")]
        labels = tuple(sorted({SNOMED[code] for code in codes if code in SNOMED}))
        if labels:
            found.append((header, labels))
    return found


def _from_table(folder):
    table = next((path for name in ("REFERENCE.csv", "labels.csv") for path in sorted(folder.rglob(name))), None)
    if table is None:
        raise OSError(f"{folder} holds neither headers (*.hea) nor REFERENCE.csv or labels.csv; expected CPSC 2018")
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    signals = {path.stem: path for path in sorted(folder.rglob("*.mat"))}
    found = []
    for _, (name, *cells) in rows.iterrows():
        if name not in signals:
            raise ValueError(f"{table} lists {name}, but {folder} holds no {name}.mat")
        given = split_labels(",".join(cells))
        found.append((signals[name], tuple(sorted(_class_name(label, name) for label in given))))
    return found


def _class_name(label, record):
    if label in LABELS:
        return label
    if label.isdigit() and 1 <= int(label) <= len(LABELS):
        return LABELS[int(label) - 1]
    raise ValueError(f"recording {record} is labelled {label!r}; expected one of {LABELS} or a number from 1 to 9")
