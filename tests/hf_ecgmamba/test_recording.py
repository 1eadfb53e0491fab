"""Which family of formats a file belongs to; or one line that says what is wrong."""

import sys

import pytest

from hf_ecgmamba.recording import open_recording


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.edf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyedflib", None)
    with pytest.raises(ImportError, match="cannot be read without pyedflib: pip install pyedflib"):
        open_recording(tmp_path / "a.edf")


def test_missing_files(tmp_path):
    for path in ("nowhere.csv", "nowhere", "nowhere.hea"):
        with pytest.raises(FileNotFoundError, match=f"{path}: no such file"):
            open_recording(tmp_path / path)
    with pytest.raises(OSError, match="is a folder; give one file"):
        open_recording(tmp_path)


def test_damaged_files_give_one_line(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04, and no more")
    (tmp_path / "still.hea").write_text("still 1 0 1000\nstill.dat 16 1000/mV 16 0 0 0 0 II\n")
    (tmp_path / "still.dat").write_bytes(bytes(2000))
    for name, message in (
        ("cut.npz", "cut.npz is damaged"),
        ("still.hea", "still: the header states a sampling rate"),
    ):
        with pytest.raises(ValueError, match=message):
            open_recording(tmp_path / name)
