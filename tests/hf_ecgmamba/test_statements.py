"""The table of statements against PTB-XL's own."""

import csv
from pathlib import Path

import pytest

from hf_ecgmamba.statements import FORM, RHYTHM, STATEMENTS, in_words

TABLE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ecg" / "ptbxl" / "scp_statements.csv"


def test_each_statement_of_ptbxl_has_words_and_the_group_of_its_class():
    if not TABLE.is_file():
        pytest.skip(f"{TABLE} is not here")
    groups = {"NORM": "normal", "MI": "myocardial infarction", "STTC": "ST/T change", "CD": "conduction disturbance"}
    groups["HYP"] = "hypertrophy"
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    assert len(STATEMENTS) == len(rows) == 71
    for row in rows:
        words, group = STATEMENTS[row[""]]
        expected = groups.get(row["diagnostic_class"]) or (FORM if row["form"] == "1.0" else RHYTHM)
        assert group == expected and words


def test_classes_have_words_too_and_others_speak_for_themselves():
    assert in_words("AFIB") == ("atrial fibrillation", RHYTHM)
    assert in_words("MI")[0] == "myocardial infarction"
    assert in_words("age") == ("age", None)
