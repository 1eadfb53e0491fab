"""CPSC 2018 in the challenge's own layout and in that of PhysioNet/CinC."""

import pytest

from training.data.cpsc2018 import LABELS, load_cpsc2018


def labels_of(folder):
    return {record.name: record.labels for record in load_cpsc2018(folder).records}


def test_reference_table(tmp_path):
    (tmp_path / "TrainingSet1").mkdir()
    for name in ("A0001", "A0002"):
        (tmp_path / "TrainingSet1" / f"{name}.mat").touch()
    (tmp_path / "TrainingSet1" / "REFERENCE.csv").write_text(
        "Recording,First_label,Second_label,Third_label\nA0001,5,,\nA0002,2,9,1\n"
    )
    assert labels_of(tmp_path) == {"A0001": ("RBBB",), "A0002": ("AF", "Normal", "STE")}


def test_the_raw_files(shared_data):
    collection = load_cpsc2018(shared_data / "ecg" / "cpsc2018_raw")
    assert collection.label_names == LABELS
    assert {record.name: record.labels for record in collection.records}["A1986"] == ("RBBB",)
    assert len(collection.records) == 8


def test_headers_of_the_challenge_layout(shared_data):
    labels = labels_of(shared_data / "ecg" / "cinc2021")
    assert labels["A0001"] == ("RBBB",)  # Dx 59118001
    assert labels["A0005"] == ("PVC",)  # Dx 164884008
    assert len(labels) == 104  # the others have none of the nine classes


def test_bad_input_is_named(tmp_path):
    with pytest.raises(OSError, match="neither headers"):
        load_cpsc2018(tmp_path)
    (tmp_path / "A0001.mat").touch()
    (tmp_path / "REFERENCE.csv").write_text("Recording,First_label\nA0001,10\n")
    with pytest.raises(ValueError, match="A0001 is labelled '10'"):
        load_cpsc2018(tmp_path)
    (tmp_path / "REFERENCE.csv").write_text("Recording,First_label\nA0002,1\n")
    with pytest.raises(ValueError, match=r"no A0002\.mat"):
        load_cpsc2018(tmp_path)
