"""Any folder with a table of labels."""

import pytest

from training.data.ecg_records import split_labels
from training.data.record_folder import load_record_folder


def write(folder, table, *files):
    (folder / "labels.csv").write_text(table)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    return folder


def test_names_labels_and_splits(tmp_path):
    table = "record,labels,split\na,AF; PVC,train\nsub/b,,validation\nc.csv,PVC|AF,test\n"
    collection = load_record_folder(write(tmp_path, table, "a.hea", "a.mat", "sub/b.edf", "c.csv"))
    assert collection.label_names == ("AF", "PVC")
    assert [(record.source, record.labels, record.split) for record in collection.records] == [
        (str(tmp_path / "a.hea"), ("AF", "PVC"), "train"),
        (str(tmp_path / "sub" / "b.edf"), (), "validation"),
        (str(tmp_path / "c.csv"), ("AF", "PVC"), "test"),
    ]


def test_a_patient_stays_in_one_split(tmp_path):
    rows = [f"r{index},{'AF' if index % 3 else 'SR'},p{index // 4}" for index in range(80)]
    folder = write(tmp_path, "\n".join(["record,labels,patient", *rows]), *(f"r{index}.npy" for index in range(80)))
    records = load_record_folder(folder).records
    splits = {}
    for index, record in enumerate(records):
        splits.setdefault(index // 4, set()).add(record.split)
    assert all(len(own) == 1 for own in splits.values())
    assert {record.split for record in records} == {"train", "validation", "test"}


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected \['labels'\]"):
        load_record_folder(write(tmp_path, "record\na\n"))
    with pytest.raises(OSError, match="no recording 'a'"):
        load_record_folder(write(tmp_path, "record,labels\na,AF\n"))
    with pytest.raises(ValueError, match=r"splits \['dev'\]"):
        load_record_folder(write(tmp_path, "record,labels,split\na,AF,dev\n", "a.npy"))
    with pytest.raises(ValueError, match="may be any of"):
        load_record_folder(write(tmp_path, "record,labels\na,AF\n", "a.csv"))
    with pytest.raises(ValueError, match="'b' occurs twice"):
        load_record_folder(write(tmp_path, "record,labels\nb,AF\nb,AF\n", "b.npy"))


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("['AFIB', 'LBBB']", ("AFIB", "LBBB")),
        ("['AFIB' 'LBBB']", ("AFIB", "LBBB")),
        ('["AFIB","MI, anterior"]', ("AFIB", "MI, anterior")),
        ("('AFIB',)", ("AFIB",)),
        ("{'NORM'}", ("NORM",)),
        ("[AFIB, LBBB]", ("AFIB", "LBBB")),
        ("[]", ()),
        ("AFIB; LBBB", ("AFIB", "LBBB")),
    ],
)
def test_labels_as_programs_write_them(cell, labels):
    assert split_labels(cell) == labels


@pytest.mark.parametrize("cell", ["nan", "?", "NaN", "None", "AFIB,nan", "['nan']", "['AFIB'"])
def test_unknown_labels_are_refused(tmp_path, cell):
    with pytest.raises(ValueError, match=r"record 'a': .*expected"):
        load_record_folder(write(tmp_path, f'record,labels\na,"{cell}"\n', "a.npy"))


def test_a_label_that_its_comma_would_tear_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'MI, anterior' may be one label or several"):
        load_record_folder(write(tmp_path, 'record,labels\na,"MI, anterior"\nb,NORM\n', "a.npy", "b.npy"))
    folder = write(tmp_path, 'record,labels\na,"AFIB, LBBB"\nb,AFIB\n', "a.npy", "b.npy")
    assert load_record_folder(folder).label_names == ("AFIB", "LBBB")


def test_unknown_patients_are_each_their_own(tmp_path):
    rows = [f"r{k},{'AF' if k % 2 else 'SR'},{f'p{k}' if k < 10 else ('', 'nan', '?')[k % 3]}" for k in range(40)]
    folder = write(tmp_path, "\n".join(["record,labels,patient", *rows]), *(f"r{k}.npy" for k in range(40)))
    splits = [record.split for record in load_record_folder(folder).records]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [32, 4, 4]


@pytest.mark.parametrize("other", ["./a.hea", "a.hea", "a.dat", "../{folder}/a", "link.hea"])
def test_one_recording_listed_twice_is_refused(tmp_path, other):
    folder = write(tmp_path, "", "a.hea", "a.dat")
    (tmp_path / "link.hea").symlink_to(tmp_path / "a.hea")
    other = other.format(folder=tmp_path.name)
    with pytest.raises(ValueError, match="are the same recording"):
        load_record_folder(write(folder, f"record,labels\na,AF\n{other},AF\n"))


def test_rate_units_and_leads_of_the_table_and_for_all(tmp_path):
    table = "record,labels,sampling_rate,units,leads\na,AF,250,uV,I II\nb,,,,\nc,AF,360,0.005,I;II\n"
    folder = write(tmp_path, table, "a.npy", "b.npy", "c.npy")
    given = {"sampling_rate": 500.0, "units": "mV", "leads": ["I", "V1"]}
    stated = [record.stated for record in load_record_folder(folder, **given).records]
    assert stated == [
        {"sampling_rate": 250.0, "units": "uV", "leads": ["I", "II"]},
        given,
        {"sampling_rate": 360.0, "units": 0.005, "leads": ["I", "II"]},
    ]
    write(tmp_path, "record,labels,sampling_rate\na,AF,fast\n")
    with pytest.raises(ValueError, match="record 'a': sampling_rate is 'fast'; expected a number of Hz"):
        load_record_folder(folder)
