"""PTB-XL (Wagner et al. 2020) as PhysioNet distributes it, with the label sets and folds of its benchmark.

The benchmark (Strodthoff et al. 2021, arXiv 2004.13701) trains on folds 1-8, selects on 9 and tests on 10. A
statement counts whatever its likelihood, and a recording without a label of the chosen set is left out.
"""

import ast
from pathlib import Path

import pandas as pd

from training.data.ecg_records import EcgCollection, EcgRecord

LABEL_SETS = ("all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm")


def load_ptbxl(folder, label_set="superdiagnostic", sampling_rate=100):
    """
    Args:
        folder: holds ptbxl_database.csv, scp_statements.csv and records100/ or records500/.
        label_set (`str`): all (71 labels), diagnostic (44), subdiagnostic (23), superdiagnostic (5), form (19) or
            rhythm (12).
        sampling_rate (`int`): 100 or 500, which of the two copies of each recording is read.

    Raises:
        OSError: when a file of the distribution is missing.
        ValueError: for another label set or rate, or a statement that scp_statements.csv does not have.
    """
    if label_set not in LABEL_SETS:
        raise ValueError(f"label_set is {label_set!r}; expected one of {LABEL_SETS}")
    column = {100: "filename_lr", 500: "filename_hr"}.get(sampling_rate)
    if column is None:
        raise ValueError(f"sampling_rate is {sampling_rate!r}; PTB-XL comes at 100 and at 500 Hz")
    folder = Path(folder)
    label_of = statement_labels(folder / "scp_statements.csv", label_set)
    database = pd.read_csv(folder / "ptbxl_database.csv", index_col="ecg_id")
    if column not in database:
        raise ValueError(
            f"{folder / 'ptbxl_database.csv'} has no column {column}; it lists no {sampling_rate} Hz copy"
        )

    records = []
    for ecg_id, row in database.iterrows():
        statements = ast.literal_eval(row.scp_codes)
        unknown = sorted(set(statements) - set(label_of))
        if unknown:
            raise ValueError(f"ecg_id {ecg_id} has the statements {unknown}, which scp_statements.csv does not list")
        labels = sorted({label_of[statement] for statement in statements} - {None})
        if labels:
            split = {9: "validation", 10: "test"}.get(int(row.strat_fold), "train")
            path = str(folder / row[column])
            records.append(EcgRecord(name=Path(path).name, source=path, labels=tuple(labels), split=split))
    return EcgCollection(tuple(sorted(set(label_of.values()) - {None})), tuple(records))


def statement_labels(path, label_set):
    """The label that each SCP statement stands for in `label_set`, None where it has no part in it."""
    table = pd.read_csv(path, index_col=0)
    if label_set == "all":
        return {statement: statement for statement in table.index}
    kind = "diagnostic" if "diagnostic" in label_set else label_set
    column = {"subdiagnostic": "diagnostic_subclass", "superdiagnostic": "diagnostic_class"}.get(label_set)
    labels = table[column] if column else table.index
    belongs = table[kind] == 1
    return {
        statement: label if part and isinstance(label, str) else None
        for statement, label, part in zip(table.index, labels, belongs, strict=True)
    }
