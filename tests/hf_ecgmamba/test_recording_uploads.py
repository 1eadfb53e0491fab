"""What strangers send: it leads to no other file, and costs no more than its limits."""

import io
import os
import shutil
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import wfdb

from hf_ecgmamba import open_recording
from hf_ecgmamba import recording_uploads as uploads

CANARY = np.tile(np.array([111, 222, 333, 444], "<i2"), 2000)  # what no answer may show


@pytest.fixture
def canary(tmp_path):
    """A file of the server's own, beside the folder of uploads."""
    (tmp_path / "server").mkdir()
    path = tmp_path / "server" / "canary.dat"
    path.write_bytes(CANARY.tobytes())
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "upload").mkdir()
    return tmp_path / "upload"


def write_wfdb(folder, name="record", file_name="record.dat", fmt="16"):
    signal = np.random.default_rng(0).normal(size=(1000, 2)) * 0.3
    wfdb.wrsamp(
        name, fs=100, units=["mV", "mV"], sig_name=["I", "II"], p_signal=signal, fmt=[fmt] * 2, write_dir=str(folder),
    )  # fmt: skip
    header = folder / f"{name}.hea"
    header.write_text(header.read_text().replace(f"{name}.dat", file_name))
    return header


@pytest.mark.parametrize("fmt", ["16", "80"])  # by our own reading, and by wfdb
@pytest.mark.parametrize("way", ["absolute", "above", "deep", "backslash", "link"])
def test_a_header_leads_to_no_file_elsewhere(folder, canary, way, fmt):
    names = {
        "absolute": str(canary), "above": "../server/canary.dat", "deep": f"x/../../server/{canary.name}",
        "backslash": "..\\server\\canary.dat", "link": "linked.dat",
    }  # fmt: skip
    header = write_wfdb(folder, file_name=names[way], fmt=fmt)
    (folder / "linked.dat").symlink_to(canary)
    with pytest.raises(ValueError, match="expected a file"):
        open_recording(header, trusted=False)
    if way in ("absolute", "above", "link") and fmt == "16":
        assert open_recording(header).read().signal.size  # one's own header may


def test_segments_lead_to_no_file_elsewhere(folder, canary):
    write_wfdb(folder, "part", file_name=str(canary))
    (folder / "whole.hea").write_text("whole/2 2 100 2000\npart 1000\npart 1000\n")
    with pytest.raises(ValueError, match="by its name"):
        open_recording(folder / "whole.hea", trusted=False)
    (folder / "other.hea").write_text(f"other/1 2 100 1000\n{canary.with_suffix('')} 1000\n")
    with pytest.raises(ValueError, match="by its name"):
        open_recording(folder / "other.hea", trusted=False)
    (folder / "circle.hea").write_text("circle/1 2 100 1000\ncircle2 1000\n")
    (folder / "circle2.hea").write_text("circle2/1 2 100 1000\ncircle 1000\n")
    with pytest.raises(ValueError, match="has segments itself"):
        open_recording(folder / "circle.hea", trusted=False)


@pytest.mark.parametrize("way", ["external storage", "virtual", "external link", "soft link"])
def test_hdf5_leads_to_no_other_file(folder, canary, way):
    with h5py.File(canary.with_suffix(".h5"), "w") as server:
        server["secret"] = CANARY.reshape(2, -1).astype(float)
    path = folder / "upload.h5"
    with h5py.File(path, "w") as file:
        file.attrs["sampling_rate"] = 100.0
        if way == "external storage":
            file.create_dataset("ecg", (2, 4000), "<i2", external=[(str(canary), 0, CANARY.nbytes)])
        elif way == "virtual":
            layout = h5py.VirtualLayout((2, 4000), float)
            layout[:] = h5py.VirtualSource(str(canary.with_suffix(".h5")), "secret", (2, 4000))
            file.create_virtual_dataset("ecg", layout)
        else:
            file["data"] = np.zeros((2, 4000))
            file["ecg"] = h5py.SoftLink("/data") if way == "soft link" else h5py.ExternalLink(
                str(canary.with_suffix(".h5")), "secret")  # fmt: skip
    for name in ("upload.h5", "upload.mat", "upload.txt"):  # whatever it is called
        if name != path.name:
            shutil.copy(path, folder / name)
        with pytest.raises(ValueError, match=r"other files|is a link"):
            open_recording(folder / name, leads=["I", "II"], trusted=False)


