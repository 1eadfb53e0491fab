"""PTB-XL in PhysioNet's layout: label sets and folds as its benchmark defines them."""

import importlib.util
import sys
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest

from hf_ecgmamba import EcgMambaFeatureExtractor
from training.data.ecg_records import load_splits
from training.data.ptbxl import LABEL_SETS, load_ptbxl, statement_labels

# sizes of the label sets in the benchmark's tables (arXiv 2004.13701)
SIZES = {"all": 71, "diagnostic": 44, "subdiagnostic": 23, "superdiagnostic": 5, "form": 19, "rhythm": 12}

STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal,1.0,,,NORM,NORM
IMI,inferior infarction,1.0,,,MI,IMI
ASMI,anteroseptal infarction,1.0,,,MI,AMI
NDT,T abnormality,1.0,1.0,,STTC,STTC
AFIB,fibrillation,,,1.0,,
SR,sinus rhythm,,,1.0,,
"""
DATABASE = """ecg_id,scp_codes,strat_fold,filename_lr,filename_hr
1,"{'NORM': 100.0, 'SR': 0.0}",8,records100/00000/00001_lr,records500/00000/00001_hr
2,"{'IMI': 15.0, 'ASMI': 0.0, 'AFIB': 0.0}",9,records100/00000/00002_lr,records500/00000/00002_hr
3,"{'NDT': 0.0}",10,records100/00000/00003_lr,records500/00000/00003_hr
4,"{'SR': 0.0}",1,records100/00000/00004_lr,records500/00000/00004_hr
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scp_statements.csv").write_text(STATEMENTS)
    (tmp_path / "ptbxl_database.csv").write_text(DATABASE)
    return tmp_path


def found(collection):
    return {record.name: (record.labels, record.split) for record in collection.records}


def test_superdiagnostic_by_hand(folder):
    collection = load_ptbxl(folder)
    assert collection.label_names == ("MI", "NORM", "STTC")
    assert found(collection) == {
        "00001_lr": (("NORM",), "train"),
        "00002_lr": (("MI",), "validation"),  # two infarctions are one superclass, at any likelihood
        "00003_lr": (("STTC",), "test"),
    }  # 4 has a rhythm only


@pytest.mark.parametrize(
    ("label_set", "labels_of_2", "names"),
    [
        ("all", ("AFIB", "ASMI", "IMI"), {"00001_hr", "00002_hr", "00003_hr", "00004_hr"}),
        ("diagnostic", ("ASMI", "IMI"), {"00001_hr", "00002_hr", "00003_hr"}),
        ("subdiagnostic", ("AMI", "IMI"), {"00001_hr", "00002_hr", "00003_hr"}),
        ("form", None, {"00003_hr"}),
        ("rhythm", ("AFIB",), {"00001_hr", "00002_hr", "00004_hr"}),
    ],
)
def test_the_other_sets_at_500_hz(folder, label_set, labels_of_2, names):
    records = found(load_ptbxl(folder, label_set, sampling_rate=500))
    assert set(records) == names
    if labels_of_2:
        assert records["00002_hr"] == (labels_of_2, "validation")


def test_bad_input_is_named(folder):
    with pytest.raises(ValueError, match="label_set is 'super'"):
        load_ptbxl(folder, "super")
    with pytest.raises(ValueError, match="sampling_rate is 250"):
        load_ptbxl(folder, sampling_rate=250)
    (folder / "ptbxl_database.csv").write_text(DATABASE.replace("'NDT'", "'XYZ'"))
    with pytest.raises(ValueError, match=r"ecg_id 3 has the statements \['XYZ'\]"):
        load_ptbxl(folder)


def test_label_sets_of_the_real_table(shared_data):
    table = shared_data / "ecg" / "ptbxl" / "scp_statements.csv"
    assert {name: len(set(statement_labels(table, name).values()) - {None}) for name in LABEL_SETS} == SIZES


def test_folds_of_the_real_database(shared_data):
    """Read from the packed folder: no recording is opened, so none needs to be expanded."""
    records = load_ptbxl(shared_data / "ecg" / "ptbxl").records
    # our copy has folds 1-9; the benchmark's numbers of labelled recordings there
    assert Counter(record.split for record in records) == {"train": 17084, "validation": 2146}


def test_expanded_records_become_tensors(shared_data, tmp_path):
    """What shared/tools/ptbxl.py writes in PhysioNet's layout, in microvolts, arrives in millivolts."""
    spec = importlib.util.spec_from_file_location("ptbxl_tool", shared_data.parent / "tools" / "ptbxl.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with patch.object(sys, "argv", ["ptbxl.py", str(tmp_path), "--folds", "9", "--limit", "8"]):
        tool.main()
    splits = load_splits(load_ptbxl(tmp_path), EcgMambaFeatureExtractor(), cache_dir=str(tmp_path / "cache"))
    assert set(splits) == {"validation"}  # no fold 10 here, and none is asked for
    for row in splits["validation"]:
        (file,) = tmp_path.glob(f"records100/*/{row['record']}.dat")
        microvolts = np.fromfile(file, dtype="<i2").reshape(1000, 12).T
        assert np.allclose(row["input_values"].reshape(12, 1000), microvolts / 1000, atol=1e-6)
