"""From recordings of every data set to cached tensors."""

import os

import numpy as np
import pytest

from hf_ecgmamba import EcgMambaFeatureExtractor
from tests.hf_ecgmamba.signals import heart
from training.data.cpsc2018 import load_cpsc2018
from training.data.ecg_records import EcgCollection, EcgRecord, assign_splits, load_splits, split_labels

READER = EcgMambaFeatureExtractor()


def test_cpsc_recordings_become_tensors(shared_data, tmp_path):
    collection = load_cpsc2018(shared_data / "ecg" / "cpsc2018_raw")
    rows = load_splits(collection, READER, cache_dir=str(tmp_path))["train"]
    direct = READER(collection.records[0].source, return_tensors="np")["input_values"][0]
    row = rows[0]
    assert row["record"] == collection.records[0].name
    signal = row["input_values"].reshape(12, row["num_samples"])
    # the cache leaves normalisation (here: each lead minus its mean) to the crops
    assert np.allclose(signal - signal.mean(axis=1, keepdims=True), direct, atol=1e-5)
    assert row["labels"].tolist() == [float(name in collection.records[0].labels) for name in collection.label_names]


def test_the_cache_is_found_again_and_knows_settings(tmp_path):
    calls = tmp_path / "calls"

    def make():
        with calls.open("a") as log:
            log.write("x")
        return {"array": np.sin(np.arange(6000)).reshape(12, 500), "sampling_rate": 100, "leads": READER.leads}

    collection = EcgCollection(("AF",), (EcgRecord("one", make, ("AF",), "train"),))
    for _ in range(2):
        load_splits(collection, READER, cache_dir=str(tmp_path))
    assert calls.read_text() == "x"
    load_splits(collection, EcgMambaFeatureExtractor(sampling_rate=50), cache_dir=str(tmp_path))
    assert calls.read_text() == "xx"


def test_several_processes_read_the_same(shared_data, tmp_path):
    collection = load_cpsc2018(shared_data / "ecg" / "cpsc2018_raw")
    one = load_splits(collection, READER, cache_dir=str(tmp_path / "one"))["train"]
    two = load_splits(collection, READER, cache_dir=str(tmp_path / "two"), num_proc=2)["train"]
    assert list(one["record"]) == list(two["record"])
    assert all(np.array_equal(a["input_values"], b["input_values"]) for a, b in zip(one, two, strict=True))


def test_an_unreadable_recording_is_named(tmp_path):
    collection = EcgCollection(("AF",), (EcgRecord("lost", str(tmp_path / "lost.hea"), (), "train"),))
    with pytest.raises(ValueError, match=r"train split .* recording 'lost'"):
        load_splits(collection, READER, cache_dir=str(tmp_path))


def test_splits_are_stable_and_spread_rare_labels():
    names = [f"r{index}" for index in range(200)]
    labels = [("rare",) if index % 10 == 0 else () for index in range(200)]
    splits = dict(zip(names, assign_splits(names, labels), strict=True))
    assert splits == dict(zip(names[::-1], assign_splits(names[::-1], labels[::-1]), strict=True))
    for split, share in (("train", 16), ("validation", 2), ("test", 2)):
        assert sum(splits[f"r{index}"] == split for index in range(0, 200, 10)) == share


def test_labels_of_a_cell():
    assert split_labels("AF; PVC,AF|SR ") == ("AF", "PVC", "SR")
    assert split_labels(" ") == ()


def test_bad_collections_are_named():
    with pytest.raises(ValueError, match="no labelled recording"):
        EcgCollection(("AF",), ())
    with pytest.raises(ValueError, match="the data set names no label"):
        EcgCollection((), (EcgRecord("one", None, (), "train"),))
    with pytest.raises(ValueError, match=r"'one' is labelled \['PVC'\]"):
        EcgCollection(("AF",), (EcgRecord("one", None, ("PVC",), "train"),))


def test_the_cache_knows_when_files_are_replaced(tmp_path):
    def write(scale, mtime):
        """A record of two files; the header stays."""
        counts = np.round(scale * 1000 * heart(500)).astype("<i2")
        counts.T.tofile(tmp_path / "signals.dat")
        lines = [f"signals.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in READER.leads]
        (tmp_path / "one.hea").write_text("\n".join(["one 12 100 500", *lines]) + "\n")
        for name in ("signals.dat", "one.hea"):
            os.utime(tmp_path / name, ns=(mtime if name == "signals.dat" else 10**18,) * 2)

    def height():
        collection = EcgCollection(("AF",), (EcgRecord("one", str(tmp_path / "one.hea"), ("AF",), "train"),))
        rows = load_splits(collection, READER, cache_dir=str(tmp_path / "cache"))["train"]
        return float(np.ptp(rows[0]["input_values"]))

    write(1, 10**18)
    first = height()
    assert height() == first and len(list((tmp_path / "cache").rglob("*.arrow"))) == 1
    write(2, 10**18 + 1)
    assert height() == pytest.approx(2 * first, rel=0.01)


def recordings(folder, count, damaged):
    """Files of two leads without a word on what they are, some of them no recordings at all."""
    records = []
    for k in range(count):
        np.save(folder / f"{k}.npy", 0.5 * np.sin(np.arange(1200) / (5 + k)).reshape(2, 600))
        if k in damaged:
            (folder / f"{k}.npy").write_bytes(b"no recording")
        stated = {"sampling_rate": 100, "leads": ["I", "II"], "units": "mV"}
        records.append(EcgRecord(str(k), str(folder / f"{k}.npy"), ("AF",), ("train", "validation")[k % 2], stated))
    return EcgCollection(("AF",), tuple(records))


def test_few_unreadable_recordings_are_left_out_and_listed(tmp_path, caplog):
    reader = EcgMambaFeatureExtractor(leads=("I", "II"))
    collection = recordings(tmp_path, 202, {7, 100})
    splits = load_splits(collection, reader, cache_dir=str(tmp_path / "cache"), on_error="list")
    kept = {
        split: [str(k) for k in range(202) if k % 2 == place and k not in (7, 100)]
        for place, split in enumerate(splits)
    }
    assert {split: list(rows["record"]) for split, rows in splits.items()} == kept
    assert "error" not in splits["train"].column_names and splits["train"][0]["num_samples"] == 600
    with pytest.raises(ValueError, match=r"recording '100': .*not a numpy file"):
        load_splits(collection, reader, cache_dir=str(tmp_path / "cache"))


def test_many_unreadable_recordings_stop_the_training(tmp_path):
    reader = EcgMambaFeatureExtractor(leads=("I", "II"))
    with pytest.raises(
        ValueError, match=r"1 of 20 recordings cannot be read, the first: validation 3: 3\.npy.*less than 1%"
    ):
        load_splits(recordings(tmp_path, 20, {3}), reader, cache_dir=str(tmp_path / "cache"), on_error="list")