def test_links_are_no_files(folder, canary):
    (folder / "a.csv").symlink_to(canary)
    with pytest.raises(ValueError, match="is a link"):
        open_recording(folder / "a.csv", trusted=False)


def zipped(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return content.getvalue()


def test_archives_give_their_files_and_no_traversal(folder, canary):
    header = write_wfdb(folder)
    expected = open_recording(header).read()
    files = {f"../../etc/{name}": (folder / name).read_bytes() for name in ("record.hea", "record.dat")}
    came = open_recording(zipped(**files), trusted=False)
    assert came.leads == ("I", "II") and np.array_equal(came.read().signal, expected.signal)
    assert not (folder.parent / "etc").exists()
    place = came.folder.name
    assert os.path.isdir(place)
    del came
    assert not os.path.isdir(place)  # nothing is kept
    with pytest.raises(ValueError, match="hold 0 recordings"):
        open_recording(zipped(**{"a.exe": b"1"}), trusted=False)
    with pytest.raises(ValueError, match="2 WFDB records"):
        open_recording(zipped(**{"a.hea": b"a 0 1", "b.hea": b"b 0 1"}), trusted=False)
    with pytest.raises(ValueError, match="there twice"):
        open_recording(zipped(**{"a.csv": b"1", "x/a.csv": b"1"}), trusted=False)
    with pytest.raises(ValueError, match="damaged"):
        open_recording(zipped(**{"a.csv": b"1" * 1000})[:-30], trusted=False)


def test_contents_are_known_by_their_beginning(folder):
    signal = np.random.default_rng(0).normal(size=(2, 1000)) * 0.3
    stated = {"leads": ["I", "II"]}
    np.save(folder / "a.npy", signal)
    np.savez(folder / "a.npz", signal=signal, sampling_rate=100)
    np.savetxt(folder / "a.csv", signal.T, delimiter=",")
    with h5py.File(folder / "a.h5", "w") as file:
        file["ecg"] = signal
    scipy.io.savemat(folder / "a.mat", {"feats": signal, "curr_sample_rate": 100.0}, do_compression=True)
    for path in sorted(folder.iterdir()):
        rate = None if path.suffix in (".npz", ".mat") else 100
        came = open_recording(path.read_bytes(), sampling_rate=rate, **stated, trusted=False)
        assert np.allclose(came.read().signal, signal, atol=1e-6), path
    for junk in (b"", b"hello", b"\0" * 100, b"PK\x03\x04", b"MATLAB 5.0" + bytes(300), os.urandom(500)):
        with pytest.raises(ValueError):
            open_recording(junk, sampling_rate=100, trusted=False)


@pytest.mark.parametrize("rate", [1e-4, 5e-324, 9.9, 100_001.0, 1e300])
def test_rates_that_no_ecg_has(rate):
    with pytest.raises(ValueError, match=r"sampling rate is .* expected 10 to 100000 Hz"):
        open_recording({"array": np.zeros((2, 50)), "sampling_rate": rate, "leads": ["I", "II"]}, trusted=False)


def test_a_rate_so_low_that_time_ends_is_refused_of_anyone():
    with pytest.raises(ValueError, match=r"sampling rate of 4\.94066e-324 Hz"):
        open_recording({"array": np.zeros((2, 50)), "sampling_rate": 5e-324, "leads": ["I", "II"]})


def test_too_much_is_refused_before_anything_is_allocated(folder, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 2**23)
    np.savez_compressed(folder / "bomb.npz", signal=np.zeros((2, 2**20)), sampling_rate=100)
    scipy.io.savemat(
        folder / "bomb.mat", {"feats": np.zeros((2, 2**20)), "curr_sample_rate": 100.0}, do_compression=True
    )
    with h5py.File(folder / "bomb.h5", "w") as file:
        file.create_dataset("ecg", (2, 2**40), "i1", compression="gzip")
    np.lib.format.open_memmap(folder / "long.npy", mode="w+", dtype="i1", shape=(1, 8_000_000)).flush()
    (folder / "wide.csv").write_text(",".join(["1"] * 1000) + "\n")
    (folder / "endless.csv").write_text("1," * 50_000)
    tracemalloc.start()
    monkeypatch.setattr(uploads, "MOST_VALUES", 2**22)
    for path in sorted(folder.iterdir()):
        with pytest.raises(ValueError, match=r"expected at most|unpacks to more|a line of more|hours long"):
            open_recording(path, sampling_rate=None if path.suffix in (".npz", ".mat") else 500, trusted=False)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        open_recording(zipped(**{"a.csv": b"1\n" * 5000}), trusted=False)
    with pytest.raises(ValueError, match="expected at most 1,000"):
        open_recording(b"1\n" * 5000, trusted=False)


def test_pickles_are_refused_in_our_own_words(folder):
    np.save(folder / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(folder / "a.npz", signal=np.array([{}], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match="holds Python objects") as caught:
            open_recording(folder / name, trusted=False)
        assert "allow_pickle" not in str(caught.value)


# -- XML and DICOM of strangers ---------------------------------------------------------------------------------------


def aecg(shared_data):
    pytest.importorskip("ecgdatakit", reason="the extra `clinical` is not installed")
    return (shared_data / "ecg" / "clinical" / "aecg_fda_subject1_0.xml").read_text()


def test_xml_of_a_stranger_is_read_whatever_its_lines(shared_data):
    text = aecg(shared_data)
    expected = open_recording(text.encode()).read().signal
    for content in (text.encode(), text.replace("\n", " ").encode(), text.replace("UTF-8", "UTF-16").encode("utf-16")):
        np.testing.assert_array_equal(open_recording(content, trusted=False).read().signal, expected)


@pytest.mark.parametrize(
    ("declaration", "entity", "message"),
    [
        (
            "".join(f'<!ENTITY e{k + 1} "{f"&e{k};" * 10}">' for k in range(9)) + '<!ENTITY e0 "lol">',
            "&e9;",
            "EntitiesForb",
        ),
        ('<!ENTITY e SYSTEM "file:///etc/hostname">', "&e;", "EntitiesForbidden"),
        ('<!ENTITY % e SYSTEM "http://127.0.0.1:9/e.dtd"> %e;', "", "EntitiesForbidden"),
    ],
    ids=["expanding", "external", "parameter"],
)
def test_entities_are_refused(shared_data, declaration, entity, message):
    text = f"<!DOCTYPE AnnotatedECG [{declaration}]>" + aecg(shared_data).replace("<id ", f"{entity}<id ", 1)
    with pytest.raises(ValueError, match=message) as refusal:
        open_recording(text.encode(), trusted=False)
    assert "\n" not in str(refusal.value)


def test_xml_of_countless_elements_is_refused_before_it_is_parsed():
    pytest.importorskip("ecgdatakit", reason="the extra `clinical` is not installed")
    for content in (b"<a/>" * 200_000, b"<a>" * 150_000 + b"</a>" * 150_000):
        with pytest.raises(ValueError, match=r"has [\d,]+ elements; expected at most 100,000"):
            open_recording(b"<?xml version='1.0'?><AnnotatedECG>" + content + b"</AnnotatedECG>", trusted=False)


def dicom(shared_data, change=None, deflated=False):
    """The bytes of pydicom's ECG, changed."""
    pydicom = pytest.importorskip("pydicom", reason="the extra `clinical` is not installed")
    dataset, file = pydicom.dcmread(shared_data / "ecg" / "clinical" / "pydicom_waveform_ecg.dcm"), io.BytesIO()
    if change is not None:
        change(dataset)
    if deflated:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(file)
    return file.getvalue()


def test_deflated_dicom_is_read_and_a_bomb_refused(shared_data):
    expected = open_recording(dicom(shared_data)).read().signal
    content = dicom(shared_data, deflated=True)
    np.testing.assert_array_equal(open_recording(content, trusted=False).read().signal, expected)
    bomb = dicom(shared_data, lambda dataset: dataset.add_new(0x00420011, "OB", bytes(150_000_000)), deflated=True)
    assert len(bomb) < 1e6
    with pytest.raises(ValueError, match="unpacks to more than 134,217,728 bytes"):
        open_recording(bomb, trusted=False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NumberOfWaveformSamples", 2**31, "cannot reshape"),
        ("NumberOfWaveformChannels", 60_000, "cannot reshape"),
        ("MultiplexGroupTimeOffset", 1e14, "its groups of channels begin"),
        ("MultiplexGroupTimeOffset", -5000, "its groups of channels begin"),
        ("SamplingFrequency", 1e-9, "sampling rate is 1e-09 Hz"),
        ("SamplingFrequency", 1e9, "sampling rate is 1e\\+09 Hz"),
    ],
)
def test_what_dicom_says_of_its_size_is_checked(shared_data, name, value, message):
    with pytest.raises(ValueError, match=message) as refusal:
        open_recording(
            dicom(shared_data, lambda dataset: setattr(dataset.WaveformSequence[0], name, value)), trusted=False
        )
    assert "\n" not in str(refusal.value)
